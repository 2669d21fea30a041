"""Arguments are what their annotations say, or one sentence says what was expected and what came."""

import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from numbers import Real
from operator import index
from typing import Any, Final, Literal, ParamSpec, TypeVar, Union

from sinklens.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

SIZES = (
    "batch_size", "cells", "chunk_tokens", "keys", "length", "limit", "max_sequences", "max_tokens", "n", "n_layers",
    "n_sequences", "rows", "side", "top",
)  # fmt: skip
COUNTS = (
    "absolute", "controls", "draws", "first_sequence", "maps", "min_queries", "named", "position", "ratio",
    "relative", "seed",
)  # fmt: skip
BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    **dict.fromkeys(SIZES, (1, math.inf)),
    **dict.fromkeys(COUNTS, (0, math.inf)),
    **dict.fromkeys(("eps", "share"), (0, 1)),
}
"""The smallest and the largest number that a parameter of this name can be, in every function that has one."""
MADE_BY: Final[Mapping[str, str]] = {
    "Intervention": "such as AblateHeads(['L0H0'])",
    "NeedleSet": "as sinklens.studies.make_needles gives",
    "TokenBatch": "as sinklens.tokenize gives",
    "TransformerBridge": "a loaded model: sinklens.load takes a name or path, sinklens.models.as_bridge a Hugging Face "
    "model",
}
"""Where to get what has no literal."""
READ: Final = ("PreTrainedModel", "Tensor")
"""A union with one of these is what :func:`~sinklens.models.as_bridge` or a reader of ids takes, who know it better.
(``texts`` may also be ids, everywhere.)"""
WORDS: Final[Mapping[Any, str]] = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments of another type than is annotated, ``nan``, and numbers outside :data:`BOUNDS`, before the work.

    What an annotation cannot say (a head that the model lacks, an empty list) the function says itself.

    Raises:
        InputError: From the decorated function, naming the parameter.

    >>> @checked
    ... def mean(numbers: list[float], draws: int = 3) -> float: ...
    >>> mean(None)
    Traceback (most recent call last):
    sinklens.errors.InputError: numbers must be a list of numbers, got None.
    """
    inner = inspect.unwrap(function)
    found: dict[str, Any] = {}

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not found:
            found["signature"] = inspect.signature(inner)
        signature = found["signature"]
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            check(name, value, parameter.annotation, optional=parameter.default is not parameter.empty)
        return function(*args, **kwargs)

    return run


def check_fields(made: Any) -> None:
    """The same of the fields of a dataclass, for its ``__post_init__``.

    Raises:
        InputError: Naming the field.
    """
    for each in fields(made):
        check(each.name, getattr(made, each.name), each.type)


def check(name: str, value: Any, hint: Any, optional: bool = False) -> None:
    """Refuse one value.

    Args:
        name: Of the parameter.
        value: What came.
        hint: Its annotation; one that is only a name is not judged.
        optional: Whether it may be left out.

    Raises:
        InputError: It is of another type, ``nan``, or outside :data:`BOUNDS`.
    """
    if name == "texts" or any(getattr(each, "__name__", "") in READ for each in typing.get_args(hint)):
        return
    if not _fits(value, hint):
        shown = " ".join(repr(value).split())
        left_out = "; leave it out for the default" if optional and value is None else ""
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise InputError(f"{name} must be {_words(hint)}, got {shown}{left_out}.")
    fraction = name in SIZES and float in (hint, *typing.get_args(hint))  # of another kind than the sizes of that name
    low, high = (-math.inf, math.inf) if fraction else BOUNDS.get(name, (-math.inf, math.inf))
    if _is_number(value) and not low <= value <= high:
        allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"{name} must be {allowed}, got {value}.")


def _is_number(value: Any) -> bool:
    """A number that can be compared: also NumPy's and torch's, no truth value, not ``nan``."""
    one: Any = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    return not isinstance(one, bool) and isinstance(one, Real) and not math.isnan(one)


def _is_whole(value: Any) -> bool:
    try:
        return _is_number(value) and type(index(value)) is int
    except TypeError:
        return False


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint in (None, type(None)):
        return value is None
    if hint in (int, float):
        return (_is_whole if hint is int else _is_number)(value)
    if hint is bool:
        return isinstance(value, bool) or (type(value).__module__, type(value).__name__[:4]) == ("numpy", "bool")
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return any(value is each or (type(value) is type(each) and value == each) for each in inner)
    if origin is Callable or origin is typing.Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        of = inner or (Any, Any)
        return isinstance(value, Mapping) and all(_fits(k, of[0]) and _fits(v, of[1]) for k, v in value.items())
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, Iterable) and _all_fit(value, inner)
    if isinstance(origin, type) and issubclass(origin, Iterable):
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            return False
        # what can be read once is read by the function, and what is nested by the reader of its rows
        nested = typing.get_origin(inner[0]) is not None and typing.get_origin(inner[0]) is not Literal
        return nested or not isinstance(value, Collection) or all(_fits(each, inner[0]) for each in value)
    kind = origin or hint
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, each) for each in vars(kind) if not each.startswith("_") or each == "__call__")
    return isinstance(value, kind) if isinstance(kind, type) else True


def _all_fit(value: Iterable[Any], hints: tuple[Any, ...]) -> bool:
    given = [*value]
    return len(given) == len(hints) and all(_fits(each, hint) for each, hint in zip(given, hints, strict=True))


def _options(hint: Any, plural: bool) -> list[str]:
    """The words of each member of a union; of a literal, each value as it is written."""
    if typing.get_origin(hint) is Literal:
        return [f'"{each}"' if isinstance(each, str) else repr(each) for each in typing.get_args(hint)]
    return [_words(hint, plural)]


def _either(words: Iterable[str]) -> str:
    *most, last = dict.fromkeys(words)
    return f"{', '.join(most)} or {last}" if most else last


def _words(hint: Any, plural: bool = False) -> str:
    """What an annotation asks for, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        one = WORDS[hint]
        return one if not plural or hint is bool else f"{one.removeprefix('a ')}s"
    if origin in (Union, types.UnionType):
        named = any(typing.get_origin(each) is Literal for each in inner)  # True and False are short for two of them
        asked = [each for each in inner if each is not type(None) and not (named and each is bool)]
        return _either(word for each in asked for word in _options(each, plural))
    if origin is Literal:
        return _either(_options(hint, plural))
    if origin is Callable:
        return "functions" if plural else "a function"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{'mappings' if plural else 'a mapping'} of {_words(inner[0], True)} to {_words(inner[1], True)}"
    if origin is os.PathLike or hint in (os.PathLike,) or getattr(hint, "__name__", "") == "Path":
        return "paths" if plural else "a path"
    if isinstance(origin, type) and issubclass(origin, Iterable) and inner:
        of = "" if inner[0] in (Any, object) else f" of {_words(inner[0], True)}"
        return f"{'lists' if plural else 'a list'}{of}"
    name = str(getattr(origin or hint, "__name__", hint))
    made = f" ({MADE_BY[name]})" if name in MADE_BY else ""
    if hint is Any or hint is object:
        return "values" if plural else "a value"
    if plural:
        return f"{name}s" if not name.endswith("y") else f"{name[:-1]}ies"
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}{made}"
