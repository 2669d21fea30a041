"""Trace a model's massive activations to the layer and the weight that write them, and take that weight away."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.detectors.massive_activations import ABSOLUTE
from sinklens.detectors.massive_channels import PRESENCE
from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.interventions import ZeroWeights
from sinklens.interventions.massive_entries import AROUND
from sinklens.interventions.massive_finder import EntryFinder
from sinklens.interventions.zero_weights import Weight, parameters_by_name, weight_name
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.massive_sources import Entry, Sources, massive_sources
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.effects.run import measure_effects
from sinklens.studies.massive_sources.result import MassiveSources
from sinklens.wording import runs

DRAWS, KEPT = 5, 10
TABLES = {
    "sources": (
        "channel", "episode", "appears", "leaves_after", "peak_layer", "n_tokens", "n_sequences", "token", "value",
        "value_low", "value_high", "gap", "writer", "writer_share", "weight", "weight_value", "activation",
        "weight_share", "weight_of_writer",
    ),
    "writers": ("channel", "episode", "writer", "share", "low", "high"),
    "weights": ("channel", "episode", "rank", "weight", "value", "activation", "share"),
    "effects": (
        "tested", "kind", "draw", "weights", "peak", "peak_kept", "delta_loss", "delta_loss_low", "delta_loss_high",
        "sink_heads", "sink_heads_before",
    ),
}  # fmt: skip
DEFINITION = {
    "version": 1,
    "definition": "An entry h_tc of the residual stream after a layer is the sum of what embedding, heads, biases of "
    "attention and MLPs wrote to channel c at token t; what an MLP wrote there is the sum over its neurons n of "
    "W_down[c, n] a_n (times the norm after it, its scale held). Weight: the neuron with the largest share of the "
    "largest writer.",
    "source": "super weights: Yu et al. 2024, arXiv 2411.07191, who find them by spikes in the input and output of "
    "down_proj; the split is sinklens'",
}


@checked
@usual_torch()
@torch.no_grad()
def trace_massive(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    absolute: float = ABSOLUTE,
    ratio: float = AROUND,
    effects: bool = True,
    controls: int = DRAWS,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> MassiveSources:
    """Say which layer, and which single weight, writes each massive activation, and what the model is without it.

    ::

        traced = trace_massive("path/to/llama")
        traced.verdict

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: the built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        absolute: Bound on ``|h|`` of a massive entry; 0 leaves it out, as small models need.
        ratio: Bound on ``|h|`` in medians of the sequence.
        effects: Also put the weights to zero, beside controls.
        controls: Random sets of as many weights of the same matrices.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        max_sequences: Draw at most this many sequences from all over the texts.
        batch_size: Sequences in one forward pass.
        seed: Of texts, random weights and intervals.
        progress: Told in forward passes of a sequence.

    Raises:
        InputError: Texts that cannot be used, or both bounds left out.

    Source: Yu et al. 2024 (arXiv 2411.07191); massive activations: Sun et al. 2024 (arXiv 2402.17762).

    Cost: two forward passes, and with effects three for each named weight and control.
    """
    model = as_bridge(model)
    if absolute <= 0 and ratio <= 0:
        raise InputError("absolute and ratio cannot both be left out; give at least one bound above 0.")
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, True, seed, None, max_sequences, attention_mask
    )
    progress.begin("Tracing massive activations", 2 * len(batch))
    finder = EntryFinder(absolute, ratio)
    capture(model, batch, [finder], batch_size=batch_size, top_k=1)
    progress.advance(len(batch))
    episodes = find_episodes(finder.entries(), len(batch))
    split = massive_sources(model, batch, [entry for entry, _ in episodes])
    progress.advance(len(batch))
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    named: dict[Weight, list[Entry]] = {}
    for (entry, facts), found in zip(episodes, split, strict=True):
        row, weight = _describe(model, entry, facts, found, tables, seed)
        tables["sources"].append(row)
        if weight is not None:
            named.setdefault(weight, []).append(entry)
    if effects and named:
        tables["effects"] = _without(model, batch, named, controls, batch_size, seed, progress)
    settings = {"absolute": absolute, "ratio": ratio, "controls": controls, "seed": seed, "batch_size": batch_size}
    warnings = [batch.unused.sentence(len(batch))] if batch.unused else []
    if not episodes:
        medians, value, block = finder.largest
        warnings.append(
            f"No channel is massive in half of the sequences: the largest entry is {value:.4g} after layer {block}, "
            f"{medians:.4g} medians."
        )
    meta = header(model, batch, source, settings=settings, metrics={"massive_source": DEFINITION}, warnings=warnings)
    return MassiveSources(meta, {name: pd.DataFrame(rows, columns=[*TABLES[name]]) for name, rows in tables.items()})


def find_episodes(entries: pd.DataFrame, n_sequences: int) -> list[tuple[Entry, dict[str, Any]]]:
    """Runs of layers after which a channel is massive in half of the sequences; each at its peak, the largest first."""
    found = []
    for channel in sorted(set(entries["dim"].tolist())):
        mine = entries[entries["dim"] == channel]
        counts = mine.groupby("layer")["sequence"].nunique()
        layers = counts.index[counts >= PRESENCE * n_sequences].astype(int).tolist()
        for number, run in enumerate(runs(layers)):
            inside = mine[mine["layer"].isin(run)]
            sizes = inside["value"].abs().groupby(inside["layer"]).median()
            peak = int(sizes.idxmax())
            there = inside[inside["layer"] == peak].sort_values(["sequence", "position"])
            tokens = tuple(zip(there["sequence"].tolist(), there["position"].tolist(), strict=True))
            token = min(Counter(there["token"]).items(), key=lambda item: (-item[1], item[0]))[0]
            facts = {"episode": number, "appears": run[0], "leaves_after": run[-1], "token": token}
            found.append((float(sizes.max()), Entry(int(channel), peak, tokens), facts))
    found.sort(key=lambda item: -item[0])
    return [(entry, facts) for _, entry, facts in found]


def _describe(
    model: TransformerBridge,
    entry: Entry,
    facts: dict[str, Any],
    found: Sources,
    tables: dict[str, list[dict[str, Any]]],
    seed: int,
) -> tuple[dict[str, Any], Weight | None]:
    """The row of an episode, those of its writers and weights, and the weight that has most of it."""
    sequences = np.array([sequence for sequence, _ in entry.tokens])

    def by_sequence(values: np.ndarray) -> np.ndarray:
        return np.array([values[sequences == each].mean() for each in np.unique(sequences)])

    value = paired_interval(by_sequence(found.value), seed=seed)
    sign = math.copysign(1.0, value.value)
    key = {"channel": entry.channel, "episode": facts["episode"]}
    shares = {name: paired_interval(by_sequence(each), seed=seed) for name, each in found.writers.items()}
    for name, share in shares.items():
        tables["writers"].append(key | {"writer": name, "share": share.value, "low": share.low, "high": share.high})
    writer = max(shares, key=lambda name: sign * shares[name].value)
    row = key | {"appears": facts["appears"], "leaves_after": facts["leaves_after"], "peak_layer": entry.layer}
    row |= {"n_tokens": len(entry.tokens), "n_sequences": len(np.unique(sequences)), "token": facts["token"]}
    row |= {"value": value.value, "value_low": value.low, "value_high": value.high, "gap": found.gap}
    row |= {"writer": writer, "writer_share": shares[writer].value, "weight": None}
    row |= dict.fromkeys(("weight_value", "activation", "weight_share", "weight_of_writer"), math.nan)
    layer = int(writer.removeprefix("MLP ")) if writer.startswith("MLP ") else -1
    if layer not in found.neurons:
        return row, None
    parameters = parameters_by_name(model)
    neurons = found.neurons[layer]
    order = np.argsort(-sign * neurons, kind="stable")[:KEPT]
    for rank, neuron in enumerate(order.tolist()):
        weight = found.weight(layer, entry.channel, neuron)
        told = {"weight": weight_name(weight), "activation": float(found.activations[layer][neuron])}
        number = float(parameters[weight[0]].data[weight[1]])
        tables["weights"].append(key | told | {"rank": rank, "value": number, "share": float(neurons[neuron])})
    top = tables["weights"][-len(order)]
    row |= {"weight": top["weight"], "weight_value": top["value"], "activation": top["activation"]}
    mean_written = float(found.writers[writer].mean())
    row |= {"weight_share": top["share"], "weight_of_writer": top["share"] / mean_written}
    return row, found.weight(layer, entry.channel, int(order[0]))


def _without(
    model: TransformerBridge,
    batch: TokenBatch,
    named: dict[Weight, list[Entry]],
    controls: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """What each named weight is worth, all of them together, and as many others of their matrices."""
    sets: dict[str, list[Weight]] = {weight_name(weight): [weight] for weight in named}
    if len(named) > 1:
        sets["all of these weights"] = [*named]
    rng = np.random.default_rng(seed)
    runs: list[tuple[str, str, int | None, ZeroWeights]] = []
    for tested, weights in sets.items():
        runs.append((tested, "named", None, ZeroWeights(tuple(weights))))
        runs.append((tested, "large", None, ZeroWeights(tuple(_large(model, w, named) for w in weights))))
        for draw in range(controls):
            runs.append((tested, "random", draw, ZeroWeights(tuple(_random(model, w, named, rng) for w in weights))))
    entries = [entry for mine in named.values() for entry in mine]
    names = [f"{tested} | {kind} | {draw}" for tested, kind, draw, _ in runs]
    progress.begin("Putting weights to zero", (1 + 2 * len(runs)) * len(batch))
    effects = measure_effects(
        model, dict(zip(names, (run[3] for run in runs), strict=True)), batch, batch_size=batch_size, seed=seed
    )
    progress.advance((1 + len(runs)) * len(batch))
    sinks = effects.sinks_after
    rows = []
    clean = {id(entry): _peak(model, batch, [entry], batch_size, None) for entry in entries}
    for name, (tested, kind, number, zero) in zip(names, runs, strict=True):
        mine = [entry for weight in sets[tested] for entry in named[weight]]
        peak = _peak(model, batch, mine, batch_size, zero)
        before = max(clean[id(entry)] for entry in mine)
        losses = effects.table[effects.table["intervention"] == name]["delta_loss"].to_numpy(float)
        interval = paired_interval(losses, seed=seed)
        row: dict[str, Any] = {"tested": tested, "kind": kind, "draw": number}
        row |= {"weights": ", ".join(map(weight_name, zero.weights)), "peak": peak, "peak_kept": peak / before}
        row |= {"delta_loss": interval.value, "delta_loss_low": interval.low, "delta_loss_high": interval.high}
        rows.append(row | _sinks(sinks, name))
        progress.advance(len(batch))
    return rows


def _sinks(table: pd.DataFrame, name: str) -> dict[str, Any]:
    here = table[(table["intervention"] == name) & (table["position"] == 0)]
    numbers = here[["n_sink_heads", "n_sink_heads_before"]].iloc[0].tolist() if len(here) else [0, 0]
    return {"sink_heads": int(numbers[0]), "sink_heads_before": int(numbers[1])}


def _large(model: TransformerBridge, weight: Weight, taken: dict[Weight, Any]) -> Weight:
    """The largest other weight that writes to the same channel."""
    name, place = weight
    parameter = parameters_by_name(model)[name].data
    transposed, channel = _axes(model, weight)
    row = (parameter[:, channel] if transposed else parameter[channel]).abs().float().clone()
    for other, at in taken:
        if other == name:
            row[at[0] if transposed else at[1]] = -1
    neuron = int(row.argmax())
    return name, (neuron, place[1]) if transposed else (place[0], neuron)


def _random(model: TransformerBridge, weight: Weight, taken: dict[Weight, Any], rng: np.random.Generator) -> Weight:
    """Another weight of the same matrix."""
    name = weight[0]
    shape = parameters_by_name(model)[name].shape
    while True:
        drawn = name, tuple(int(rng.integers(size)) for size in shape)
        if drawn not in taken:
            return drawn


def _axes(model: TransformerBridge, weight: Weight) -> tuple[bool, int]:
    """Whether the parameter's axes are ``[d_mlp d_model]``, and the channel."""
    parameter = parameters_by_name(model)[weight[0]]
    for block in model.blocks:
        mlp = block._modules.get("mlp")
        module: Any = None if mlp is None else getattr(mlp._modules.get("out"), "original_component", None)
        if module is not None and module.weight is parameter:
            transposed = type(module).__name__ == "Conv1D"
            return transposed, weight[1][1] if transposed else weight[1][0]
    raise InputError(f"{weight_name(weight)} is in no MLP of this model.")


class _Peaks:
    """A consumer that keeps the largest magnitude of some entries."""

    needs = ("hidden",)

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries, self.largest = entries, 0.0

    def statistics(self, batch: Any) -> list[Any]:
        """None: attention is not looked at."""
        return []

    def update(self, record: LayerRecord) -> None:
        """Take one layer of some sequences."""
        for entry in self.entries:
            if entry.layer != record.layer or record.hidden is None:
                continue
            for sequence, position in entry.tokens:
                row = sequence - record.first_sequence
                if 0 <= row < len(record.batch):
                    self.largest = max(self.largest, abs(float(record.hidden[row, position, entry.channel])))


def _peak(
    model: TransformerBridge, batch: TokenBatch, entries: Sequence[Entry], batch_size: int, zero: ZeroWeights | None
) -> float:
    peaks = _Peaks(entries)
    capture(model, batch, [peaks], batch_size=batch_size, top_k=1, intervention=zero)
    return peaks.largest
