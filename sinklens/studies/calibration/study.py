"""Labelled prompts in two parts: one to choose an intervention on, one to report it on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions import Intervention
from sinklens.interventions.heads import Head, Heads, head_name
from sinklens.results.provenance import provenance
from sinklens.studies.calibration.classification import ClassificationTask, Scorer, score_task
from sinklens.studies.calibration.result import FORMAT_VERSION, METRICS, Calibration

Step = Callable[[str, int, int], None]
"""Receives the name of a stage, how many of its runs over the prompts are done, and how many there will be."""


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
        on_step: For progress.
        score: What lets the model answer.
    """

    model: TransformerBridge
    task: ClassificationTask
    share: float
    seed: int
    controls: int
    batch_size: int
    on_step: Step | None
    score: Scorer = score_task
    split: tuple[list[int], list[int]] = field(init=False)

    def __post_init__(self) -> None:
        if self.controls < 1:
            raise InputError(
                f"controls must be at least 1, got {self.controls}: an effect needs random heads beside it."
            )
        object.__setattr__(self, "split", self.task.split(self.share, seed=self.seed))

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
        for done, (name, some) in enumerate(variants.items(), 1):
            intervention = on_heads(tuned, some) if some else None
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
            if self.on_step is not None:
                self.on_step("report", done, len(variants))
        meta = {
            "format_version": FORMAT_VERSION,
            **provenance(self.model, self.task.prompts),
            "method": method,
            "settings": {"share": self.share, "seed": self.seed, "controls": self.controls, **settings},
            "split": {"search": self.split[0], "report": self.split[1]},
            "chosen": json.loads(on_heads(tuned, heads).to_json()) if heads else None,
            "variants": {name: ",".join(map(head_name, some)) for name, some in variants.items()},
            "notes": remarks,
            "metrics": {name: {"version": 1, "definition": text} for name, text in METRICS.items()},
        }
        return Calibration(meta, search, pd.concat(frames, ignore_index=True))


def on_heads(intervention: Any, heads: Sequence[Head]) -> Intervention:
    """The intervention on these heads instead."""
    changed: Intervention = replace(intervention, heads=tuple(heads))
    return changed


def candidate_heads(model: TransformerBridge, intervention: Any, *needed: str) -> list[Head]:
    """The heads that an intervention names, each of them when it says ``"all"``.

    Args:
        model: The bridge.
        intervention: Whose heads are to be chosen.
        needed: Further fields it must have.

    Raises:
        InputError: It lacks a field, or the model lacks a head (or has none).
    """
    has = {each.name for each in fields(intervention)} if isinstance(intervention, Intervention) else set()
    for name in ("heads", *needed):
        if name not in has:
            raise InputError(
                f"Expected an intervention with a field {name!r} to choose, such as ScaleKeys(keys=0, gamma=2.0); got "
                f"{type(intervention).__name__}."
            )
    intervention.check(model)
    named: Heads = intervention.heads
    found = list(all_heads(model)) if isinstance(named, str) else list(named)
    if not found:
        raise InputError(f"{model.cfg.architecture} has no attention heads to choose from.")
    return found
