"""Policies that give different rules to different heads, layers or phases, and that protect some tokens."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions.heads import as_index, check_heads, head_name, parse_head
from sinklens.policies.base import Policy, claims_of
from sinklens.policies.full import Full
from sinklens.policies.view import View


@dataclass(frozen=True)
class HeadMap(Policy):
    """Gives some heads a rule of their own and all others the default.

    Rules that compare heads (TOVA's mean over a layer) compare only those that share the rule.

    Args:
        heads_to_policy: Rule by head, such as ``{"L5H1": Full()}``.
        default: Rule of the other heads.
    """

    heads_to_policy: Mapping[str, Policy]
    default: Policy = field(default_factory=Full)

    def __post_init__(self) -> None:
        super().__post_init__()
        named: Any = self.heads_to_policy
        if not isinstance(named, Mapping) or not all(isinstance(rule, Policy) for rule in named.values()):
            raise InputError(f'Expected rules by head, such as {{"L5H1": Full()}}, got {named!r}.')
        object.__setattr__(self, "heads_to_policy", {head_name(parse_head(head)): named[head] for head in named})
        for claim, value in claims_of([*named.values(), self.default]).items():
            object.__setattr__(self, claim, value)
        object.__setattr__(self, "group", "head")

    def __hash__(self) -> int:
        return hash((tuple(self.heads_to_policy.items()), self.default))

    def check(self, model: TransformerBridge) -> None:
        """The model has these heads, and every rule takes it."""
        check_heads(model, tuple(parse_head(head) for head in self.heads_to_policy))
        for rule in {*self.heads_to_policy.values(), self.default}:
            rule.check(model)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Every head by its own rule."""
        by_rule: dict[Policy, list[int]] = {}
        for head in view.heads:
            by_rule.setdefault(self.heads_to_policy.get(head_name((view.layer, head)), self.default), []).append(head)
        kept = torch.zeros_like(view.visible)
        for at, (rule, heads) in enumerate(by_rule.items()):
            part = view.of(heads).inside(("heads", at))
            kept[[view.heads.index(head) for head in heads]] = rule.keep(part).expand_as(part.scores)
        return kept


@dataclass(frozen=True)
class LayerMap(Policy):
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
            raise InputError(f"Layers are counted from 0, got {sorted(named)}.")
        object.__setattr__(self, "layers_to_policy", numbered)
        for claim, value in claims_of([*numbered.values(), self.default]).items():
            object.__setattr__(self, claim, value)

    def __hash__(self) -> int:
        return hash((tuple(self.layers_to_policy.items()), self.default))

    def check(self, model: TransformerBridge) -> None:
        """The model has these layers, and every rule takes it."""
        beyond = [layer for layer in self.layers_to_policy if layer >= len(model.blocks)]
        if beyond:
            raise InputError(f"Layer {beyond[0]} does not exist: the model has {len(model.blocks)} layers from 0.")
        for rule in {*self.layers_to_policy.values(), self.default}:
            rule.check(model)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """This layer's rule."""
        return self.layers_to_policy.get(view.layer, self.default).keep(view)


@dataclass(frozen=True)
class Phase(Policy):
    """One rule while the prompt is read, another afterwards.

    Args:
        prefill: Rule of the prompt's rows.
        decode: Rule of the rows after it. It sees only its own rows: an eviction begins with what the prompt left.
    """

    prefill: Policy = field(default_factory=Full)
    decode: Policy = field(default_factory=Full)

    def __post_init__(self) -> None:
        super().__post_init__()
        for claim, value in claims_of([self.prefill, self.decode]).items():
            object.__setattr__(self, claim, value)

    def check(self, model: TransformerBridge) -> None:
        """Both rules take the model."""
        self.prefill.check(model)
        self.decode.check(model)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Rows by the phase that they stand in."""
        after = (view.rows >= (view.prompt or 0))[:, None]
        first = self.prefill.keep(view.inside("prefill")).expand_as(view.scores)
        return torch.where(after, self.decode.keep(view.inside("decode")).expand_as(view.scores), first)


@dataclass(frozen=True)
class Protect(Policy):
    """Keeps some tokens whatever the rule says: the first ones, or positions of your own.

    Args:
        policy: The rule.
        first: First tokens of the text that always stay.
        positions: Further positions that always stay, such as those of massive activations.
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
        for claim, value in claims_of([self.policy]).items():
            object.__setattr__(self, claim, value)

    def check(self, model: TransformerBridge) -> None:
        """The rule takes the model."""
        self.policy.check(model)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What the rule keeps, and the protected tokens."""
        named = torch.tensor(self.positions, dtype=view.keys.dtype, device=view.keys.device)
        protected = ((view.keys >= 0) & (view.keys < self.first)) | torch.isin(view.keys, named)
        return self.policy.keep(view.inside("rule")) | protected
