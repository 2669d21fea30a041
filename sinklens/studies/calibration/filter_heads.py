"""Choosing the heads of an intervention: those where it helps alone (ACT's head filter)."""

from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.evidence.controls import DRAWS
from sinklens.interventions import Intervention
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.calibration.candidates import candidate_heads
from sinklens.studies.calibration.classification import ClassificationTask, Scorer, score_task
from sinklens.studies.calibration.profile_heads import Objective, head_units
from sinklens.studies.calibration.result import Calibration
from sinklens.studies.calibration.study import Study


@checked
def filter_heads(
    model: TransformerBridge,
    task: ClassificationTask,
    intervention: Intervention,
    *,
    objective: Objective = "accuracy",
    share: float = 0.5,
    seed: int = 0,
    controls: int = DRAWS,
    batch_size: int = 8,
    progress: Progress = SILENT,
    score: Scorer = score_task,
) -> Calibration:
    """Keep every head on which the intervention, applied to it alone, makes the answers better (ACT's head filter).

    A head is kept if accuracy on the prompts chosen on rises above that of the unchanged model; the intervention on all
    kept heads together is then reported on the other prompts, beside as many random heads. An intervention that does
    nothing keeps no head. With many heads and few prompts some are kept by luck: the report shows what they are worth.

    Args:
        model: The bridge; it is the same afterwards.
        task: Labelled prompts.
        intervention: What to do to a head, such as ``CalibrateSinks()``: any with a field ``heads``, which names the
            candidates. (The authors leave out the first two layers and the last.)
        objective: ``"entropy"`` keeps heads that lower the mean next-token entropy instead, and needs no labels to
            choose.
        share: Of the prompts that are chosen on.
        seed: Of the split, the random heads and the intervals.
        controls: How many random sets of as many heads are reported beside.
        batch_size: Prompts in one forward pass.
        progress: Told how it goes on, in prompts.
        score: What lets the model answer; :class:`KeptScores` makes the work resumable.

    Raises:
        InputError: An intervention without heads, or with heads that the model lacks; a split with an empty side.

    Cost: a forward pass per prompt chosen on and candidate, and per held-out prompt for the unchanged model, the kept
    heads and each control.

    Source: Yu et al. (2024), arXiv 2406.15765, algorithm 1. Their code holds lists of kept heads but not the step that
    makes them, and no split: what here is "accuracy rises" on part of the prompts is read from the paper's abstract.
    """
    pool = candidate_heads(model, intervention)
    study = Study(model, task, share, seed, controls, batch_size, progress, score)
    study.begin(len(head_units(pool)))
    search = study.profile(intervention, head_units(pool), objective)
    search["kept"] = search["effect"] == "up"
    kept = [head for head, keep in zip(pool, search["kept"].iloc[1:], strict=True) if keep]
    notes = [] if kept else ["No head alone makes the answers better."]
    return study.report("filter_heads", intervention, kept, search, {"objective": objective}, notes)
