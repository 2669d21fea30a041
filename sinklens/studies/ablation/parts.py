"""The parts of a sweep: what runs, and is kept, together."""

import json
from dataclasses import dataclass

from sinklens.interventions.heads import Head, head_name

HeadSet = tuple[Head, ...]


@dataclass(frozen=True)
class Part:
    """Some head sets under one intervention on some sequences.

    Attributes:
        number: From 0, in the order of the whole sweep.
        intervention: Its label.
        sequences: Indices of sequences, all of one length.
        head_sets: Sets of heads, those that start in one layer next to each other.
        estimate: Whether the sets (single heads) are estimated by attribution instead of run.
        work: About how many forward passes of one sequence it takes.
    """

    number: int
    intervention: str
    sequences: tuple[int, ...]
    head_sets: tuple[HeadSet, ...]
    estimate: bool
    work: float

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.number:05d}"

    def key(self) -> str:
        """What the numbers of this part depend on, beside what all parts share."""
        names = [",".join(map(head_name, heads)) for heads in self.head_sets]
        return json.dumps([self.intervention, self.sequences, names, self.estimate])
