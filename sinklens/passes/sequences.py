"""Which sequences an experiment runs on: texts, ids, or a built-in corpus."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.models.given_ids import is_encoding
from sinklens.models.tokens import BosChoice, Ids, TokenBatch, as_batch, to_batch
from sinklens.passes.corpus import SEQUENCES, builtin_corpus


def choose_sequences(
    model: TransformerBridge,
    texts: str | Sequence[str] | TokenBatch | Ids | None = None,
    tokens: TokenBatch | Ids | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    seed: int = 0,
    source: str | None = None,
    max_sequences: int | None = None,
    attention_mask: Any = None,
) -> tuple[TokenBatch, str]:
    """The sequences that the arguments of :func:`~sinklens.scan` name, and what to call their source.

    What is not used is counted in :attr:`TokenBatch.unused`.

    Args:
        model: The bridge.
        texts: One or several texts; token ids here are taken for ``tokens``. Default: a built-in corpus.
        tokens: Token ids, each row a sequence.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        split: Cut long texts into sequences of ``max_tokens``; rows of ids are never split, their ends are cut off.
        seed: Which sequences are drawn.
        source: What to call them.
        max_sequences: Draw so many sequences at random from all of them, kept in order; default: 100 of texts, and all
            of given tokens.
        attention_mask: For ids: 1 at real tokens.

    Raises:
        InputError: Texts and tokens at once, less than one sequence, or text that cannot be tokenized.
    """
    if texts is not None and tokens is not None:
        raise InputError("Pass either texts or tokens, not both.")
    for name, value, least in (("max_sequences", max_sequences, 1), ("seed", seed, 0)):
        given: Any = value
        if given is None and name == "max_sequences":
            continue
        if not isinstance(given, int | np.integer) or given < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if _are_tokens(texts):
        texts, tokens = None, texts
    if attention_mask is not None and (tokens is None or isinstance(tokens, TokenBatch)):
        raise InputError("attention_mask goes with token ids; texts and a TokenBatch know their padding.")
    if isinstance(tokens, TokenBatch):
        batch, source = _fitting(as_batch(model, tokens), max_tokens), source or "token ids given by the caller"
    elif tokens is not None:
        if _are_texts(tokens):
            raise InputError("tokens are ids, and these are texts; pass them as texts.")
        batch = to_batch(model, tokens, max_tokens=max_tokens, attention_mask=attention_mask)
        source = source or "token ids given by the caller"
    elif texts is not None:
        written: Any = texts
        batch = to_batch(model, written, bos=bos, max_tokens=max_tokens, split=split)
        source = source or "texts given by the caller"
        max_sequences = max_sequences or SEQUENCES
    else:
        corpus = builtin_corpus(model, bos=bos, length=max_tokens, n_sequences=max_sequences or SEQUENCES, seed=seed)
        return corpus.tokens, source or corpus.source
    return (batch if max_sequences is None else _draw(batch, max_sequences, seed)), source


def without_short(batch: TokenBatch, usable: Sequence[int]) -> TokenBatch:
    """The sequences that are long enough; the tokens of the others are counted as unused."""
    short = int(batch.text_lengths.sum() - batch.text_lengths[[*usable]].sum())
    unused = replace(batch.unused, short=short, short_sequences=len(batch) - len(usable))
    return replace(batch.rows(usable), unused=unused)


def _are_tokens(given: Any) -> bool:
    if isinstance(given, TokenBatch | Tensor) or is_encoding(given):
        return True
    return isinstance(given, list | tuple) and len(given) > 0 and not any(isinstance(each, str) for each in given)


def _are_texts(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, list | tuple) and any(isinstance(each, str) for each in given))


def _fitting(batch: TokenBatch, max_tokens: int | None) -> TokenBatch:
    """A batch that was made before, perhaps for another length."""
    if not len(batch):
        raise InputError("Expected at least one sequence, got none.")
    longest = int(batch.lengths.max())
    if max_tokens is not None and longest > max_tokens:
        raise InputError(
            f"max_tokens={max_tokens}, but these tokens have sequences of {longest}; give max_tokens to tokenize."
        )
    return batch


def first_sequences(batch: TokenBatch, count: int) -> TokenBatch:
    """The first sequences, where something else counts them (answers do); what is left out is counted."""
    return _keep(batch, range(min(count, len(batch))))


def _draw(batch: TokenBatch, count: int, seed: int) -> TokenBatch:
    """Some sequences from all over the texts, in their order; what is left out is counted."""
    return _keep(batch, sorted(random.Random(seed).sample(range(len(batch)), min(count, len(batch)))))


def _keep(batch: TokenBatch, chosen: Sequence[int]) -> TokenBatch:
    if len(chosen) == len(batch):
        return batch
    chosen = [*chosen]
    left_out = int(batch.text_lengths.sum() - batch.text_lengths[chosen].sum())
    unused = batch.unused
    unused = replace(
        unused,
        undrawn=unused.undrawn + left_out,
        undrawn_sequences=unused.undrawn_sequences + len(batch) - len(chosen),
    )
    return replace(batch.rows(chosen), unused=unused)
