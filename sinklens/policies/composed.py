"""Policies that give different rules to different heads, layers or phases, and that protect some tokens."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention.kernel import AttentionCall
from sinklens.errors import InputError
from sinklens.interventions.heads import as_index, check_heads, head_name, parse_head
from sinklens.interventions.positions import Positions
from sinklens.policies.base import Policy, claims_of
from sinklens.policies.full import Full
from sinklens.policies.view import View


@dataclass(frozen=True)
class _Routed(Policy):
    """A policy that gives each head, layer or row to one of its rules, with all that it keeps, changes and counts."""

    @abstractmethod
    def rules(self) -> Sequence[Policy]:
        """All rules, each once."""

    def _claim(self) -> None:
        for claim, value in claims_of(self.rules()).items():
            object.__setattr__(self, claim, value)

    def check(self, model: TransformerBridge) -> None:
        """Every rule takes the model."""
        for rule in self.rules():
            rule.check(model)

    def bytes_per_key(self, d_head: int, element_size: int) -> float:
        """NaN where rules store keys differently: their shares of the cache are not known."""
        found = {rule.bytes_per_key(d_head, element_size) for rule in self.rules()}
        return found.pop() if len(found) == 1 else float("nan")

    def _refuse_changed_calls(self) -> None:
        for rule in self.rules():
            if type(rule).change_call is not Policy.change_call:
                raise InputError(
                    f"{type(self).__name__} cannot hold {type(rule).__name__}, which changes the keys and values of a "
                    "whole layer; give it to whole layers with LayerMap, or put it before: rule >> other."
                )


@dataclass(frozen=True)
class HeadMap(_Routed):
    """Gives some heads a rule of their own and all others the default.

    Rules that compare heads (TOVA's mean over a layer) compare only those that share the rule.

    Args:
        heads_to_policy: Rule by head, such as ``{"L5H1": Full()}``.
        default: Rule of the other heads.

    Raises:
        InputError: A rule that changes keys and values, which heads share.
    """

    heads_to_policy: Mapping[str, Policy]
    default: Policy = field(default_factory=Full)

    def __post_init__(self) -> None:
        super().__post_init__()
        named: Any = self.heads_to_policy
        if not isinstance(named, Mapping) or not all(isinstance(rule, Policy) for rule in named.values()):
            raise InputError(f'Expected rules by head, such as {{"L5H1": Full()}}, got {named!r}.')
        object.__setattr__(self, "heads_to_policy", {head_name(parse_head(head)): named[head] for head in named})
        self._claim()
        self._refuse_changed_calls()
        object.__setattr__(self, "group", "head")

    def __hash__(self) -> int:
        return hash((tuple(self.heads_to_policy.items()), self.default))

    def rules(self) -> Sequence[Policy]:
        """Those of the named heads, and the default."""
        return tuple(dict.fromkeys([*self.heads_to_policy.values(), self.default]))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads, and every rule takes it."""
        check_heads(model, tuple(parse_head(head) for head in self.heads_to_policy))
        super().check(model)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Every head by its own rule."""
        kept = torch.zeros_like(view.visible)
        for index, rule, part in self._parts(view):
            kept[index] = rule.keep(part).expand_as(part.scores)
        return kept

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Every head's scores as its own rule changes them."""
        scores = view.scores.clone()
        for index, rule, part in self._parts(view):
            scores[index] = rule.change_scores(part)
        return scores

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """As every head's own rule leaves them."""
        found = kept.clone()
        for index, rule, part in self._parts(view):
            found[index] = rule.as_they_are(part, kept[index])
        return found

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """As every head's own rule counts."""
        found = kept.sum(-1).float()
        for index, rule, part in self._parts(view):
            found[index] = rule.entries(part, kept[index])
        return found

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """As by default; NaN where a rule counts otherwise, since heads of several rules may share a KV head."""
        found = super().cached(view, kept)
        own = any(type(rule).cached is not Policy.cached for rule in self.rules())
        return torch.full_like(found, torch.nan) if own else found

    def _parts(self, view: View) -> list[tuple[list[int], Policy, View]]:
        by_rule: dict[Policy, list[int]] = {}
        for head in view.heads:
            by_rule.setdefault(self.heads_to_policy.get(head_name((view.layer, head)), self.default), []).append(head)
        return [
            ([view.heads.index(head) for head in heads], rule, view.of(heads).inside(("heads", at)))
            for at, (rule, heads) in enumerate(by_rule.items())
        ]


@dataclass(frozen=True)
class LayerMap(_Routed):
    """Gives some layers a rule of their own and all others the default.

    Args:
        layers_to_policy: Rule by layer, counted from 0, such as ``{0: Full(), 1: Full()}``.
        default: Rule of the other layers.
    """

    layers_to_policy: Mapping[int, Policy]
    default: Policy = field(default_factory=Full)

    def __post_init__(self) -> None:
        super().__post_init__()
        named: Any = self.layers_to_policy
        if not isinstance(named, Mapping) or not all(isinstance(rule, Policy) for rule in named.values()):
            raise InputError(f"Expected rules by layer, such as {{0: Full()}}, got {named!r}.")
        numbered = {
            as_index(int(layer) if isinstance(layer, str) and layer.isdigit() else layer): rule
            for layer, rule in named.items()
        }
        if min(numbered, default=0) < 0:
            raise InputError(f"Layers are counted from 0, got {[*named]}.")
        object.__setattr__(self, "layers_to_policy", numbered)
        self._claim()

    def __hash__(self) -> int:
        return hash((tuple(self.layers_to_policy.items()), self.default))

    def rules(self) -> Sequence[Policy]:
        """Those of the named layers, and the default."""
        return tuple(dict.fromkeys([*self.layers_to_policy.values(), self.default]))

    def check(self, model: TransformerBridge) -> None:
        """The model has these layers, and every rule takes it."""
        beyond = [layer for layer in self.layers_to_policy if layer >= len(model.blocks)]
        if beyond:
            raise InputError(f"Layer {beyond[0]} does not exist: the model has {len(model.blocks)} layers from 0.")
        super().check(model)

    def _rule(self, layer: int) -> Policy:
        return self.layers_to_policy.get(layer, self.default)

    def change_call(self, call: AttentionCall, positions: Positions) -> AttentionCall:
        """As this layer's rule changes it."""
        return self._rule(call.layer).change_call(call, positions)

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """As this layer's rule changes them."""
        return self._rule(view.layer).change_scores(view)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """This layer's rule."""
        return self._rule(view.layer).keep(view)

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """As this layer's rule leaves them."""
        return self._rule(view.layer).as_they_are(view, kept)

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """As this layer's rule counts."""
        return self._rule(view.layer).entries(view, kept)

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """As this layer's rule counts."""
        return self._rule(view.layer).cached(view, kept)


@dataclass(frozen=True)
class Phase(_Routed):
    """One rule for the rows of the prompt, another for those after it.

    Args:
        prefill: Rule of the prompt's rows.
        decode: Rule of the rows after it. A cache that evicts is run over the prompt as well, so that it then stands as
            it would after having read it alone; only what later rows read follows it.

    Raises:
        InputError: A rule that changes keys and values: those of the prompt are read in both phases.
    """

    prefill: Policy = field(default_factory=Full)
    decode: Policy = field(default_factory=Full)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._claim()
        self._refuse_changed_calls()
        # a key that no row of the prompt may read can be read after it
        object.__setattr__(self, "evicts", self.evicts and self.prefill == self.decode)

    def rules(self) -> Sequence[Policy]:
        """Both."""
        return (self.prefill, self.decode)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Rows by the phase that they stand in."""
        first, second = (rule.keep(part).expand_as(view.scores) for rule, part in self._parts(view))
        return torch.where(self._after(view)[:, None], second, first)

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Rows by the phase that they stand in."""
        first, second = (rule.change_scores(part) for rule, part in self._parts(view))
        return torch.where(self._after(view)[:, None], second, first)

    def as_they_are(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Bool[Tensor, "head q_pos k_pos"]:
        """Rows by the phase that they stand in."""
        first, second = (rule.as_they_are(part, kept) for rule, part in self._parts(view))
        return torch.where(self._after(view)[:, None], second, first)

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """Rows by the phase that they stand in."""
        first, second = (rule.entries(part, kept) for rule, part in self._parts(view))
        return torch.where(self._after(view), second, first)

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """As by default where the rules differ; as the rule counts where both are one."""
        return self.decode.cached(view, kept) if self.prefill == self.decode else super().cached(view, kept)

    def _after(self, view: View) -> Bool[Tensor, " q_pos"]:
        return view.rows >= (view.prompt or 0)

    def _parts(self, view: View) -> list[tuple[Policy, View]]:
        return [(self.prefill, view.inside("prefill")), (self.decode, view.inside("decode"))]


@dataclass(frozen=True)
class Protect(_Routed):
    """Keeps some tokens whatever the rule says: the first ones, or positions of your own.

    Args:
        policy: The rule.
        first: First tokens of the text that always stay.
        positions: Further positions that always stay, such as those of massive activations.

    Raises:
        InputError: A rule that changes keys and values or merges what it drops: its own fields say what stays exact.
    """

    policy: Policy
    first: int = 4
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.positions
        if as_index(self.first) < 0 or not isinstance(given, Iterable) or any(as_index(each) < 0 for each in given):
            raise InputError(f"Expected counts and positions from 0, got {self.first!r} and {given!r}.")
        object.__setattr__(self, "positions", tuple(sorted({as_index(each) for each in given})))
        self._claim()
        self._refuse_changed_calls()
        if type(self.policy).entries is not Policy.entries:
            raise InputError(
                f"Protect cannot hold {type(self.policy).__name__}, whose fields name what it keeps exact."
            )

    def rules(self) -> Sequence[Policy]:
        """The one."""
        return (self.policy,)

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """As the rule changes them, but for the protected tokens."""
        changed = self.policy.change_scores(view)
        return changed if changed is view.scores else torch.where(self._protected(view), view.scores, changed)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What the rule keeps, and the protected tokens."""
        return self.policy.keep(view) | self._protected(view)

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """As the rule counts what is kept."""
        return self.policy.cached(view, kept)

    def _protected(self, view: View) -> Bool[Tensor, " k_pos"]:
        named = torch.tensor(self.positions, dtype=view.keys.dtype, device=view.keys.device)
        return ((view.keys >= 0) & (view.keys < self.first)) | torch.isin(view.keys, named)
