"""What the lab's decoders are trained on, one task a file."""

from sinklens.lab.tasks.backcopy import Backcopy
from sinklens.lab.tasks.distinct_needle import DistinctNeedle
from sinklens.lab.tasks.needle import Needle
from sinklens.lab.tasks.repeated_spans import RepeatedSpans
from sinklens.lab.tasks.task import Task

__all__ = [
    "Backcopy",
    "DistinctNeedle",
    "Needle",
    "RepeatedSpans",
    "Task",
]
