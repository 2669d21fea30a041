"""What a policy may look at: the scores of some consecutive queries of one sequence in one layer, all heads."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention.kernel import AttentionCall
from sinklens.attention.masks import LazyMask
from sinklens.errors import UnsupportedArchitectureError
from sinklens.policies.rotary import frequencies


@dataclass(frozen=True)
class View:
    """Some query rows of one layer and sequence, before a rule has dropped anything from them.

    Attributes:
        layer: Block index.
        n_layers: Blocks of the model.
        scores: Pre-softmax scores ``[head q_pos k_pos]``; hidden keys hold ``-inf``.
        rows: Position of each query, ``[q_pos]``; negative in left padding.
        keys: Position of each key, ``[k_pos]``; negative in left padding. Columns beyond the text are hidden.
        heads: Numbers of the query heads that stand in ``scores``.
        n_heads: Query heads of the layer.
        kv_heads: Key-value heads of the layer.
        end: Position behind the last token of the text, where padding follows it; else ``None``.
        first_row: Which row of the layer's call the first query is.
        prompt: Tokens of each text that count as its prompt, ``None`` where nothing was said.
        sequence: Index in the batch.
        call: Queries, keys and values of the whole layer, or ``None`` where a model is measured through the bridge's
            hooks; :attr:`query`, :attr:`key` and :meth:`scores_of` refuse there.
        model: The model, for rules that need its rotary frequencies.
        state: What a rule keeps from one block of rows to the next, and from one cached step to the next, in this layer
            and sequence. Empty when a text begins.
        shared: What a layer leaves for later layers about these very rows.
        once: What is the same for all rows of the layer's call; see :meth:`the_same`.
    """

    layer: int
    n_layers: int
    scores: Float[Tensor, "head q_pos k_pos"]
    rows: Int[Tensor, " q_pos"]
    keys: Int[Tensor, " k_pos"]
    heads: tuple[int, ...]
    n_heads: int
    kv_heads: int
    end: int | None = None
    first_row: int = 0
    prompt: int | None = None
    sequence: int = 0
    call: AttentionCall | None = None
    model: TransformerBridge | None = None
    state: dict[Any, Any] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)
    once: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def visible(self) -> Bool[Tensor, "head q_pos k_pos"]:
        """Which keys the model itself lets each query see."""
        return self.scores != -math.inf

    @cached_property
    def is_text(self) -> Bool[Tensor, " k_pos"]:
        """Which keys are no padding, before the text or behind it."""
        return self._of_text(self.keys)

    @cached_property
    def rows_of_text(self) -> Bool[Tensor, " q_pos"]:
        """Which queries are no padding: only these may have a say in what is kept."""
        return self._of_text(self.rows)

    def _of_text(self, places: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        return (places >= 0) if self.end is None else (places >= 0) & (places < self.end)

    @cached_property
    def distance(self) -> Int[Tensor, "q_pos k_pos"]:
        """How many tokens each key lies behind each query; 0 is the query's own."""
        return self.rows[:, None] - self.keys

    @cached_property
    def pattern(self) -> Float[Tensor, "head q_pos k_pos"]:
        """Attention over all visible keys; 0 in a row that sees none."""
        return torch.softmax(self.scores, -1).nan_to_num(0)

    @property
    def query(self) -> Float[Tensor, "head q_pos d_head"]:
        """Queries of these rows after rotary embedding, times the scale of the scores."""
        return self._queries(slice(self.first_row, self.first_row + len(self.rows)))

    @property
    def key(self) -> Float[Tensor, "head k_pos d_head"]:
        """Keys as each query head reads them, one for every column of ``scores``; 0 beyond the text."""
        return self._columns(self.all_keys)

    @property
    def value(self) -> Float[Tensor, "head k_pos d_value"]:
        """Values as each query head reads them."""
        return self._columns(self.the_same(("value", self.heads), lambda: self._by_query_head(self._call().value)))

    @property
    def all_keys(self) -> Float[Tensor, "head k_pos d_head"]:
        """Keys of the whole call, also those after these rows."""
        found: Tensor = self.the_same(("key", self.heads), lambda: self._by_query_head(self._call().key))
        return found

    def the_same(self, name: object, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for all rows of the layer's call.

        Args:
            name: Of what it is, with all that it depends on besides the call.
            make: Makes it; it may depend on nothing that differs between rows.
        """
        if name not in self.once:
            self.once[name] = make()
        return self.once[name]

    @property
    def span(self) -> tuple[int, int]:
        """Positions of the call's first real query and of the one after its last."""
        first = int(self.rows[0]) - self.first_row
        stop = first + self._call().shape.q_pos
        return max(first, 0), stop if self.end is None else min(stop, self.end)

    @property
    def whole(self) -> "View":
        """The same view with a column for every key of the call, those after its rows included."""
        missing = self._call().shape.k_pos - len(self.keys)
        if missing <= 0:
            return self
        more = torch.arange(1, missing + 1, device=self.keys.device) + self.keys[-1]
        scores = torch.nn.functional.pad(self.scores, (0, missing), value=-math.inf)
        return replace(self, keys=torch.cat((self.keys, more)), scores=scores)

    @property
    def frequencies(self) -> Float[Tensor, " half"]:
        """Angle per position of the layer's rotary channel pairs."""
        if self.model is None:
            raise UnsupportedArchitectureError("This view knows no model, and so no rotary frequencies.")
        return frequencies(self.model, self.layer)

    @property
    def scaling(self) -> float:
        """What the model multiplies products of queries and keys by; :attr:`query` holds it."""
        return self._call().scaling

    @property
    def soft_cap(self) -> float | None:
        """The model's: ``s -> cap tanh(s / cap)``."""
        return self._call().soft_cap

    def capped(self, scores: Tensor) -> Tensor:
        """Scores under the model's soft cap, where it has one."""
        cap = self.soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def scores_of(self, first: int, stop: int) -> Float[Tensor, "head rows k_pos"]:
        """Scores of the queries at positions ``first .. stop-1`` of the same call: what rules look at that read ahead.

        Cost: one product of those queries with all keys. Additive biases are left out.
        """
        call = self._call()
        shift = self.first_row - int(self.rows[0])
        scores = self.capped(self.queries_of(first, stop) @ self.key.transpose(-1, -2))
        seen = self.keys <= torch.arange(first, stop, device=self.keys.device)[:, None]
        seen = seen & (self.keys >= 0)
        if isinstance(call.mask, LazyMask):
            mask = call.mask.rows(first + shift, stop + shift)[self.sequence]
            seen = seen & torch.nn.functional.pad(mask, (0, len(self.keys)))[:, : len(self.keys)]
        return scores.masked_fill(~seen, -math.inf)

    def queries_of(self, first: int, stop: int) -> Float[Tensor, "head rows d_head"]:
        """Queries at positions ``first .. stop-1`` of the same call, times the scale of the scores."""
        shift = self.first_row - int(self.rows[0])
        return self._queries(slice(first + shift, stop + shift))

    def of(self, heads: list[int]) -> "View":
        """The same rows for some of the heads, by their numbers."""
        index = [self.heads.index(head) for head in heads]
        return replace(self, scores=self.scores[index], heads=tuple(heads))

    def inside(self, name: object) -> "View":
        """The same view for a rule within another: what it keeps and shares lies apart."""
        state, shared = self.state.setdefault(name, {}), self.shared.setdefault(name, {})
        return replace(self, state=state, shared=shared)

    @property
    def groups(self) -> int:
        """KV heads that these heads read; where they are no whole groups, every head counts for itself."""
        size = self.n_heads // self.kv_heads
        found = len({head // size for head in self.heads})
        return found if found * size == len(self.heads) else len(self.heads)

    def by_group(self, x: Float[Tensor, "head ..."]) -> Float[Tensor, "group member ..."]:
        """What belongs to heads, sorted into the groups that share a KV head."""
        return rearrange(x, "(group member) ... -> group member ...", group=self.groups)

    def to_heads(self, x: Float[Tensor, "group ..."]) -> Float[Tensor, "head ..."]:
        """What belongs to groups, for each of their heads."""
        return repeat(x, "group ... -> (group member) ...", member=len(self.heads) // self.groups)

    def _queries(self, rows: slice) -> Float[Tensor, "head rows d_head"]:
        call = self._call()
        return call.query[self.sequence, list(self.heads), rows].float() * call.scaling

    def _by_query_head(self, x: Float[Tensor, "batch kv_head k_pos d"]) -> Float[Tensor, "head k_pos d"]:
        size = self.n_heads // self.kv_heads
        return x[self.sequence, [head // size for head in self.heads]].float().contiguous()

    def _columns(self, x: Float[Tensor, "head k_pos d"]) -> Float[Tensor, "head k_pos d"]:
        found = x[:, : len(self.keys)]
        missing = len(self.keys) - found.shape[1]
        return torch.nn.functional.pad(found, (0, 0, 0, missing)) if missing else found

    def _call(self) -> AttentionCall:
        if self.call is None:
            raise UnsupportedArchitectureError(
                "This policy reads queries and keys, which this model's attention does not show as it is measured "
                "through the bridge's hooks; take a policy of positions or of scores."
            )
        return self.call
