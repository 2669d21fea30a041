"""One call for both ways of choosing: settings checked first, work that can be resumed, a result that is saved."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import CalibrateSinks, Intervention, ScaleKeys
from sinklens.interventions.heads import parse_heads
from sinklens.results import RunFolder
from sinklens.results.header import model_facts
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.calibration.asked import check_asked, method_text
from sinklens.studies.calibration.choose_gamma import GAMMAS, choose_gamma
from sinklens.studies.calibration.classification import ClassificationTask, Scorer, score_task
from sinklens.studies.calibration.filter_heads import filter_heads
from sinklens.studies.calibration.kept_scores import KeptScores
from sinklens.studies.calibration.profile_heads import Objective
from sinklens.studies.calibration.result import FORMAT, WORK, Calibration


@dataclass(frozen=True)
class Calibrating:
    """What is to be chosen, and how.

    Attributes:
        intervention: With the candidates in its field ``heads``.
        way: ``"gamma"`` for :func:`choose_gamma`, ``"heads"`` for :func:`filter_heads`.
        gammas: Factors to try, with ``"gamma"``.
        per: What is profiled at a time, with ``"gamma"``.
        objective: What better means.
        share: Of the prompts that are chosen on.
        controls: How many random sets of as many heads are reported beside.
        batch_size: Prompts in one forward pass.
        seed: Of the split, the random heads and the intervals.
    """

    intervention: Intervention
    way: Literal["gamma", "heads"]
    gammas: tuple[float, ...]
    per: Literal["head", "index"]
    objective: Objective
    share: float
    controls: int
    batch_size: int
    seed: int

    @classmethod
    def ask(
        cls,
        *,
        method: str,
        gammas: tuple[float, ...] | None,
        per: str,
        heads: str | None,
        objective: str,
        share: float,
        controls: int,
        batch_size: int,
        seed: int,
    ) -> "Calibrating":
        """Check what was asked for: ``method`` is ``"gamma"``, ``"act"`` or an intervention's JSON file.

        Raises:
            InputError: Something that cannot be done, in a sentence.
        """
        check_asked(method, gammas, per, heads, objective, share, controls, batch_size)
        intervention: Any = ScaleKeys(keys=(0,), gamma=2.0)
        if method == "act":
            intervention = CalibrateSinks()
        elif method != "gamma":
            intervention = Intervention.from_json(method_text(method))
        if heads is not None:
            if not hasattr(intervention, "heads"):
                raise InputError(f"{type(intervention).__name__} has no heads to choose.")
            intervention = replace(intervention, heads=parse_heads(heads))
        way: Literal["gamma", "heads"] = "gamma" if method == "gamma" else "heads"
        checked: dict[str, Any] = {"per": per, "objective": objective}
        common: dict[str, Any] = {"share": share, "controls": controls, "batch_size": batch_size, "seed": seed}
        return cls(intervention, way, gammas or GAMMAS, **checked, **common)

    def check(self, out: Path) -> None:
        """Find out before the work whether it can be kept and saved in ``out``.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        RunFolder(out, FORMAT, WORK).check()

    def run(
        self,
        model: TransformerBridge,
        task: ClassificationTask,
        source: str,
        *,
        out: Path | None = None,
        restart: bool = False,
        progress: Progress = SILENT,
    ) -> Calibration:
        """Choose and report; with ``out`` answers are kept there as they come, and at the end the result.

        Args:
            model: The bridge; it is the same afterwards.
            task: Labelled prompts.
            source: Where they come from, in words.
            out: Directory to work and save in.
            restart: Throw away what an other or unfinished run left there.
            progress: Told how it goes on, in prompts.

        Raises:
            InputError: Heads that the model lacks, or a split with an empty side.
            ResultError: The place cannot be written, holds something else, or another process works there.
        """
        folder = None if out is None else RunFolder(out, FORMAT, WORK)
        if folder is None:
            return self._choose(model, task, source, score_task, progress)
        folder.check()
        with folder.locked():
            folder.begin(self._spec(model, task), restart, adds=folder.finished)
            folder.note()
            found = self._choose(model, task, source, KeptScores(folder), progress)
            folder.complete(found)
        return found

    def _choose(
        self, model: TransformerBridge, task: ClassificationTask, source: str, score: Scorer, progress: Progress
    ) -> Calibration:
        common: dict[str, Any] = {
            "objective": self.objective,
            "share": self.share,
            "seed": self.seed,
            "controls": self.controls,
            "batch_size": self.batch_size,
            "score": score,
            "progress": progress,
        }
        if self.way == "gamma":
            found = choose_gamma(model, task, self.intervention, gammas=self.gammas, per=self.per, **common)
        else:
            found = filter_heads(model, task, self.intervention, **common)
        found.meta["tokens"]["source"] = source
        return found

    def _spec(self, model: TransformerBridge, task: ClassificationTask) -> dict[str, Any]:
        """What kept answers belong to; a search with other gammas or heads may use them, other prompts may not."""
        rows = [task.prompts.ids[at, :length].tolist() for at, length in enumerate(task.prompts.lengths.tolist())]
        content = json.dumps([rows, task.labels, task.answers])
        facts = model_facts(model)
        # a probe of the weights: a checkpoint that was trained on is another model under the same name
        weights = [float(parameter.detach().double().sum()) for parameter in model.parameters()]
        return {
            "model": {name: facts[name] for name in ("name", "architecture", "n_layers", "n_heads", "dtype")},
            "weights": hashlib.sha256(json.dumps(weights).encode()).hexdigest(),
            "prompts": hashlib.sha256(content.encode()).hexdigest(),
            "split": [self.share, self.seed],
        }
