"""Checks of settings that every training of the lab makes, in the same words."""

import math

from sinklens.errors import InputError


def at_least(settings: object, **bounds: int) -> None:
    """Refuse a field below its bound.

    Raises:
        InputError: naming the first such field.
    """
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value < bound:
            raise InputError(f"{name} must be at least {bound}, not {value}.")


def positive(settings: object, *names: str) -> None:
    """Refuse a field that is no finite number above 0.

    Raises:
        InputError: naming the first such field.
    """
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive number, not {value}.")


def not_negative(settings: object, *names: str) -> None:
    """Refuse a field that is no finite number from 0.

    Raises:
        InputError: naming the first such field.
    """
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be 0 or more, not {value}.")


def one_of(settings: object, **known: tuple[str, ...]) -> None:
    """Refuse a field whose name is none of those known.

    Raises:
        InputError: naming the field and what it may be.
    """
    for name, names in known.items():
        if getattr(settings, name) not in names:
            raise InputError(f"{name} must be one of {', '.join(names)}, not {getattr(settings, name)!r}.")
