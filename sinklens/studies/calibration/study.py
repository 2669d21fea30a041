"""Labelled prompts in two parts: one to choose an intervention on, one to report it on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions import Intervention
from sinklens.interventions.heads import Head, head_name
from sinklens.results.header import header
from sinklens.results.progress import Progress, Share
from sinklens.studies.calibration.classification import ClassificationTask, Scorer, score_task, tell
from sinklens.studies.calibration.profile_heads import Objective, profile_heads
from sinklens.studies.calibration.result import METRICS, Calibration
from sinklens.wording import are, several


@dataclass(frozen=True)
class Study:
    """A model and its prompts, split; what both ways of choosing need.

    Attributes:
        model: The bridge.
        task: All prompts.
        share: Of the prompts that are chosen on.
        seed: Of the split, the random heads and the intervals.
        controls: How many random sets of as many heads are reported beside.
        batch_size: Prompts in one forward pass.
        progress: Told how it goes on, in prompts.
        score: What lets the model answer.
    """

    model: TransformerBridge
    task: ClassificationTask
    share: float
    seed: int
    controls: int
    batch_size: int
    progress: Progress
    score: Scorer = score_task
    split: tuple[list[int], list[int]] = field(init=False)

    def __post_init__(self) -> None:
        if self.controls < 1:
            raise InputError(
                f"controls must be at least 1, got {self.controls}: an effect needs random heads beside it."
            )
        object.__setattr__(self, "split", self.task.split(self.share, seed=self.seed))

    def begin(self, runs: int) -> None:
        """Tell how much there is to do at most: so many runs over the prompts chosen on, and then the report."""
        chosen_on, held_out = map(len, self.split)
        work = chosen_on * (1 + runs) + held_out * (2 + self.controls)
        kept = getattr(self.score, "kept", 0)
        before = f" {several(kept, 'answer set')} {are(kept)} there from before." if kept else ""
        labels = max(map(len, self.task.labels))
        about = (
            f"{several(len(self.task), 'prompt')} with {several(labels, 'label')}; at most {work:,} are "
            f"answered.{before}"
        )
        self.progress.begin("Answering prompts", work, about)

    def profile(
        self, intervention: Intervention, units: Sequence[tuple[Head, ...]], objective: Objective
    ) -> pd.DataFrame:
        """:func:`profile_heads` on the prompts chosen on."""
        return profile_heads(
            self.model,
            self.search,
            intervention,
            units=units,
            objective=objective,
            batch_size=self.batch_size,
            progress=Share(self.progress, len(self.split[0]) * (1 + len(units))),
            score=self.score,
        )

    @property
    def search(self) -> ClassificationTask:
        """The prompts to choose on."""
        return self.task.rows(self.split[0])

    def report(
        self,
        method: str,
        tuned: Intervention,
        heads: Sequence[Head],
        search: pd.DataFrame,
        settings: dict[str, Any],
        notes: Sequence[str],
    ) -> Calibration:
        """Run what was chosen, and the same on random heads, on the prompts it was not chosen on.

        Args:
            method: Name of the way of choosing.
            tuned: What was chosen, on whatever heads.
            heads: The chosen heads; none when nothing was chosen.
            search: Rows of the search.
            settings: What the caller asked for.
            notes: What the search has to say.

        Cost: a forward pass per held-out prompt for the unchanged model, the chosen intervention and each control.
        """
        variants: dict[str, Sequence[Head]] = {"unchanged": (), "tuned": tuple(heads)}
        remarks = [*notes]
        if heads:
            drawn = random_head_sets(all_heads(self.model), heads, draws=self.controls, seed=self.seed)
            remarks += drawn.notes
            variants |= {f"random-{number}": some for number, some in enumerate(drawn.sets, 1)}
        held_out, frames = self.task.rows(self.split[1]), []
        for name, some in variants.items():
            intervention = tuned.on(some) if some else None
            scores = self.score(self.model, held_out, intervention, batch_size=self.batch_size)
            frames.append(
                pd.DataFrame(
                    {
                        "variant": name,
                        "prompt": self.split[1],
                        "valid": scores.valid,
                        "correct": scores.correct,
                        "entropy": scores.entropy,
                    }
                )
            )
            tell(self.progress, self.score, held_out)
        meta = {
            **header(self.model, self.task.prompts),
            "method": method,
            "settings": {"share": self.share, "seed": self.seed, "controls": self.controls, **settings},
            "split": {"search": self.split[0], "report": self.split[1]},
            "chosen": json.loads(tuned.on(heads).to_json()) if heads else None,
            "variants": {name: ",".join(map(head_name, some)) for name, some in variants.items()},
            "notes": remarks,
            "metrics": {name: {"version": 1, "definition": text} for name, text in METRICS.items()},
        }
        return Calibration(meta, {"search": search, "answers": pd.concat(frames, ignore_index=True)})
