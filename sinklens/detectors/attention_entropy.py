"""How spread out a head's attention is, as a share of the most that its mask allows."""

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.attention import Entropy, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.attention_summary import ENTROPY
from sinklens.detectors.base import Metric
from sinklens.detectors.head_means import HeadMeansDetector, visible_keys
from sinklens.detectors.registry import register
from sinklens.models.tokens import TokenBatch

METRIC = Metric(
    "normalised_entropy",
    1,
    "Mean over the queries i that see n_i >= 2 keys of H_i / log n_i, with the entropy H_i of the attention over real "
    "keys, renormalised to sum to one: 0 for one key, 1 for uniform attention (which is its null).",
    "standard",
)


def normalised_entropy(pattern: Float[Tensor, "*batch head q_pos k_pos"]) -> Float[Tensor, "*batch head"]:
    """Mean over queries i >= 1 of the entropy over log(i + 1), for full causal attention.

    Example:
        >>> normalised_entropy(torch.ones(1, 9, 9).tril() / torch.arange(1, 10)[:, None]).item()
        1.0
    """
    share = pattern / pattern.sum(-1, keepdim=True)
    most = torch.arange(2, pattern.shape[-1] + 1, device=pattern.device).log()
    mean: Tensor = (torch.special.entr(share).sum(-1)[..., 1:] / most).mean(-1)
    return mean


@register
class EntropyDetector(HeadMeansDetector):
    """How many tokens a head spreads its attention over: 0 where it looks at one alone, high where at all alike.

    Scores ``entropy`` (nats) and ``normalised_entropy`` (share of the most that the mask allows, 0 to 1).
    """

    name = "attention_entropy"
    metrics = (ENTROPY, METRIC)

    def __init__(self) -> None:
        super().__init__("entropy", "entropy_null", "normalised_entropy")

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """What the pass has to measure."""
        return [Entropy]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out."""
        entropy, visible = record.attention.get("entropy"), visible_keys(record)
        if entropy is None or visible is None:
            return
        most = visible.log()[:, None]
        share = (entropy.double() / most).masked_fill(most == 0, torch.nan)
        self._means.add(record, {"entropy": entropy, "entropy_null": most, "normalised_entropy": share})
