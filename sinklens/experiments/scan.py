"""The main job: all detectors on one pass over some texts, joined into a census."""

import datetime
import math
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionPlan, StatisticFactory, plan_for
from sinklens.capture import Consumer, MemoryPlan, capture, plan_memory, standard_statistics
from sinklens.detectors import (
    METRICS,
    AttentionSummaryDetector,
    MassiveActivationDetector,
    ResidualPeakDetector,
    SinkDetector,
    ValueDrainDetector,
)
from sinklens.detectors.sinks import EPS, EPS_SWEEP, MIN_QUERIES, MIN_SHARE, shortest_length, uniform_importance
from sinklens.errors import InputError
from sinklens.experiments.census import FORMAT_VERSION, AttentionMap, Census
from sinklens.experiments.corpus import builtin_corpus
from sinklens.experiments.joins import Example, TokenJoin
from sinklens.experiments.verdict import SINK_HEAD_RATE, SINK_HEAD_RATIO, describe
from sinklens.models.architecture import context_length
from sinklens.models.load import load
from sinklens.models.source import ModelSource, source_of
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize

DETECTORS = ("sinks", "value_drains", "massive_activations", "residual_peaks")


def scan(
    model: TransformerBridge | str,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Tensor | Sequence[Sequence[int]] | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = False,
    max_sequences: int | None = None,
    batch_size: int | None = None,
    detectors: Sequence[str] = DETECTORS,
    eps: float = EPS,
    maps: int = 6,
    seed: int = 0,
    source: str | None = None,
    on_plan: Callable[[MemoryPlan, int], None] | None = None,
    on_layer: Callable[[int], None] | None = None,
) -> Census:
    """Find attention sinks, value drains, residual peaks and massive activations in one pass.

    Args:
        model: A bridge, or a name or path for :func:`sinklens.load`. It is the same afterwards.
        texts: One or several texts, a sequence each; default: a built-in corpus that fits the model (100 sequences
            of 64 tokens).
        tokens: Instead of texts: a :class:`TokenBatch`, an id tensor ``[batch pos]`` or lists of ids.
        bos: ``"auto"`` (as the checkpoint's tokenizer does), ``"yes"`` or ``"no"``; ids are taken as they are.
        max_tokens: Longest sequence; default: the model's context.
        split: Cut long texts into sequences of ``max_tokens`` instead of dropping the rest.
        max_sequences: Use at most this many sequences, the first ones.
        batch_size: Sequences per forward pass; default: what fits the memory.
        detectors: Names among ``sinks``, ``value_drains``, ``massive_activations``, ``residual_peaks``.
        eps: Threshold of the sink rate.
        maps: For how many heads the example sequence's attention map is kept.
        seed: Which sequences of the built-in corpus are drawn.
        source: What to call the texts in the provenance.
        on_plan: Receives the memory plan and the number of layer records to come, before the run starts.
        on_layer: Called after each layer of each batch with the number of sequences in it.

    Returns:
        A :class:`Census`.

    Raises:
        InputError: No usable sequence (each needs at least as many tokens as make ``eps`` meaningful, 10 for 0.3),
            or an unknown detector.
        UnsupportedArchitectureError: No exact way to measure the model is known.

    Cost: one forward pass, its attention about twice as slow as fused attention; memory O(tokens) on the fast path.
    """
    unknown = [name for name in detectors if name not in DETECTORS]
    if unknown or not detectors:
        named = ", ".join(unknown) or "(none)"
        raise InputError(f"Unknown detectors {named}; expected some of {', '.join(DETECTORS)}.")
    started = time.perf_counter()
    model = load(model) if isinstance(model, str) else model
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        plan = plan_for(model)
    notes += [str(w.message) for w in caught if "sinklens" in str(w.filename) or "measured through" in str(w.message)]
    batch, source = _tokens(model, texts, tokens, bos, max_tokens, split, seed, source, max_sequences)
    batch, skipped = _usable(batch, eps)
    notes += _length_notes(batch, eps)
    memory = plan_memory(model, len(batch), batch.ids.shape[1], batch_size)
    if on_plan is not None:
        on_plan(memory, len(batch) * (len(model.blocks) + 1))

    wants = {name: name in detectors for name in DETECTORS}
    uses_attention = wants["sinks"] or wants["value_drains"]
    sinks = SinkDetector(eps, EPS_SWEEP, MIN_QUERIES)
    summary, drains = AttentionSummaryDetector(), ValueDrainDetector()
    massive, peaks = MassiveActivationDetector(), ResidualPeakDetector()
    join, example = TokenJoin(batch.lengths, eps, MIN_QUERIES), Example()
    consumers: list[Consumer] = [join, example]
    consumers += [sinks, summary] if wants["sinks"] else []
    consumers += [drains] if wants["value_drains"] else []
    consumers += [massive] if wants["massive_activations"] else []
    consumers += [peaks] if wants["residual_peaks"] else []

    def statistics(rows: TokenBatch, start: int) -> Sequence[StatisticFactory]:
        if not uses_attention:
            return []
        return standard_statistics(rows, maps=(0,) if start == 0 and maps > 0 else ())

    capture(model, batch, consumers, batch_size=memory.batch_size, statistics=statistics, on_layer=on_layer)

    tables: dict[str, pd.DataFrame] = {
        "tokens": join.table(batch.ids, batch.special, batch.bos, [list(row) for row in batch.tokens]),
        "profile": example.profile(),
    }
    layers = pd.DataFrame({"layer": range(-1, len(model.blocks))})
    layers["attention"] = ["embedding"] + [layer.path for layer in plan.layers]
    layers["window"] = pd.array([None] + [layer.window for layer in plan.layers], dtype="Int64")
    drain_table = drains.compute().to_dataframe() if wants["value_drains"] else pd.DataFrame()
    if wants["value_drains"]:
        tables["value_drains"] = drain_table
    if wants["sinks"]:
        found = sinks.compute()
        tables |= {"sinks": _or_empty(found.table, SINK_COLUMNS), "eps_sweep": _or_empty(found.sweep, SWEEP_COLUMNS)}
        tables["heads"] = _join_heads(found.table, found.strongest, summary.compute().to_dataframe(), drain_table)
        layers = layers.merge(_sinks_by_layer(tables["heads"]), on="layer", how="left")
    if wants["residual_peaks"]:
        result = peaks.compute()
        layers = layers.merge(result.table, on="layer", how="left")
        tables["residual_norms"] = result.by_position
    if wants["massive_activations"]:
        entries = massive.compute()
        layers = layers.merge(entries.layers, on="layer", how="left")
        tables |= {"massive": entries.table, "massive_lifetimes": entries.lifetimes}
    tables["layers"] = layers

    settings = {
        "detectors": list(detectors),
        "eps": eps,
        "eps_sweep": list(sinks.thresholds),
        "min_queries": MIN_QUERIES,
        "min_share": MIN_SHARE,
        "sink_head_rate": SINK_HEAD_RATE,
        "sink_head_ratio": SINK_HEAD_RATIO,
        "max_tokens": max_tokens,
        "batch_size": memory.batch_size,
        "seed": seed,
    }
    kept = _choose_maps(example, tables.get("heads"), batch, maps)
    meta = {
        "format_version": FORMAT_VERSION,
        "sinklens_version": _version("sinklens"),
        "versions": {name: _version(name) for name in ("torch", "transformers", "transformer_lens")},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": _model_facts(model, plan),
        "tokens": _token_facts(batch, source, skipped),
        "metrics": {metric.name: metric.as_dict() for metric in METRICS},
        "settings": settings,
        "warnings": notes,
        "verdict": describe(tables, settings),
        "seconds": time.perf_counter() - started,
    }
    return Census(meta, tables, kept)


SINK_COLUMNS = (
    "layer", "head", "position", "importance", "sink_rate", "null", "ratio", "delta_logit", "n_sequences",
)  # fmt: skip
SWEEP_COLUMNS = ("layer", "head", "position", "eps", "sink_rate")


def _or_empty(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A model without attention gives an empty table with the usual columns."""
    return frame if len(frame) else pd.DataFrame(columns=list(columns))


def _tokens(
    model: TransformerBridge,
    texts: str | Sequence[str] | None,
    tokens: TokenBatch | Tensor | Sequence[Sequence[int]] | None,
    bos: BosChoice,
    max_tokens: int | None,
    split: bool,
    seed: int,
    source: str | None,
    max_sequences: int | None,
) -> tuple[TokenBatch, str]:
    if texts is not None and tokens is not None:
        raise InputError("Pass either texts or tokens, not both.")
    if max_sequences is not None and max_sequences < 1:
        raise InputError(f"max_sequences must be at least 1, got {max_sequences}.")
    if tokens is not None:
        batch = tokens if isinstance(tokens, TokenBatch) else tokenize(model, tokens, max_tokens=max_tokens)
        source = source or "token ids given by the caller"
    elif texts is not None:
        batch = tokenize(model, texts, bos=bos, max_tokens=max_tokens, split=split)
        source = source or "texts given by the caller"
    else:
        corpus = builtin_corpus(model, bos=bos, length=max_tokens, n_sequences=max_sequences or 100, seed=seed)
        batch, source = corpus.tokens, source or corpus.source
    if max_sequences is not None and len(batch) > max_sequences:
        batch = batch.rows(slice(0, max_sequences))
    return batch, source


def _usable(batch: TokenBatch, eps: float) -> tuple[TokenBatch, list[str]]:
    """Leave out sequences that are too short for the threshold to mean anything, and say which."""
    if not 0 < eps < 1:
        raise InputError(f"eps must lie between 0 and 1, got {eps}.")
    need = shortest_length(eps)
    long_enough = batch.lengths >= need
    if not bool(long_enough.any()):
        longest = int(batch.lengths.max())
        floor = float(uniform_importance(longest)[0])
        raise InputError(
            f"The longest of {len(batch)} sequence(s) has {longest} tokens, too short to measure: uniform attention "
            f"alone gives its first key an importance of {floor:.2f}, above eps={eps}. Use at least {need} tokens "
            "(64 or more to compare with published numbers)."
        )
    short = (~long_enough).nonzero().flatten().tolist()
    skipped = [f"sequence {index}: {int(batch.lengths[index])} tokens, fewer than {need}" for index in short]
    return batch.rows(long_enough.nonzero().flatten().tolist()) if short else batch, skipped


def _length_notes(batch: TokenBatch, eps: float) -> list[str]:
    notes = []
    shortest = int(batch.lengths.min())
    floor = float(uniform_importance(shortest)[0])
    if floor > eps / 2:
        notes.append(
            f"The shortest sequence has {shortest} tokens, where uniform attention gives key 0 an importance of "
            f"{floor:.2f}, more than half of eps={eps}: read the ratio to the null, not the rate."
        )
    if batch.dropped:
        notes.append(f"{batch.dropped} tokens beyond the longest sequence were not used; raise max_tokens or split.")
    if len(batch) < 10:
        notes.append(f"Sink rates are shares of only {len(batch)} sequence(s); 100 are usual.")
    return notes


def _join_heads(
    table: pd.DataFrame, strongest: pd.DataFrame, summary: pd.DataFrame, drains: pd.DataFrame
) -> pd.DataFrame:
    """One row per head: strongest key, its score and null, its drain, and how the head attends."""
    if strongest.empty:
        columns = ["layer", "head", "sink_position", "sink_rate", "importance", "null", "ratio", "is_sink"]
        columns += ["importance_first", "null_first", "sink_rate_first", "missing_mass", "gate"]
        return pd.DataFrame(columns=columns)
    heads = strongest.rename(columns={"position": "sink_position"}).drop(columns="n_sequences")
    first = table[table["position"] == 0].rename(
        columns={"importance": "importance_first", "sink_rate": "sink_rate_first", "null": "null_first"}
    )
    key = ["layer", "head"]
    heads = heads.merge(first[[*key, "importance_first", "sink_rate_first", "null_first"]], on=key)
    heads = heads.merge(summary, on=key, how="left")
    heads["is_sink"] = (heads["sink_rate"] >= SINK_HEAD_RATE) & (heads["ratio"] >= SINK_HEAD_RATIO)
    if len(drains):
        wanted = drains.rename(columns={"position": "sink_position"}).drop(columns="n_sequences")
        heads = heads.merge(wanted, on=[*key, "sink_position"], how="left")
    return heads


def _sinks_by_layer(heads: pd.DataFrame) -> pd.DataFrame:
    grouped = heads.groupby("layer")
    return pd.DataFrame(
        {"sink_rate_first": grouped["sink_rate_first"].mean(), "n_sink_heads": grouped["is_sink"].sum()}
    ).reset_index()


def _choose_maps(
    example: Example, heads: pd.DataFrame | None, batch: TokenBatch, count: int
) -> dict[str, AttentionMap]:
    """The strongest sink heads, then the most focused and the most diffuse ones."""
    if heads is None or heads.empty or not example.maps:
        return {}
    sinks = heads.sort_values(["sink_rate", "importance"], ascending=False)
    sinks = sinks[sinks["is_sink"]].head(math.ceil(count / 2))
    focused = heads[~heads["is_sink"]].sort_values("entropy").head(count)
    chosen: dict[tuple[int, int], str] = {}
    for _, row in sinks.iterrows():
        why = f"sink rate {row['sink_rate']:.2f} at position {row['sink_position']}"
        chosen[int(row["layer"]), int(row["head"])] = why
    for index in [*range((count + 1) // 2), *range(len(focused))]:
        if len(chosen) >= count or index >= len(focused):
            continue
        row = focused.iloc[index]
        why = f"no sink; entropy {row['entropy']:.2f} of at most {row['entropy_null']:.2f} nats"
        chosen.setdefault((int(row["layer"]), int(row["head"])), why)
    length = int(batch.lengths[0])
    out = {}
    for (layer, head), why in chosen.items():
        values = example.maps[layer, head]
        out[f"L{layer}H{head}"] = AttentionMap(layer, head, values, example.cell, length, list(batch.tokens[0]), why)
    return out


def _model_facts(model: TransformerBridge, plan: AttentionPlan) -> dict[str, Any]:
    cfg, source = model.cfg, source_of(model)
    parameter = next(model.parameters())
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return {
        "name": _display_name(source) if source else str(getattr(cfg, "model_name", "bridge")),
        "path": None if source is None else "built in" if source.builtin else source.name,
        "architecture": cfg.architecture,
        "n_layers": len(model.blocks),
        "n_heads": cfg.n_heads,
        "n_kv_heads": kv_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_vocab": cfg.d_vocab,
        "n_ctx": context_length(model),
        "n_params": sum(p.numel() for p in model.original_model.parameters()),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "attention_reason": plan.reason,
        "attention": [
            {"layer": p.layer, "path": p.path, "window": p.window, "learned_sink": p.learned_sink} for p in plan.layers
        ],
    }


def _display_name(source: ModelSource) -> str:
    """Last part of a path, or the name that was asked for."""
    return Path(source.name).name if Path(source.name).is_dir() else source.name


def _token_facts(batch: TokenBatch, source: str, skipped: list[str]) -> dict[str, Any]:
    firsts = {row[0] for row in batch.tokens}
    return {
        "n_sequences": len(batch),
        "n_tokens": int(batch.lengths.sum()),
        "max_length": int(batch.lengths.max()),
        "min_length": int(batch.lengths.min()),
        "source": source,
        "skipped": skipped,
        "dropped": batch.dropped,
        "bos": {
            "position0": next(iter(firsts)) if len(firsts) == 1 else None,
            "id": batch.bos_id,
            "added_by": batch.bos_added_by,
            "statement": batch.statement,
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
