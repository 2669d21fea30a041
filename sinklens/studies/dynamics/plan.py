"""What a measurement over checkpoints is about to do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DynamicsPlan:
    """How much there is to do, in checkpoints.

    Attributes:
        name: The series.
        steps: All steps, in order.
        work: Number of checkpoints.
        work_done: How many of them an earlier run has finished.
        n_sequences: Sequences that each is measured on.
    """

    name: str
    steps: tuple[int, ...]
    work: float
    work_done: float
    n_sequences: int

    def __str__(self) -> str:
        done = f"; {self.work_done:.0f} of them finished before" if self.work_done else ""
        return (
            f"{len(self.steps)} checkpoints of {self.name}, steps {self.steps[0]:,} to {self.steps[-1]:,}, on "
            f"{self.n_sequences} sequences each{done}."
        )
