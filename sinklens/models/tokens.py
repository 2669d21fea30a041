"""Text to tokens with nothing implicit: who put the BOS there, which positions are special and which are padding."""

import math
import operator
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.models.architecture import context_length, text_config
from sinklens.models.as_bridge import check_evaluates
from sinklens.models.bos import BosFacts, bos_facts
from sinklens.models.given_ids import EXPECTED, check_vocabulary, from_encoding, id_rows, is_encoding
from sinklens.models.panics import no_panics
from sinklens.models.token_batch import AddedBy, TokenBatch
from sinklens.models.unused import Unused
from sinklens.wording import are, several

__all__ = ["AddedBy", "BosChoice", "Ids", "TokenBatch", "as_batch", "begun_batch", "bos_prefix", "to_batch", "tokenize"]

BosChoice = Literal["auto", "yes", "no"] | bool
Ids = Tensor | Sequence[Sequence[int]] | Mapping[str, Any]
"""Token ids as callers have them: a tensor ``[batch pos]``, lists of ids, or what a tokenizer gives."""


@checked
def tokenize(
    model: TransformerBridge,
    texts: str | Iterable[str] | Ids,
    *,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    attention_mask: Any = None,
    split: bool = False,
) -> TokenBatch:
    """Turn texts or ids into a :class:`TokenBatch`, one row per text.

    Args:
        model: The bridge whose tokenizer and context length apply.
        texts: One text, several texts, or ids: lists of ids, a tensor ``[batch pos]``, or what a Hugging Face tokenizer
            gives (``input_ids`` with ``attention_mask``). Ids are taken as they are: no BOS is added to them.
        bos: ``"auto"`` prepends the BOS if the checkpoint's own tokenizer does, ``"yes"``/True always, ``"no"``/False
            never.
        max_tokens: Longest sequence, BOS included; default: the model's context.
        attention_mask: For ids: 1 or True at real tokens, of their shape. Padding may be on either side; rows are
            stored right-padded, so positions count from the first real token and the numbers are those of no padding.
        split: Cut a long text into consecutive rows of ``max_tokens`` (each with its own BOS) instead of dropping
            the rest; a last row shorter than half of ``max_tokens`` is left out.

    Raises:
        InputError: Nothing to tokenize, an empty text, no tokenizer, a BOS asked for that does not exist, an id
            outside the vocabulary, ids that begin or end with padding and no mask, or a wrong ``max_tokens`` or
            ``attention_mask``.

    Warns when it drops tokens; :attr:`TokenBatch.unused` counts them.
    """
    batch = to_batch(model, texts, bos=bos, max_tokens=max_tokens, attention_mask=attention_mask, split=split)
    if batch.unused.cut:
        warnings.warn(
            f"{several(batch.unused.cut, 'token')} beyond the longest sequence of {int(batch.lengths.max())} "
            f"{are(batch.unused.cut)} cut off; split=True keeps them in sequences of their own.",
            stacklevel=2,
        )
    return batch


def to_batch(
    model: TransformerBridge,
    texts: str | Iterable[str] | Ids,
    *,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    attention_mask: Any = None,
    split: bool = False,
) -> TokenBatch:
    """:func:`tokenize` for callers who say themselves what is not used."""
    _check_model(model)
    longest = _longest(model, max_tokens)
    bos_id = bos_facts(model).bos_id
    prefix: list[int] = []
    given, attention_mask = _as_given(texts, attention_mask)
    given_ids = isinstance(given, Tensor) or not any(isinstance(text, str) for text in given)
    if not isinstance(given, Tensor) and len(given) == 0:
        raise InputError("Expected at least one text or sequence of ids, got none.")
    if given_ids:
        pads, marks = _pad_ids(model, bos_id)
        rows = id_rows(given, attention_mask, int(model.cfg.d_vocab), pads, marks)
    else:
        if attention_mask is not None:
            raise InputError("attention_mask goes with ids; texts carry no padding.")
        prefix, statement = bos_prefix(model, bos)
        rows = _text_rows(model, given)
        written = sum(row[0] == bos_id for row in rows)
        added_by: AddedBy = "sinklens" if prefix else "caller" if written == len(rows) else "nobody"
        if written:
            twice = ", so it stands there twice" if prefix else ""
            statement += (
                f" {written} of {several(len(rows), 'text')} {'spells' if written == 1 else 'spell'} the BOS "
                f"out at {'its' if written == 1 else 'their'} start{twice}."
            )
    rows, unused = _fit(rows, prefix, longest, split)
    if given_ids:
        added_by, statement = _given_bos(rows, bos_id)
    return _assemble(model, rows, bos_id, added_by, statement, unused)


def as_batch(model: TransformerBridge, batch: TokenBatch | Ids, attention_mask: Any = None) -> TokenBatch:
    """A batch as it is when it fits the model, or one made of token ids as callers have them.

    Raises:
        InputError: No loaded model or one in training mode, texts, a batch of another model's tokens, or ids that
            :func:`tokenize` refuses.
    """
    _check_model(model)
    check_evaluates(model)
    if not isinstance(batch, TokenBatch):
        given: Any = batch
        if isinstance(given, str) or (isinstance(given, list | tuple) and any(isinstance(each, str) for each in given)):
            raise InputError("Expected token ids, got texts; pass tokenize(model, texts).")
        return tokenize(model, batch, attention_mask=attention_mask)
    if attention_mask is not None:
        raise InputError("attention_mask goes with token ids; a TokenBatch knows its padding.")
    if len(batch) and int(batch.ids.max()) >= int(model.cfg.d_vocab):
        raise InputError(
            f"The tokens hold id {int(batch.ids.max())}; this model's vocabulary has ids 0 to "
            f"{int(model.cfg.d_vocab) - 1}. Tokenize the texts with this model."
        )
    return batch


def bos_prefix(model: TransformerBridge, bos: BosChoice) -> tuple[list[int], str]:
    """The ids that stand before every text (the BOS or nothing), and a sentence about who wants them there.

    Args:
        model: The bridge.
        bos: As for :func:`tokenize`.

    Raises:
        InputError: A BOS asked for that does not exist, or another word.
    """
    facts = bos_facts(model)
    prepend, statement = _resolve_bos(bos, facts)
    return [facts.bos_id] if prepend and facts.bos_id is not None else [], statement


def begun_batch(model: TransformerBridge, rows: list[list[int]], bos: BosChoice) -> TokenBatch:
    """Prompts that sinklens put together, as a batch whose statement says who put a BOS before them, or why none is.

    Args:
        model: The bridge.
        rows: Ids of each, beginning with what :func:`bos_prefix` gives for this ``bos``.
        bos: As for :func:`tokenize`.
    """
    prefix, statement = bos_prefix(model, bos)
    return replace(tokenize(model, rows), bos_added_by="sinklens" if prefix else "nobody", statement=statement)


def _check_model(model: Any) -> None:
    if not isinstance(model, TransformerBridge):
        raise InputError(
            f"Expected a loaded model, got {type(model).__name__}; use sinklens.load for a name or path, and "
            "sinklens.models.as_bridge(model, tokenizer=...) for a Hugging Face model."
        )


def _longest(model: TransformerBridge, max_tokens: Any) -> int | None:
    limit = context_length(model)
    if max_tokens is None:
        return limit
    try:
        longest = operator.index(max_tokens)
    except TypeError:
        raise InputError(f"max_tokens must be a whole number, got {max_tokens!r}.") from None
    if longest < 1:
        raise InputError(f"max_tokens must be at least 1, got {longest}.")
    if limit is not None and longest > limit:
        raise InputError(
            f"max_tokens={longest} is longer than the model's context of {limit} tokens; use {limit} or less."
        )
    return longest


def _as_given(texts: Any, attention_mask: Any) -> tuple[Any, Any]:
    """Texts in a list, or ids with their mask."""
    if isinstance(texts, str):
        return [texts], attention_mask
    if is_encoding(texts):
        return from_encoding(texts, attention_mask)
    if isinstance(texts, Mapping):
        raise InputError(
            f"Expected {EXPECTED}, got a mapping with {', '.join(map(repr, list(texts)[:3])) or 'nothing'}; a "
            "tokenizer's output has 'input_ids', and texts by domain go to sinklens.scan or active_dormant."
        )
    if isinstance(texts, Tensor):
        return texts, attention_mask
    if isinstance(texts, os.PathLike):
        raise InputError(f"Expected a text, got the path {texts}; pass what is in it: Path(...).read_text().")
    if isinstance(texts, set | frozenset):
        raise InputError("Expected texts in order, got a set, which has none; pass a list.")
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise InputError(f"Expected {EXPECTED}, got {type(texts).__name__}.")
    return list(texts), attention_mask


def _given_bos(rows: list[list[int]], bos_id: int | None) -> tuple[AddedBy, str]:
    """Who put the BOS before ids that the caller gave, in a word and in a sentence."""
    starts = [row[0] == bos_id for row in rows]
    if all(starts):
        return "caller", "Ids were given by the caller; they start with the BOS."
    how = "some start with the BOS and some do not" if any(starts) else "they do not start with a BOS"
    return "nobody", f"Ids were given by the caller; {how}."


def _pad_ids(model: TransformerBridge, bos_id: int | None) -> tuple[dict[int, str], set[int]]:
    """Ids that a caller's texts may be padded with, and those among them that have another meaning at an end."""
    tokenizer: Any = model.tokenizer
    pads, ends = set[int](), set[int]()
    for each in (tokenizer, text_config(model)):
        for name, found in (("pad_token_id", pads), ("eos_token_id", ends)):
            value = getattr(each, name, None)
            found |= {int(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None}
    names = {each: _token_string(tokenizer, each) for each in pads | ends if 0 <= each < int(model.cfg.d_vocab)}
    return names, ends | ({bos_id} if bos_id is not None else set())


def _fit(rows: list[list[int]], prefix: list[int], longest: int | None, split: bool) -> tuple[list[list[int]], Unused]:
    """Add the prefix and cut to length: truncate, or split into consecutive rows."""
    if longest is None:
        return [prefix + row for row in rows], Unused()
    room = longest - len(prefix)
    if room < 1:
        raise InputError(f"max_tokens={longest} leaves no room for text after the BOS; use at least 2.")
    out, unused = [], Unused()
    for row in rows:
        starts = range(0, len(row), room) if split else [0]
        for start in starts:
            piece = row[start : start + room]
            if start > 0 and len(piece) < math.ceil(room / 2):
                unused = replace(unused, remainders=unused.remainders + len(piece))
                continue
            out.append(prefix + piece)
        if not split:
            unused = replace(unused, cut=unused.cut + max(0, len(row) - room))
    return out, unused


def _assemble(
    model: TransformerBridge,
    rows: list[list[int]],
    bos_id: int | None,
    added_by: AddedBy,
    statement: str,
    unused: Unused,
) -> TokenBatch:
    tokenizer: Any = model.tokenizer
    width = max(len(row) for row in rows)
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    if pad >= model.cfg.d_vocab:  # TransformerLens invents one beyond the vocabulary if there is none
        pad = 0
    ids = torch.full((len(rows), width), pad, dtype=torch.long, device="cpu")
    real = torch.zeros(len(rows), width, dtype=torch.bool, device="cpu")
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, device="cpu")
        real[index, : len(row)] = True
    marked = sorted(set(getattr(tokenizer, "all_special_ids", None) or []))
    special = torch.isin(ids, torch.tensor(marked, dtype=torch.long, device="cpu")) & real
    names: dict[int, str] = {}
    for token in sorted({token for row in rows for token in row}):
        names[token] = _token_string(tokenizer, token)
    strings = tuple(tuple(names[token] for token in row) for row in rows)
    return TokenBatch(ids, real, special, strings, bos_id, added_by, statement, unused)


def _token_string(tokenizer: Any, token: int) -> str:
    """The text a token stands for (with its leading space), or ``<id>`` without a tokenizer."""
    if tokenizer is None:
        return f"<{token}>"
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    raw = tokenizer.convert_ids_to_tokens(token)
    if raw is None:  # embedding rows beyond the tokenizer's vocabulary
        return f"<{token}>"
    if raw.startswith("\u2581"):
        return str(raw.replace("\u2581", " "))  # sentencepiece drops a space when it decodes a lone token
    if text == "" or "\ufffd" in text:  # part of a multi-byte character: show the vocabulary's own spelling
        return str(raw)
    return str(text)


def _resolve_bos(bos: BosChoice, facts: BosFacts) -> tuple[bool, str]:
    if bos not in ("auto", "yes", "no", True, False):
        raise InputError(f'bos must be "auto", "yes" or "no", got {bos!r}.')
    if bos in ("no", False):
        return False, "No BOS was prepended because the caller asked for none."
    unknown = facts.bos_id is None and facts.prepends is None
    if bos in ("yes", True):
        if facts.bos_id is None:
            why = f"here {facts.why}" if unknown else "this one has none"
            raise InputError(f'bos="yes" needs a tokenizer with a BOS token and {why}; use bos="no".')
        return True, "A BOS was prepended to every sequence because the caller asked for it."
    if facts.bos_id is None and not unknown:
        return False, "The tokenizer has no BOS token, so none was prepended."
    done = "A BOS was prepended to every sequence" if facts.prepends else "No BOS was prepended"
    return bool(facts.prepends), f"{done} because {facts.why}."


def _text_rows(model: TransformerBridge, texts: Sequence[Any]) -> list[list[int]]:
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise InputError("The model has no tokenizer, so text cannot be used; pass token ids instead.")
    rows = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"Expected texts or ids, not a mixture; number {index} is {kind}.")
        if not text.strip():
            raise InputError(f"Text {index} is empty; expected some text to tokenize.")
        try:
            with no_panics():
                row = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # the tokenizers library has no class of its own for this
            raise InputError(
                f"Text {index} ({text[:30]!r}) cannot be tokenized: {error}. Every character must be in the "
                "vocabulary of this model."
            ) from error
        if not row:
            raise InputError(f"Text {index} ({text[:30]!r}) has no token in this model's vocabulary.")
        rows.append(list(row))
    check_vocabulary(rows, int(model.cfg.d_vocab), "Text")
    return rows
