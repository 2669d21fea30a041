"""Attention weighted by how much the attended value writes: mass is not influence."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import ReceivedMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Metric
from sinklens.detectors.head_means import NULL, HeadMeansDetector
from sinklens.detectors.registry import register
from sinklens.models.tokens import TokenBatch

SHARE = Metric(
    "sink_share",
    1,
    "Share of all attention of a sequence's queries that goes to the sink positions (position 0 unless said "
    "otherwise), mean over sequences. Null: the same under uniform attention.",
    "standard; null added here",
)
WEIGHTED = Metric(
    "value_weighted_sink_share",
    1,
    "The same with every weight A_ij multiplied by |W_O v_j|, the size of what it writes: sum_i sum_{j in sinks} A_ij "
    "|W_O v_j| / sum_i sum_j A_ij |W_O v_j|. Unchanged by v -> c v, W_O -> W_O / c. NaN where W_O cannot be read or "
    "the head writes nothing. Null: the same under uniform attention.",
    "Kobayashi et al. 2020, arXiv 2004.10102 (norm-based analysis); summed over queries and null added here",
)


def value_weighted(
    pattern: Float[Tensor, "*batch head q_pos k_pos"],
    output_norms: Float[Tensor, "*batch head k_pos"],
    *,
    normalise: bool = False,
) -> Float[Tensor, "*batch head q_pos k_pos"]:
    """How much each attended token contributes to what a query's head writes: attention times the size of its value.

    ``A_ij |W_O v_j|``, optionally divided by its sum over j; rows of a head that writes nothing are NaN then.

    Example:
        >>> value_weighted(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[3.0, 1.0]]), normalise=True)
        tensor([[[0.7500, 0.2500]]])
    """
    weighted = pattern * output_norms[..., None, :]
    return weighted / weighted.sum(-1, keepdim=True) if normalise else weighted


def weighted_share(
    mass: Float[Tensor, "*batch head k_pos"],
    output_norms: Float[Tensor, "*batch head k_pos"],
    keys: Bool[Tensor, "*batch k_pos"],
) -> Float[Tensor, "*batch head"]:
    """How much of what a head writes comes from some tokens: 0 for nothing, 1 for all.

    Their share of ``sum_k mass_k |W_O v_k|``; NaN where the sum is 0.

    Args:
        mass: Attention that each key receives.
        output_norms: ``|W_O v_k|``.
        keys: Which keys.

    Example:
        >>> weighted_share(torch.tensor([[9.0, 1.0]]), torch.tensor([[0.1, 0.9]]), torch.tensor([True, False]))
        tensor([0.5000])
    """
    weighted = mass * output_norms
    return (weighted * keys[..., None, :]).sum(-1) / weighted.sum(-1)


@register
class ValueWeightedDetector(HeadMeansDetector):
    """How much of each head's attention, and of what it writes, comes from the sink: 0 for nothing, 1 for all.

    Scores ``sink_share`` (attention) and ``value_weighted_sink_share`` (attention times the size of what it writes): a
    head with a high first and a low second one rests.

    Args:
        sinks: Positions of the sinks.
    """

    name = "value_weighted"
    metrics = (SHARE, WEIGHTED)

    def __init__(self, sinks: Sequence[int] = (0,)) -> None:
        super().__init__(*(name + end for name in (SHARE.name, WEIGHTED.name) for end in ("", NULL)))
        self.sinks = tuple(sinks)

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """What the pass has to measure."""
        return [ReceivedMass]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out."""
        if "mass" not in record.attention:
            return
        real = record.real.cpu()
        mass, null = (record.attention[name].double().cpu() for name in ("mass", "null_mass"))
        keys = torch.zeros_like(real)
        keys[:, [sink for sink in self.sinks if sink < keys.shape[1]]] = True
        outputs = None if record.values is None else record.values.output
        norms = torch.full_like(mass, torch.nan) if outputs is None else outputs.double().cpu()
        hidden = ~real[:, None]
        mass, norms, even = mass.masked_fill(hidden, 0), norms.masked_fill(hidden, 0), torch.ones_like(mass)
        uniform = null.masked_fill(~real, 0)[:, None].expand_as(mass)
        values = {
            "sink_share": weighted_share(mass, even, keys),
            "sink_share_null": weighted_share(uniform, even, keys),
            "value_weighted_sink_share": weighted_share(mass, norms, keys),
            "value_weighted_sink_share_null": weighted_share(uniform, norms, keys),
        }
        self._means.add_sequences(record, values)
