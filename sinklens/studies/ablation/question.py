"""Which sets of heads a sweep is asked to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.controls import all_heads
from sinklens.evidence.summary import MEASURES
from sinklens.interventions.heads import Head, check_heads, head_name, parse_head, parse_heads
from sinklens.studies.ablation.variants import (
    OWN,
    Variant,
    control_variants,
    default_sizes,
    group_variants,
    head_variants,
    top_variants,
)


@dataclass(frozen=True)
class Question:
    """The sets of heads that a sweep changes, checked against the model.

    Attributes:
        pool: All heads of the model.
        heads: Heads to change one by one.
        given: Whether the caller named them, so that each gets controls.
        groups: Named sets.
        ranking: Heads in order, ``"own"``, or ``None``.
        top: Sizes of the cumulative sets.
        controls: Random sets for each tested set.
        rank_by: Measure of the sweep's own ranking.
        approx: How many heads are run exactly beside the estimates; 0 for an exact sweep.
        seed: Of controls, sample and bootstrap.
    """

    pool: tuple[Head, ...]
    heads: tuple[Head, ...]
    given: bool
    groups: tuple[Variant, ...]
    ranking: tuple[Head, ...] | str | None
    top: tuple[int, ...]
    controls: int
    rank_by: str
    approx: int
    seed: int

    @classmethod
    def ask(
        cls,
        model: TransformerBridge,
        *,
        heads: object,
        groups: Mapping[str, object] | None,
        ranking: Sequence[object] | str | None,
        top: Sequence[int] | None,
        controls: int,
        rank_by: str,
        approx: int,
        seed: int,
    ) -> "Question":
        """Check what the caller asked; see :func:`~sinklens.studies.ablation.entry`."""
        pool = all_heads(model)
        if not pool:
            raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to change.")
        if heads is None:
            heads = "all" if ranking == OWN or (not groups and ranking is None) else ()
        parsed = () if isinstance(heads, tuple | list) and not heads else parse_heads(heads)
        check_heads(model, parsed)
        named = group_variants(groups or {})
        for group in named:
            check_heads(model, group.heads)
        if rank_by not in MEASURES:
            raise InputError(f"rank_by must be one of {', '.join(MEASURES)}, got {rank_by!r}.")
        if controls < 0 or approx < 0:
            raise InputError(f"controls and approx count from 0, got {min(controls, approx)}.")
        if approx and rank_by not in ("delta_loss", "delta_logit_diff"):
            raise InputError(f"Estimates have no {rank_by}; rank by delta_loss or delta_logit_diff, or sweep exactly.")
        singles = pool if isinstance(parsed, str) else parsed
        if approx and not singles:
            raise InputError("There are no single heads to estimate; name some with --heads (heads=...).")
        order: tuple[Head, ...] | str | None = None
        if isinstance(ranking, str):
            if ranking != OWN:
                raise InputError(f'ranking must be "{OWN}" or a list of heads, the first one first; got {ranking!r}.')
            order = OWN
        elif ranking is not None:
            order = tuple(parse_head(head) for head in ranking)
            check_heads(model, order)
        if top is not None and order is None:
            raise InputError('top needs a ranking: the sweep\'s own (ranking="own") or a list of heads.')
        n_ranked = 0 if order is None else len(singles) if order == OWN else len(order)
        sizes = tuple(top if top is not None else default_sizes(n_ranked, len(pool)) if order is not None else ())
        top_variants(order if isinstance(order, tuple) else singles, sizes)  # sizes and repeats
        if not singles and not named and not sizes:
            raise InputError("There are no heads to change; name heads, groups or a ranking.")
        given = not isinstance(parsed, str) and heads is not None
        return cls(pool, singles, given, tuple(named), order, sizes, controls, rank_by, approx, seed)

    def first_variants(self) -> tuple[list[tuple[Variant, bool]], list[str]]:
        """Variants that are known from the start, each with whether it is exact, and notes about their controls."""
        singles = head_variants(self.heads)
        exact = singles
        listed: list[tuple[Variant, bool]] = []
        if self.approx:
            listed += [(variant, False) for variant in singles]
            chosen = np.random.default_rng(self.seed).permutation(len(singles))[: self.approx]
            exact = [singles[index] for index in sorted(chosen)]
        ranked = top_variants(self.ranking, self.top) if isinstance(self.ranking, tuple) else []
        tested = [*(exact if self.given and not self.approx else []), *self.groups, *ranked]
        controls, notes = self._controls(tested)
        listed += [(variant, True) for variant in [*exact, *self.groups, *ranked, *controls]]
        return listed, notes

    def own_variants(self, ranking: Sequence[Head]) -> tuple[list[tuple[Variant, bool]], list[str]]:
        """The top sets of the sweep's own ranking, and their controls."""
        ranked = top_variants(ranking, [size for size in self.top if size <= len(ranking)])
        controls, notes = self._controls(ranked)
        return [(variant, True) for variant in [*ranked, *controls]], notes

    def _controls(self, tested: Sequence[Variant]) -> tuple[list[Variant], list[str]]:
        return control_variants(tested, self.pool, self.controls, self.seed) if self.controls else ([], [])

    def describe(self) -> dict[str, Any]:
        """Everything that decides about the sets, for the spec."""
        ranking = self.ranking
        return {
            "heads": "all" if self.heads == self.pool and not self.given else _names(self.heads),
            "groups": {group.name: group.head_names for group in self.groups},
            "ranking": _names(ranking) if isinstance(ranking, tuple) else ranking,
            "top": list(self.top),
            "controls": self.controls,
            "rank_by": self.rank_by,
            "approx": self.approx,
            "seed": self.seed,
        }


def _names(heads: Sequence[Head]) -> str:
    return ",".join(map(head_name, heads))
