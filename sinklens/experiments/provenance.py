"""What a saved result says about where its numbers come from."""

import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.source import source_of
from sinklens.models.tokens import TokenBatch


def provenance(model: TransformerBridge, batch: TokenBatch) -> dict[str, Any]:
    """Versions, time, model and tokens of a run, for the header of its result; only what JSON can hold."""
    source, parameter = source_of(model), next(model.parameters())
    firsts = {row[0] for row in batch.tokens}
    return {
        "sinklens_version": _version("sinklens"),
        "versions": {name: _version(name) for name in ("torch", "transformers", "transformer_lens")},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {
            "name": str(getattr(model.cfg, "model_name", "bridge")) if source is None else source.name,
            "architecture": model.cfg.architecture,
            "n_layers": len(model.blocks),
            "n_heads": model.cfg.n_heads,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": str(parameter.device),
        },
        "tokens": {
            "n_sequences": len(batch),
            "n_tokens": int(batch.lengths.sum()),
            "min_length": int(batch.lengths.min()) if len(batch) else 0,
            "max_length": int(batch.lengths.max()) if len(batch) else 0,
            "bos": {
                "position0": next(iter(firsts)) if len(firsts) == 1 else None,
                "id": batch.bos_id,
                "added_by": batch.bos_added_by,
                "statement": batch.statement,
            },
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
