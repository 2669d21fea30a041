"""What a head's sink does to its output: nothing, or the same thing for every query."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, KeySetMass, Statistic, plan_for
from sinklens.capture.values import output_factor, value_norms
from sinklens.detectors.metric import Metric
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.heads import Head
from sinklens.models.architecture import output_weights
from sinklens.models.tokens import TokenBatch
from sinklens.passes.batches import equal_lengths

HELD, QUERIES = 0.5, 0.9
NO_OP, BROADCAST, ONE_DIRECTION = 0.2, 0.5, 1.5
Kind = Literal["no-op", "broadcast", "mixed"]

METRIC = Metric(
    "sink_kind",
    1,
    "Of the events of a head, the sequences in which at least 0.9 of the queries after the sink give it at least half "
    "of their attention: the ratio |W_O v_s| / mean_{j != s} |W_O v_j| of the sink s, and the stable rank |U|_F^2 / "
    "sigma_1^2 of what the head writes at the tokens after s. An event is a no-op at a ratio of at most 0.2, a "
    "broadcast at 0.5 or more with a stable rank of at most 1.5, mixed otherwise; a head is what most of its events "
    "are.",
    "Fesser et al. 2026, arXiv 2606.08105, for vision transformers, with these thresholds; position 0's own query is "
    "left out here, because it sees nothing else",
)


@dataclass(frozen=True)
class KindFacts:
    """What was measured of one head, by sequence; NaN in sequences without an event.

    Attributes:
        ratio: Size of what the sink's value writes, over the mean of the other tokens'.
        stable_rank: Of the head's writes; 1 where all of them point along one direction.
    """

    ratio: Float[Tensor, " sequence"]
    stable_rank: Float[Tensor, " sequence"]

    @property
    def n_events(self) -> int:
        """Sequences in which the head rests on the sink."""
        return int(self.ratio.isfinite().sum())

    @property
    def counts(self) -> dict[str, int]:
        """Events of each kind."""
        kinds = [sink_kind(r, s) for r, s in zip(self.ratio.tolist(), self.stable_rank.tolist(), strict=True)]
        return {kind: kinds.count(kind) for kind in ("no-op", "broadcast", "mixed")}

    @property
    def kind(self) -> str | None:
        """What most events are; ``"mixed"`` when no kind has most, ``None`` without an event."""
        if not self.n_events:
            return None
        top = max(self.counts.items(), key=lambda item: item[1])
        return top[0] if 2 * top[1] > self.n_events else "mixed"


def sink_kind(ratio: float, stable_rank: float) -> Kind | None:
    """What one event is.

    >>> sink_kind(0.1, 1.0), sink_kind(0.9, 1.2), sink_kind(0.9, 3.0), sink_kind(0.3, 1.0), sink_kind(math.nan, 1.0)
    ('no-op', 'broadcast', 'mixed', 'mixed', None)
    """
    if math.isnan(ratio):
        return None
    if ratio <= NO_OP:
        return "no-op"
    return "broadcast" if ratio >= BROADCAST and stable_rank <= ONE_DIRECTION else "mixed"


def stable_rank(update: Float[Tensor, "row d_model"]) -> float:
    """``|U|_F^2 / sigma_1^2``: 1 for one direction, many for as many of equal size; NaN for zeros.

    >>> round(stable_rank(torch.eye(3)), 6), round(stable_rank(torch.ones(4, 2)), 6)
    (3.0, 1.0)
    """
    largest = float(torch.linalg.matrix_norm(update.double(), 2)) ** 2
    return float(update.double().square().sum()) / largest if largest > 0 else math.nan


@torch.no_grad()
def sink_kinds(
    model: TransformerBridge, batch: TokenBatch, *, position: int = 0, batch_size: int = 8
) -> dict[Head, KindFacts]:
    """Size and rank of what every head does while it rests on one key.

    Args:
        model: The bridge.
        batch: Sequences; those without a token after ``position`` have no event.
        position: The key.
        batch_size: Sequences in one forward pass.

    Raises:
        UnsupportedArchitectureError: ``W_O`` cannot be read, or a gate stands before it.

    Cost: one forward pass, and for each event a decomposition of ``[pos d_value]``.
    """
    plan = plan_for(model)
    if plan.path == "none" or getattr(model.cfg, "gated_q_proj", False):
        raise UnsupportedArchitectureError(
            f"What a head of {model.cfg.architecture} writes is not W_O times its output, so its sink has no kind."
        )
    watcher = _Watcher(model, position)
    for indices in equal_lengths(batch, batch_size):
        part = batch.rows(indices)
        if part.ids.shape[1] <= position + 1:
            continue
        watcher.indices = indices
        only = torch.zeros_like(part.real)
        only[:, position] = True
        engine = AttentionEngine(
            model,
            path=plan.path,
            statistics=[partial(KeySetMass, sets={"sink": only})],
            observers=[watcher],
            on_layer=watcher.finish,
        )
        with engine:
            model(part.ids.to(next(model.parameters()).device), return_type=None)
    empty = {head: torch.full((2, len(batch)), math.nan, dtype=torch.float64) for head in watcher.heads}
    for head, index, ratio, rank in watcher.events:
        empty[head][:, index] = torch.tensor([ratio, rank], dtype=torch.float64)
    return {head: KindFacts(values[0], values[1]) for head, values in sorted(empty.items())}


class _Watcher:
    def __init__(self, model: TransformerBridge, position: int) -> None:
        self.model, self.position = model, position
        self.indices: list[int] = []
        self.heads: set[Head] = set()
        self.events: list[tuple[Head, int, float, float]] = []
        self.written: dict[int, Tensor] = {}
        self.measured: dict[int, tuple[Tensor, Tensor]] = {}
        self.bases: dict[Head, Tensor] = {}

    def observe_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        """What the heads hand on; the engine calls this."""
        self.written[shape.layer] = output.detach()
        self._join(shape.layer)

    def finish(self, layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        """One layer of some sequences."""
        weights = output_weights(self.model, layer)
        if weights is None:
            raise UnsupportedArchitectureError(f"W_O of layer {layer} cannot be read, so its sinks have no kind.")
        given: Any = statistics[0].compute()
        held = given["mass_sink"][:, :, self.position + 1 :]
        written = value_norms(value, output_factor(weights)).output
        if written is None:
            raise UnsupportedArchitectureError(f"W_O of layer {layer} cannot be read, so its sinks have no kind.")
        others = (written.double().sum(-1) - written[..., self.position].double()) / (written.shape[-1] - 1)
        ratio = written[..., self.position].double() / others
        self.heads |= {(layer, head) for head in range(held.shape[1])}
        self.measured[layer] = ((held >= HELD).double().mean(-1) >= QUERIES, ratio)
        self._join(layer)

    def _join(self, layer: int) -> None:
        """Whichever of the two comes last: the engine's paths differ in that."""
        if layer not in self.written or layer not in self.measured:
            return
        z, (events, ratio) = self.written.pop(layer), self.measured.pop(layer)
        weights = output_weights(self.model, layer)
        for row, head in events.nonzero().tolist():
            if (layer, head) not in self.bases and weights is not None:
                self.bases[layer, head] = torch.linalg.qr(weights[head].double().T).R.T  # same sizes, fewer columns
            update = z[row, head, self.position + 1 :].double() @ self.bases[layer, head]
            self.events.append(((layer, head), self.indices[row], float(ratio[row, head]), stable_rank(update)))
