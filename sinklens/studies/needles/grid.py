"""A needle test over lengths and depths, before and after interventions."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import plan_for
from sinklens.detectors.retrieval import METRICS, copy_scores
from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.models.architecture import attention_layers
from sinklens.results import RunFolder
from sinklens.results.header_file import kind_of
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.needles.answers import DECODED, Keep, check_keep, contains, usual_keep
from sinklens.studies.needles.decode import decode_needle, recall_of, written
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.outcome import Outcome
from sinklens.studies.needles.parts import Parts, alike
from sinklens.studies.needles.result import CLEAN, FORMAT, MEASURES, WORK, NeedleResult, grid_table
from sinklens.studies.needles.retrieval_scores import needle_header
from sinklens.studies.needles.run import check_instances, run_needles

COPIES = ("layer", "head", "event", "set")
INSTANCE = (
    "variant", "instance", "length", "depth", "repeat", "length_got", "depth_got", "n_answer", "exact", "correct",
    "log_prob", "rank", "mean_rank", "produced", "null", "response", "rouge1", "contained",
)  # fmt: skip

MOST_TOKENS = 10_000


DECODING = 8
"""Tokens that are read in the time in which one is decoded, about."""


def reading_work(needles: NeedleSet, generate: int) -> float:
    """All prompts under one intervention, in tokens."""
    return float(sum(len(each.ids) + DECODING * generate for each in needles.instances))


@checked
def measure_needles(
    model: TransformerBridge,
    needles: NeedleSet,
    *,
    interventions: Mapping[str, Intervention] | Intervention | None = None,
    keys: bool = True,
    share: bool = True,
    generate: int = 0,
    keep: Keep | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    restart: bool = False,
    progress: Progress = SILENT,
) -> NeedleResult:
    """How well a model finds needles at every length and depth, as it is and under interventions.

    Args:
        model: The bridge; it is the same afterwards.
        needles: From :func:`make_needles`.
        interventions: By name, or one; every prompt runs under each of them too.
        keys: Whether to find the strongest keys of the unchanged model's answer rows, for :attr:`NeedleResult.heads`.
        share: Whether prompts share their beginnings (see :func:`run_needles`).
        generate: Decode so many tokens of every prompt as well, as text with its ROUGE-1 recall and whether it contains
            the answer; slow.
        keep: Which prompts count in :attr:`NeedleResult.heads`: ``"exact"``, ``"contained"``, ``"share"``, ``"rouge"``
            or ``"all"``; default: ``"rouge"`` where text is decoded, else ``"share"`` for needles in text and
            ``"exact"`` for random tokens. What each asks and how many it keeps is in :meth:`NeedleResult.answered`.
        max_tokens: Most tokens of a forward pass.
        seed: Of bootstrap intervals.
        out: Work here, and leave the result here. An interrupted test goes on where it stopped, and a finished one of
            the same prompts and settings is read. Interventions may be added to a finished test: what it has is kept
            and only the new ones run.
        restart: Throw away what another test left in ``out``.
        progress: Told how it goes on, in tokens.

    Raises:
        InputError: An intervention without a name or without its heads in this model, or prompts of another model.
        ResultError: ``out`` holds something else or cannot be written.

    Cost: as :func:`run_needles` for every variant.
    """
    started = time.perf_counter()
    if isinstance(interventions, Intervention):
        interventions = {str(interventions): interventions}
    changes = dict(interventions or {})
    if CLEAN in changes or not all(changes):
        raise InputError(f"Interventions need names, other than {CLEAN!r}; got {', '.join(map(repr, changes))}.")
    if generate < 0:
        raise InputError(f"generate must be 0 or a number of tokens, got {generate}.")
    if generate > MOST_TOKENS:
        raise InputError(f"generate may be {MOST_TOKENS:,} tokens at most, got {str(generate)[:20]}.")
    check_instances(model, needles.instances)
    for each in changes.values():
        each.check(model)
    keys = keys and plan_for(model).path != "none"
    facts = needle_header(model, needles)
    described = {name: json.loads(each.to_json()) for name, each in changes.items()}
    keep = keep or usual_keep(needles, generate)
    check_keep(keep)
    if keep in DECODED and not generate:
        raise InputError(f"keep={keep!r} judges decoded text; set generate (--generate N) to a number of tokens.")
    settings = {"keys": keys, "share": share, "generate": generate, "seed": seed, "keep": keep}
    plan = {"model": facts["model"], "needles": needles.digest, "interventions": described, "settings": settings}
    folder = None if out is None else RunFolder(Path(out), FORMAT, WORK)
    before: pd.DataFrame | None = None
    if folder is not None and not restart and kind_of(folder.directory) == FORMAT:
        finished = NeedleResult.load(folder.directory)
        if _extends(plan, finished.meta["plan"]):  # it holds all that is asked, perhaps more
            return finished
        if not _extends(finished.meta["plan"], plan):
            raise InputError(
                f"{folder.directory} holds the result of another needle test; name another directory, or replace it "
                "with --restart (restart=True)."
            )
        before = _finished_rows(finished, [CLEAN, *changes])
    parts = Parts(folder)
    with parts.open(plan, restart, before):
        work = _Work(model, needles, parts, generate, progress)
        progress.begin("Reading needles", reading_work(needles, generate) * (1 + len(changes)))
        for number, (name, change) in enumerate({CLEAN: None, **changes}.items()):
            work.run(number, name, change, keys and name == CLEAN, share, max_tokens)
        every = parts.table()
        tables = {"prompts": needles.to_dataframe(), **_tables(every, [CLEAN, *changes], seed)}
        meta = {
            **facts,
            "needles": dict(needles.meta),
            "interventions": described,
            "metrics": _definitions(),
            "settings": settings,
            "plan": plan,
            "heads": {"layers": sorted(attention_layers(model)), "n_heads": int(model.cfg.n_heads)} if keys else None,
            "warnings": list(needles.meta.get("notes", [])),
            "seconds": time.perf_counter() - started,
        }
        result = NeedleResult(meta, tables)
        if folder is not None:
            folder.complete(result)
    return result


@checked
def score_needles(
    model: TransformerBridge,
    needles: NeedleSet,
    intervention: Intervention | None = None,
    *,
    share: bool = True,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    """How well a model answers each of its needle prompts, one row a prompt.

    Columns: instance, length, depth, repeat, exact, correct, log_prob, rank and mean_rank.

    The short way when many interventions are compared, such as a set of heads with its random controls.

    Raises:
        InputError: As :func:`run_needles`.
    """
    rows: list[dict[str, Any]] = []

    def deliver(found: Mapping[int, Outcome]) -> None:
        rows.extend(_row(needles, number, outcome) for number, outcome in found.items())

    run_needles(
        model,
        needles.instances,
        deliver,
        intervention=intervention,
        keys=False,
        share=share,
        max_tokens=max_tokens,
    )
    names = ["instance", "length", "depth", "repeat", "exact", "correct", "log_prob", "rank", "mean_rank"]
    return pd.DataFrame(rows).sort_values("instance", ignore_index=True)[names]


class _Work:
    """Runs what is not finished yet and keeps it."""

    def __init__(
        self,
        model: TransformerBridge,
        needles: NeedleSet,
        parts: Parts,
        generate: int,
        progress: Progress,
    ) -> None:
        self.model, self.needles, self.parts, self.generate, self.progress = model, needles, parts, generate, progress
        self.layers = sorted(attention_layers(model))

    def run(
        self,
        number: int,
        name: str,
        intervention: Intervention | None,
        keys: bool,
        share: bool,
        max_tokens: int | None,
    ) -> None:
        """All prompts under one intervention."""
        done = {instance for variant, instance in self.parts.done if variant == name}
        self.progress.skip(sum(map(self._work, done)))
        left = [instance for instance in range(len(self.needles)) if instance not in done]
        for together in self._portions(left):
            rows: list[dict[str, Any]] = []

            def deliver(found: Mapping[int, Outcome], together: list[int] = together, rows: Any = rows) -> None:
                some = [self._row(number, name, together[place], outcome) for place, outcome in found.items()]
                if self.generate:  # decoding opens the model anew, so it comes after these passes
                    rows.extend(some)
                else:
                    self._keep(some)

            instances = [self.needles.instances[instance] for instance in together]
            run_needles(
                self.model, instances, deliver, intervention=intervention, keys=keys, share=share, max_tokens=max_tokens
            )
            for row in rows:
                self._keep([row | self._response(row["instance"], intervention)])

    def _portions(self, left: list[int]) -> list[list[int]]:
        """What runs in one go: everything, or a repeat at a time where decoding follows."""
        if not self.generate:
            return [left] if left else []
        repeats = {self.needles.instances[instance].repeat for instance in left}
        return [[i for i in left if self.needles.instances[i].repeat == repeat] for repeat in sorted(repeats)]

    def _work(self, instance: int) -> float:
        return len(self.needles.instances[instance].ids) + DECODING * self.generate

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        self.parts.add(rows)
        self.progress.advance(sum(self._work(row["instance"]) for row in rows))

    def _row(self, number: int, name: str, instance: int, outcome: Outcome) -> dict[str, Any]:
        row = {"variant_number": number, "variant": name, **_row(self.needles, instance, outcome)}
        row |= {"response": None, "rouge1": float("nan"), "contained": None, "null": float("nan")}
        row |= {f"copy_{each}": [] for each in COPIES}
        if outcome.top_key is not None:
            each = self.needles.instances[instance]
            scores = copy_scores(outcome.top_key, outcome.produced, torch.tensor(each.ids), each.span)
            where = (scores.event > 0).nonzero()
            row["null"] = scores.null
            row["copy_layer"] = [self.layers[index] for index in where[:, 0].tolist()]
            row["copy_head"] = where[:, 1].tolist()
            row["copy_event"] = scores.event[where[:, 0], where[:, 1]].tolist()
            row["copy_set"] = scores.set[where[:, 0], where[:, 1]].tolist()
        return row

    def _response(self, instance: int, intervention: Intervention | None) -> dict[str, Any]:
        each = self.needles.instances[instance]
        produced = decode_needle(
            self.model, each, steps=self.generate, intervention=intervention, keys=False
        ).produced.tolist()
        text = written(self.model, produced)
        answer = each.answer_text or written(self.model, each.answer)
        return {
            "response": text,
            "rouge1": recall_of(self.model, each, produced),
            "contained": contains(text, answer),
        }


def _row(needles: NeedleSet, instance: int, outcome: Outcome) -> dict[str, Any]:
    each = needles.instances[instance]
    correct = outcome.correct(each.answer)
    return {
        "instance": instance,
        "length": each.length,
        "depth": each.depth,
        "repeat": each.repeat,
        "length_got": len(each.ids),
        "depth_got": each.depth_got,
        "n_answer": len(each.answer),
        "exact": bool(correct.all()),
        "correct": float(correct.double().mean()),
        "log_prob": float(outcome.log_prob.double().mean()),
        "rank": int(outcome.rank.max()),
        "mean_rank": float(outcome.rank.double().mean()),
        "produced": outcome.produced.tolist(),
    }


def _tables(every: pd.DataFrame, variants: list[str], seed: int) -> dict[str, pd.DataFrame]:
    """Instances, grid and copies from the finished parts."""
    instances = every[list(INSTANCE)].astype({"variant": "str", "response": "str", "contained": "boolean"})
    columns = [f"copy_{name}" for name in COPIES]
    copies = every[["instance", *columns]].explode(columns, ignore_index=True).dropna()
    copies = copies.rename(columns=dict(zip(columns, COPIES, strict=True)))
    kinds = {"instance": "int64", "layer": "int64", "head": "int64", "event": "float32", "set": "float32"}
    return {
        "instances": instances,
        "grid": grid_table(instances, variants, seed),
        "copies": copies.astype(kinds).reset_index(drop=True),
    }


def _extends(there: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a finished test is this one without some of its interventions."""
    same = all(alike(there[name], plan[name]) for name in plan if name != "interventions")
    known = plan["interventions"]
    return same and all(name in known and alike(each, known[name]) for name, each in there["interventions"].items())


def _finished_rows(result: NeedleResult, variants: list[str]) -> pd.DataFrame:
    """The rows of a finished test as its parts held them, numbered by the variants of the new one."""
    rows = result.tables["instances"].copy()
    rows["response"] = rows["response"].astype("object").where(rows["response"].notna(), None)
    rows.insert(0, "variant_number", [variants.index(name) for name in rows["variant"]])
    copies = result.tables["copies"].groupby("instance")
    of = {name: {key: group[name].tolist() for key, group in copies} for name in COPIES}
    clean = rows["variant"] == CLEAN
    for name in COPIES:
        rows[f"copy_{name}"] = [
            of[name].get(instance, []) if mine else [] for instance, mine in zip(rows["instance"], clean, strict=True)
        ]
    return rows


def _definitions() -> dict[str, Any]:
    own = {name: {"version": 1, "definition": text} for name, text in MEASURES.items()}
    return own | {metric.name: metric.as_dict() for metric in METRICS}
