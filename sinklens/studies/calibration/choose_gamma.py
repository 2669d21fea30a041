"""Choosing heads and factor of a scaled key (ZeroTuning)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.controls import DRAWS
from sinklens.interventions import Intervention, ScaleKeys
from sinklens.interventions.heads import Head
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.calibration.candidates import candidate_heads
from sinklens.studies.calibration.classification import ClassificationTask, Scorer, score_task, tell
from sinklens.studies.calibration.profile_heads import Objective, head_units, search_row
from sinklens.studies.calibration.result import Calibration
from sinklens.studies.calibration.study import Study

GAMMAS = (0.1, 0.25, 0.5, 0.75, 1.5, 2.0, 3.0, 4.0)
"""Factors that are tried beside 1, which is the unchanged model."""
TOP_SHARE = 0.4


@checked
def choose_gamma(
    model: TransformerBridge,
    task: ClassificationTask,
    intervention: Intervention | None = None,
    *,
    gammas: Sequence[float] = GAMMAS,
    per: Literal["head", "index"] = "head",
    objective: Objective = "accuracy",
    top_share: float = TOP_SHARE,
    share: float = 0.5,
    seed: int = 0,
    controls: int = DRAWS,
    batch_size: int = 8,
    progress: Progress = SILENT,
    score: Scorer = score_task,
) -> Calibration:
    """Find heads that react alike to more attention on the initial token, and the best factor for them (ZeroTuning).

    On the prompts chosen on:

    1. profile: each head alone (or each head index in all layers) at the intervention's own gamma; heads that make the
       answers better are up-effective, those that make them worse down-effective;
    2. the more frequent type is the dominant one (in a tie, the one with the larger effects); of its heads the
       ``top_share`` with the largest effects are taken, at least one;
    3. grid: the gamma at which those heads make the answers best; in a tie the one nearest to 1. As 1 is in the grid,
       nothing is chosen unless something is better than the unchanged model.

    The result is reported on the other prompts, beside as many random heads at the same gamma.

    Args:
        model: The bridge; it is the same afterwards.
        task: Labelled prompts.
        intervention: With fields ``gamma`` and ``heads``, which names the candidates; default
            ``ScaleKeys(keys=0, gamma=2.0)``.
        gammas: The grid; 1 is added.
        per: ``"head"``, or ``"index"``: one head index in all layers at a time, as in the authors' notebook.
        objective: ``"accuracy"`` (supervised), or ``"entropy"``: the lowest mean next-token entropy, without labels.
        top_share: Of the dominant heads; the authors' 0.4.
        share: Of the prompts that are chosen on.
        seed: Of the split, the random heads and the intervals.
        controls: How many random sets of as many heads are reported beside.
        batch_size: Prompts in one forward pass.
        progress: Told how it goes on, in prompts.
        score: What lets the model answer; :class:`KeptScores` makes the work resumable.

    Raises:
        InputError: An intervention without gamma or heads, a gamma it does not take, heads that the model lacks, a
            share outside 0 to 1, or a split with an empty side.

    Cost: a forward pass per prompt chosen on and head or gamma, and per held-out prompt for the unchanged model, the
    chosen heads and each control.

    Source: Han et al. (2026), ZeroTuning, arXiv 2505.11739; the 40 % are known from its reviews. Its tables count
    answers that are no label as wrong and do not say how many there are.
    """
    template: Any = ScaleKeys(keys=(0,), gamma=2.0) if intervention is None else intervention
    pool = candidate_heads(model, template, "gamma")
    if not 0 < top_share <= 1:
        raise InputError(f"top_share must be above 0 and at most 1, got {top_share}.")
    if not len(gammas):
        raise InputError("gammas is empty; name at least one factor, such as 0.5.")
    grid = [replace(template, gamma=float(gamma)) for gamma in gammas if float(gamma) != 1]
    units = head_units(pool, per)
    study = Study(model, task, share, seed, controls, batch_size, progress, score)
    study.begin(len(units) + 1 + len(grid))
    search = study.profile(template, units, objective)
    dominant, taken = _dominant(search["gain"].to_numpy()[1:], search["effect"].to_numpy()[1:], top_share)
    search["kept"] = [False, *(place in taken for place in range(len(units)))]
    heads = sorted(head for place in taken for head in units[place])
    unit = "head alone" if per == "head" else "head index, in all layers together,"
    best, notes = replace(template, gamma=1.0), [] if heads else [f"No {unit} changes {objective}."]
    if heads:
        tried = _try_gammas(study, grid, heads, objective)
        place = _best(tried)
        tried["kept"] = [row == place for row in range(len(tried))]
        search = pd.concat([search, tried], ignore_index=True)
        if place == 0:
            heads, notes = [], [f"No gamma on the {dominant}-effective heads makes {objective} better."]
        else:
            best = grid[place - 1]
    settings = {
        "objective": objective,
        "per": per,
        "top_share": top_share,
        "profile_gamma": template.gamma,
        "gammas": [each.gamma for each in grid],
        "dominant": dominant,
    }
    return study.report("choose_gamma", best, heads, search, settings, notes)


def _try_gammas(study: Study, grid: Sequence[Any], heads: Sequence[Head], objective: Objective) -> pd.DataFrame:
    """One row per gamma after that of the unchanged model, which is gamma 1."""
    task, size = study.search, study.batch_size
    before = study.score(study.model, task, batch_size=size)
    rows = [search_row("gamma", heads, 1.0, before, before, objective)]
    tell(study.progress, study.score, task)
    for each in grid:
        after = study.score(study.model, task, each.on(heads), batch_size=size)
        rows.append(search_row("gamma", heads, each.gamma, after, before, objective))
        tell(study.progress, study.score, task)
    return pd.DataFrame(rows)


def _best(tried: pd.DataFrame) -> int:
    """Row of the largest gain, nearest to gamma 1 among equals; gains that are only rounding count as none."""
    gains = np.where(tried["effect"] == "up", tried["gain"], 0.0)
    away = np.abs(np.log(tried["gamma"].to_numpy()))
    return int(np.lexsort((away, -gains))[0])


def _dominant(
    gains: np.ndarray, effects: np.ndarray, top_share: float
) -> tuple[Literal["up", "down"] | None, list[int]]:
    """The more frequent type of unit and the places of its strongest members."""
    members = {kind: np.flatnonzero(effects == kind) for kind in ("up", "down")}
    if not any(map(len, members.values())):
        return None, []
    weight = {kind: (len(places), float(np.abs(gains[places]).sum())) for kind, places in members.items()}
    dominant: Literal["up", "down"] = "up" if weight["up"] >= weight["down"] else "down"
    places = members[dominant]
    order = places[np.argsort(-np.abs(gains[places]), kind="stable")]
    count = math.ceil(top_share * len(places) - 1e-9)
    return dominant, sorted(order[:count].tolist())
