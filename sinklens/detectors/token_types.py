"""Which kinds of tokens are sinks, massive or drained: by token string and by class, first or later in the sequence."""

import math
import re
import unicodedata
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd

from sinklens.detectors.base import Metric, medians

SINK_SHARE = 0.05
OCCURRENCES = ("first", "later", "start")
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
    start, repeated = frame["position"].to_numpy() == 0, frame.duplicated(["sequence", "token"]).to_numpy()
    occurrence = np.where(start, 2, repeated)  # as in :data:`OCCURRENCES`
    texts = frame["token"].astype(object).to_numpy()
    kinds = [token_class(str(text), bool(special)) for text, special in zip(texts, frame["is_special"], strict=True)]
    known = {name: frame[name].to_numpy() for name in ("sequence", "is_massive_absolute", "is_massive_ratio")}
    known["heads"] = frame["n_sink_heads"].to_numpy(dtype=float)
    known["judged"] = ~np.isnan(known["heads"]) & (n_heads > 0)
    known["sink"] = known["judged"] & (known["heads"] >= sink_heads_needed(n_heads))
    drained = (
        frame["n_drained_heads"].to_numpy(dtype=float) if "n_drained_heads" in frame else np.full(len(frame), np.nan)
    )
    known["drained"] = drained
    parts = [
        _grouped(by, np.array(names, dtype=object), occurrence, known)
        for by, names in (("class", kinds), ("token", texts))
    ]
    found = pd.concat(parts, ignore_index=True)
    dull = (found["by"] == "token") & (found["n_tokens"] == 1)
    dull &= (found["n_sinks"].fillna(0) == 0) & (found["n_massive_absolute"] == 0) & (found["n_massive_ratio"] == 0)
    order = ["by", "n_sinks", "n_massive_ratio", "n_massive_absolute", "n_tokens", "name", "occurrence"]
    ascending = [True, False, False, False, False, True, True]
    return found[~dull].sort_values(order, ascending=ascending, ignore_index=True)[[*COLUMNS]]


def _grouped(by: str, names: np.ndarray, occurrence: np.ndarray, known: dict[str, np.ndarray]) -> pd.DataFrame:
    codes, values = pd.factorize(names)
    groups, of = np.unique(codes * len(OCCURRENCES) + occurrence, return_inverse=True)

    def count(column: np.ndarray) -> np.ndarray:
        return np.bincount(of, column, len(groups)).astype(int)

    sequences = np.unique(np.stack([of, pd.factorize(known["sequence"])[0]]), axis=1)[0]
    n_tokens, n_judged, n_sinks = np.bincount(of), count(known["judged"]), count(known["sink"])
    # position 0 is compared with position 0, all other tokens with one another
    at_start = groups % len(OCCURRENCES) == OCCURRENCES.index("start")

    def of_all(counts: np.ndarray) -> np.ndarray:
        return _over(counts, np.where(at_start, counts[at_start].sum(), counts[~at_start].sum()))

    found = {
        "by": by,
        "name": np.asarray(values, dtype=object)[groups // len(OCCURRENCES)],
        "occurrence": np.array(OCCURRENCES, dtype=object)[groups % len(OCCURRENCES)],
        "n_tokens": n_tokens,
        "token_share": of_all(n_tokens),
        "n_sequences": np.bincount(sequences),
        "n_judged": n_judged,
        "n_sinks": np.where(n_judged > 0, n_sinks, np.nan),  # not known is not 0
        "sink_rate": _over(n_sinks, n_judged),
        "sink_share": of_all(n_sinks),
        "sink_heads_median": medians(of, known["heads"], len(groups)),
    }
    for name in ("absolute", "ratio"):
        counts = count(known[f"is_massive_{name}"])
        found[f"n_massive_{name}"] = counts
        found[f"massive_{name}_rate"] = _over(counts, n_tokens)
        found[f"massive_{name}_share"] = of_all(counts)
    found["drained_heads_median"] = medians(of, known["drained"], len(groups))
    return pd.DataFrame(found)


def _over(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.divide(counts, total, out=np.full(len(counts), np.nan), where=total > 0)
    return share
