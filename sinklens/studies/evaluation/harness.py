"""lm-evaluation-harness with a model of ours: scores of every document of some tasks."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch

from sinklens.errors import InputError, SinkLensError
from sinklens.studies.evaluation.local_tasks import LocalTask
from sinklens.studies.evaluation.scorer import TextScorer

GENERATED = 128
"""Most tokens that are decoded where a task does not say."""


def missing_harness() -> str | None:
    """Why lm-evaluation-harness cannot be used here, ``None`` where it can."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is not None:
        return None
    return "Task scores need lm-evaluation-harness, which is not installed: pip install 'sinklens[eval]'."


def run_tasks(
    scorer: TextScorer,
    tasks: Sequence[str | LocalTask],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    chat: bool = False,
    seed: int = 0,
    advance: Callable[[float], None] = lambda share: None,
) -> pd.DataFrame:
    """One row per task, document and metric: columns task, doc, metric, value.

    Args:
        scorer: The model under what it is to be scored under.
        tasks: Names that lm-evaluation-harness knows (it fetches their data), and tasks from files.
        limit: Documents of each task, the first ones.
        fewshot: Solved examples before each; default: the task's own number.
        chat: Whether each context is the user's turn in the tokenizer's chat template, examples the turns before it.
        seed: Of the draws of examples.
        advance: Told which share of the work is done, in steps that add up to about 1.

    Raises:
        SinkLensError: The harness is not installed.
        InputError: A task that it does not know.
    """
    problem = missing_harness()
    if problem is not None:
        raise SinkLensError(problem)
    import lm_eval
    from lm_eval.tasks import TaskManager

    named = [each for each in tasks if isinstance(each, str)]
    manager = TaskManager(include_defaults=bool(named))
    unknown = sorted(set(named) - set(manager.all_tasks))
    if unknown:
        raise InputError(f"lm-evaluation-harness knows no task {', '.join(unknown)}; 'lm_eval ls tasks' lists them.")
    with _same_draws():
        found = lm_eval.simple_evaluate(
            model=_as_harness_model(scorer, advance),
            tasks=[each if isinstance(each, str) else each.config() for each in tasks],
            num_fewshot=fewshot,
            limit=limit,
            apply_chat_template=chat,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    rows = []
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, bool | int | float | np.number):  # not what is only defined over all documents
                    name = metric if sample.get("filter", "none") == "none" else f"{metric} ({sample['filter']})"
                    rows.append({"task": task, "doc": int(sample["doc_id"]), "metric": name, "value": float(value)})
    if not rows:
        raise InputError(f"No metric of {', '.join(map(str, found['samples']))} is defined for single documents.")
    return pd.DataFrame(rows)


@contextmanager
def _same_draws() -> Iterator[None]:
    """The harness sets the seeds of the whole process, which are put back, and warns of what is meant so."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(states[0])
            np.random.set_state(states[1])


def _as_harness_model(scorer: TextScorer, advance: Callable[[float], None]) -> Any:
    from lm_eval.api.model import LM

    class Scored(LM):  # type: ignore[misc, unused-ignore]
        """What the harness calls; each request's arguments are texts."""

        tokenizer_name = "the model's own"

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return scorer.chat(chat_history, add_generation_prompt)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = [each.args for each in requests]
            return scorer.log_likelihoods(pairs, lambda count: advance(count / len(pairs)))

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            found = []
            for each in requests:
                found.append(scorer.rolling(each.args[0]))
                advance(1 / len(requests))
            return found

        def generate_until(self, requests: list[Any]) -> list[str]:
            found = []
            for each in requests:
                context, options = each.args
                until = options.get("until") or []
                most = int(options.get("max_gen_toks", GENERATED))
                found.append(scorer.generate(context, [until] if isinstance(until, str) else until, most))
                advance(1 / len(requests))
            return found

    return Scored()
