"""The edits behind CalibrateSinks: sinks found by the weight they received, so far or over the prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from sinklens.attention import AttentionShape, Block
from sinklens.errors import InputError
from sinklens.interventions.heads import Heads, heads_in_block, heads_in_layer
from sinklens.interventions.positions import Positions
from sinklens.interventions.prompt import PromptEnd
from sinklens.interventions.redistribution import move_mass

UNKNOWN_CACHE = (
    "The KV cache holds {cached} tokens, but not those that this intervention saw last: read each text under the "
    "intervention from its first token on, one text or batch at a time."
)

Limit = Callable[[Any], Any]
"""Mean weight above which a key is a sink, for a number of tokens."""


def counts_as_query(block: Block) -> Bool[Tensor, " q_pos"]:
    """Rows of real tokens: those that are not told to be padding and see their own key, which padding masks hide."""
    real: Tensor = block.weight > 0
    if block.visible is None:
        return real
    rows = torch.arange(block.rows.start, block.rows.stop, device=real.device)
    own, width = rows + (block.shape.offset - block.keys.start), block.visible.shape[1]
    sees_itself = block.visible.gather(1, own.clamp(0, width - 1)[:, None])[:, 0]
    counted: Tensor = real & sees_itself & (own >= 0) & (own < width)
    return counted


def columns(block: Block, positions: Positions) -> slice:
    """The block's keys among all tokens of the text so far, those that a sliding cache dropped included."""
    dropped = positions.cached - block.shape.offset
    return slice(block.keys.start + dropped, block.keys.stop + dropped)


def heads_of(block: Block, inside: slice | list[int]) -> list[int]:
    """Numbers within the layer of the heads that :func:`heads_in_block` found in a block."""
    heads = range(block.heads.start, block.heads.stop)
    return [*heads] if isinstance(inside, slice) else [heads[place] for place in inside]


@dataclass
class _Sums:
    """Weight received and queries seen, ``[2 batch head column]``, before a pass and up to the last row done in it."""

    start: int
    stop: int
    before: Float[Tensor, "2 batch head column"]
    now: Float[Tensor, "2 batch head column"]


class PastSinks:
    """Edit of the pattern in which row i judges every key by the rows up to i.

    Rows come in order for every head. A layer's sums at the start of the pass are kept, so a pass that is run again
    (a survey for another edit, a cache cropped back by one step) starts from the same numbers.
    """

    def __init__(self, heads: Heads, limit: Limit, beta: float, positions: Positions) -> None:
        self.heads, self.limit, self.beta, self.positions = heads, limit, beta, positions
        self.layers: dict[int, _Sums] = {}

    def edit_pattern(self, block: Block) -> None:
        """Shrink sinks; row by row the sums grow by what the row gave before it was edited."""
        inside = heads_in_block(self.heads, block)
        if inside == []:
            return
        sums, place, heads = self._sums(block.shape), columns(block, self.positions), heads_of(block, inside)
        if block.rows.start == 0:  # the pass, or a survey of it, begins: forget what an earlier run of it added
            sums.now[:, block.sequence, heads] = sums.before[:, block.sequence, heads]
        pattern = block.pattern[inside]
        # which rows row i sums over; left padding sees no key and adds nothing, right padding comes too late to
        until = torch.ones_like(pattern[0, :, :1]).expand(-1, pattern.shape[1]).tril()
        given, queries = sums.now[:, block.sequence, heads, place]
        given = given[:, None] + until @ pattern  # a running sum over rows, as one product
        queries = queries[0] + until @ block.visible_keys.float()  # the same for all heads
        sums.now[0, block.sequence, heads, place] = given[:, -1]
        sums.now[1, block.sequence, heads, place] = queries[-1]
        limit = self.limit((self.positions.rows(block) + 1).clamp(min=1).float())
        # mean above the limit, multiplied out: a key that no query has seen yet is 0 > 0 and no sink
        sinks = (given > limit[:, None] * queries) & (self.positions.keys(block) > 0)
        block.pattern[inside] = move_mass(pattern, sinks, None, self.beta)

    def _sums(self, shape: AttentionShape) -> _Sums:
        """Sums of the layer in hand, taken over from the pass before if its text goes on."""
        cached, held = self.positions.cached, self.layers.get(shape.layer)
        width = cached + shape.q_pos + shape.cell  # blocks may carry columns of padding up to a whole cell
        size = (2, shape.batch, shape.heads, width)
        if held is not None and held.start == cached and held.now.shape == size:
            return held
        if cached == 0:
            before = torch.zeros(size, device=shape.device)
        # the cache ends where the last pass ended (the text goes on) or where it began (the pass is tried again)
        elif held is not None and cached in (held.start, held.stop) and held.now.shape[1] == shape.batch:
            known = (held.before if cached == held.start else held.now)[..., :cached]
            before = pad(known, (0, width - cached))
        else:
            raise InputError(UNKNOWN_CACHE.format(cached=cached))
        self.layers[shape.layer] = _Sums(cached, cached + shape.q_pos, before, before.clone())
        return self.layers[shape.layer]


class PromptSinks:
    """Edit of the pattern with sinks that the whole prompt decides; looks at each layer before it edits it."""

    def __init__(self, heads: Heads, limit: Limit, beta: float, positions: Positions, prompt: PromptEnd) -> None:
        self.heads, self.limit, self.beta, self.positions, self.prompt = heads, limit, beta, positions, prompt
        self.layers: dict[int, _PromptMass] = {}

    def survey(self, shape: AttentionShape) -> "_PromptMass | None":
        """Sums over the prompt, to be filled before the first edit; nothing once the prompt was read."""
        if self.positions.cached > 0 or not heads_in_layer(self.heads, shape):
            return None
        self.layers[shape.layer] = _PromptMass(self, shape)
        return self.layers[shape.layer]

    def edit_pattern(self, block: Block) -> None:
        """Shrink sinks."""
        inside = heads_in_block(self.heads, block)
        if inside == []:
            return
        held, cached, shape = self.layers.get(block.shape.layer), self.positions.cached, block.shape
        if held is None or held.sinks.shape[0] != shape.batch:
            raise InputError(UNKNOWN_CACHE.format(cached=cached))
        # left padding fills the cache without being part of the prompt
        if cached > 0 and cached - self._padding(block.sequence) < self.prompt.of(shape)[block.sequence]:
            raise InputError(
                "The prompt has to come in one forward pass, because all of it decides what its sinks are; it goes on "
                f"after a cache of {cached} tokens here."
            )
        place, known = columns(block, self.positions), held.sinks[block.sequence, heads_of(block, inside)]
        sinks = pad(known, (0, max(0, place.stop - known.shape[-1])))[:, None, place]
        block.pattern[inside] = move_mass(block.pattern[inside], sinks, None, self.beta)

    def _padding(self, sequence: int) -> int:
        first = self.positions.first_real
        return 0 if first is None else first[sequence]


class _PromptMass:
    """Mean weight of every key over the queries of the prompt that see it, and which keys are sinks by it."""

    def __init__(self, edit: PromptSinks, shape: AttentionShape) -> None:
        self.edit, self.shape, self.ends = edit, shape, edit.prompt.of(shape)
        self.given = shape.zeros(shape.batch, shape.heads, shape.k_padded)
        self.queries = shape.zeros(shape.batch, shape.k_padded)
        self.tokens = shape.zeros(shape.batch)
        self._sinks: Tensor | None = None

    def see(self, block: Block) -> None:
        """Add a block of rows."""
        positions = self.edit.positions
        counted = (counts_as_query(block) & (positions.rows(block) < self.ends[block.sequence])).float()
        self.given[block.sequence, block.heads, block.keys] += counted @ block.pattern
        if block.first_heads:
            self.queries[block.sequence, block.keys] += counted @ block.visible_keys.float()
            self.tokens[block.sequence] += counted.sum()

    @property
    def sinks(self) -> Bool[Tensor, "batch head column"]:
        """Keys whose mean is above the limit, position 0 left out."""
        if self._sinks is None:
            limit = self.edit.limit(self.tokens.clamp(min=1))[:, None, None]
            keys = pad(self.edit.positions.key_positions(self.shape), (0, self.shape.k_padded - self.shape.k_pos))
            self._sinks = (self.given > limit * self.queries[:, None]) & (keys > 0)[:, None]
            self.given = self.queries = self.tokens = torch.empty(0)  # held for the whole generation otherwise
        return self._sinks
