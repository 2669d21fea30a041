"""AttentionInfluence: how much worse a text is predicted when heads attend to everything alike."""

from jaxtyping import Float
from torch import Tensor

from sinklens.detectors.base import Metric

METRIC = Metric(
    name="attention_influence",
    version=1,
    definition="(L_masked - L_base) / L_base with the mean cross-entropy L of a sequence, masked: the heads attend "
    "equally to every key they may see; mean over sequences. Not clipped: below 0 the text is predicted better so",
    source="Hua et al. 2025, AttentionInfluence, arXiv 2505.07293, Eq. 5 and App. C",
)


def influence(base: Float[Tensor, "*any"], masked: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """How much worse a text is predicted without the heads, as a share of its loss: 0 no worse, 1 twice the loss.

    ``(masked - base) / base``, of losses in nats per token.

    Negative scores are real: uniform attention can lower the loss of text that cannot be predicted. Compare only within
    one domain of texts. Where a base loss is 0 the score is infinite or NaN: nothing is left to lose.

    >>> import torch
    >>> influence(torch.tensor([2.0, 4.0]), torch.tensor([3.0, 3.0])).tolist()
    [0.5, -0.25]
    """
    return (masked - base) / base
