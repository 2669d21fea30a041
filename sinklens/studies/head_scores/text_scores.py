"""How every head attends on text: entropy, distance, the token before, delimiters, local or global."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors.delimiter import KINDS, DelimiterKind
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.local_global import SHARE, WINDOW
from sinklens.detectors.measure import Measurement
from sinklens.detectors.registry import choose_detectors
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions import Intervention
from sinklens.models.architecture import attention_layers
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.head_scores.scoring_pass import ScoringPass, run_passes

DETECTORS = ("attention_entropy", "local_global", "previous_token", "delimiter_mass", "value_weighted")
KEYS = ["layer", "head", "kv_head"]


@checked
@usual_torch()
def text_scores(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = None,
    seed: int = 0,
    source: str | None = None,
    delimiters: Sequence[DelimiterKind] = KINDS,
    sinks: Sequence[int] = (0,),
    window: int = WINDOW,
    share: float = SHARE,
    batch_size: int | None = None,
    intervention: Intervention | None = None,
    progress: Progress = SILENT,
) -> HeadScores:
    """Measure how every head spreads its attention over a text.

    ::

        found = text_scores("tiny-llama", "Once upon a time ...")
        print(found.to_dataframe()[["layer", "head", "distance_without_sink", "span_without_sink"]])

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: the built-in corpus that fits the model (100 sequences of 64 tokens).
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        tokenizer: For a Hugging Face model.
        bos: ``"auto"`` (as the checkpoint's tokenizer does), ``"yes"`` or ``"no"``; ids are taken as they are.
        max_tokens: Longest sequence; default: the model's context.
        split: Cut long texts into sequences of ``max_tokens``; False drops what is beyond.
        max_sequences: Draw at most this many sequences from all over the texts; default: 100, and all of given tokens.
        seed: Which sequences are drawn.
        source: What to call the texts in the provenance.
        delimiters: What counts as a delimiter: ``"punctuation"``, ``"newline"``, ``"special"``.
        sinks: Positions left out of ``distance_without_sink`` and counted in the shares of the sink.
        window: Tokens beyond which the windowed distance does not grow.
        share: Share of heads called local, and global.
        batch_size: Sequences per forward pass; default: what fits the memory.
        intervention: Measure the model under this change.
        progress: Told after every layer, in sequences times layers.

    Returns:
        Columns ``layer, head, kv_head``; ``entropy, normalised_entropy, distance, distance_without_sink,
        windowed_distance, previous_token, delimiter_mass, sink_share, value_weighted_sink_share``, each with ``_sd``
        and, where it is not a constant, ``_null`` (uniform attention); ``span`` and ``span_without_sink`` (``"local"``,
        ``"global"`` or ``""``); ``n_sequences``.
        Layers without attention have no rows.

    Raises:
        InputError: No usable text, or an unknown setting.
        UnsupportedArchitectureError: The model has no attention heads, or no exact way to measure them is known.

    Cost: one forward pass; memory O(tokens) for one layer at a time.
    """
    model = as_bridge(model, tokenizer=tokenizer)
    if not attention_layers(model):
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to score.")
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, split, seed, source, max_sequences, attention_mask
    )
    words: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed}
    planned = text_pass(model, batch, source, delimiters=delimiters, sinks=sinks, window=window, share=share, **words)
    (found,) = run_passes(model, [planned], batch_size=batch_size, intervention=intervention, progress=progress)
    written = None if intervention is None else json.loads(intervention.to_json())
    return replace(found, meta={**found.meta, "intervention": written})


def text_pass(
    model: TransformerBridge,
    batch: TokenBatch,
    source: str,
    *,
    delimiters: Sequence[DelimiterKind] = KINDS,
    sinks: Sequence[int] = (0,),
    window: int = WINDOW,
    share: float = SHARE,
    **words: Any,
) -> ScoringPass:
    """The pass of :func:`text_scores` over chosen sequences, to be run beside others.

    Args:
        model: The bridge.
        batch: The sequences.
        source: What they are called.
        delimiters: As for :func:`text_scores`, like ``sinks``, ``window`` and ``share``.
        sinks: Positions of the sink.
        window: Tokens beyond which the windowed distance does not grow.
        share: Share of heads called local, and global.
        words: How they were chosen, for the header.
    """
    settings = {"delimiters": list(delimiters), "sinks": list(sinks), "window": window, "share": share, **words}

    def score(found: Measurement) -> HeadScores:
        frame = found.tables["head_scores"]
        metrics = {name: metric for name, metric in found.metrics.items() if name in frame}
        labels = ["span", "span_without_sink"]
        frame["n_sequences"] = frame["entropy_n"]
        kept = [f"{name}{end}" for name in metrics for end in ("", "_null", "_sd") if f"{name}{end}" in frame]
        meta: dict[str, Any] = {
            **header(model, batch),
            "source": source,
            "dropped_tokens": batch.dropped,
            "settings": settings,
            "intervention": None,
            "warnings": [*found.verdict, *_warnings(batch, frame)],
        }
        return HeadScores(frame[[*KEYS, *kept, *labels, "n_sequences"]], metrics, meta)

    options: dict[str, Any] = {"kinds": delimiters, "sinks": sinks, "window": window, "share": share}
    return ScoringPass(batch, choose_detectors(DETECTORS, **options), score)


def _warnings(batch: TokenBatch, frame: Any) -> list[str]:
    notes = [batch.unused.sentence(len(batch))] if batch.unused else []
    if len(frame) and frame["delimiter_mass"].isna().all():
        notes.append("No sequence holds a delimiter after position 0: delimiter_mass is not applicable.")
    if int(batch.lengths.min()) < 2:
        notes.append("Sequences of one token have no token before and are left out of previous_token.")
    return notes
