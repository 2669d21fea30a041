"""The header of a result: what it says about where its numbers come from, only what JSON can hold."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention.plan import AttentionPlan
from sinklens.models.architecture import context_length
from sinklens.models.parts import parameters_of
from sinklens.models.source import ModelSource, source_of
from sinklens.models.tokens import TokenBatch


def header(
    model: TransformerBridge,
    batch: TokenBatch | None = None,
    source: str | None = None,
    *,
    tokens: Mapping[str, Any] | None = None,
    plan: AttentionPlan | None = None,
    **entries: Any,
) -> dict[str, Any]:
    """The header of a result: versions, time, model and tokens of a run, and what the run itself has to say.

    Args:
        model: The bridge.
        batch: Its tokens.
        source: Where the texts come from, in words.
        tokens: More about the tokens, or other words than those of ``batch``.
        plan: How the attention of each layer is measured, where that is to be told.
        entries: Everything else, such as ``settings``, ``metrics`` and ``warnings``.
    """
    found = made_with() | {"model": model_facts(model) | (attention_facts(plan) if plan is not None else {})}
    if batch is not None:
        found["tokens"] = token_facts(batch, source) | dict(tokens or {})
    return found | entries


def made_with() -> dict[str, Any]:
    """Versions and time."""
    versions = package_versions()
    return {
        "sinklens_version": versions.pop("sinklens"),
        "versions": versions,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide about numbers."""
    found = {}
    for name in ("sinklens", "torch", "transformers", "transformer_lens"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def model_facts(model: TransformerBridge) -> dict[str, Any]:
    """Name, place, sizes and precision."""
    cfg, source = model.cfg, source_of(model)
    parameter = next(model.parameters())
    return {
        "name": _display_name(source) if source else str(getattr(cfg, "model_name", "bridge")),
        "path": None if source is None or not source.path else "built in" if source.builtin else source.name,
        "origin": "a TransformerBridge of the caller's" if source is None else source.origin,
        "architecture": cfg.architecture,
        "n_layers": len(model.blocks),
        "n_heads": cfg.n_heads,
        "n_kv_heads": getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_vocab": cfg.d_vocab,
        "n_ctx": context_length(model),
        "n_params": sum(p.numel() for p in parameters_of(model.original_model)),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "dequantised_from": None if source is None else source.quantisation,
        "device": str(parameter.device),
    }


def attention_facts(plan: AttentionPlan) -> dict[str, Any]:
    """How each layer's attention is measured, and why so."""
    return {
        "attention_reason": plan.reason,
        "attention_kernel": plan.kernel,
        "attention_kernel_reason": plan.kernel_reason,
        "attention": [
            {"layer": p.layer, "path": p.path, "window": p.window, "learned_sink": p.learned_sink} for p in plan.layers
        ],
    }


def _display_name(source: ModelSource) -> str:
    """Last part of a path, or the name that was asked for."""
    return Path(source.name).name if Path(source.name).expanduser().exists() else source.name


def token_facts(batch: TokenBatch, source: str | None = None, skipped: Sequence[str] = ()) -> dict[str, Any]:
    """Number, lengths and source of the sequences, and where the BOS comes from."""
    firsts = {row[0] for row in batch.tokens}
    return {
        "n_sequences": len(batch),
        "n_tokens": int(batch.lengths.sum()),
        "max_length": int(batch.lengths.max()) if len(batch) else 0,
        "min_length": int(batch.lengths.min()) if len(batch) else 0,
        "source": source,
        "skipped": list(skipped),
        "dropped": batch.dropped,
        "unused": asdict(batch.unused),
        "bos": {
            "position0": next(iter(firsts)) if len(firsts) == 1 else None,
            "id": batch.bos_id,
            "added_by": batch.bos_added_by,
            "statement": batch.statement,
        },
    }
