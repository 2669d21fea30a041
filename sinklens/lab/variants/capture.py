"""Capture for a decoder of the lab: the engine's blocks and layer records, so that every detector works on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinklens.attention import Statistic, StatisticFactory
from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.kernel import make_shape
from sinklens.capture import LayerRecord
from sinklens.capture.needs import fields_asked, statistics_asked
from sinklens.capture.residual import residual_norms
from sinklens.capture.run import Consumer, standard_statistics
from sinklens.capture.values import output_factor, value_norms
from sinklens.errors import InputError
from sinklens.lab.variants.attention import Attended
from sinklens.lab.variants.catalogue import find_variant
from sinklens.lab.variants.decoder import Decoder
from sinklens.lab.variants.weights import proxy
from sinklens.models.tokens import TokenBatch

Reading = Literal["weights", "proxy"]


def reading_of(attention: str) -> Reading:
    """Return what attention metrics read of a variant: its weights, or proxy scores where row sums are free.

    Example:
        >>> reading_of("softmax1"), reading_of("sigmoid")
        ('weights', 'proxy')
    """
    return "proxy" if find_variant(attention).row_sum == "free" else "weights"


@torch.no_grad()
def capture_variant(
    model: Decoder,
    batch: TokenBatch,
    consumers: Sequence[Consumer] = (),
    *,
    reading: Reading | None = None,
    batch_size: int = 64,
    statistics: Callable[[TokenBatch, int], Sequence[StatisticFactory]] | None = None,
    top_k: int = 5,
) -> list[LayerRecord]:
    """Run tokens through a decoder and record every layer, as :func:`sinklens.capture.capture` does for a bridge.

    Statistics see the weights on real keys: with a learned key or logit the rows sum to less than one and the rest is
    missing mass. Gated heads are recorded before the gate, with the mean gate under ``"gate"``.

    Args:
        model: the decoder.
        batch: equally long sequences.
        consumers: detectors; each record goes to them and is then dropped.
        reading: "weights", or "proxy" for shares of each row's sum; by :func:`reading_of` if None. Whoever prints
            figures from proxy scores has to say so.
        batch_size: sequences in one forward pass.
        statistics: taken instead of those that the consumers declare, as in ``capture``.
        top_k: largest residual entries to keep.

    Returns:
        Without consumers all records, otherwise an empty list.

    Raises:
        InputError: if there is padding, ``batch_size`` is below 1, or ``reading`` is unknown.
        UnsupportedArchitectureError: if a consumer needs keys, head outputs or block halves.
    """
    chosen = reading_of(model.settings.attention) if reading is None else reading
    if chosen not in ("weights", "proxy"):
        raise InputError(f"reading must be weights or proxy, not {chosen!r}.")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}.")
    if not bool(batch.real.all()):
        raise InputError("A decoder of the lab takes sequences of one length; give them without padding.")
    factors = [output_factor(attention.output_weights) for attention in model.attentions]
    lacking = dict.fromkeys(
        ("keys", "outputs", "z", "halves"), "the lab's decoders record attention and residual stream alone"
    )
    asked = fields_asked(consumers, lacking)
    kept: list[LayerRecord] = []
    for start in range(0, len(batch), batch_size):
        rows = batch.rows(slice(start, start + batch_size))
        if statistics is not None:
            factories = statistics(rows, start)
        else:
            factories = (
                statistics_asked(consumers, rows, standard_statistics) if consumers else standard_statistics(rows)
            )
        recorder = _Recorder(
            rows, start, factors, factories, model.visible, chosen, top_k, consumers, "hidden" in asked
        )
        model(rows.ids.to(model.embed.weight.device), recorder)
        kept += recorder.kept
    return kept


@dataclass
class _Recorder:
    """Turns what a layer did into a record and hands it on, one layer at a time."""

    rows: TokenBatch
    start: int
    factors: Sequence[Tensor]
    factories: Sequence[StatisticFactory]
    visible: Tensor
    reading: Reading
    top_k: int
    consumers: Sequence[Consumer]
    with_hidden: bool
    kept: list[LayerRecord] = field(default_factory=list)

    def __call__(self, layer: int, attended: Attended | None, hidden: Tensor) -> None:
        norms = residual_norms(hidden, self.rows.real, self.top_k)
        stream = hidden if self.with_hidden else None
        if attended is None:
            record = LayerRecord(layer, self.rows, self.start, "none", {}, None, norms, hidden=stream)
        else:
            computed = _measure(layer, attended, self.visible, self.factories, self.reading)
            values = value_norms(attended.value, self.factors[layer])
            record = LayerRecord(layer, self.rows, self.start, "lab", computed, values, norms, hidden=stream)
        for consumer in self.consumers:
            consumer.update(record)
        if not self.consumers:
            self.kept.append(record)


def _measure(
    layer: int, attended: Attended, visible: Tensor, factories: Sequence[StatisticFactory], reading: Reading
) -> dict[str, Tensor]:
    weights = attended.weights.float()
    shape = make_shape(layer, weights.shape[:3], weights.shape[3], weights.device)
    statistics: list[Statistic] = [make(shape) for make in factories]
    for block in _blocks(shape, proxy(weights) if reading == "proxy" else weights, attended.scores, visible):
        for statistic in statistics:
            statistic.see(block)
    computed: dict[str, Tensor] = {}
    for statistic in statistics:
        computed |= {name: value.cpu() for name, value in statistic.compute().items()}
    return computed if attended.gate is None else computed | {"gate": attended.gate.float().cpu()}


def _blocks(shape: AttentionShape, weights: Tensor, scores: Tensor | None, visible: Tensor) -> Iterator[Block]:
    """One block for each sequence: the lab's sequences are short."""
    extra = shape.k_padded - shape.k_pos
    seen = pad(visible[: shape.q_pos, : shape.k_pos], (0, extra))
    shown = torch.zeros_like(weights) if scores is None else scores.float().masked_fill(~seen[:, : shape.k_pos], 0)
    weights, shown = pad(weights, (0, extra)), pad(shown, (0, extra))
    everything = (slice(0, shape.heads), slice(0, shape.q_pos), slice(0, shape.k_padded))
    n_visible, weight = seen.sum(-1).float(), torch.ones(shape.q_pos, device=shape.device)
    for sequence in range(shape.batch):
        # "edited": nothing may be concluded from the softmax, since this may not be one
        yield Block(
            shape, sequence, *everything, shown[sequence], weights[sequence], seen, weight, n_visible,
            unpadded=True, pattern_edited=True, scores_incomplete=scores is None,
        )  # fmt: skip
