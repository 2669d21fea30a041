"""The figures of one trained decoder: sink, drain, peak, margin and losses."""

from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sinklens.detectors.residual_peaks import ResidualPeakDetector
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.errors import InputError
from sinklens.lab.running import zeroed
from sinklens.lab.streams import stream
from sinklens.lab.tasks import Backcopy
from sinklens.lab.tasks.task import token_batch
from sinklens.lab.variants.attention import Attended
from sinklens.lab.variants.capture import capture_variant, reading_of
from sinklens.lab.variants.catalogue import find_variant
from sinklens.lab.variants.decoder import Decoder
from sinklens.lab.variants.queries import QueryClasses, statistics


@torch.no_grad()
def measure_decoder(
    model: Decoder, task: Backcopy, *, initial: Decoder | None = None, batch: int = 256, seed: int = 0
) -> dict[str, float]:
    """Measure a decoder on fresh Bigram-Backcopy sequences, from a stream that no training uses.

    Classes of queries are "bigram" (no trigger) and "backcopy" (trigger). Attention is read as weights, or as proxy
    scores where the variant's row sums are free (:func:`~sinklens.lab.variants.capture.reading_of`); means run over
    heads, and over queries ``i >= 1`` where a class is named. With a prefix, losses leave out the queries that see
    their target.

    Per model:
        loss_backcopy, loss_bigram: mean losses in nats.
        excess_bigram: loss_bigram minus what the true distribution scores on the same sequences.
        sink_layer: the layer whose bigram queries put most mass on position 0.
    Per layer, with the prefix ``L0.`` and so on:
        importance_first, sink_rate_first, importance_strongest, position_strongest: Gu's importance of position 0
            and its sink rate at 0.3, the largest importance of any position, and which.
        importance_next4: importance of positions 1 to 4, added up.
        mass_first_*, mass_triggers_*: attention to position 0 by the queries that see it, and to trigger tokens.
        amount_first_*: weight on position 0 as it is used, also where the reading is proxy.
        missing_mass_*: one minus the sum of the weights (variants whose row sums are at most one).
        margin_*: logit margin of position 0 over the others (not for variants without scores).
        gate_*: mean output gate (gated variants).
        output_norm_*: norm of what the attention writes.
        drain_first: ``|W_O v|`` at position 0 over its mean at the others.
        resid_first, resid_others, resid_ratio: residual norm after the layer at position 0, its mean at the others,
            and their ratio.
        resid_growth: resid_first over its value in ``initial``; left out without one.
        no_attention_backcopy, no_attention_bigram_rise: loss, and rise of the loss, with the layer's attention
            zeroed.

    Source: cards and code of Guo et al. (arXiv 2410.13835), Gu et al. (arXiv 2410.10781), Qiu et al. (arXiv
    2505.06708) for the gate.

    Args:
        model: the trained decoder.
        task: what it was trained on.
        initial: the same decoder before training.
        batch: number of sequences.
        seed: of the sequences.

    Raises:
        InputError: if decoder and task have different vocabularies or lengths.
    """
    if model.settings.d_vocab != task.d_vocab or model.settings.context < task.seq_len:
        raise InputError(
            f"The task has {task.d_vocab} ids and {task.seq_len} positions, the decoder {model.settings.d_vocab} and "
            f"{model.settings.context}."
        )
    ids = task.sample(batch, task.seq_len + 1, stream(seed, "measure"))
    queries, classes = ids[:, :-1], task.classes(ids)
    scored = torch.arange(task.seq_len) >= model.settings.prefix - 1
    judged = {name: members & scored for name, members in classes.items()}
    losses = _losses(model, ids, judged)
    measured = {f"loss_{name}": value for name, value in losses.items()}
    measured["excess_bigram"] = losses["bigram"] - task.surprisal(ids)[judged["bigram"]].mean().item()
    measured |= _by_class(model, task, queries, classes) | _by_detector(model, task, queries)
    before = {} if initial is None else _by_detector(initial, task, queries)
    for layer, attention in enumerate(model.attentions):
        if before:
            measured[f"L{layer}.resid_growth"] = measured[f"L{layer}.resid_first"] / before[f"L{layer}.resid_first"]
        with zeroed(attention.out):
            without = _losses(model, ids, judged)
        measured[f"L{layer}.no_attention_backcopy"] = without["backcopy"]
        measured[f"L{layer}.no_attention_bigram_rise"] = without["bigram"] - losses["bigram"]
    layers = range(len(model.attentions))
    measured["sink_layer"] = float(max(layers, key=lambda n: measured[f"L{n}.mass_first_bigram"]))
    return measured


def _losses(model: Decoder, ids: Int[Tensor, "batch pos_plus_1"], classes: dict[str, Tensor]) -> dict[str, float]:
    logits = model(ids[:, :-1]).float()
    loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    return {name: loss[members].double().mean().item() for name, members in classes.items()}


def _by_class(
    model: Decoder, task: Backcopy, queries: Int[Tensor, "batch pos"], classes: dict[str, Bool[Tensor, "batch pos"]]
) -> dict[str, float]:
    """Read the attention as the detectors do and, where that is proxy, as amounts too."""
    batch, reading = token_batch(task, queries), reading_of(model.settings.attention)
    chosen = partial(statistics, triggers=task.trigger_mask(queries))
    sees_first = model.visible[: task.seq_len, 0]
    read, used = QueryClasses(classes, sees_first), QueryClasses(classes, sees_first)
    capture_variant(model, batch, [read], statistics=chosen, reading=reading)
    capture_variant(model, batch, [used], statistics=chosen, reading="weights")
    figures = read.compute()
    for name, value in used.compute().items():
        if ".mass_first" in name:
            figures[name.replace("mass", "amount")] = value
    if find_variant(model.settings.attention).row_sum != "at most one":
        figures = {name: value for name, value in figures.items() if ".missing_mass" not in name}
    norms: dict[int, Tensor] = {}

    def listen(layer: int, attended: Attended | None, hidden: Tensor) -> None:
        if attended is not None:
            norms[layer] = attended.output.norm(dim=-1).double()

    model(queries, listen)
    for layer, norm in norms.items():
        for name, members in classes.items():
            figures[f"L{layer}.output_norm_{name}"] = norm[:, 1:][members[:, 1:]].mean().item()
    return figures


def _by_detector(model: Decoder, task: Backcopy, queries: Int[Tensor, "batch pos"]) -> dict[str, float]:
    sinks, drains, peaks = SinkDetector(), ValueDrainDetector(), ResidualPeakDetector()
    capture_variant(model, token_batch(task, queries), [sinks, drains, peaks])
    found = sinks.tables()
    table, strongest = found["sinks"], found["sink_heads"]
    drain, peak = drains.tables()["value_drains"], peaks.tables()["layers"]
    figures: dict[str, float] = {}
    for layer in range(len(model.attentions)):
        first = table[(table["layer"] == layer) & (table["position"] == 0)]
        figures[f"L{layer}.importance_first"] = first["importance"].mean()
        figures[f"L{layer}.sink_rate_first"] = first["sink_rate"].mean()
        early = table[(table["layer"] == layer) & table["position"].between(1, 4)]
        figures[f"L{layer}.importance_next4"] = early["importance"].sum() / model.settings.heads
        best = strongest[strongest["layer"] == layer] if len(strongest) else strongest
        if len(best):
            top = int(best["importance"].to_numpy().argmax())
            for name in ("importance", "position"):
                figures[f"L{layer}.{name}_strongest"] = float(best[name].to_numpy()[top])
        own = drain[(drain["layer"] == layer) & (drain["position"] == 0)]
        figures[f"L{layer}.drain_first"] = own["drain_wo"].mean()
        for name, column in (("first", "resid_norm_first"), ("others", "resid_norm_others"), ("ratio", "resid_ratio")):
            figures[f"L{layer}.resid_{name}"] = peak.loc[peak["layer"] == layer, column].mean()
    return {name: float(value) for name, value in figures.items()}
