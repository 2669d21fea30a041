"""What a sweep is about to do, and who is told how it goes on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is about to do.

    Attributes:
        n_sequences: Sequences measured.
        n_sets: Head sets, over all interventions.
        n_parts: Parts they are cut into.
        n_done: Parts that an earlier run finished.
        passes: About how many forward passes over all sequences that takes in all.
        plain_passes: How many the plain loop over the sets would take.
        work: ``passes`` in forward passes of one sequence, the unit of progress.
        work_done: The share of it that an earlier run did.
        memory: Estimated bytes beyond the weights.
        stage: 1; 2 for the cumulative sets of the sweep's own ranking.
    """

    n_sequences: int
    n_sets: int
    n_parts: int
    n_done: int
    passes: float
    plain_passes: float
    work: float
    work_done: float
    memory: int
    stage: int

    def __str__(self) -> str:
        done = f", {self.n_done} of them finished before" if self.n_done else ""
        return (
            f"{self.n_sets} head sets on {self.n_sequences} sequences in {self.n_parts} "
            f"part{'s' * (self.n_parts != 1)}{done}: about {self.passes:.1f} forward passes over the texts (a loop "
            f"over the sets takes {self.plain_passes:.0f}), {self.memory / 2**20:,.0f} MiB beyond the weights."
        )


@dataclass(frozen=True)
class Listener:
    """Who is told how a sweep goes on; see :func:`~sinklens.studies.ablation.entry`."""

    on_plan: Callable[[SweepPlan], None] | None = None
    on_work: Callable[[float], None] | None = None
    on_part: Callable[[int], None] | None = None
