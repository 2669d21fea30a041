"""What a calibration may be asked for, checked before anything is loaded."""

from pathlib import Path

from sinklens.errors import InputError
from sinklens.interventions.heads import parse_heads
from sinklens.interventions.json_form import content_of
from sinklens.models.reading import named_text


def check_asked(
    method: str,
    gammas: tuple[float, ...] | None,
    per: str,
    heads: str | None,
    objective: str,
    share: float,
    controls: int,
    batch_size: int,
) -> None:
    """Refuse what cannot be done; see :class:`~sinklens.studies.calibration.run.Calibrating`.

    Raises:
        InputError: The first of it, in a sentence.
    """
    for name, value, allowed in (
        ("per", per, ("head", "index")),
        ("objective", objective, ("accuracy", "entropy")),
    ):
        if value not in allowed:
            raise InputError(f"{name} must be {' or '.join(allowed)}, got {value!r}.")
    if not 0 < share < 1 or batch_size < 1 or controls < 1:
        raise InputError(
            f"share must lie between 0 and 1, batch and controls be at least 1; got {share}, {batch_size} and "
            f"{controls}."
        )
    if method != "gamma" and (gammas is not None or per != "head"):
        raise InputError(f"gammas and per belong to the method gamma, not to {method}.")
    if method not in ("gamma", "act"):
        content_of(method_text(method))
    if heads is not None:
        parse_heads(heads)


def method_text(path: str) -> str:
    """What the file of an intervention holds.

    Raises:
        InputError: It cannot be read.
    """
    return named_text(Path(path), "The method is gamma, act or a file of an intervention;")
