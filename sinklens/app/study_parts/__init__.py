"""What the report of each study shows, section by section: data alone, see :class:`~sinklens.app.parts.Part`."""

from collections.abc import Mapping
from typing import Final

from sinklens.app.parts import Part
from sinklens.app.study_parts.answers import ANSWERS
from sinklens.app.study_parts.heads import HEADS
from sinklens.app.study_parts.tokens import TOKENS

PARTS: Final[Mapping[str, tuple[Part, ...]]] = {**TOKENS, **HEADS, **ANSWERS}
"""By ``format``; kinds without parts have all figures and tables one after another."""
