"""Heads patched between needles and the same needles with another answer: are they needed, are they enough."""

import random
from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.interventions.heads import Head, head_name
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.path_patching.passes import Recorded, run
from sinklens.studies.path_patching.sets import Scale, patch_sets

COLUMNS = (
    "top", "kind", "draw", "heads", "necessity", "necessity_low", "necessity_high", "sufficiency", "sufficiency_low",
    "sufficiency_high",
)  # fmt: skip

RULE = (
    "Corrupted, the needle's copy of the answer holds that of another needle (as many tokens, another first one), or "
    "random tokens where there is none. LD: logit of the answer's first token less that of the other's, at the end. "
    "Necessity: (LD of the clean prompt with the heads' corrupted outputs - LD clean) / (LD corrupted - LD clean); "
    "sufficiency: (LD corrupted - LD of the corrupted prompt with their clean outputs) / (LD corrupted - LD clean)."
)

NamedSet = tuple[int, str, int | None, tuple[Head, ...]]
"""Size, kind, draw and heads."""


def patched_needles(
    model: TransformerBridge,
    needles: NeedleSet,
    sets: Sequence[NamedSet],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Necessity and sufficiency of each set by patching, as :data:`RULE` says.

    Args:
        model: The bridge.
        needles: Prompts, of any lengths.
        sets: What to patch.
        batch_size: Prompts in one pass.
        seed: Of other answers and intervals.
        progress: Told in forward passes of all needles.

    Returns:
        One row a set (NaN where both kinds of prompts give the same answers), and the mean logit difference of
        ``clean`` and ``corrupted`` prompts.

    Raises:
        UnsupportedArchitectureError: Outputs of heads cannot be exchanged exactly.

    Cost: two forward passes a set over all needles; memory of all head outputs of a batch twice.
    """
    progress.begin("Patching sets of heads", 2 * len(sets) * len(needles))
    starts, ends, lost, kept = [], [], [], []
    heads = [each[-1] for each in sets]
    for clean, corrupted, answers in _groups(model, needles, batch_size, seed):
        before, after = run(model, clean), run(model, corrupted)
        difference = partial(_difference, answers)
        starts.append(difference(before))
        ends.append(difference(after))
        here = Share(progress, 2 * len(sets) * len(clean))
        here.begin("Patching", 2 * len(sets))
        moved = patch_sets(model, clean, corrupted, before, after, heads, difference, here)
        lost.append(moved[0])
        kept.append(moved[1])
        here.finish()
    start, end = torch.cat(starts), torch.cat(ends)
    scale = Scale(start, end, seed)
    rows = []
    for (top, kind, draw, some), gone, back in zip(sets, torch.cat(lost, 1), torch.cat(kept, 1), strict=True):
        rows.append((top, kind, draw, ",".join(map(head_name, some)), *scale.share(gone), *scale.share(back)))
    table = pd.DataFrame(rows, columns=[*COLUMNS]).astype({"draw": "Int64"})
    return table, {"clean": float(start.mean()), "corrupted": float(end.mean())}


def other_answers(model: TransformerBridge, needles: NeedleSet, seed: int) -> list[tuple[int, ...]]:
    """What stands in each corrupted prompt in place of the answer."""
    ordinary = ordinary_ids(model).tolist()
    found = []
    for number, each in enumerate(needles.instances):
        draw = random.Random(f"{seed}/patching/{number}")
        fitting = sorted(
            {
                other.answer
                for other in needles.instances
                if len(other.answer) == len(each.answer) and other.answer[0] != each.answer[0]
            }
        )
        pool = [token for token in ordinary if token != each.answer[0]]
        found.append(draw.choice(fitting) if fitting else tuple(draw.choices(pool, k=len(each.answer))))
    return found


def _groups(
    model: TransformerBridge, needles: NeedleSet, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Clean and corrupted prompts of one length, and the first tokens of both answers ``[prompt 2]``."""
    others = other_answers(model, needles, seed)
    by_length: dict[int, list[int]] = {}
    for number, each in enumerate(needles.instances):
        by_length.setdefault(len(each.ids), []).append(number)
    batches = [same[i : i + batch_size] for same in by_length.values() for i in range(0, len(same), batch_size)]
    for numbers in batches:
        clean, corrupted, answers = [], [], []
        for number in numbers:
            each, other = needles.instances[number], others[number]
            start, stop = each.span
            clean.append(each.ids)
            corrupted.append(each.ids[:start] + other + each.ids[stop:])
            answers.append((each.answer[0], other[0]))
        yield torch.tensor(clean), torch.tensor(corrupted), torch.tensor(answers)


def _difference(answers: Tensor, found: Recorded) -> Tensor:
    logits = found.logits.cpu().gather(-1, answers)
    return logits[:, 0] - logits[:, 1]
