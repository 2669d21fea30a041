"""Where needles may lie, and how long prompts may be, whatever the model."""

from collections.abc import Sequence

from sinklens.errors import InputError


def checked_depths(depths: Sequence[float], lengths: Sequence[int] | None) -> list[float]:
    """Depths in order and each once, refused where they or the lengths can be none.

    Raises:
        InputError: In a sentence.
    """
    listed = [float(depth) for depth in depths]
    if not listed or not all(0 <= depth <= 1 for depth in listed):
        raise InputError(f"Depths lie between 0 and 1, such as 0, 0.5, 1; got {listed}.")
    if lengths is not None and (not lengths or min(lengths) < 1):
        raise InputError(f"Expected lengths in tokens, at least one, such as 256, 512; got {list(lengths)}.")
    return sorted(set(listed))
