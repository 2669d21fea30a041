"""What the lab's decoders are trained on, one task a file."""

from sinklens.lab.tasks.backcopy import Backcopy
from sinklens.lab.tasks.needle import Needle
from sinklens.lab.tasks.task import Task, token_batch
from sinklens.lab.tasks.text_blocks import TextBlocks

__all__ = ["Backcopy", "Needle", "Task", "TextBlocks", "token_batch"]
