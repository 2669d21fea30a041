"""Probes of random tokens that repeat, fitted to a model."""

from dataclasses import dataclass, replace

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.detectors.repeats import Repeats
from sinklens.errors import InputError
from sinklens.models.architecture import context_length
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.tokens import TokenBatch, bos_prefix, tokenize


@dataclass(frozen=True)
class RepeatedTokens:
    """Sequences of random tokens, each a prefix and one block several times over.

    Attributes:
        batch: The sequences, all of one length.
        repeats: Where the copies lie.
        notes: What was scaled down to fit the model, in sentences.
    """

    batch: TokenBatch
    repeats: Repeats
    notes: tuple[str, ...] = ()


def repeated_tokens(
    model: TransformerBridge,
    *,
    block: int,
    repeats: int,
    n_sequences: int,
    seed: int = 0,
    distinct: bool = True,
    bos: bool | None = None,
) -> RepeatedTokens:
    """Draw the probe: ordinary, non-special ids of the model, a new block for every sequence.

    Args:
        model: The bridge; its vocabulary and context length bound the probe.
        block: Tokens in the block, at least 2; smaller if the context or the vocabulary does not hold it.
        repeats: How often the block stands there, at least 2.
        n_sequences: Sequences to draw. The first ones are the same whatever the number.
        seed: Of the draws.
        distinct: Draw a block's tokens without repetition. Otherwise (RazorAttention's released code) a token may stand
            twice in a block, and the two are not told apart by what they are.
        bos: Whether a BOS stands first; ``None``: if the model has one.

    Raises:
        InputError: Fewer than 2 of a kind, a context or vocabulary that holds no block of 2, or a BOS asked for that
            does not exist.
    """
    if n_sequences < 1:
        raise InputError(f"n_sequences must be at least 1, got {n_sequences}.")
    prefix = _prefix(model, bos)
    asked = Repeats(block, repeats, len(prefix))
    ids, limit, notes = ordinary_ids(model), context_length(model), []
    room = block if limit is None else (limit - len(prefix)) // repeats
    if room < block:
        notes.append(
            f"The block was scaled down from {block} to {room} tokens: {repeats} of them fit the model's context of "
            f"{limit}."
        )
    size = min(block, room)
    if distinct and len(ids) < size:
        notes.append(f"The block was scaled down to {len(ids)} tokens: the vocabulary has no more ordinary ones.")
        size = len(ids)
    if size < 2:
        raise InputError(
            f"A context of {limit} tokens and {len(ids)} ordinary ids hold no block of 2 tokens {repeats} times over; "
            "use fewer repeats."
        )
    rows = []
    for sequence in range(n_sequences):
        draw = torch.Generator().manual_seed(seed + 1_000_003 * sequence)
        chosen = torch.randperm(len(ids), generator=draw)[:size]
        if not distinct:
            chosen = torch.randint(len(ids), (size,), generator=draw)
        rows.append(prefix + ids[chosen].tolist() * repeats)
    batch = tokenize(model, rows)
    if prefix:
        why = "the caller asked for it" if bos else "the model has one"
        said = f"A BOS was prepended to every probe because {why}."
    else:
        said = "No BOS was prepended: " + ("the caller asked for none." if bos is False else "the model has none.")
    batch = replace(batch, bos_added_by="sinklens" if prefix else "nobody", statement=said)
    return RepeatedTokens(batch, replace(asked, block=size), tuple(notes))


def _prefix(model: TransformerBridge, bos: bool | None) -> list[int]:
    if bos is False:
        return []
    try:
        return bos_prefix(model, "yes")[0]
    except InputError:
        if bos:
            raise
        return []
