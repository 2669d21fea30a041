"""CompensatedWindow: what a window drops lives on as one token with the mean key and the mean value (Razor)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import Block
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number
from sinklens.interventions.heads import Heads, as_index, heads_in_block, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import text_config


@dataclass(frozen=True)
class CompensatedWindow(Intervention):
    """Lets every query see the recent keys and the first ones, and one token in place of all the keys D between them.

    A :class:`SlidingWindow`, in other words, with RazorAttention's compensation token.

    The token has their mean key (after rotary embedding) and mean value and stands for all of them::

        k^ = mean_{m in D} k_m    v^ = mean_{m in D} v_m    score of the token = q k^ + log |D|
        z  = (|D| e^{q k^} v^ + sum_{n not in D} e^{q k_n} v_n) / (|D| e^{q k^} + sum_{n not in D} e^{q k_n})

    with q k including the scaling. Computed without building the token: ``q k^`` is the mean of the dropped scores, so
    every dropped key gets that mean as its score; their weights then add up to the token's and spread evenly over their
    values. Exact when all dropped keys are equal; otherwise the dropped mass is under-estimated, never over-estimated
    (Jensen). The token is that of the keys dropped so far, for every row anew, in a prompt as in cached decoding.

    ``counted=False`` leaves ``log |D|`` out: the token weighs as much as one key, as in a published implementation
    (mindspore golden-stick) and not in the paper.

    ALiBi and other additive biases are averaged along with the scores. Scores with a soft cap are refused: the mean of
    capped scores is not the cap of ``q k^``.

    Args:
        window: Keys up to and including the query's own position, at least 1; :func:`razor_window` gives the paper's.
        sinks: First tokens of the text that stay as they are.
        heads: ``"all"``, or the heads to compress (query heads; whole KV groups if a cache is to shrink).
        counted: Whether the token counts for as many keys as it replaces.

    Source: Tang et al. (2025), RazorAttention, arXiv 2407.15891, Algorithm 1.
    """

    window: int
    sinks: int = 0
    heads: Heads = "all"
    counted: bool = True

    def __post_init__(self) -> None:
        if as_index(self.window) < 1:
            raise InputError(f"window must be an integer from 1 (the token itself), got {self.window!r}.")
        if as_index(self.sinks) < 0:
            raise InputError(f"sinks must be an integer from 0, got {self.sinks!r}.")
        if not isinstance(self.counted, bool):
            raise InputError(f"counted must be True or False, got {self.counted!r}.")
        object.__setattr__(self, "window", as_index(self.window))
        object.__setattr__(self, "sinks", as_index(self.sinks))
        object.__setattr__(self, "heads", parse_heads(self.heads))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads and no soft cap on its scores."""
        super().check(model)
        if getattr(text_config(model), "attn_logit_softcapping", None) is not None:
            raise UnsupportedArchitectureError(
                f"{model.cfg.architecture} caps its attention scores, so the score of a mean key cannot be had from "
                "the scores; use SlidingWindow there."
            )

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""
        return [_Compensate(self, positions)]


class _Compensate:
    def __init__(self, method: CompensatedWindow, positions: Positions) -> None:
        self.method, self.positions = method, positions

    def edit_scores(self, block: Block) -> None:
        heads = heads_in_block(self.method.heads, block)
        if heads == []:
            return
        keys = self.positions.keys(block)
        beyond = self.positions.rows(block)[:, None] - keys >= self.method.window
        scores = block.scores[heads]
        dropped = beyond & (keys >= self.method.sinks) & (scores != -math.inf)
        count = dropped.sum(-1, keepdim=True).clamp(min=1)
        token = scores.masked_fill(~dropped, 0).sum(-1, keepdim=True) / count
        if not self.method.counted:
            token = token - count.log()
        block.scores[heads] = torch.where(dropped, token, scores)


def razor_window(n_tokens: int, *, shortest: int = 4000, ratio: float = 5) -> int:
    """RazorAttention's window ``L_h = max(S_0, N / C)`` for a prompt of N tokens, rounded up.

    Args:
        n_tokens: Length of the prompt, N.
        shortest: S_0, below which no window goes (from memory of the paper, not checked; scale it to your model).
        ratio: C, the compression of the other heads.

    Raises:
        InputError: A length below 1, or a ratio below 1.

    >>> razor_window(100_000), razor_window(1000), razor_window(1000, shortest=64)
    (20000, 4000, 200)
    """
    if as_index(n_tokens) < 1 or as_index(shortest) < 1:
        raise InputError(f"n_tokens and shortest must be integers from 1, got {n_tokens!r} and {shortest!r}.")
    return max(as_index(shortest), math.ceil(n_tokens / parse_number(ratio, "ratio", 1)))
