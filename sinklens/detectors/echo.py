"""RazorAttention's two scores: attention on all earlier copies (echo), and on the token after each (induction)."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from sinklens.detectors.base import Metric
from sinklens.detectors.registry import register
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.target_means import RepeatDetector, mean_on_targets

_WHERE = (
    "On K random tokens repeated R times (positions counted without the prefix): mean over all queries i >= K of the "
    "sum "
)
_REST = (
    " over all earlier copies j = i - K, i - 2K, ... Rows are not renormalised: attention on the prefix is lost mass. "
    "Null: the same under uniform attention."
)
_SOURCE = (
    "Tang et al. 2024 (RazorAttention), arXiv 2407.15891, as in Ascend/msmodelslim ra_rope_tools.py; null added here"
)

ECHO = Metric("echo", 1, _WHERE + "of A[i, j]" + _REST, _SOURCE)
RAZOR_INDUCTION = Metric("razor_induction", 1, _WHERE + "of A[i, j+1]" + _REST, _SOURCE)


def echo_score(
    pattern: Float[Tensor, "*batch head q_pos k_pos"],
    repeats: Repeats,
    kind: Literal["echo", "razor_induction"] = "echo",
) -> Float[Tensor, "*batch head"]:
    """Mean over the queries after the first block of the attention on all earlier copies, or on what followed them.

    Args:
        pattern: Attention on a probe that lies as ``repeats`` says.
        repeats: Where its copies lie.
        kind: ``"echo"`` (the copies) or ``"razor_induction"`` (the token after each).

    Example:
        >>> import torch
        >>> uniform = torch.ones(1, 6, 6).tril() / torch.arange(1, 7)[:, None]
        >>> echo_score(uniform, Repeats(block=2, repeats=3, prefix=0)).item()  # mean of 1/3, 1/4, 2/5, 2/6
        0.329...
    """
    targets = repeats.copies(shift=int(kind == "razor_induction")).to(pattern.device)
    return mean_on_targets(pattern, targets.expand(*pattern.shape[:-3], -1, -1))


@register
class EchoDetector(RepeatDetector):
    """How much each head attends to all earlier copies of its own token together: 1 where it looks nowhere else.

    Score ``echo``, see :func:`echo_score`.
    """

    name = "echo"
    metrics = (ECHO,)

    def copies(self) -> Int[Tensor, "q_pos m"]:
        """All earlier copies."""
        return self.repeats.copies()


@register
class RazorInductionDetector(RepeatDetector):
    """How much each head attends to all tokens that followed its own before: 1 where it looks nowhere else.

    Score ``razor_induction``, see :func:`echo_score`.
    """

    name = "razor_induction"
    metrics = (RAZOR_INDUCTION,)

    def copies(self) -> Int[Tensor, "q_pos m"]:
        """The token after each earlier copy."""
        return self.repeats.copies(1)
