"""Which kinds of tokens are sinks, massive or drained: by token string and by class, first or later in the sequence."""

import math
import re
import unicodedata
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd

from sinklens.detectors.base import Metric

SINK_SHARE = 0.05
TokenClass = Literal["special", "chat marker", "whitespace", "delimiter", "number", "word", "other"]
COLUMNS = (
    "by", "name", "occurrence", "n_tokens", "token_share", "n_sequences", "n_judged", "n_sinks", "sink_rate",
    "sink_share", "sink_heads_median", "n_massive_absolute", "massive_absolute_rate", "massive_absolute_share",
    "n_massive_ratio", "massive_ratio_rate", "massive_ratio_share", "drained_heads_median",
)  # fmt: skip
_CHAT = re.compile(
    r"im_start|im_end|_turn|turn_|inst|eot|eom|header|channel|message|role|user|assistant|system", re.IGNORECASE
)

METRIC = Metric(
    "token_type",
    1,
    "Tokens of all sequences grouped by their string, and by class (special, chat marker, white space, delimiter, "
    "number, word), and by occurrence: start (position 0), first (of that string in the sequence) or later. A token is "
    "a sink token where its importance alpha exceeds the sink threshold in at least 5 % of the heads. rate: share of "
    "the group's tokens; share: of all such tokens after position 0 (of position 0: among those at position 0), how "
    "many are of the group; null: token_share, the same share among all tokens.",
    "sinklens; Gu et al. 2025, arXiv 2410.10781 (alpha); Sun et al. 2024, arXiv 2402.17762 (first delimiters)",
)


@lru_cache(maxsize=65536)
def token_class(text: str, special: bool = False) -> TokenClass:
    r"""What kind of token a string is.

    Args:
        text: The token as text.
        special: The tokenizer calls it special: a chat marker if its name says so, else like a BOS.

    Example:
        >>> [token_class(t) for t in (" the", ".", " 42", "\n", "def_x")]
        ['word', 'delimiter', 'number', 'whitespace', 'other']
        >>> token_class("<|im_start|>", special=True), token_class("<bos>", special=True)
        ('chat marker', 'special')
    """
    if special:
        return "chat marker" if _CHAT.search(text) else "special"
    bare = text.strip()
    if not bare:
        return "whitespace"
    if all(unicodedata.category(char)[0] == "P" for char in bare):
        return "delimiter"
    if all(char.isnumeric() for char in bare):
        return "number"
    return "word" if all(char.isalpha() or char in "'’-" for char in bare) else "other"


def sink_heads_needed(n_heads: int) -> int:
    """For how many heads a token must be a sink to be called a sink token: 5 % of them, at least one.

    >>> sink_heads_needed(270), sink_heads_needed(4)
    (14, 1)
    """
    return max(1, math.ceil(SINK_SHARE * n_heads))


def token_types(tokens: pd.DataFrame, n_heads: int) -> pd.DataFrame:
    """One row per token string (or class) and occurrence.

    Args:
        tokens: A census's tokens: ``sequence, position, token, is_special, n_sink_heads, is_massive_absolute,
            is_massive_ratio`` and, where drains were measured, ``n_drained_heads``.
        n_heads: Query heads of the model that were measured; 0 = none, then nothing about sinks is known.

    Returns:
        ``by`` ("class", "token"), ``name``, ``occurrence``, ``n_tokens``, ``token_share`` (the null), ``n_sequences``
        that have one; ``n_judged`` tokens that enough queries see, ``n_sinks`` of them, ``sink_rate``, ``sink_share``,
        ``sink_heads_median``; the same three for massive tokens by each criterion; ``drained_heads_median``. Groups
        with the most sink tokens first. Tokens with a single occurrence that is neither sink nor massive are left out.

    Cost: O(tokens log tokens).
    """
    if tokens.empty:
        return pd.DataFrame(columns=[*COLUMNS])
    frame = tokens.sort_values(["sequence", "position"], kind="stable").reset_index(drop=True)
    repeated = frame.duplicated(["sequence", "token"])
    frame["occurrence"] = np.select([frame["position"] == 0, ~repeated], ["start", "first"], "later")
    frame["class"] = [
        token_class(str(text), bool(special)) for text, special in zip(frame["token"], frame["is_special"], strict=True)
    ]
    frame["judged"] = frame["n_sink_heads"].notna() & (n_heads > 0)
    frame["sink"] = frame["judged"] & (frame["n_sink_heads"] >= sink_heads_needed(n_heads))
    if "n_drained_heads" not in frame:
        frame["n_drained_heads"] = np.nan
    start = frame["position"] == 0
    parts = [_grouped(frame, start, by) for by in ("class", "token")]
    found = pd.concat(parts, ignore_index=True)
    dull = (found["by"] == "token") & (found["n_tokens"] == 1)
    dull &= (found["n_sinks"].fillna(0) == 0) & (found["n_massive_absolute"] == 0) & (found["n_massive_ratio"] == 0)
    order = ["by", "n_sinks", "n_massive_ratio", "n_massive_absolute", "n_tokens", "name", "occurrence"]
    ascending = [True, False, False, False, False, True, True]
    return found[~dull].sort_values(order, ascending=ascending, ignore_index=True)[[*COLUMNS]]


def _grouped(frame: pd.DataFrame, start: pd.Series, by: str) -> pd.DataFrame:
    grouped = frame.groupby([by, "occurrence"])
    found = grouped.agg(
        n_tokens=("position", "size"),
        n_sequences=("sequence", "nunique"),
        n_judged=("judged", "sum"),
        n_sinks=("sink", "sum"),
        sink_heads_median=("n_sink_heads", "median"),
        n_massive_absolute=("is_massive_absolute", "sum"),
        n_massive_ratio=("is_massive_ratio", "sum"),
        drained_heads_median=("n_drained_heads", "median"),
    ).reset_index(names=["name", "occurrence"])
    # position 0 is compared with position 0, all other tokens with one another
    at_start = found["occurrence"] == "start"

    def total(column: str | None) -> pd.Series:
        values = pd.Series(1, frame.index) if column is None else frame[column]
        return at_start.map({True: values[start].sum(), False: values[~start].sum()}).astype(float)

    def over(count: pd.Series, of: pd.Series) -> pd.Series:
        return count.astype(float) / of.where(of > 0).astype(float)

    found["token_share"] = over(found["n_tokens"], total(None))
    found["sink_rate"] = over(found["n_sinks"], found["n_judged"])
    found["sink_share"] = over(found["n_sinks"], total("sink"))
    for name in ("absolute", "ratio"):
        count = found[f"n_massive_{name}"]
        found[f"massive_{name}_rate"] = over(count, found["n_tokens"])
        found[f"massive_{name}_share"] = over(count, total(f"is_massive_{name}"))
    found["n_sinks"] = found["n_sinks"].astype(float).where(found["n_judged"] > 0)  # not known is not 0
    return found.assign(by=by)
