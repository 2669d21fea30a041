"""What is known about where a bridge came from, kept beside the bridge and not inside it."""

import weakref
from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class ModelSource:
    """Provenance of a loaded model.

    Attributes:
        name: What the user asked for.
        path: Local directory or hub id that was read; empty for a model that was in memory already.
        builtin: Name of the built-in model, ``None`` for others.
        tokenizer_prepends_bos: Whether the checkpoint's own tokenizer, as shipped, puts a BOS first.
        bos_id: BOS id of that tokenizer, ``None`` when it has none (TransformerLens then calls EOS the BOS).
        quantisation: What the weights were dequantised from (``"Q4_K_M"`` of a GGUF file), ``None`` for weights that
            were stored as floats.
        origin: Who made the bridge out of what, in words.
        whose_tokenizer: Which tokenizer the facts about the BOS come from, in words.
    """

    name: str
    path: str
    builtin: str | None
    tokenizer_prepends_bos: bool
    bos_id: int | None
    quantisation: str | None = None
    origin: str = "loaded by sinklens"
    whose_tokenizer: str = "the checkpoint's own tokenizer"


_sources: "weakref.WeakKeyDictionary[TransformerBridge, ModelSource]" = weakref.WeakKeyDictionary()


def remember_source(model: TransformerBridge, source: ModelSource) -> None:
    """Attach provenance to a bridge for as long as it lives."""
    _sources[model] = source


def source_of(model: TransformerBridge) -> ModelSource | None:
    """Provenance of a bridge that sinklens made, ``None`` for one that the user booted."""
    return _sources.get(model)
