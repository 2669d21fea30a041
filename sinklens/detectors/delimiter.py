"""Delimiter heads: attention on punctuation and line ends, beside what uniform attention would give them."""

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import Entropy, KeySetMass, StatisticFactory
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Metric
from sinklens.detectors.head_means import HeadMeansDetector, visible_keys
from sinklens.detectors.registry import register
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

METRIC = Metric(
    "delimiter_mass",
    1,
    "Mean over queries i >= 1 of the attention on delimiter tokens: punctuation (every character of the token, white "
    "space aside, is Unicode punctuation) and line ends, unless other kinds are named. Position 0 is never counted as "
    "a delimiter: it is where sinks are. Rows are not renormalised; sequences without delimiters are left out. Null: "
    "the delimiters' share of the keys a query sees.",
    "Clark et al. 2019, arXiv 1906.04341 (heads on separators and punctuation); Ge et al. 2023, arXiv 2310.01801 "
    "(heads that need special tokens and punctuation only); null and the treatment of position 0 added here",
)

DelimiterKind = Literal["punctuation", "newline", "special"]
KINDS: tuple[DelimiterKind, ...] = ("punctuation", "newline")
"""What counts as a delimiter unless told otherwise."""


def delimiter_mask(batch: TokenBatch, kinds: Sequence[DelimiterKind] = KINDS) -> Bool[Tensor, "batch pos"]:
    """Which tokens are delimiters; position 0 and padding never are.

    Args:
        batch: Tokens with their strings.
        kinds: Some of ``"punctuation"`` (nothing but Unicode punctuation and white space), ``"newline"`` (white space
            with a line end) and ``"special"`` (special tokens after position 0, such as those between turns).

    Raises:
        InputError: No kind, or one that is not known.
    """
    unknown = [kind for kind in kinds if kind not in get_args(DelimiterKind)]
    if unknown or not kinds:
        raise InputError(
            f"Unknown kinds of delimiters {', '.join(unknown) or '(none)'}; expected some of "
            f"{', '.join(get_args(DelimiterKind))}."
        )
    mask = torch.zeros_like(batch.real)
    for row, tokens in enumerate(batch.tokens):
        mask[row, : len(tokens)] = torch.tensor([_kind(text) in kinds for text in tokens])
    mask &= ~batch.special
    if "special" in kinds:
        mask |= batch.special
    mask[:, 0] = False
    return mask & batch.real


@lru_cache(maxsize=65536)
def _kind(text: str) -> DelimiterKind | None:
    bare = text.strip()
    if not bare:
        return "newline" if "\n" in text or "\r" in text else None
    return "punctuation" if all(unicodedata.category(char)[0] == "P" for char in bare) else None


def uniform_share(
    members: Bool[Tensor, "batch k_pos"], visible: Float[Tensor, "batch q_pos"]
) -> Float[Tensor, "batch q_pos"]:
    """Share of the keys that each query sees which are members, so the mass that uniform attention would give them.

    Args:
        members: The set.
        visible: How many keys each query sees, up to its own position (a window hides what lies before); NaN for
            padding.

    Example:
        >>> members = torch.tensor([[False, True, False, False]])
        >>> uniform_share(members, torch.tensor([[1.0, 2.0, 3.0, 2.0]]))
        tensor([[0.0000, 0.5000, 0.3333, 0.0000]])
    """
    counts = torch.nn.functional.pad(members.cumsum(1), (1, 0)).to(visible)
    own = torch.arange(1, members.shape[1] + 1, device=visible.device)
    before = (own - visible.nan_to_num(nan=1)).clamp(min=0).long()
    return (counts[:, 1:] - counts.gather(1, before)) / visible


def delimiter_score(
    pattern: Float[Tensor, "batch head q_pos k_pos"], delimiters: Bool[Tensor, "batch k_pos"]
) -> Float[Tensor, "batch head"]:
    """Mean over queries i >= 1 of the attention on delimiters; NaN for a sequence without any.

    Example:
        >>> uniform = torch.ones(1, 1, 4, 4).tril() / torch.arange(1, 5)[:, None]
        >>> delimiter_score(uniform, torch.tensor([[False, True, False, False]])).item()  # of 1/2, 1/3, 1/4
        0.361...
    """
    mass = (pattern * delimiters[:, None, None]).sum(-1)
    mean: Tensor = mass[..., 1:].mean(-1)
    return mean.masked_fill(~delimiters.any(1)[:, None], math.nan)


@register
class DelimiterDetector(HeadMeansDetector):
    """How much each head attends to punctuation and line ends: 1 where it looks nowhere else, 0 where never there.

    Score ``delimiter_mass``, see :func:`delimiter_score`, over the queries of sequences that have delimiters.

    Args:
        kinds: What counts as a delimiter, see :func:`delimiter_mask`.
    """

    name = "delimiter_mass"
    metrics = (METRIC,)

    def __init__(self, kinds: Sequence[DelimiterKind] = KINDS) -> None:
        super().__init__()
        self.kinds = tuple(kinds)

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """What the pass has to measure."""
        return [Entropy, partial(KeySetMass, sets={"delimiter": delimiter_mask(batch, self.kinds)})]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out."""
        mass, visible = record.attention.get("mass_delimiter"), visible_keys(record)
        if mass is None or visible is None:
            return
        members = delimiter_mask(record.batch, self.kinds).to(mass.device)
        queries = members.any(1)[:, None].expand(-1, members.shape[1]).clone()
        queries[:, 0] = False
        null = uniform_share(members, visible)[:, None]
        self._means.add(record, {"delimiter_mass": mass, "delimiter_mass_null": null}, queries.cpu())
