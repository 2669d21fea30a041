"""Classes of tokens by what they are for: chat roles and turns, packed documents, occurrences, BOS-like tokens."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sinklens.detectors.token_types import token_class
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

COLUMNS = (
    "sequence", "position", "token", "kind", "document", "document_position", "bos_like", "occurrence",
    "word_occurrence", "role", "turn", "null", "null_document",
)  # fmt: skip

_SEPARATOR = re.compile(r"^(<\|endoftext\|>|<\|end_of_text\|>|</s>|<eos>|\[SEP\]|<\|end▁of▁sentence\|>)$")
_OPENS = re.compile(r"^(<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|start\|>|<\|turn>)$")
_ENDS = re.compile(r"^(<\|im_end\|>|<end_of_turn>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<turn\|>)$")
_CLOSES = re.compile(r"^(<\|end_header_id\|>|<\|message\|>)$")
_BARE = {
    "<|system|>": "system", "<|user|>": "user", "<|assistant|>": "assistant", "[INST]": "user", "[/INST]": "assistant",
}  # fmt: skip
_ROLE_WORDS = {"model": "assistant", "ai": "assistant", "human": "user", "developer": "system"}


def token_classes(
    batch: TokenBatch, *, documents: Int[Tensor, "batch pos"] | Sequence[Sequence[int]] | None = None
) -> pd.DataFrame:
    """What every token of some sequences is for, to group any table with ``sequence`` and ``position`` by.

    Args:
        batch: Tokens from :func:`sinklens.tokenize`.
        documents: Which document each token belongs to, where texts were packed into one sequence; default: a new one
            begins with every BOS and after every end-of-text token.

    Returns:
        One row per real token: ``sequence, position, token``; ``kind`` (see
        :func:`~sinklens.detectors.token_types.token_class`); ``document`` (from 0) and ``document_position`` in it;
        ``bos_like``, the BOS itself, or the first token of a document; ``occurrence`` (start, first, later: of this
        token in its document) and ``word_occurrence``, the same of the word, whatever its case and the space before
        it (missing where it is no word); ``role`` (system, user, assistant, or what the template calls it; missing
        outside of turns) and ``turn`` (from 0, missing outside), by the markers of the usual chat templates.

        Two nulls of the attention that a token receives, its mean over the queries at and after it if all of them
        attend evenly: ``null`` to every token before them, as a packed sequence without a mask between documents is
        run (and as sinklens runs it); ``null_document`` to those of their document alone. The first token of a
        later document has far less of the one than position 0 has, and under the other as much.

    Raises:
        InputError: ``documents`` of another shape, or numbers that fall.

    Example:
        >>> import sinklens
        >>> batch = sinklens.tokenize(sinklens.load("tiny-llama"), "The cat and the dog.")
        >>> token_classes(batch)["kind"].tolist()[-1]
        'delimiter'
    """
    given = None if documents is None else torch.as_tensor(documents)
    if given is not None and given.shape != batch.ids.shape:
        raise InputError(f"documents must be [batch pos] = {tuple(batch.ids.shape)}, got {tuple(given.shape)}.")
    frames = [
        _sequence(row, tokens, batch, None if given is None else given[row, : len(tokens)])
        for row, tokens in enumerate(batch.tokens)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS])


def by_class(
    table: pd.DataFrame,
    classes: pd.DataFrame,
    by: str | Sequence[str] = "kind",
    values: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Group a table of tokens by their classes.

    Args:
        table: With ``sequence`` and ``position``: a census's tokens, its secondary sinks, your own.
        classes: From :func:`token_classes` of the same batch.
        by: One of its columns, or several.
        values: Columns to take the mean of; default: all numbers and truth values of the table.

    Returns:
        One row per class: the columns ``by``; ``n_tokens`` of the class in the texts, ``token_share`` (that number over
        all: the null of ``row_share``), ``n_rows`` of the table, ``row_share``; the mean of each value over
        sequences (a sequence counts once), with ``.._sd`` over sequences; ``null`` and ``null_document``, means over
        the class of what even attention would give.

    Raises:
        InputError: A column that is missing, or rows about tokens that ``classes`` does not have.
    """
    by = [by] if isinstance(by, str) else [*by]
    key = ["sequence", "position"]
    for name, frame, columns in (("table", table, key), ("classes", classes, [*key, *by])):
        if missing := [column for column in columns if column not in frame]:
            raise InputError(f"The {name} has no column {', '.join(missing)}; it has {', '.join(map(str, frame))}.")
    if values is None:
        numeric = table.select_dtypes(["number", "bool", "boolean"]).columns
        values = [name for name in numeric if name not in (*key, "token_id", *by)]
    wanted = [*dict.fromkeys([*key, *by])]
    joined = table[[*dict.fromkeys([*key, *values])]].merge(classes[wanted], on=key, how="left", indicator=True)
    if (joined["_merge"] != "both").any():
        row = joined[joined["_merge"] != "both"].iloc[0]
        raise InputError(
            f"classes has no token at position {row['position']} of sequence {row['sequence']}: give those of the "
            "batch that the table is about."
        )
    counts = classes.groupby(by, dropna=False).agg(
        n_tokens=("position", "size"), null=("null", "mean"), null_document=("null_document", "mean")
    )
    counts.insert(1, "token_share", counts["n_tokens"] / len(classes))
    grouped = joined.groupby(by, dropna=False)
    rows = grouped.size().rename("n_rows").reindex(counts.index, fill_value=0)
    found = counts.assign(n_rows=rows, row_share=rows / max(1, len(table)))
    by_sequence = joined.groupby([*by, "sequence"], dropna=False)[[*values]].mean(numeric_only=True)
    for name in values:
        each = by_sequence[name].groupby(level=by, dropna=False)
        found[name] = each.mean().reindex(counts.index)
        found[f"{name}_sd"] = each.std().reindex(counts.index)
    return found.sort_values("n_rows", ascending=False, kind="stable").reset_index()


def _sequence(row: int, tokens: Sequence[str], batch: TokenBatch, given: Tensor | None) -> pd.DataFrame:
    length = len(tokens)
    special = batch.special[row, :length].tolist()
    bos = batch.bos[row, :length].tolist()
    documents = _documents(tokens, bos) if given is None else [int(number) for number in given.tolist()]
    if any(later < earlier for earlier, later in pairwise(documents)):
        raise InputError(f"The documents of sequence {row} must be numbered in order, got {documents}.")
    number = {name: place for place, name in enumerate(dict.fromkeys(documents))}
    document = np.array([number[name] for name in documents])
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    within = np.arange(length) - starts[document] if length else np.array([], dtype=int)
    roles, turns = _turns(tokens)
    words = [_word(text, is_special) for text, is_special in zip(tokens, special, strict=True)]
    frame = pd.DataFrame(
        {
            "sequence": row,
            "position": np.arange(length),
            "token": list(tokens),
            "kind": [token_class(text, flag) for text, flag in zip(tokens, special, strict=True)],
            "document": document,
            "document_position": within,
            "bos_like": np.array(bos, dtype=bool) | (within == 0),
            "occurrence": _occurrences(tokens, document, within),
            "word_occurrence": _occurrences(words, document, within),
            "role": roles,
            "turn": pd.array(turns, dtype="Int64"),
            "null": _even(np.arange(length), np.full(length, length)),
        }
    )
    ends = np.append(starts[1:], length)[document] if length else document
    frame["null_document"] = _even(within, (ends - starts[document]) if length else within)
    return frame[[*COLUMNS]]


def _even(position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """``(1/(T-k)) sum_{i=k}^{T-1} 1/(i+1)``: what key k receives on average where all queries attend evenly."""
    if not len(position):
        return np.array([])
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, int(length.max()) + 1)))
    mean: np.ndarray = (harmonic[length] - harmonic[position]) / (length - position)
    return mean


def _documents(tokens: Sequence[str], bos: Sequence[bool]) -> list[int]:
    """A new one with every BOS (of several in a row the first), and after every end-of-text token.

    A BOS that is the marker of a chat turn (SmolLM2's) begins a turn and no document.
    """
    found, current, opened = [], 0, False
    for place, text in enumerate(tokens):
        begins = bos[place] and not (place and bos[place - 1]) and not _OPENS.match(text)
        if place and (begins or opened):
            current += 1
        opened = bool(_SEPARATOR.match(text)) and not bos[place]
        found.append(current)
    return found


def _occurrences(names: Sequence[Any], document: np.ndarray, within: np.ndarray) -> list[str | None]:
    seen: set[tuple[int, Any]] = set()
    found: list[str | None] = []
    for name, where, place in zip(names, document.tolist(), within.tolist(), strict=True):
        if name is None:
            found.append(None)
            continue
        found.append("start" if place == 0 else "later" if (where, name) in seen else "first")
        seen.add((where, name))
    return found


def _word(text: str, special: bool) -> str | None:
    return text.strip().casefold() if token_class(text, special) == "word" else None


def _turns(tokens: Sequence[str]) -> tuple[list[str | None], list[int | None]]:
    """Role and turn of each token, markers and the words that name the role included."""
    roles: list[str | None] = []
    turns: list[int | None] = []
    role: str | None = None
    turn, naming = -1, False
    heading: list[int] = []
    for text in tokens:
        mark = text.strip()
        if _OPENS.match(mark) or mark in _BARE:
            turn, role, naming, heading = turn + 1, _BARE.get(mark), mark not in _BARE, []
        if role is None and not naming and not heading:
            roles.append(None)
            turns.append(None)
            continue
        roles.append(role)
        turns.append(turn)
        if naming:
            heading.append(len(roles) - 1)
            if "\n" in text or _CLOSES.match(mark):
                naming = False
            elif not _OPENS.match(mark) and mark:
                role = (role or "") + mark.casefold()
            if not naming:
                role = _ROLE_WORDS.get(role or "", role)
                for place in heading:
                    roles[place] = role
                heading = []
        if _ENDS.match(mark):
            role, naming, heading = None, False, []
    return roles, turns
