"""Measured figures of the claims against plain transformers in eager attention: our formulas, no sinklens code."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sinklens import load
from sinklens.models.real import REAL_MODELS, real_model_path
from tests.plain_oracle import plain_model
from tests.real_models import real_model, why_missing

ROOT = Path(__file__).parents[2]
FEW = 5
COUNTS = ("sink-at-first-token", "fewer-strong-sinks-in-small-models", "sinks-at-later-tokens")
"""Shares of what passes a threshold: rounding may turn one of them."""


@pytest.fixture(
    scope="module",
    params=[
        "tiny-llama",
        pytest.param("smollm2", marks=[pytest.mark.real, pytest.mark.slow]),
        pytest.param("gemma3", marks=[pytest.mark.real, pytest.mark.slow]),
    ],
)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """The study's view of a model with a few texts, and the same model in plain transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "probes"))
        subject = importlib.import_module("published.subject")
        importlib.import_module("published.study")
        name = request.param
        reason = why_missing(name) if name in REAL_MODELS else None
        if reason is not None:
            pytest.skip(reason)
        sizes = subject.Sizes(texts=6, effect_texts=FEW, long_texts=5, long_tokens=96, prompts=8, first_tokens=8)
        if name in REAL_MODELS:
            plain, _ = plain_model(real_model_path(name))
            model = real_model(name)
        else:
            path, eager = ROOT / "data" / "models" / name, {"attn_implementation": "eager", "dtype": torch.float32}
            plain, model = AutoModelForCausalLM.from_pretrained(path, **eager).eval(), load(name)
        yield subject.Subject(name, model, sizes), plain


@torch.no_grad()
def test_figures_equal_plain_transformers(pair: tuple[Any, Any]) -> None:
    subject, plain = pair
    claims = importlib.import_module("published.study").CLAIMS
    expected = _oracle(plain, subject.texts.ids)
    ids = subject.long_texts.ids
    w, half = ids.shape[1] // 4, ids.shape[1] // 2
    windows = [float(_loss(plain, ids, _window(ids, w, sinks))[:, half:].mean()) for sinks in (0, 4)]
    expected["window-without-sinks-collapses", "rise"] = windows[0] - windows[1]
    if subject.opened:
        few = subject.few_texts.ids
        bare = _loss(plain, few[:, 1:])[:, 1:].mean() - _loss(plain, few)[:, 2:].mean()
        expected["bos-is-needed-where-it-was-always-there", "rise"] = float(bare)
    for (key, figure), value in expected.items():
        got = claims[key].measure(subject)[figure].value
        assert got == pytest.approx(value, rel=2e-3, abs=0.01 if key in COUNTS else 2e-4), (key, figure)
    assert len(expected) >= 13


def _oracle(plain: Any, ids: Tensor) -> dict[tuple[str, str], float]:
    """A dozen figures of natural texts, text by text in the plainest code."""
    found: dict[str, list[float]] = {}
    for row in ids:
        states, values = _states_and_values(plain, row)
        maps = torch.stack(plain(row[None], output_attentions=True).attentions)[:, 0]
        length = len(row)
        seen = length - torch.arange(length)
        importance = maps.sum(2) / seen
        others = importance[..., 1:-10] > 0.3
        drains = values[:, :, 0] / values[:, :, 1:].mean(-1)
        entropy = torch.stack([_entropy(layer) for layer in states])
        norms = states.norm(dim=-1)
        magnitude = states.abs()
        median = magnitude.flatten(1).median(1).values
        for name, value in {
            "rate": (importance[..., 0] > 0.3).double().mean(),
            "strong": (importance[..., 0] > 0.8).double().mean(),
            "mass": importance[..., 0].mean(),
            "later": (others.double().mean((0, 1)) >= 0.05).any().double(),
            "peak": (norms[:, 0] / norms[:, 1:].mean(1)).max(),
            "ratio": (magnitude.flatten(1).amax(1) / median)[1:].max(),
            "largest": magnitude[1:].max(),
            "entropy": entropy[1:].min(),
            "cosine": torch.cosine_similarity(states, states[:, :1], dim=-1).min(),
            "r": torch.corrcoef(torch.stack([norms[:, 0].diff(), entropy.float().diff()]))[0, 1],
        }.items():
            found.setdefault(name, []).append(float(value))
        found.setdefault("drains", []).append(drains)  # type: ignore[arg-type]
        found.setdefault("sinks", []).append(importance[..., 0] > 0.3)  # type: ignore[arg-type]
    heads = torch.stack(found.pop("sinks")).double().mean(0) >= 0.5  # type: ignore[arg-type]
    drained = torch.stack(found.pop("drains"))[:, heads].mean()  # type: ignore[arg-type]
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    return {
        ("sink-at-first-token", "rate"): mean["rate"],
        ("fewer-strong-sinks-in-small-models", "rate"): mean["strong"],
        ("mean-attention-to-first-token", "mass"): mean["mass"],
        ("sinks-at-later-tokens", "texts"): mean["later"],
        ("residual-peak", "ratio"): mean["peak"],
        ("massive-activations-exist", "ratio"): mean["ratio"],
        ("largest-activation", "largest"): mean["largest"],
        ("compression-valley", "entropy"): mean["entropy"],
        ("repeated-tokens-share-one-state", "natural"): mean["cosine"],
        ("bos-norm-and-entropy", "r"): mean["r"],
        ("value-drain", "ratio"): float(drained),
        ("sink-key-is-small", "ratio"): _key_ratio(plain, ids[:FEW], heads),
    }


def _key_ratio(plain: Any, ids: Tensor, heads: Tensor) -> float:
    """Norm of the cached key 0 over the others' mean, over sink heads."""
    group, ratios = plain.config.num_attention_heads // plain.config.num_key_value_heads, []
    for row in ids:
        cache = plain(row[None], use_cache=True).past_key_values
        norms = torch.stack([layer.keys[0].norm(dim=-1) for layer in cache.layers]).repeat_interleave(group, 1)
        ratios.append((norms[..., 0] / norms[..., 1:].mean(-1))[heads].mean())
    return float(torch.stack(ratios).mean())


def _states_and_values(plain: Any, row: Tensor) -> tuple[Tensor, Tensor]:
    """States before the first and after every block ``[layer pos d]``, and ``|W_O v|`` ``[layer head pos]``."""
    states: list[Tensor] = []
    values: list[Tensor] = []
    hooks = [plain.model.layers[0].register_forward_pre_hook(lambda module, args: states.append(args[0][0]))]
    for layer in plain.model.layers:
        hooks.append(layer.register_forward_hook(lambda module, args, out: states.append(_first(out)[0])))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(lambda module, args, out: values.append(out[0])))
    plain(row[None])
    for hook in hooks:
        hook.remove()
    config, norms = plain.config, []
    for layer, value in zip(plain.model.layers, values, strict=True):
        own = value.view(len(row), config.num_key_value_heads, config.head_dim)
        own = own.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 1)
        write = layer.self_attn.o_proj.weight.view(-1, config.num_attention_heads, config.head_dim)
        norms.append(torch.einsum("phd,mhd->hpm", own, write).norm(dim=-1))
    return torch.stack(states), torch.stack(norms)


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _entropy(rows: Tensor) -> Tensor:
    share = torch.linalg.svdvals(rows.double()) ** 2
    share = share / share.sum()
    return -(share * share.clamp(min=1e-300).log()).sum()


def _loss(plain: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Loss of predicting each next token, ``[text pos - 1]``."""
    rows = []
    for row in ids:
        given: Any = None if mask is None else mask[None, None]
        if mask is not None and plain.config.model_type.startswith("gemma"):
            given = {"full_attention": given, "sliding_attention": given}
        logits = plain(row[None], attention_mask=given).logits[0, :-1]
        rows.append(torch.nn.functional.cross_entropy(logits, row[1:], reduction="none"))
    return torch.stack(rows)


def _window(ids: Tensor, window: int, sinks: int) -> Tensor:
    """Additive mask: the last ``window`` keys and the first ``sinks``."""
    query, key = torch.arange(ids.shape[1])[:, None], torch.arange(ids.shape[1])[None]
    seen = (key <= query) & ((query - key < window) | (key < sinks))
    return torch.where(seen, 0.0, -math.inf)
