"""The result: every head's scores and labels, and where the criteria agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.metric import Metric
from sinklens.errors import InputError
from sinklens.interventions.heads import Head, head_name
from sinklens.results.progress import SILENT, Progress
from sinklens.results.result import Result
from sinklens.studies.head_roles.agreement import DEFINITIONS, agreement
from sinklens.studies.head_roles.join import join_scores, model_sizes
from sinklens.studies.head_roles.retrieval_join import TOP, RetrievalJoin, retrieval_join
from sinklens.studies.head_roles.role_file import RoleFile
from sinklens.studies.head_roles.rules import Rule, choose_rules

FORMAT, WORK = "sinklens-roles", "run of roles"
TABLES = ("heads", "criteria", "agreement")
TOLD = 5
"""Pairs that the verdict spells out; all are in the table."""


@dataclass(frozen=True)
class Roles(Result, format=FORMAT, title="Roles of heads", newest=1, needs=TABLES):
    """Roles of a model's heads by several criteria.

    :meth:`to_dataframe` gives one row per head: layer, head, kv_head, every score with its evidence, and
    ``is_<role>`` labels.

    Attributes:
        meta: Model, what each criterion was measured on, definitions, settings, warnings.
        tables: By name, see the methods.
    """

    @classmethod
    def of(
        cls,
        parts: Mapping[str, HeadScores],
        *,
        model: Mapping[str, Any] | None = None,
        rules: Sequence[Rule] = (),
        top: int | None = None,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Self:
        """Join scores that exist already, such as tables that others published.

        ::

            Roles.of({"retrieval": read_scores("llama-2-7b-80k.json"), "duo": read_scores("llama-2.tsv")})

        Args:
            parts: Scores by the name of what gave them; all of one model.
            model: Its name and sizes (n_layers, n_heads, n_kv_heads); default: the sizes that the scores show.
            rules: Label rules in the place of the usual ones for the same score.
            top: Size of the top sets that are compared; default: that of the smaller labelled set.
            seed: Of the bootstrap.
            progress: Told how it goes on, in pairs of criteria.

        Raises:
            InputError: No scores, or heads that the model does not have.
        """
        if not parts:
            raise InputError("There are no scores to join; name at least one criterion or file.")
        layers, heads, kv_heads = model_sizes([*parts.values()])
        facts: dict[str, Any] = {
            "name": "unknown",
            "n_layers": layers,
            "n_heads": heads,
            "n_kv_heads": kv_heads,
        } | dict(model or {})
        sizes = {name: int(facts[name]) for name in ("n_layers", "n_heads", "n_kv_heads")}
        chosen = choose_rules(rules, shared=sizes["n_kv_heads"] < sizes["n_heads"])
        table, criteria = join_scores(parts, chosen, **sizes)
        meta = {
            "model": facts,
            "parts": {name: dict(scores.meta) for name, scores in parts.items()},
            "metrics": {name: metric.as_dict() for part in parts.values() for name, metric in part.metrics.items()},
            "agreement": DEFINITIONS,
            "settings": {"top": top, "seed": seed},
            "warnings": [f"{name}: {note}" for name, part in parts.items() for note in part.meta.get("warnings", [])],
        }
        pairs = agreement(table, criteria, top=top, seed=seed, progress=progress)
        return cls(meta, {"heads": table, "criteria": criteria, "agreement": pairs})

    def criteria(self) -> pd.DataFrame:
        """One row per score: where it comes from, its label rule with source, and how many heads have the label."""
        return self.tables["criteria"].copy()

    def agreement(self) -> pd.DataFrame:
        """One row per pair of scores; see :func:`~sinklens.studies.head_roles.agreement.agreement`."""
        return self.tables["agreement"].copy()

    @property
    def roles(self) -> dict[str, tuple[Head, ...]]:
        """Heads by role."""
        table, found = self.tables["heads"], {}
        for role in self.tables["criteria"]["role"].dropna():
            rows = table[table[f"is_{role}"].fillna(False).astype(bool)]
            found[str(role)] = tuple(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))
        return found

    def ranking(self, criterion: str) -> list[Head]:
        """Heads by one score, the highest first; ties in order of layer and head, heads without a score left out.

        Raises:
            InputError: No such score.
        """
        names = self.tables["criteria"]["criterion"].tolist()
        if criterion not in names:
            raise InputError(f"There is no score {criterion!r} here; there are {', '.join(names)}.")
        table = self.tables["heads"].dropna(subset=[criterion])
        table = table.sort_values([criterion, "layer", "head"], ascending=[False, True, True])
        return list(zip(table["layer"].tolist(), table["head"].tolist(), strict=True))

    def head_roles(self) -> RoleFile:
        """Everything that a head-role file holds; ``.write(path)`` writes it."""
        rules, metrics = {}, {}
        for row in _rows(self.tables["criteria"]):
            metrics[row.criterion] = Metric(row.criterion, int(row.version), row.definition, row.source)
            if isinstance(row.role, str):
                rules[row.role] = {"rule": row.rule, "source": row.rule_source}
        frame = self.tables["heads"][["layer", "head", *metrics]]
        return RoleFile(dict(self.meta["model"]), self.roles, rules, HeadScores(frame, metrics))

    def retrieval_join(self, top: int | None = None) -> RetrievalJoin | None:
        """Retrieval, sink and induction scores side by side; ``None`` when one of them was not measured.

        Args:
            top: Size of the top sets that are compared; default: 10.

        Raises:
            InputError: ``top`` below 1.
        """
        asked = top if top is not None else self.meta["settings"].get("top")
        seed = int(self.meta["settings"].get("seed", 0))
        return retrieval_join(self.tables["heads"], top=TOP if asked is None else asked, seed=seed)

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences: each role's heads, retrieval against sinks and induction, pairs that agree."""
        roles, table = self.roles, self.tables["heads"]
        out = []
        for row in _rows(self.tables["criteria"]):
            if not isinstance(row.role, str):
                continue
            if not row.n_known:
                out.append(f"{row.role}: not applicable, no head has the score {row.criterion}.")
                continue
            held = {*roles[row.role]}
            heads = [head for head in self.ranking(row.criterion) if head in held]  # the highest score first
            named = ", ".join(map(head_name, heads[:8])) + (", ..." if len(heads) > 8 else "")
            out.append(f"{row.role}: {len(heads)} of {row.n_known} heads{f' ({named})' if heads else ''}, {row.rule}.")
        if table.empty:
            return ["No head has a score."]
        join = self.retrieval_join()
        out += join.verdict if join is not None else []
        role_of = {row.criterion: row.role for row in _rows(self.tables["criteria"])}
        pairs = [row for row in _rows(self.tables["agreement"]) if not math.isnan(row.jaccard)]
        closest = sorted(pairs, key=lambda row: row.p)[:TOLD]
        out += [pair_sentence(row, role_of[row.first], role_of[row.second]) for row in closest]
        if len(pairs) > 1:
            more = sum(row.p < 0.05 for row in pairs)
            out.append(
                f"Of {len(pairs)} pairs of labelled sets {more} {'shares' if more == 1 else 'share'} more heads "
                f"than chance gives (p < 0.05; {0.05 * len(pairs):.1f} would by chance)."
            )
        return out


def pair_sentence(row: Any, first: str, second: str) -> str:
    """How far two labelled sets agree, with chance beside it."""
    what = "KV heads" if row.unit == "kv_head" else "heads"
    rank = "n/a" if math.isnan(row.spearman) else f"{row.spearman:.2f}"
    if not math.isnan(row.spearman_low):
        rank += f" [{row.spearman_low:.2f}, {row.spearman_high:.2f}]"
    return (
        f"{first} ({row.n_first:.0f}) and {second} ({row.n_second:.0f}) share {row.n_both:.0f} of {row.n} {what}: "
        f"Jaccard {row.jaccard:.2f}, {row.jaccard_chance:.2f} by chance; {row.both_chance:.1f} shared by chance, p = "
        f"{row.p:.2g} ({row.both_in_layers:.1f} and {row.p_in_layers:.2g} within layers); Spearman {rank}."
    )


def _rows(frame: pd.DataFrame) -> list[Any]:
    """Rows as untyped tuples: their fields are read by name."""
    return [*frame.rename(columns={"from": "part"}).itertuples(index=False)]
