"""A sweep at work: parts planned, taken from disk or computed, and put together."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import plan_for
from sinklens.errors import InputError, ResultError
from sinklens.evidence.effects import Answers
from sinklens.interventions import Intervention
from sinklens.interventions.heads import Head, head_name
from sinklens.models.tokens import TokenBatch
from sinklens.passes.clean_start import SharedStart
from sinklens.passes.head_sets import Depth
from sinklens.results import RunFolder
from sinklens.results.header import header
from sinklens.results.progress import Progress, Share
from sinklens.studies.ablation.agreement import RankAgreement, rank_agreement
from sinklens.studies.ablation.interventions import for_heads
from sinklens.studies.ablation.layout import Layout, choose_layout, cut
from sinklens.studies.ablation.parts import HeadSet, Part
from sinklens.studies.ablation.question import Question
from sinklens.studies.ablation.recipe import ModelRecipe
from sinklens.studies.ablation.result import Sweep, assemble
from sinklens.studies.ablation.tasks import Task
from sinklens.studies.ablation.variants import OWN, Variant, rank
from sinklens.studies.ablation.worker import Executor
from sinklens.studies.effects.run import METRICS

Listed = tuple[list[tuple[Variant, bool]], list[str]]
"""Variants, each with whether it is exact, and notes about them."""

DEPTH = 0.8
"""Share of a forward pass that a set of several heads takes, about: its first head lies low."""

ANEW = "Start anew with --restart (restart=True)."


class SweepRun:
    """One run of a sweep, from its first part or from where an earlier run stopped."""

    def __init__(
        self,
        model: TransformerBridge,
        batch: TokenBatch,
        answers: Answers | None,
        question: Question,
        executor: Executor,
        recipe: ModelRecipe,
        folder: RunFolder | None,
        spec: dict[str, Any],
        progress: Progress,
    ) -> None:
        self.model, self.batch, self.answers, self.question = model, batch, answers, question
        self.executor, self.recipe, self.folder, self.spec, self.progress = executor, recipe, folder, spec, progress
        self.notes: list[str] = []
        self.frames: list[pd.DataFrame] = []
        self.variants: dict[str, list[tuple[Variant, bool]]] = {}
        self.n_parts = 0
        self.later: float | None = None
        self.interventions: dict[str, Intervention] = {}
        self.layout = Layout(1, 1, 1, 0)
        self.kept: Any = None
        if folder is not None:
            folder.warn = self._note

    def begin(self, folder: RunFolder, restart: bool) -> Sweep | None:
        """Look at what the folder holds; a finished sweep of the same description is returned.

        Raises:
            ResultError: Another sweep, or a damaged one.
        """
        folder.check()
        if restart or not folder.finished:
            self.kept = folder.begin(self.spec, restart)
            return None
        try:
            finished = Sweep.load(folder.directory)
        except ResultError as error:
            raise ResultError(f"{error} {ANEW}") from error
        folder.begin(self.spec, held=finished.meta["spec"])
        folder.tidy()
        return finished

    def plan(self, make: Callable[[], dict[str, Intervention]], batch_size: int | None) -> None:
        """Fix interventions and sizes, or take those that an earlier run started with.

        Args:
            make: Completes the interventions; only called by the first run, because later ones must use the same.
            batch_size: Sequences in a part, if the caller wants a certain number.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            plan_for(self.model)
        self.notes += [str(w.message) for w in caught if "measured through" in str(w.message)]
        if self.kept is not None and self.folder is not None:
            try:
                texts = self.kept["interventions"]
                self.interventions = {label: Intervention.from_json(text) for label, text in texts.items()}
                self.layout = Layout(**self.kept["layout"])
            except (InputError, KeyError, TypeError, AttributeError) as error:
                raise ResultError(f"The plan in {self.folder.directory} is damaged: {error} {ANEW}") from error
        else:
            self.interventions = make()
            self.layout = choose_layout(
                self.model,
                len(self.batch),
                self.batch.ids.shape[1],
                batch_size=batch_size,
                backward=self.question.approx > 0,
                device=self._device(),
                workers=self.executor.workers,
            )
        if self.folder is not None:
            texts = {label: each.to_json() for label, each in self.interventions.items()}
            self.folder.note({"layout": dataclasses.asdict(self.layout), "interventions": texts})

    def _device(self) -> str:
        """Type of device that parts run on."""
        if self.executor.name == "serial":
            return str(next(self.model.parameters()).device.type)
        name = self.recipe.device.partition(":")[0]
        return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, stacklevel=2)

    def measure(self, stage: int, listed: Mapping[str, Listed], n_later: int = 0) -> None:
        """Run all variants that were not run yet.

        Args:
            stage: 1; 2 for the cumulative sets of the sweep's own ranking.
            listed: Variants by intervention.
            n_later: How many sets the next stage will have, to say how long everything takes.
        """
        parts: list[Part] = []
        begun: set[tuple[int, ...]] = set()
        plain = 0.0
        for label, (variants, notes) in listed.items():
            known = {(each.heads, exact) for each, exact in self.variants.get(label, [])}
            self.variants.setdefault(label, []).extend(variants)
            self.notes += [f"{label}: {note}" for note in notes]
            for exact in (False, True):
                asked = dict.fromkeys(each.heads for each, kind in variants if kind == exact)  # each set once
                sets = [heads for heads in asked if (heads, exact) not in known]
                parts += self._cut(label, sets, not exact, begun)
                plain += len(sets)
            plain += stage == 1  # the clean pass
        parts = self._in_order(parts)
        tables = {part.number: self._finished(part) for part in parts}
        missing = [part for part in parts if tables.get(part.number) is None]
        told = self._begin_work(parts, missing, plain, n_later)
        shares: dict[int, float] = {}
        work = {part.number: part.work for part in parts}

        def shared(number: int, share: float) -> None:
            before, shares[number] = shares.get(number, 0.0), share  # less than before when a part's worker died
            told.advance((share - before) * work[number])

        tasks = self._tasks(missing)
        if tasks:
            with closing(self.executor.run(tasks, self.recipe, shared)) as results:
                for part, table in results:
                    if self.folder is not None:
                        self.folder.save(part.name, {"losses": table}, part.key())
                    tables[part.number] = table
                    shared(part.number, 1.0)
        self.frames += [_named(part, found) for part in parts if (found := tables[part.number]) is not None]
        self.n_parts += len(parts)
        if stage > 1 and isinstance(told, Share):
            told.finish()

    def _finished(self, part: Part) -> pd.DataFrame | None:
        """What an earlier run found for a part."""
        found = None if self.folder is None else self.folder.load(part.name, part.key())
        return None if found is None else found.tables["losses"]

    def _cut(self, label: str, sets: Sequence[HeadSet], estimate: bool, begun: set[tuple[int, ...]]) -> list[Part]:
        if not sets:
            return []
        counted = begun if self._shares else None
        return cut(label, sets, self.batch, self.layout, depth=Depth.of(self.model), estimate=estimate, begun=counted)

    def _in_order(self, parts: Sequence[Part]) -> list[Part]:
        """Numbered as they are run: those on the same sequences one after the other, whatever their intervention."""
        places = {sequences: place for place, sequences in enumerate(dict.fromkeys(part.sequences for part in parts))}
        ordered = sorted(parts, key=lambda part: places[part.sequences])
        return [dataclasses.replace(part, number=self.n_parts + place) for place, part in enumerate(ordered)]

    @property
    def _shares(self) -> bool:
        """Whether parts on the same sequences share a clean pass: those of one process do."""
        return self.executor.name == "serial"

    def _tasks(self, parts: Sequence[Part]) -> list[Task]:
        tasks = []
        for _, some in groupby(parts, key=lambda part: part.sequences):
            group = list(some)
            exact = [part for part in group if not part.estimate]
            ways = [self.interventions[label] for label in dict.fromkeys(part.intervention for part in exact)]
            layers = {min(heads)[0] for part in exact for heads in part.head_sets}
            shared = SharedStart(len(exact), ways, layers) if self._shares else None
            tasks += [self._task(part, None if part.estimate else shared) for part in group]
        return tasks

    def _task(self, part: Part, shared: SharedStart | None) -> Task:
        heads = {head for heads in part.head_sets for head in heads}
        answers = None if self.answers is None else self.answers.rows(part.sequences)
        intervention = for_heads(self.interventions[part.intervention], heads)
        return Task(part, intervention, self.batch.rows(part.sequences), answers, self.layout.rows, shared)

    def _begin_work(self, parts: Sequence[Part], missing: Sequence[Part], plain: float, n_later: int) -> Progress:
        work = sum(part.work for part in parts)
        sets = {(part.intervention, part.estimate, heads) for part in parts for heads in part.head_sets}
        n_done, n = len(parts) - len(missing), len(parts)
        before = f", {n_done} of them finished before" if n_done else ""
        about = (
            f"{len(sets)} head sets on {len(self.batch)} sequences in {n} part{'s' * (n != 1)}{before}: about "
            f"{work / len(self.batch):.1f} forward passes over the texts (a loop over the sets takes {plain:.0f}), "
            f"{self.layout.memory / 2**20:,.0f} MiB beyond the weights."
        )
        told: Progress = self.progress if self.later is None else Share(self.progress, self.later)
        self.later = DEPTH * n_later * len(self.batch)
        told.begin("Sweeping heads", work + self.later, about if parts else "")
        told.skip(work - sum(part.work for part in missing))
        return told

    def own_ranking(self, label: str) -> list[Head]:
        """The single heads that were run (or, in an approximate sweep, estimated), the largest effect first."""
        measured, by = pd.concat(self.frames, ignore_index=True), self.question.rank_by
        wanted = (measured["intervention"] == label) & (measured["exact"] == (self.question.approx == 0))
        means = measured[wanted].groupby("heads")[by].mean()
        sign = -1 if by in ("top1_agreement", "delta_logit_diff") else 1  # there the smallest is the strongest
        return rank({head: sign * float(means.get(head_name(head), float("nan"))) for head in self.question.heads})

    def finish(self, token_facts: Mapping[str, Any], seconds: float) -> Sweep:
        """Put the parts together, save the result, then remove the parts."""
        measured = pd.concat(self.frames, ignore_index=True)
        tables = assemble(measured, self.variants, self.question.seed)
        meta = header(self.model, self.batch, tokens=token_facts) | {
            "interventions": self.spec["interventions"],
            "metrics": {name: {"version": 1, "definition": text} for name, text in METRICS.items()},
            "settings": {
                **self.question.describe(),
                **dataclasses.asdict(self.layout),
                "executor": self.executor.name,
                "answers": self.answers is not None,
            },
            "approx": self._agreement(tables["summary"]) if self.question.approx else {},
            "warnings": self.notes + self._remarks(),
            "spec": self.spec,
            "seconds": seconds,
        }
        result = Sweep(meta, tables)
        if self.folder is not None:
            self.folder.complete(result)
        return result

    def _agreement(self, summary: pd.DataFrame) -> dict[str, Any]:
        found: dict[str, Any] = {}
        singles = summary[summary["kind"] == "head"]
        for label, rows in singles.groupby("intervention", sort=False):
            exact = rows[rows["exact"]].set_index("variant")
            estimated = rows[~rows["exact"]].set_index("variant").loc[exact.index]
            found[str(label)] = {
                metric: _plain(
                    rank_agreement(estimated[metric].to_numpy(), exact[metric].to_numpy(), seed=self.question.seed)
                )
                for metric in ("delta_loss", "delta_logit_diff")
                if exact[metric].notna().any()
            }
        return found

    def _remarks(self) -> list[str]:
        notes = []
        if self.question.ranking == OWN:
            notes.append("The top sets were chosen on the texts they are measured on, which flatters them a little.")
        if self.batch.unused:
            notes.append(self.batch.unused.sentence(len(self.batch)))
        if len(self.batch) < 10:
            notes.append(f"Intervals over {len(self.batch)} sequence(s) say little; give 10 or more.")
        return notes


def _named(part: Part, table: pd.DataFrame) -> pd.DataFrame:
    """The part's rows with names in the place of numbers of sets."""
    names = [",".join(map(head_name, heads)) for heads in part.head_sets]
    named = table.drop(columns="set")
    named.insert(0, "intervention", part.intervention)
    named.insert(1, "heads", [names[number] for number in table["set"]])
    named.insert(2, "exact", not part.estimate)
    return named


def _plain(agreement: RankAgreement) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    numbers = {"spearman": agreement.rho, "low": agreement.low, "high": agreement.high}
    known = {name: None if value != value else value for name, value in numbers.items()}
    return {**known, "n_heads": agreement.n, "text": str(agreement)}
