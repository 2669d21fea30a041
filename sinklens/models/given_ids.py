"""Token ids as callers have them (tensors, lists, tokenizer output), with or without an attention mask."""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinklens.errors import InputError

EXPECTED = "texts, lists of integer ids or an id tensor [batch pos]"


def is_encoding(given: Any) -> bool:
    """Whether it is what a tokenizer gives: a ``BatchEncoding`` or a mapping with ``input_ids``."""
    return isinstance(given, Mapping) and "input_ids" in given


def from_encoding(given: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    """Ids and mask of a tokenizer's output; a lone sequence becomes a row.

    Raises:
        InputError: A second mask beside that of the mapping.
    """
    ids, mask = given["input_ids"], given.get("attention_mask")
    if mask is not None and attention_mask is not None:
        raise InputError("There is an attention_mask in the encoding and another beside it; pass one of them.")
    mask = attention_mask if mask is None else mask
    if not isinstance(ids, Tensor | Sequence | np.ndarray) or isinstance(ids, str):
        raise InputError(f"Expected token ids under 'input_ids', got {type(ids).__name__}.")
    flat = ids.ndim == 1 if isinstance(ids, Tensor) else all(_is_number(each) for each in ids)
    if not flat or not len(ids):
        return ids, mask
    return (ids[None] if isinstance(ids, Tensor) else [ids]), (None if mask is None else [mask])


def id_rows(
    ids: Any, attention_mask: Any, d_vocab: int, pads: Mapping[int, str], marks: Iterable[int]
) -> list[list[int]]:
    """Rows of real ids, padding taken out.

    Args:
        ids: A tensor ``[batch pos]`` or lists of ids.
        attention_mask: True or 1 at real tokens, of the same shape; ``None``: all are real.
        d_vocab: Size of the vocabulary.
        pads: Ids that texts are padded with, with their token strings.
        marks: Those of them that may stand once at the start of a text (BOS, EOS).

    Raises:
        InputError: Other things than integer ids, an id outside the vocabulary, a mask that does not fit, or what looks
            like padding without a mask.
    """
    rows = _tensor_rows(ids) if isinstance(ids, Tensor) else _list_rows(ids)
    if not rows:
        raise InputError("Expected at least one text or sequence of ids, got none.")
    if attention_mask is not None:
        rows = _without_padding(rows, attention_mask)
    for index, row in enumerate(rows):
        if not row:
            raise InputError(f"Sequence {index} is empty; expected at least one token id.")
    check_vocabulary(rows, d_vocab, "Sequence")
    if attention_mask is None:
        _refuse_padding(rows, pads, {*marks})
    return rows


def check_vocabulary(rows: list[list[int]], d_vocab: int, what: str) -> None:
    """Refuse ids that the model has no embedding for.

    Raises:
        InputError: One sentence that names the first such id.
    """
    for index, row in enumerate(rows):
        if row and (min(row) < 0 or max(row) >= d_vocab):
            wrong = max(row) if max(row) >= d_vocab else min(row)
            hint = "" if what == "Sequence" else "; the tokenizer has tokens that the model was never given, see "
            hint += "" if what == "Sequence" else "resize_token_embeddings, or leave such tokens out of the text"
            raise InputError(
                f"{what} {index} holds id {wrong}; this model's vocabulary has ids 0 to {d_vocab - 1}{hint}."
            )


def _is_number(each: Any) -> bool:
    try:
        operator.index(each)
    except (TypeError, ValueError):
        return False
    return True


def _tensor_rows(ids: Tensor) -> list[list[int]]:
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.is_nested or ids.is_meta or ids.layout != torch.strided:
        raise InputError("Expected a plain tensor of ids [batch pos], got a nested, sparse or meta tensor.")
    if ids.ndim != 2 or not whole:
        raise InputError(f"Expected integer ids of shape [batch pos], got {tuple(ids.shape)} {ids.dtype}.")
    rows: list[list[int]] = ids.tolist()
    return rows


def _list_rows(ids: Any) -> list[list[int]]:
    try:
        return [[operator.index(token) for token in row] for row in ids]
    except TypeError as error:
        raise InputError(f"Expected {EXPECTED}, got {str(ids)[:40]} ({error}).") from error


def _without_padding(rows: list[list[int]], attention_mask: Any) -> list[list[int]]:
    try:
        masks = [[float(each) for each in row] for row in attention_mask]
    except (TypeError, ValueError) as error:
        came = getattr(attention_mask, "shape", None)
        came = " ".join(str(attention_mask).split())[:40] if came is None else f"shape {tuple(came)}"
        raise InputError(
            f"attention_mask must have the shape of the ids, [batch pos], with 1 at real tokens; got {came}."
        ) from error
    shapes = [(len(row), len(mask)) for row, mask in zip(rows, masks, strict=False)]
    if len(rows) != len(masks) or any(n != m for n, m in shapes):
        raise InputError(f"attention_mask has shape {_shape(masks)}, ids have {_shape(rows)}.")
    out = []
    for row, mask in zip(rows, masks, strict=True):
        if not {*mask} <= {0.0, 1.0}:
            wrong = next(each for each in mask if each not in (0.0, 1.0))
            raise InputError(f"attention_mask holds {wrong:g}; expected 1 at real tokens and 0 at padding.")
        if sum(a != b for a, b in itertools.pairwise(mask)) > 1:
            raise InputError("attention_mask has holes; expected padding on the left or the right side only.")
        out.append([token for token, keep in zip(row, mask, strict=True) if keep])
    return out


def _shape(rows: list[Any]) -> str:
    widths = sorted({len(row) for row in rows})
    return f"({len(rows)}, {widths[0] if len(widths) == 1 else f'{widths[0]} to {widths[-1]}' if widths else 0})"


def _refuse_padding(rows: list[list[int]], pads: Mapping[int, str], marks: set[int]) -> None:
    """Ids that begin or end as padded ones do would put padding at position 0, where sinks are looked for.

    A run of two or more at an end is taken for padding. One alone may be a BOS or an EOS; another pad id alone at the
    start counts when some rows have it and some have not, as texts padded to the longest of them do.
    """
    single = {row[0] for row in rows} & {*pads} - marks
    all_alike = len({row[0] for row in rows}) == 1
    for index, row in enumerate(rows):
        for end, ordered in (("starts", row), ("ends", row[::-1])):
            token = ordered[0]
            if token not in pads:
                continue
            run = next((n for n, each in enumerate(ordered) if each != token), len(ordered))
            if run > 1 or (end == "starts" and token in single and not all_alike):
                raise InputError(
                    f"Sequence {index} {end} with {run} x {pads[token]!r} (id {token}), which is padding, and no "
                    "attention_mask says so: padding would be measured as text. Pass the tokenizer's whole output, or "
                    "attention_mask=encoding['attention_mask']; if these tokens are meant, a mask of ones."
                )
