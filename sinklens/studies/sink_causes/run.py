"""Why the strongest sink heads of a model look where they look."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors import measure
from sinklens.detectors.sinks import EPS
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.bootstrap import Interval, paired_interval, statistic_interval
from sinklens.evidence.controls import compare_with_controls
from sinklens.interventions.heads import Head, check_heads, head_name, parse_heads
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.head_margin import SIDES, HeadMargin
from sinklens.passes.qk_attribution import Removals, qk_attribution
from sinklens.passes.sequences import choose_sequences
from sinklens.passes.sink_kinds import METRIC as KIND
from sinklens.passes.sink_kinds import KindFacts, sink_kinds
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.studies.sink_causes.donors import CONTROLS, DONOR_COLUMNS, SEQUENCES, measure_donors
from sinklens.studies.sink_causes.result import SinkCauses

HEADS, DRAWS, NAMED = 10, 10, 10
COUNTS, HALF = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), 0.5

_HEAD = ("layer", "head")
TABLES = {
    "heads": (
        *_HEAD, "kv_head", "name", "importance", "null", "margin", "margin_low", "margin_high", "n_sequences", "gap",
        "channel", "channel_share", "channel_share_low", "channel_share_high", "one_lost", "n_channels",
        "channels", "channels_share", "bias", "common_scale", "component",
        "component_share", "band", "band_wavelength", "band_share", "still_share", "mass", "mass_without", "mass_lost",
        "mass_lost_low", "mass_lost_high", "n_random", "random_lost", "random_lost_sd", "random_lost_most", "p", "kind",
        "n_events", "value_ratio", "stable_rank",
    ),
    "channels": (*_HEAD, "side", "channel", "share", "low", "high"),
    "components": (*_HEAD, "side", "component", "share", "low", "high"),
    "bands": (*_HEAD, "band", "wavelength", "share"),
    "pairs": (*_HEAD, "query_part", "key_part", "share"),
    "donors": DONOR_COLUMNS,
}  # fmt: skip

DEFINITION = {
    "version": 1,
    "definition": "The margin mean_t (s_t,k - mean_{j != k} s_tj) of key k over the queries t that see it and another "
    "key, s the scores before soft cap and softmax. With all norms' scales held it is a sum over residual channels of "
    "the keys (queries whole) or of the queries (keys whole), over the components that wrote these channels, over "
    "pairs of rotated dims, and over pairs of query and key parts; biases are a part of their own. Removal: the head's "
    "scores less what the channels add to them, everything before the head as it was; the named set is the smallest of "
    "the 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32 largest channels that takes half of the attention to the key.",
    "source": "margin: Guo et al. 2024, arXiv 2410.13835 (Delta-logit); the split is sinklens'",
}


@checked
@usual_torch()
@torch.no_grad()
def explain_sinks(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    heads: Sequence[object] | None = None,
    top: int = HEADS,
    position: int = 0,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    controls: int = DRAWS,
    donors: bool = True,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> SinkCauses:
    """Say why heads attend to one key: which channel, written by whom, at which rotary frequencies, and to what end.

    ::

        causes = explain_sinks("tiny-llama")
        causes.verdict
        causes.heads

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: the built-in corpus that fits the model.
        heads: Which heads, such as ``["L5H1"]``; default: the strongest of those whose importance of the key exceeds
            0.3 on these texts.
        top: How many of them.
        position: The key.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        controls: Random sets of as many channels, whose removal stands beside that of the named ones.
        donors: Also exchange the values at the key, which costs the most time.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        max_sequences: Draw at most this many sequences from all over the texts.
        batch_size: Sequences in one forward pass.
        seed: Of texts, random channels and intervals.
        progress: Told how it goes on, in forward passes of a sequence.

    Raises:
        InputError: Texts or heads that cannot be used, or a key that no sequence has.
        UnsupportedArchitectureError: The scores of this architecture are not sums of such parts.

    Source: the margin is Delta-logit of Guo et al. 2024 (arXiv 2410.13835); no-op and broadcast are those of Fesser et
    al. 2026 (arXiv 2606.08105); the split is sinklens'.

    Cost: six forward passes, and with donors two or more for each KV head and edit on 8 of the sequences.
    """
    model = as_bridge(model)
    if top < 1 or controls < 0 or position < 0:
        raise InputError(f"Expected top from 1, controls and position from 0, got {top}, {controls}, {position}.")
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, True, seed, None, max_sequences, attention_mask
    )
    usable = [index for index, length in enumerate(batch.lengths.tolist()) if length > position + 1]
    if not usable:
        raise InputError(
            f"No sequence has a token after position {position}; the longest has {int(batch.lengths.max())}."
        )
    batch = batch.rows(usable)
    work = top * (3 + 2 * CONTROLS) * min(len(batch), SEQUENCES) if donors else 0
    progress.begin("Explaining sinks", 6 * len(batch) + work)
    found = measure(model, batch, "sinks", batch_size=batch_size).tables["sinks"]
    scores = (
        found[found["position"] == position]
        .set_index(["layer", "head"])
        .sort_values("importance", ascending=False, kind="stable")
    )
    progress.advance(len(batch))
    if heads is None:
        sinks = scores[scores["importance"] > EPS].index[:top]
        chosen = [(int(layer), int(head)) for layer, head in sinks]
    else:
        given: Any = parse_heads(heads)
        check_heads(model, given)
        if given == "all":
            raise InputError("Name some heads to explain; for the strongest ones leave heads out.")
        chosen = list(given)
        chosen.sort(key=lambda head: -float(scores["importance"].get(head, math.nan)))
    settings = {"position": position, "controls": controls, "seed": seed, "batch_size": batch_size, "donors": donors}
    metrics = {"sink_margin_parts": DEFINITION, KIND.name: KIND.as_dict()}
    warnings = [batch.unused.sentence(len(batch))] if batch.unused else []
    meta = header(model, batch, source, settings=settings, metrics=metrics, warnings=warnings)
    if not chosen:
        return SinkCauses(meta, {name: pd.DataFrame(columns=[*columns]) for name, columns in TABLES.items()})
    split = attribute_in_batches(model, batch, chosen, position, batch_size, True, progress)
    named = _remove(model, batch, split, position, batch_size, controls, seed, progress)
    kinds: dict[Head, KindFacts] = {}
    try:
        kinds = sink_kinds(model, batch, position=position, batch_size=batch_size)
    except UnsupportedArchitectureError as error:
        warnings.append(f"Kinds of sinks: {error}")
    progress.advance(len(batch))
    exchanged = pd.DataFrame(columns=[*DONOR_COLUMNS])
    if donors:
        part = Share(progress, work)
        try:
            exchanged, notes = measure_donors(model, batch, chosen, position, batch_size, seed, part)
            warnings += notes
        except UnsupportedArchitectureError as error:
            warnings.append(f"Exchanged values: {error}")
        part.finish()
    rows = [_row(model, head, split[head], named[head], scores, kinds.get(head), seed) for head in chosen]
    return SinkCauses(meta, {"heads": pd.DataFrame(rows), **_tables(split, named, seed), "donors": exchanged})


def _remove(
    model: TransformerBridge,
    batch: TokenBatch,
    split: dict[Head, HeadMargin],
    position: int,
    batch_size: int,
    controls: int,
    seed: int,
    progress: Progress,
) -> dict[Head, list[int]]:
    """The fewest channels of a head whose removal halves its attention to the key; fills in masses and pairs."""
    orders = {head: np.argsort(-each.channels["key"].mean(0), kind="stable").tolist() for head, each in split.items()}
    sizes: Removals = {head: {str(k): order[:k] for k in COUNTS} for head, order in orders.items()}
    tried = attribute_in_batches(model, batch, [*split], position, batch_size, False, progress, sizes)
    chosen = {}
    for head, order in orders.items():
        lost = {k: mass_lost(tried[head].masses[""], tried[head].masses[str(k)]).value for k in COUNTS}
        enough = [k for k in COUNTS if lost[k] >= HALF]
        chosen[head] = order[: min(enough, default=COUNTS[-1])]
    rng = np.random.default_rng(seed)
    removals: Removals = {}
    for head, channels in chosen.items():
        pool = np.setdiff1d(np.arange(split[head].channels["key"].shape[1]), channels)
        sets = {"one": channels[:1], "named": channels}
        if len(pool) >= len(channels):
            for draw in range(controls):
                sets[f"random {draw}"] = rng.choice(pool, len(channels), replace=False).tolist()
        removals[head] = {**sets}
    named = {head: channels[:1] for head, channels in chosen.items()}
    removed = attribute_in_batches(model, batch, [*split], position, batch_size, False, progress, removals, named)
    for head, each in split.items():
        each.masses, each.pairs = removed[head].masses, removed[head].pairs
    return chosen


def attribute_in_batches(
    model: TransformerBridge,
    batch: TokenBatch,
    heads: Sequence[Head],
    position: int,
    batch_size: int,
    components: bool,
    progress: Progress = SILENT,
    removals: Removals | None = None,
    named: dict[Head, list[int]] | None = None,
) -> dict[Head, HeadMargin]:
    """:func:`qk_attribution` of all sequences, those of one length together; in the order of the batch."""
    found: dict[Head, HeadMargin] = {}
    order: list[int] = []
    for indices in equal_lengths(batch, batch_size):
        part = qk_attribution(
            model, batch.rows(indices), heads, position=position, components=components, removals=removals, named=named
        )
        found = {head: found[head].joined(each) for head, each in part.items()} if found else part
        order += indices
        progress.advance(len(indices) * (2 if components else 1))
    place = np.argsort(order)
    return {head: found[head].ordered(place) for head in heads}


def _row(
    model: TransformerBridge,
    head: Head,
    each: HeadMargin,
    channels: list[int],
    scores: pd.DataFrame,
    kind: KindFacts | None,
    seed: int,
) -> dict[str, Any]:
    group = int(model.cfg.n_heads) // kv_head_count(model)
    margin = paired_interval(each.margin, seed=seed)
    channel = channels[0]
    share = paired_interval(each.channels["key"][:, channel], seed=seed)
    writers = {name: float(values.mean()) for name, values in each.components["key"].items()}
    component = max(writers, key=lambda name: writers[name])
    bands = each.bands[:, :-1].mean(0)
    band = int(bands.argmax()) if len(bands) else None
    lost = mass_lost(each.masses[""], each.masses["named"], seed)
    randoms = [
        mass_lost(each.masses[""], v, seed).value for name, v in each.masses.items() if name.startswith("random")
    ]
    compared = compare_with_controls(lost.value, randoms)
    row: dict[str, Any] = {"layer": head[0], "head": head[1], "kv_head": head[1] // group, "name": head_name(head)}
    row |= {name: float(scores[name].get(head, math.nan)) for name in ("importance", "null")}
    row |= {"margin": margin.value, "margin_low": margin.low, "margin_high": margin.high, "n_sequences": margin.n}
    row |= {"gap": each.gap, "channel": channel, "channel_share": share.value}
    row |= {"channel_share_low": share.low, "channel_share_high": share.high}
    row |= {"bias": float(each.bias["key"].mean())}
    row |= {
        "common_scale": float(each.common_scale.mean()),
        "component": component,
        "component_share": writers[component],
    }
    row |= {"band": band, "band_wavelength": math.nan if band is None else float(each.wavelengths[band])}
    row |= {
        "band_share": math.nan if band is None else float(bands[band]),
        "still_share": float(each.bands[:, -1].mean()),
    }
    row |= {"one_lost": mass_lost(each.masses[""], each.masses["one"], seed).value}
    row |= {"n_channels": len(channels), "channels": ", ".join(map(str, channels))}
    row["channels_share"] = float(each.channels["key"][:, channels].sum(1).mean())
    row |= {"mass": float(each.masses[""].mean()), "mass_without": float(each.masses["named"].mean())}
    row |= {"mass_lost": lost.value, "mass_lost_low": lost.low, "mass_lost_high": lost.high}
    row |= {"n_random": compared.n, "random_lost": compared.mean, "random_lost_sd": compared.sd}
    row |= {"random_lost_most": max(randoms, default=math.nan), "p": compared.p}
    events = math.nan if kind is None else kind.n_events
    row |= {"kind": None if kind is None else kind.kind, "n_events": events}
    row["value_ratio"] = math.nan if kind is None else _median(kind.ratio)
    row["stable_rank"] = math.nan if kind is None else _median(kind.stable_rank)
    return row


def mass_lost(before: np.ndarray, after: np.ndarray, seed: int = 0) -> Interval:
    """``1 - mean(after) / mean(before)`` with its interval over sequences."""
    return statistic_interval(np.stack([after, before]), lambda means: 1 - means[0] / means[1], seed=seed)


def _median(values: torch.Tensor) -> float:
    return float(values.nanmedian())


def _tables(split: dict[Head, HeadMargin], named: dict[Head, list[int]], seed: int) -> dict[str, pd.DataFrame]:
    channels: list[dict[str, Any]] = []
    components: list[dict[str, Any]] = []
    bands: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for head, each in split.items():
        name = {"layer": head[0], "head": head[1]}
        for side in SIDES:
            means = each.channels[side].mean(0)
            largest = set(np.argsort(-np.abs(means))[:NAMED].tolist())
            values = {channel: each.channels[side][:, channel] for channel in range(len(means))} | {-1: each.bias[side]}
            for channel, shares in values.items():
                told = channel in largest or channel == -1
                channels.append(name | {"side": side, "channel": channel} | _share(shares, seed, told))
            for component, shares in each.components[side].items():
                components.append(name | {"side": side, "component": component} | _share(shares, seed, True))
            components.append(name | {"side": side, "component": "bias"} | _share(each.bias[side], seed, True))
        for band, wavelength in enumerate(each.wavelengths):
            number = band if band < len(each.wavelengths) - 1 else -1
            share = float(each.bands[:, band].mean())
            bands.append(name | {"band": number, "wavelength": float(wavelength), "share": share})
        parts = (f"channel {named[head][0]}", "other channels", "bias")
        if each.pairs is not None:
            for q, query_part in enumerate(parts):
                for k, key_part in enumerate(parts):
                    share = float(each.pairs[:, q, k].mean())
                    pairs.append(name | {"query_part": query_part, "key_part": key_part, "share": share})
    made = {"channels": channels, "components": components, "bands": bands, "pairs": pairs}
    return {name: pd.DataFrame(rows, columns=[*TABLES[name]]) for name, rows in made.items()}


def _share(values: np.ndarray, seed: int, with_interval: bool) -> dict[str, float]:
    if not with_interval:
        return {"share": float(values.mean()), "low": math.nan, "high": math.nan}
    interval = paired_interval(values, seed=seed)
    return {"share": interval.value, "low": interval.low, "high": interval.high}
