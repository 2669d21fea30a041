"""What all policies share: a rule, what it claims, and how the engine applies it."""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import check
from sinklens.attention import AttentionShape, Block
from sinklens.attention.kernel import AttentionCall
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import as_index
from sinklens.interventions.positions import Positions
from sinklens.policies.account import Account
from sinklens.policies.choose import hide_rest
from sinklens.policies.view import View

Scope = Literal["causal", "block", "prompt", "global"]


@dataclass(frozen=True)
class Policy(Intervention):
    """A rule that says which earlier tokens each head may still read: a KV-cache or a sparse-attention method.

    A policy is an intervention: ``with policy(model):`` applies it to every forward pass, and whatever takes an
    intervention takes a policy. What it drops gets score ``-inf``, so that the softmax shares out the whole row among
    the rest::

        with torch.no_grad(), H2O(heavy=32, recent=32)(model):
            logits = model(ids)

    A rule of your own is a frozen dataclass with :meth:`keep`::

        @dataclass(frozen=True)
        class EverySecond(Policy):
            scope = "causal"

            def keep(self, view):
                return view.distance % 2 == 0

    ``A & B`` reads what both keep, ``A | B`` what either keeps, ``A >> B`` lets A change queries, keys or scores and B
    choose among the result.

    Args:
        prompt: How many tokens of a text are its prompt, for rules that are fixed at the prompt's end; default: the
            tokens of the first forward pass, where others follow with its KV cache, else the whole text.

    Attributes:
        name: What ``sinklens policies`` calls it; empty: not listed.
        scope: What the choice for a row depends on. ``"causal"``: on nothing after the row. ``"block"``: on the rest of
            the row's own block of queries. ``"prompt"``: on all of the prompt, so that only rows after it may be
            scored. ``"global"``: on the whole text, so that no loss means anything.
        group: Within what the kept keys are the same: ``"head"``, ``"kv_group"`` (what a real cache can drop),
            ``"layer"`` or ``"model"``.
        evicts: Whether a key once dropped never comes back, as in a cache that frees it.
        may_be_empty: Whether a row may be left without any key.
        untrained: Whether it is for models that are trained with it and nothing says that this one was; what it costs
            then says nothing of it.
        positive: Fields of whole numbers that count from 1; all others may be 0.
        source: Paper, and the code that was read.
    """

    prompt: int | None = field(default=None, kw_only=True)

    name: ClassVar[str] = ""
    scope: ClassVar[Scope]
    group: ClassVar[Literal["head", "kv_group", "layer", "model"]] = "head"
    evicts: ClassVar[bool] = False
    may_be_empty: ClassVar[bool] = False
    untrained: ClassVar[bool] = False
    positive: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.prompt is not None and as_index(self.prompt) < 1:
            raise InputError(f"prompt must be a number of tokens from 1, got {self.prompt!r}.")
        for each in fields(self):
            if each.type in (Policy, tuple[Policy, ...]):
                check(each.name, getattr(self, each.name), each.type)
            value, least = getattr(self, each.name), int(each.name in self.positive)
            if each.type is int and as_index(value) < least:
                raise InputError(
                    f"{each.name} of {type(self).__name__} must be a whole number from {least}, got {value!r}."
                )

    @abstractmethod
    def keep(self, view: View) -> Bool[Tensor, "#head q_pos k_pos"] | Bool[Tensor, "q_pos k_pos"]:
        """Which keys each row may read; those that the model hides stay hidden whatever is returned."""

    def change_call(self, call: AttentionCall, positions: Positions) -> AttentionCall:
        """Queries, keys and values as the rule changes them before any score is formed (default: not at all)."""
        return call

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Scores as the rule changes them before it drops keys (default: not at all)."""
        return view.scores

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """Kept keys that are read themselves, at their own scores (default: all; not those that others stand for)."""
        return kept

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """How many keys a row reads (default: those kept)."""
        return kept.sum(-1).float()

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """How many keys a cache has to hold for each KV head when a row has been read.

        Default: where dropped keys are gone for good, those that any query head of the KV head reads; else all in
        sight, because any of them may be read again.
        """
        needed = kept if self.evicts else view.visible
        held: Tensor = needed.unflatten(0, (view.kv_heads, -1)).any(1)
        return held.sum(-1).float()

    def bytes_per_key(self, d_head: int, element_size: int) -> float:
        """What one key with its value takes in the cache (default: both as the model has them)."""
        return 2.0 * d_head * element_size

    @classmethod
    def sized(cls, keys: int, length: int) -> "Policy":
        """The rule with its usual proportions for a budget.

        Args:
            keys: How many keys a row should read.
            length: Tokens of the text.

        Raises:
            InputError: The rule has no budget of keys.
        """
        raise InputError(f"{cls.__name__} is not set by a number of keys; give its fields instead.")

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit that applies the rule."""
        return [_Apply(self, positions)]

    def counted(self, account: Account, *, only_look: bool = False) -> Intervention:
        """The same policy as an intervention that also fills an account of what it kept.

        Args:
            account: Takes the kept keys and their share of attention in every layer.
            only_look: Choose and count, but change nothing: what the rule *would* have kept ("post hoc").
        """
        return _Counted(self, account, only_look)

    def __and__(self, other: "Policy") -> "Both":
        return Both((self, other))

    def __or__(self, other: "Policy") -> "Either":
        return Either((self, other))

    def __rshift__(self, other: "Policy") -> "Then":
        return Then((self, other))


@dataclass(frozen=True)
class _Parts(Policy):
    """A policy made of others; it claims the weakest of what they claim."""

    parts: tuple[Policy, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) < 2 or not all(isinstance(part, Policy) for part in self.parts):
            raise InputError(f"{type(self).__name__} joins at least two policies, got {self.parts!r}.")
        object.__setattr__(self, "parts", tuple(self.parts))
        for claim, value in claims_of(self.parts).items():
            object.__setattr__(self, claim, value)

    def check(self, model: TransformerBridge) -> None:
        """Check every part."""
        for part in self.parts:
            part.check(model)

    def change_call(self, call: AttentionCall, positions: Positions) -> AttentionCall:
        """All changes, one after the other."""
        for part in self.parts:
            call = part.change_call(call, positions)
        return call

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """All changes, one after the other."""
        for at, part in enumerate(self.parts):
            view = replace(view, scores=part.change_scores(view.inside(at)))
        return view.scores

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """What every part leaves as it is."""
        for at, part in enumerate(self.parts):
            kept = part.as_they_are(view.inside(at), kept)
        return kept

    def bytes_per_key(self, d_head: int, element_size: int) -> float:
        """The least that a part needs, since each works on what the others leave."""
        return min(part.bytes_per_key(d_head, element_size) for part in self.parts)

    def _kept(self, view: View) -> list[Tensor]:
        return [part.keep(view.inside(at)).expand_as(view.scores) for at, part in enumerate(self.parts)]


@dataclass(frozen=True)
class Both(_Parts):
    """Reads only what every part keeps: ``A & B``."""

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """The intersection; parts choose without knowing of each other."""
        kept = self._kept(view)
        found = kept[0]
        for other in kept[1:]:
            found = found & other
        return found


@dataclass(frozen=True)
class Either(_Parts):
    """Reads what any part keeps: ``A | B``."""

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """The union."""
        kept = self._kept(view)
        found = kept[0]
        for other in kept[1:]:
            found = found | other
        return found


@dataclass(frozen=True)
class Then(_Parts):
    """Lets each part choose among what the parts before it changed and kept: ``A >> B``."""

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What the last part keeps of what the others keep."""
        kept = self.parts[0].keep(view.inside(0)).expand_as(view.scores)
        for at, part in enumerate(self.parts[1:], 1):
            left = replace(view.inside(at), scores=view.scores.masked_fill(~kept, -math.inf))
            kept = kept & part.keep(left)
        return kept


def claims_of(parts: Sequence[Policy]) -> dict[str, Any]:
    """What a policy made of these can still claim: the widest scope, the smallest group, and so on."""
    scopes, groups = ("causal", "block", "prompt", "global"), ("model", "layer", "kv_group", "head")
    return {
        "scope": max((part.scope for part in parts), key=scopes.index),
        "group": max((part.group for part in parts), key=groups.index),
        "evicts": all(part.evicts for part in parts),
        "may_be_empty": any(part.may_be_empty for part in parts),
        "untrained": any(part.untrained for part in parts),
    }


@dataclass(frozen=True)
class _Counted(Intervention):
    policy: Policy
    account: Account
    only_look: bool

    def check(self, model: TransformerBridge) -> None:
        self.policy.check(model)

    def edits(self, positions: Positions) -> Sequence[Any]:
        return [_Apply(self.policy, positions, self.account, self.only_look)]


class _Apply:
    """The edit that runs a policy inside the engine."""

    all_heads = True
    """A block holds all heads of the layer, since rules may compare them."""

    def __init__(
        self, policy: Policy, positions: Positions, account: Account | None = None, only_look: bool = False
    ) -> None:
        self.policy, self.positions, self.account, self.only_look = policy, positions, account, only_look
        self.calls: dict[int, AttentionCall] = {}
        self.states: dict[tuple[int, int], dict[Any, Any]] = {}
        self.before: dict[tuple[int, int], dict[Any, Any]] = {}
        self.shared: dict[tuple[int, int], dict[Any, Any]] = {}
        self.once: dict[int, dict[Any, Any]] = {}
        self.passes = -1
        self.prompts: dict[int, int] = {}

    def edit_call(self, call: AttentionCall) -> AttentionCall:
        """Keep the call for the rule to read; it may change what it holds."""
        self._new_pass()
        if not self.only_look:
            call = self.policy.change_call(call, self.positions)
        if self.positions.cached:
            # the kernel may show a layer's blocks twice, and each time the rule has to begin where it stood
            self.before |= {at: copy.deepcopy(state) for at, state in self.states.items() if at[0] == call.layer}
        self.calls, self.once = {call.layer: call}, {}
        return call

    def edit_scores(self, block: Block) -> None:
        """Hide what the rule drops."""
        plain = view = self._view(block)
        scores = self.policy.change_scores(view)
        if scores is not view.scores:
            view = replace(view, scores=scores)
        kept = self.policy.keep(view)
        if self.account is not None:
            left = kept & view.visible
            entries, cached = self.policy.entries(view, left), self.policy.cached(view, left)
            self.account.add(plain, self.policy.as_they_are(view, left), entries, cached)
        # a row that does not see itself stands in padding behind the text: nobody reads what it would read
        place = torch.arange(len(view.rows), device=view.rows.device), (view.rows - view.keys[0]).clamp(min=0)
        real = plain.scores[:, *place] != -math.inf
        columns = slice(block.keys.start, None)
        kept = kept.expand(kept.shape[0] if kept.ndim == 3 else 1, *scores.shape[1:])[..., columns]
        out = torch.empty_like(block.scores) if self.only_look else block.scores
        empty = hide_rest(scores[..., columns], kept, out) & real
        if not self.policy.may_be_empty and bool(empty.any()):
            self._refuse_empty(view, empty)

    def _view(self, block: Block) -> View:
        self._new_pass()
        shape, sequence, behind = block.shape, block.sequence, self.positions.behind
        if self.positions.cached == 0 and sequence not in self.prompts:
            self.prompts[sequence] = self.positions.new - self._padding(sequence) - (behind[sequence] if behind else 0)
        call = self.calls.get(shape.layer)
        at = (shape.layer, sequence)
        if block.rows.start == 0:
            begun = self.positions.cached > 0
            self.states[at] = copy.deepcopy(self.before.get(at, self.states.get(at, {}))) if begun else {}
        # rules count on columns that stay the same from block to block, so those before a window are put back, hidden
        before = block.keys.start
        scores = torch.nn.functional.pad(block.scores, (before, 0), value=-math.inf) if before else block.scores
        keys = self.positions.keys(block)
        keys = torch.arange(int(keys[0]) - before, int(keys[-1]) + 1, device=keys.device) if before else keys
        return View(
            layer=shape.layer,
            n_layers=self.positions.n_layers or 0,
            scores=scores,
            rows=self.positions.rows(block),
            keys=keys,
            heads=tuple(range(shape.heads)),
            n_heads=shape.heads,
            kv_heads=self._kv_heads(shape, call),
            first_row=block.rows.start,
            end=self.positions.new - self._padding(sequence) - behind[sequence] if behind else None,
            prompt=self.policy.prompt or self.prompts.get(sequence, 0),
            sequence=sequence,
            call=call,
            model=self.positions.model,
            state=self.states[at],
            shared=self.shared.setdefault((sequence, block.rows.start), {}),
            once=self.once.setdefault(sequence, {}),
        )

    def _new_pass(self) -> None:
        if self.passes != self.positions.passes:
            self.passes = self.positions.passes
            self.shared, self.before = {}, {}
            if self.positions.cached == 0:
                self.prompts = {}

    def _padding(self, sequence: int) -> int:
        return 0 if self.positions.first_real is None else self.positions.first_real[sequence]

    def _kv_heads(self, shape: AttentionShape, call: AttentionCall | None) -> int:
        if call is not None:
            return int(call.key.shape[1])
        return self.positions.kv_heads or shape.heads

    def _refuse_empty(self, view: View, empty: Bool[Tensor, "head q_pos"]) -> None:
        head, row = (int(index) for index in empty.nonzero()[0])
        raise InputError(
            f"{type(self.policy).__name__} leaves the token at position {int(view.rows[row])} nothing to read in "
            f"L{view.layer}H{head}; let the rule keep a key for every row, or declare may_be_empty."
        )
