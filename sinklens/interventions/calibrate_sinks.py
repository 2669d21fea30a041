"""CalibrateSinks: later attention sinks shrunk, and their weight given back to the other tokens (ACT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.fields import parse_number
from sinklens.interventions.heads import Heads, parse_heads
from sinklens.interventions.positions import Positions
from sinklens.interventions.prompt import PromptEnd, PromptLength, parse_prompt_length
from sinklens.interventions.received import PastSinks, PromptSinks

RULES = ("alpha/N", "absolute")
SINKS_FROM = ("past", "prompt")


@dataclass(frozen=True)
class CalibrateSinks(Intervention):
    """Weakens attention sinks other than position 0: each keeps the share beta, other keys of its row share the rest.

    With A the head's pattern and S' its sinks without position 0, row i becomes::

        A'[i, j] = beta A[i, j]                                                 j in S'
        A'[i, j] = A[i, j] + m_i A[i, j] / sum_{k not in S'} A[i, k]            otherwise
        m_i      = (1 - beta) sum_{j in S'} A[i, j]

    Row sums stay (below 1 beside a learned sink logit, which receives nothing), and so do the ratios among sinks and
    among the others. Position 0 is a receiver, often the largest. A row with all its weight on S' stays as it is, and
    so does row 0. ``beta=1`` changes no bit.

    Key j is a sink of a head if ``c_j``, its mean weight over the queries that can see it (and are not padding), is
    above ``alpha / N`` with N tokens in all (``rule="alpha/N"``, the paper's) or above ``threshold``
    (``rule="absolute"``, the released code's; both agree at N = 50 with the defaults). Over which queries the mean runs
    is ``sinks_from``:

    - ``"past"``: row i judges every key by the queries up to i, with N = i + 1. A row never depends on later tokens, so
      a full pass equals decoding with a KV cache token by token, and losses at every position are honest. Keys that few
      queries have seen are judged by those few, row i's own key by row i alone.
    - ``"prompt"``: the queries of the whole prompt judge its keys, N is its length, and the set holds for every row of
      the prompt and all of the generated text; generated tokens are never sinks. The published method. Rows of the
      prompt then depend on later ones: do not read per-token losses inside it. The prompt is the last pass without
      a cache unless ``prompt_length`` tells; a pass over prompt and continuation together equals cached decoding when
      it does, and generation without a cache needs it. Right padding that no mask names must be told the same way.

    Differs from the released code: position 0 is always spared, and it alone (the code spares the first sink, whichever
    that is); in decoding steps the code takes the one row at hand for the mean and adds 1 to its first weight; batches
    and left padding are handled; a sliding window is counted among what queries can see.

    Follow one text (or batch) at a time from its first token: the sums belong to the last text that began. Beam search,
    which reorders the cache, is not followed.

    Args:
        heads: ``"all"``, or heads such as ``["L5H1", (5, 2)]``; the method's authors select them.
        rule: ``"alpha/N"`` or ``"absolute"``.
        alpha: For the first rule, above 0.
        threshold: For the second rule, from 0.
        beta: Share of their weight that sinks keep, 0 to 1.
        sinks_from: ``"past"`` or ``"prompt"``.
        prompt_length: For ``"prompt"``: its tokens, one number or one for each sequence.

    Source: Yu et al. (2024), Unveiling and Harnessing Hidden Attention Sinks, arXiv 2406.15765; code GATECH-EIC/ACT.

    Cost: three to eight times the attention time of the edited heads on a CPU (``"prompt"``: a second pass over the
    layer while the prompt is read, little afterwards); memory O(layer batch head pos).
    """

    heads: Heads = "all"
    rule: Literal["alpha/N", "absolute"] = "alpha/N"
    alpha: float = 5.0
    threshold: float = 0.1
    beta: float = 0.4
    sinks_from: Literal["past", "prompt"] = "past"
    prompt_length: PromptLength = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f'rule must be "alpha/N" or "absolute", got {self.rule!r}.')
        if self.sinks_from not in SINKS_FROM:
            raise InputError(f'sinks_from must be "past" or "prompt", got {self.sinks_from!r}.')
        if self.prompt_length is not None and self.sinks_from != "prompt":
            raise InputError(
                'prompt_length belongs to sinks_from="prompt"; leave it out, or take sinks from the prompt.'
            )
        object.__setattr__(self, "heads", parse_heads(self.heads))
        object.__setattr__(self, "alpha", parse_number(self.alpha, "alpha", 0, above=True))
        object.__setattr__(self, "threshold", parse_number(self.threshold, "threshold", 0))
        object.__setattr__(self, "beta", parse_number(self.beta, "beta", 0, 1))
        object.__setattr__(self, "prompt_length", parse_prompt_length(self.prompt_length))

    def limit(self, tokens: Any) -> Any:
        """Mean weight above which a key is a sink, for one number of tokens or a tensor of them."""
        return self.alpha / tokens if self.rule == "alpha/N" else tokens * 0 + self.threshold

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of the pattern."""
        if self.sinks_from == "past":
            return [PastSinks(self.heads, self.limit, self.beta, positions)]
        return [PromptSinks(self.heads, self.limit, self.beta, positions, PromptEnd(positions, self.prompt_length))]
