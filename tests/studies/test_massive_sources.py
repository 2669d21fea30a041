"""Massive activations to their source: a planted super weight, none, and the split against plain formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

from sinklens import open as open_result
from sinklens.cli.program import app
from sinklens.errors import InputError
from sinklens.interventions import Intervention, ZeroWeights
from sinklens.models.tokens import as_batch
from sinklens.passes.massive_sources import Entry, massive_sources
from sinklens.studies import MassiveSources, trace_massive
from tests import families
from tests.passes.planted_sink import planted_sink, planted_super_weight, sink_ids
from tests.real_models import real_model

NAME = "model.layers.0.mlp.down_proj.weight[11, 3]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def traced() -> MassiveSources:
    return trace_massive(planted_super_weight(), tokens=sink_ids(6), controls=2)


def test_the_planted_weight_is_named_and_taken_away(traced: MassiveSources) -> None:
    top = traced.sources.iloc[0]
    assert len(traced.sources) == 1 and (top["channel"], top["writer"], top["weight"]) == (11, "MLP 0", NAME)
    assert (top["appears"], top["leaves_after"], top["n_tokens"], top["n_sequences"]) == (0, 1, 6, 6)
    assert top["weight_of_writer"] == pytest.approx(1, abs=0.01) and top["gap"] < 1e-3
    assert top["weight_share"] == pytest.approx(top["weight_value"] * top["activation"], rel=1e-5)
    assert traced.writers["share"].sum() == pytest.approx(top["value"], rel=1e-6)
    effects = traced.effects.set_index("kind")
    assert effects.loc["named", "peak_kept"] < 0.01 and abs(effects.loc["named", "delta_loss"]) > 1e-3
    assert effects.loc[["random", "large"], "peak_kept"].min() > 0.9
    assert f"{NAME} = " in traced.verdict[0] and "makes 100 %" in traced.verdict[0]
    assert traced.verdict[1].startswith(f"Without {NAME} the value keeps 0 %")
    others = traced.effects[traced.effects["kind"] != "named"]
    assert f"{len(others)} controls" in traced.verdict[1]
    assert f"by at most {others['delta_loss'].abs().max():.3f}" in traced.verdict[1]


def test_without_a_plant_there_is_nothing_to_trace(tmp_path: Path) -> None:
    nothing = trace_massive(planted_sink(strength=0), tokens=sink_ids(3))
    assert nothing.sources.empty and nothing.verdict == ["There is no massive activation to trace."]
    assert "No channel is massive" in nothing.meta["warnings"][0]
    nothing.save(tmp_path / "none")
    assert open_result(tmp_path / "none").verdict == nothing.verdict  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot both"):
        trace_massive(planted_sink(), tokens=sink_ids(2), absolute=0, ratio=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bloom"])
@torch.no_grad()
def test_writers_and_neurons_are_what_plain_formulas_give(name: str, cache: str) -> None:
    model = families.boot(name, cache)
    ids = families.random_ids(2, 9)
    last = len(model.blocks) - 1
    (found,) = massive_sources(model, as_batch(model, ids), [Entry(5, last, ((1, 4), (0, 0)))])
    hf = families.boot_hf(name, cache)
    keep: dict[str, torch.Tensor] = {}
    layers = hf.model.layers if hasattr(hf, "model") else hf.transformer.h
    hooks = []
    for at, block in enumerate(layers):
        down = getattr(block.mlp, "down_proj", None) or getattr(block.mlp, "c_proj", None)
        if down is not None:
            hooks.append(down.register_forward_pre_hook(lambda _, a, at=at: keep.update({f"a{at}": a[0]})))
    states = hf(ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    embedded = states[0]
    assert found.gap < 1e-5
    assert found.writers["embedding"] == pytest.approx([float(embedded[1, 4, 5]), float(embedded[0, 0, 5])], abs=1e-5)
    heads = sum(v for k, v in found.writers.items() if k.startswith(f"L{last}H") or k == f"attention {last} bias")
    if name == "llama":
        block = layers[last]
        halfway = states[last] + block.self_attn.o_proj(_z(hf, block, ids))
        assert heads == pytest.approx((halfway - states[last])[[1, 0], [4, 0], 5].numpy(), abs=1e-4)
        products = (keep[f"a{last}"] * block.mlp.down_proj.weight[5])[[1, 0], [4, 0]]
        assert found.neurons[last] == pytest.approx(products.mean(0).numpy(), abs=1e-5)
        assert found.writers[f"MLP {last}"] == pytest.approx(products.sum(1).numpy(), abs=1e-4)
    if name == "gpt2":
        products = (keep["a0"] * layers[0].mlp.c_proj.weight[:, 5])[[1, 0], [4, 0]]
        assert found.neurons[0] == pytest.approx(products.mean(0).numpy(), abs=1e-5)
        assert found.weight(0, 5, 7) == ("transformer.h.0.mlp.c_proj.weight", (7, 5))
    assert np.isfinite(heads).all() and np.abs(heads).max() < 100  # Bloom's attention output holds the stream: left out


def _z(hf: torch.nn.Module, block: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = block.self_attn.o_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))  # type: ignore[union-attr]
    hf(ids)
    handle.remove()
    return kept[0]


@torch.no_grad()
def test_zeroed_weights_come_back_to_the_bit(cache: str) -> None:
    model: TransformerBridge = families.boot("mixtral", cache)
    ids = families.random_ids(1, 8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    clean = model(ids)
    row, expert = "model.layers.0.self_attn.q_proj.weight[3]", "model.layers.1.mlp.experts.down_proj[2]"
    change = ZeroWeights([row, expert, "model.embed_tokens.weight[5, 7]"])
    assert Intervention.from_json(change.to_json()) == change
    with pytest.raises(RuntimeError), change(model):
        assert not torch.equal(model(ids), clean)
        assert float(dict(model.named_parameters())[_own(model, expert)][2].abs().max()) == 0
        raise RuntimeError
    assert torch.equal(model(ids), clean)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for wrong in ("model.layers.9.mlp.x[1]", "model.embed_tokens.weight[999999]", "model.embed_tokens.weight[1, 2, 3]"):
        with pytest.raises(InputError):
            ZeroWeights([wrong]).check(model)
    for unreadable in ([], ["weight"], [("a", (-1,))], 3, "a[x]"):
        with pytest.raises(InputError):
            ZeroWeights(unreadable)  # type: ignore[arg-type]


def _own(model: TransformerBridge, name: str) -> str:
    bare = name.split("[")[0]
    return next(n for n, _ in model.named_parameters() if n.replace("_original_component.", "").endswith(bare))


def test_the_command_traces(tmp_path: Path) -> None:
    args = ["why", "tiny-llama", "--massive", "--max-sequences", "4", "--controls", "1", "--out", str(tmp_path / "m")]
    ran = CliRunner().invoke(app, args)
    assert ran.exit_code == 0, ran.output
    assert isinstance(open_result(tmp_path / "m"), MassiveSources)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2s_massive_activations_come_from_two_mlps() -> None:
    found = trace_massive(real_model("smollm2"), max_sequences=8, effects=False).sources
    assert set(found["channel"]) >= {507} and (found["gap"] < 1).all()
    assert found.iloc[0]["writer"].startswith("MLP ")
