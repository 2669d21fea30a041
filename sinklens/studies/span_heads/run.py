"""Find heads that depend on the document with the answer, and emphasise it through them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions import FollowGaze, Intervention, PaintScores, ScaleHeads, SteerAttention
from sinklens.interventions.heads import Head, head_name
from sinklens.interventions.paint_scores import FIRST_LAYER
from sinklens.models.architecture import context_length
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, begun_batch
from sinklens.models.torch_state import usual_torch
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.document_ranking.prompts import Prompt, RankingTask, builtin_tasks, make_prompt
from sinklens.studies.document_ranking.run import answer_log_prob, rank_documents
from sinklens.studies.span_heads.asking import asked_document
from sinklens.studies.span_heads.dependence import dependence, last_outputs, outliers, reinforced_heads
from sinklens.studies.span_heads.result import HEAD_COLUMNS, STEERED_COLUMNS, SpanHeads

LEAST = 4


@checked
@usual_torch()
@torch.no_grad()
def find_span_heads(
    model: AnyModel,
    tasks: Sequence[RankingTask] | None = None,
    *,
    top: int = 20,
    alpha: float = 0.01,
    controls: int = 5,
    bos: BosChoice = "auto",
    seed: int = 0,
    progress: Progress = SILENT,
) -> SpanHeads:
    """Find the heads that depend most on the document with the answer, and steer attention to it through them.

    ::

        found = find_span_heads("tiny-llama", top=4)
        found.verdict

    The dependence of a head on a document C is ``|z(with C) - z(without C)|`` at the token that predicts the answer,
    C taken out of the prompt. A head's excess is its dependence on the document with the answer less that on a random
    other one. Heads are chosen by their mean excess on every other task, and judged on the rest: the answer's
    log-probability while :class:`~sinklens.interventions.SteerAttention` emphasises the document in these heads, in as
    many random heads of the same layers, in all heads; a random other document in these heads; and, without knowing
    the right one, the document that the question's attention puts first (ICR), and the one that the model names when
    it is asked.

    Beside them stand three other emphases of the right document, each with its own control: PAINT and GIFT in all heads
    (:class:`~sinklens.interventions.PaintScores`, :class:`~sinklens.interventions.FollowGaze`; control: another
    document), and VHR, the half of each layer's heads that depend most on it made twice as large
    (:class:`~sinklens.interventions.ScaleHeads`; control: the other half).

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        tasks: At least four, each with its gold document and an answer; default: twenty built-in questions.
        top: Heads to steer.
        alpha: Factor on attention to the rest of the prompt in these heads.
        controls: Random sets of as many heads.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of other documents, random heads and intervals.
        progress: Told in tasks.

    Raises:
        InputError: Too few tasks, one without gold document or answer, more heads than half of the model's, or prompts
            longer than the context.
        UnsupportedArchitectureError: The model has no attention that can be measured and edited exactly.

    Source: text form of vision-aware head divergence, He et al. (2025), arXiv 2412.13949; steering by PASTA, Zhang et
    al. (2024), arXiv 2311.02262; a span that the model names itself after AutoPASTA, arXiv 2409.10790, which maps the
    sentence by an encoder and selects heads by their score on a task.

    Cost: three forward passes for each task that chooses, and ``15 + controls`` and a short generation for each that
    judges.
    """
    model = as_bridge(model)
    given = builtin_tasks(seed=seed) if tasks is None else list(tasks)
    every = all_heads(model)
    _check(given, top, controls, len(every))
    prompts = [make_prompt(model, task.documents, task.question, task.answer, bos) for task in given]
    limit, longest = context_length(model), max(len(prompt.ids) for prompt in prompts)
    if limit is not None and longest > limit:
        raise InputError(f"Expected prompts that fit the context of {limit}; the longest has {longest} tokens.")
    others = [
        random.Random(f"{seed}/{number}").choice([i for i in range(len(task.documents)) if i != task.gold])
        for number, task in enumerate(given)
    ]
    progress.begin("Finding heads of a span", len(given))
    measured = []
    for number in range(0, len(given), 2):
        measured.append(_measure(model, given[number], others[number], bos))
        progress.advance(1)
    heads = _heads(measured, every, top, seed)
    chosen = tuple(
        sorted((int(a), int(b)) for a, b in heads.loc[heads["chosen"], ["layer", "head"]].itertuples(index=False))
    )
    drawn = random_head_sets(every, chosen, draws=controls, seed=seed).sets if controls else ()
    judged = [*range(1, len(given), 2)]
    picked = rank_documents(model, tasks=[given[i] for i in judged], methods=["icr"], use=False, bos=bos, seed=seed)
    first = picked.ranks[picked.ranks["rank"] == 1].sort_values("task")["document"].tolist()
    steered: list[dict[str, Any]] = []
    asked = 0
    for place, number in enumerate(judged):
        golden = int(given[number].gold or 0)
        named = asked_document(model, given[number], bos, seed + number)
        asked += named == golden
        steer = _Steering(model, prompts[number], alpha)
        ways: list[Way] = [("span heads", -1, golden, steer.to(golden, chosen))]
        ways += [("random heads", draw, golden, steer.to(golden, each)) for draw, each in enumerate(drawn)]
        ways += [("all heads", -1, golden, steer.to(golden, "all"))]
        documents = {"other": others[number], "picked": int(first[place]), "asked": named}
        ways += [(f"{kind} document", -1, each, steer.to(each, chosen)) for kind, each in documents.items()]
        ways += steer.other_ways(given[number], golden, others[number], bos)
        steered += _steer(model, prompts[number], number, ways)
        progress.advance(1)
    settings = {"top": top, "alpha": alpha, "controls": controls, "seed": seed}
    hits = sum(int(document) == given[number].gold for document, number in zip(first, judged, strict=True))
    meta = header(
        model,
        begun_batch(model, [prompt.ids for prompt in prompts], bos),
        "documents and questions",
        settings=settings,
        picked={"right": hits, "of": len(judged), "asked_right": asked},
    )
    table = pd.DataFrame(steered, columns=[*STEERED_COLUMNS])
    return SpanHeads(meta, {"heads": heads, "steered": table})


def _outputs(
    model: TransformerBridge, task: RankingTask, without: int | None, bos: BosChoice
) -> dict[int, torch.Tensor]:
    """Head outputs where the answer is predicted, a document left out."""
    kept = [document for i, document in enumerate(task.documents) if i != without]
    prompt = make_prompt(model, kept, task.question, task.answer, bos)
    return last_outputs(model, prompt.ids[: prompt.answer.start])


def _measure(model: TransformerBridge, task: RankingTask, other: int, bos: BosChoice) -> dict[str, dict[Head, Any]]:
    """Dependence of every head on the gold document and on another, and whether VHR's rule leaves it out."""
    whole, less, control = (_outputs(model, task, without, bos) for without in (None, task.gold, other))
    found = dependence(whole, less)
    flags: dict[Head, bool] = {}
    for layer, z in less.items():
        divergence = np.array([found[layer, head] for head in range(len(z))])
        out = outliers(divergence, z.square().sum(-1).numpy())
        flags |= {(layer, head): bool(flag) for head, flag in enumerate(out)}
    return {"gold": found, "other": dependence(whole, control), "outlier": flags}


def _heads(measured: list[dict[str, dict[Head, Any]]], every: Sequence[Head], top: int, seed: int) -> pd.DataFrame:
    rows = []
    for head in every:
        gold, other = (np.array([each[name][head] for each in measured]) for name in ("gold", "other"))
        excess = paired_interval(gold - other, seed=seed)
        outlier = float(np.mean([each["outlier"][head] for each in measured]))
        about = (head_name(head), *head, float(gold.mean()), float(other.mean()), excess.value, excess.low, excess.high)
        rows.append((*about, outlier, False))
    table = pd.DataFrame(rows, columns=[*HEAD_COLUMNS])
    best = table.sort_values("excess", ascending=False, kind="stable").index[:top]
    table["chosen"] = table.index.isin(best)
    return table


Way = tuple[str, int, int, Intervention]
"""Kind, draw, document and what is done."""


@dataclass(frozen=True)
class _Steering:
    """Emphases of a document of one prompt."""

    model: TransformerBridge
    prompt: Prompt
    alpha: float

    def where(self, document: int) -> Any:
        span = self.prompt.spans[document]
        return range(span.start, span.stop)

    def to(self, document: int, heads: Sequence[Head] | str) -> Intervention:
        """PASTA's."""
        end = self.prompt.answer.start
        return SteerAttention(self.where(document), self.alpha, heads, end)  # type: ignore[arg-type]

    def other_ways(self, task: RankingTask, gold: int, other: int, bos: BosChoice) -> list[Way]:
        """PAINT's, GIFT's and VHR's, each with its control."""
        end, n_layers = self.prompt.answer.start, len(self.model.blocks)
        question: Any = range(self.prompt.question.start, self.prompt.question.stop)
        ways: list[Way] = []
        for control, document in (("", gold), (", other document", other)):
            paint = PaintScores(self.where(document), first_layer=min(FIRST_LAYER, n_layers - 1), prompt_length=end)
            ways.append((f"PAINT{control}", -1, document, paint))
            if n_layers > 1:
                ways.append(
                    (f"GIFT{control}", -1, document, FollowGaze(self.where(document), question, prompt_length=end))
                )
        chosen = reinforced_heads(*(_outputs(self.model, task, without, bos) for without in (None, gold)))
        rest = tuple(head for head in all_heads(self.model) if head not in {*chosen})
        for kind, heads in (("VHR", chosen), ("VHR, other half", rest)):
            if heads:
                ways.append((kind, -1, gold, ScaleHeads(heads, 2.0, from_row=end - 1)))
        return ways


def _steer(model: TransformerBridge, prompt: Prompt, number: int, ways: list[Way]) -> list[dict[str, Any]]:
    clean = answer_log_prob(model, prompt, None)
    rows = []
    for kind, draw, document, change in ways:
        value = answer_log_prob(model, prompt, change)
        about = {"task": number, "kind": kind, "draw": draw, "document": document}
        rows.append(about | {"log_prob": value, "clean": clean, "change": value - clean})
    return rows


def _check(tasks: Sequence[RankingTask], top: int, controls: int, n_heads: int) -> None:
    if len(tasks) < LEAST or controls < 0 or not 1 <= top <= n_heads // 2:
        raise InputError(
            f"Expected at least {LEAST} tasks, controls from 0 and top from 1 to {n_heads // 2} (half of the heads); "
            f"got {len(tasks)}, {controls} and {top}."
        )
    for number, task in enumerate(tasks):
        if task.gold is None or task.answer is None or not len(task.answer) or len(task.documents) < 2:
            raise InputError(f"Task {number} needs two documents or more, the number of the right one, and an answer.")
        if not 0 <= task.gold < len(task.documents):
            raise InputError(f"gold must be a number from 0 to {len(task.documents) - 1}, got {task.gold}.")
