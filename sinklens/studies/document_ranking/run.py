"""Rank documents by the attention that a question gives them."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.log_probs import log_probs
from sinklens.interventions import Intervention
from sinklens.interventions.heads import check_heads, parse_heads
from sinklens.models.architecture import context_length
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, begun_batch
from sinklens.models.torch_state import usual_torch
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.document_ranking.methods import METHODS, Seen
from sinklens.studies.document_ranking.prefix import attention_after
from sinklens.studies.document_ranking.prompts import (
    Prompt,
    RankingTask,
    Words,
    attention_from,
    blank_question,
    builtin_tasks,
    make_prompt,
    words_of,
)
from sinklens.studies.document_ranking.result import DocumentRanking
from sinklens.wording import several

RANK_COLUMNS = ("task", "method", "document", "gold", "n_tokens", "score", "rank")
USE_COLUMNS = ("task", "share", "share_null", "log_prob", "lost_gold", "lost_other")


@checked
@usual_torch()
@torch.no_grad()
def rank_documents(
    model: AnyModel,
    documents: Sequence[Words] | None = None,
    question: Words | None = None,
    *,
    tasks: Sequence[RankingTask] | None = None,
    methods: Sequence[str] = tuple(METHODS),
    heads: Sequence[object] | None = None,
    reverse: bool = False,
    use: bool = True,
    intervention: Intervention | None = None,
    bos: BosChoice = "auto",
    seed: int = 0,
    progress: Progress = SILENT,
) -> DocumentRanking:
    """Put documents into the order in which a question looks at them, by several rules and three controls.

    ::

        found = rank_documents(
            "path/to/llama", ["Gorwin was bitten by a dog.", "It snowed for weeks."], "Which animal?"
        )
        found.ranks

    Nothing is generated and nothing was trained for it: the documents and then the question are read, and the rules
    sum the attention from the question's tokens to each document's.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        documents: Texts, or lists of ids, at least two; with ``question``, and instead of ``tasks``.
        question: Text, or ids.
        tasks: Several :class:`RankingTask`, to see how often the right document comes first. Default without documents:
            twenty built-in questions among six sentences each, which share no content word with their answer.
        methods: ``icr`` (calibrated by the content-free question "N/A", outliers left out), ``calibrated`` (all),
            ``query_attention`` (no calibration), ``infini`` (best phrase in the last layer), ``infini_weighted`` (the
            question's tokens weighted by the square of what they give to the question), ``last_token`` (a negative
            control), ``overlap`` (share of the question's words, no model), ``place`` (the order of the prompt), and
            ``random``.
        heads: Sum over these heads alone, such as retrieval heads; default: all, as the papers do.
        reverse: Put the last document first in the prompt, as an option of ICR's code does.
        use: Also measure context use where a task has its gold document and an answer.
        intervention: A change of the model under which it ranks.
        bos: As for :func:`sinklens.tokenize`.
        seed: Of the random rule, of ties, and of built-in tasks.
        progress: Told in tasks.

    Raises:
        InputError: Fewer than two documents, empty ones, texts mixed with ids, an unknown method, or a prompt longer
            than the context.
        UnsupportedArchitectureError: The model has no attention that can be measured exactly.

    Source: Chen, Gutierrez, Su (ICLR 2025), arXiv 2410.02642 (ICR); Ye et al. (2025), arXiv 2502.12962 (InfiniRetri,
    its sentence scorer without the loop over windows); context use after the question of Tang et al. (2024), arXiv
    2410.02115 (L-CiteEval), not its benchmark.

    Cost: a forward pass of a task's documents, whose KV cache both questions go on from (under an intervention two
    whole passes), and four passes for context use.
    """
    model = as_bridge(model)
    if (documents is None) != (question is None) or (tasks is not None and documents is not None):
        raise InputError("Give documents and a question, or tasks, or none of them for the built-in tasks.")
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(
            f"Unknown methods {', '.join(map(repr, unknown)) or '(none given)'}; there are {', '.join(METHODS)}."
        )
    if documents is not None and question is not None:
        tasks = [RankingTask(documents, question)]
    tasks = builtin_tasks(seed=seed) if tasks is None else list(tasks)
    chosen = None
    if heads is not None:
        chosen = parse_heads(heads)
        check_heads(model, chosen)
        chosen = None if chosen == "all" else chosen
    for task in tasks:
        _check(task)
    prompts = [make_prompt(model, task.documents, task.question, None, bos, reverse) for task in tasks]
    limit = context_length(model)
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    if not tasks or (limit is not None and longest > limit):
        raise InputError(
            f"Expected tasks whose prompts fit the context of {limit}; got {len(tasks)}, the longest {longest}."
        )
    progress.begin("Ranking documents", len(tasks))
    ranks: list[tuple[Any, ...]] = []
    used: list[dict[str, Any]] = []
    for number, (task, prompt) in enumerate(zip(tasks, prompts, strict=True)):
        seen = _look(model, task, prompt, chosen, intervention, bos, seed + number, reverse)
        for method in methods:
            scores = METHODS[method](seen)
            order = _ranks(scores, seed + number)
            ranks += [
                (number, method, i, None if task.gold is None else i == task.gold, span.stop - span.start, score, rank)
                for i, (span, score, rank) in enumerate(zip(prompt.spans, scores, order, strict=True))
            ]
        if use and task.gold is not None and task.answer is not None:
            used.append(
                {
                    "task": number,
                    **context_use(model, task, intervention=intervention, bos=bos, seed=seed + number, reverse=reverse),
                }
            )
        progress.advance(1)
    settings: dict[str, Any] = {
        "methods": [*methods],
        "heads": None if chosen is None else [list(h) for h in chosen],
        "reverse": reverse,
        "seed": seed,
    }
    settings["intervention"] = None if intervention is None else str(intervention)
    meta = header(
        model, begun_batch(model, [prompt.ids for prompt in prompts], bos), "documents and questions", settings=settings
    )
    table = pd.DataFrame(ranks, columns=[*RANK_COLUMNS]).astype({"gold": "boolean"})
    return DocumentRanking(meta, {"ranks": table, "use": pd.DataFrame(used, columns=[*USE_COLUMNS])})


def context_use(
    model: TransformerBridge,
    task: RankingTask,
    *,
    intervention: Intervention | None = None,
    bos: BosChoice = "auto",
    seed: int = 0,
    reverse: bool = False,
) -> dict[str, float]:
    """Whether a task's answer comes out of its gold document; see :attr:`DocumentRanking.use` for the entries.

    Two ways that need not agree: where the rows that predict the answer look, and what the answer's probability loses
    when the document is taken out of the prompt, beside a random other document.
    """
    gold = task.gold
    if gold is None or task.answer is None:
        raise InputError("Context use needs a task with its gold document and an answer.")
    prompt = make_prompt(model, task.documents, task.question, task.answer, bos, reverse)
    rows = slice(prompt.answer.start - 1, prompt.answer.stop - 1)
    mass = attention_from(model, prompt.ids, {"answer": rows}, None, intervention)[0]["answer"]
    masses = [float(mass[span].sum()) for span in prompt.spans]
    sizes = [span.stop - span.start for span in prompt.spans]
    other = random.Random(f"{seed}/other").choice([i for i in range(len(sizes)) if i != gold])
    whole = answer_log_prob(model, prompt, intervention)
    lost = []
    for left_out in (gold, other):
        kept = [document for i, document in enumerate(task.documents) if i != left_out]
        less = make_prompt(model, kept, task.question, task.answer, bos, reverse)
        lost.append(whole - answer_log_prob(model, less, intervention))
    found = {"share": masses[gold] / sum(masses), "share_null": sizes[gold] / sum(sizes), "log_prob": whole}
    return found | {"lost_gold": lost[0], "lost_other": lost[1]}


def answer_log_prob(model: TransformerBridge, prompt: Prompt, intervention: Intervention | None) -> float:
    """Of a token of the prompt's answer, mean, nats, teacher-forced."""
    ids = torch.tensor([prompt.ids], device=next(model.parameters()).device)
    if intervention is None:
        logits = model(ids)
    else:
        with intervention(model):
            logits = model(ids)
    rows = slice(prompt.answer.start - 1, prompt.answer.stop - 1)
    return float(log_probs(logits[0, rows], ids[0, prompt.answer]).mean())


def _look(
    model: TransformerBridge,
    task: RankingTask,
    prompt: Prompt,
    heads: Any,
    intervention: Intervention | None,
    bos: BosChoice,
    seed: int,
    reverse: bool,
) -> Seen:
    asked, width = prompt.question, max(span.stop for span in prompt.spans)
    blank = make_prompt(model, task.documents, blank_question(model, task, seed), None, bos, reverse)
    rows = {f"row {t}": slice(t, t + 1) for t in range(asked.start, asked.stop)}
    sets = {"question": asked, "last": slice(len(prompt.ids) - 1, len(prompt.ids)), **rows}
    endings = [(prompt.ids[asked.start :], sets), (blank.ids[asked.start :], {"question": blank.question})]
    (total, final), (calibration, _) = attention_after(model, prompt.ids[: asked.start], endings, heads, intervention)
    return Seen(
        total["question"][:width],
        calibration["question"][:width],
        total["last"][:width],
        torch.stack([final[name] for name in rows]),
        asked,
        prompt.spans,
        words_of(task.question),
        [words_of(each) for each in task.documents],
        seed,
    )


def _ranks(scores: Sequence[float], seed: int) -> list[int]:
    """Ranks from 1, the largest first; equal ones in random order."""
    tie = np.random.default_rng([seed, 1]).permutation(len(scores))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], tie[i]))
    return [order.index(i) + 1 for i in range(len(scores))]


def _check(task: RankingTask) -> None:
    parts = [*task.documents, task.question, *([] if task.answer is None else [task.answer])]
    texts = {isinstance(part, str) for part in parts}
    empty = [f", an empty {name}" for name in ("question", "answer") if getattr(task, name) == ""]
    if len(task.documents) < 2 or len(texts) > 1 or any(not len(part) for part in parts):
        raise InputError(
            f"Expected two or more documents and a question, all texts or all lists of ids, none empty; got "
            f"{several(len(task.documents), 'document')}{''.join(empty)}."
        )
    if task.gold is not None and not 0 <= task.gold < len(task.documents):
        raise InputError(f"gold must be a number from 0 to {len(task.documents) - 1}, got {task.gold}.")
