"""Edits that must know a whole layer's pattern before they change its first block."""

from collections.abc import Iterator, Sequence
from typing import Any

from sinklens.attention.block import AttentionShape


def surveys(edits: Sequence[Any], shape: AttentionShape) -> Iterator[tuple[Any, list[Any]]]:
    """For each edit that asks to look first: what looks, and the edits that shape what it sees.

    Those are the edits before it and every edit of scores, because scores are all edited before any pattern.

    Args:
        edits: All edits of the layer, in order.
        shape: Sizes of the call.

    Yields:
        What ``edit.survey(shape)`` returned, whose ``see(block)`` is to be called with every block of the layer, and
        the edits to apply meanwhile.
    """
    for index, edit in enumerate(edits):
        look = edit.survey(shape) if hasattr(edit, "survey") else None
        if look is not None:
            later = [_ScoresOnly(e) for e in edits[index:] if hasattr(e, "edit_scores")]
            yield look, [*edits[:index], *later]


class _ScoresOnly:
    def __init__(self, edit: Any) -> None:
        self.edit_scores = edit.edit_scores
        self.all_heads = getattr(edit, "all_heads", False)
