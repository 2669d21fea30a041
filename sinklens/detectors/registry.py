"""Which detectors there are, built in or of an installed package, and how a name becomes one."""

import copy
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from sinklens.detectors.base import Detector, Metric
from sinklens.errors import InputError

GROUP = "sinklens.detectors"
"""Entry points of this group are detector classes of other packages."""
_BUILT_IN: dict[str, type[Detector]] = {}
Kind = TypeVar("Kind", bound=type[Detector])


def register(kind: Kind) -> Kind:
    """Class decorator: make a built-in detector known by its ``name``.

    Raises:
        InputError: It has no name, or another class has it.
    """
    _add(_BUILT_IN, kind)
    return kind


def built_in_detectors() -> dict[str, type[Detector]]:
    """Every detector of sinklens by name, in the order of their ranks; it finds all files of this folder."""
    for module in pkgutil.iter_modules(importlib.import_module(GROUP).__path__, f"{GROUP}."):
        importlib.import_module(module.name)
    return dict(sorted(_BUILT_IN.items(), key=lambda item: item[1].rank))


def all_detectors() -> dict[str, type[Detector]]:
    """Those of sinklens, and those that installed packages register by an entry point.

    A package names its class in ``pyproject.toml``::

        [project.entry-points."sinklens.detectors"]
        key_norm_peak = "my_package.key_norms:KeyNormPeak"

    Raises:
        InputError: An entry point is no detector, or has a name that is taken.
    """
    found = built_in_detectors()
    for point in entry_points(group=GROUP):
        kind = point.load()
        if not (isinstance(kind, type) and issubclass(kind, Detector)):
            raise InputError(f"The entry point {point.name!r} of {GROUP} names no detector class: {point.value}.")
        _add(found, kind)
    return found


def default_detectors() -> tuple[str, ...]:
    """What a scan runs unless told otherwise: together a few per cent of its time each."""
    return tuple(name for name, kind in built_in_detectors().items() if kind.by_default)


def asked_for(kind: type[Detector]) -> list[str]:
    """What a detector cannot be made without: the parameters of its constructor that have no default."""
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def metrics_of(detectors: Sequence[Detector | type[Detector]]) -> tuple[Metric, ...]:
    """The definitions behind their tables, each once."""
    return tuple(dict.fromkeys(metric for detector in detectors for metric in detector.metrics))


def choose_detectors(
    wanted: str | Detector | Sequence[str | Detector], *, joined: bool = False, **options: Any
) -> list[Detector]:
    """Detectors to run: names are made into objects.

    Args:
        wanted: Names, or detectors of your own (copies of them run); one or several.
        joined: Whether to add those that stand beside one of them in a table of the census.
        options: Settings such as ``eps``, for each named detector whose constructor takes them.

    Returns:
        In the order of their ranks.

    Raises:
        InputError: None, an unknown name (with the names that are near), one without what it asks for, something that
            is no detector, or two with one name.

    Example:
        >>> [detector.name for detector in choose_detectors("sinks", joined=True)]
        ['sinks', 'visible_sinks', 'attention_summary']
    """
    given: list[Any] = [wanted] if isinstance(wanted, str | Detector) else list(wanted or ())
    names = [each for each in given if isinstance(each, str)]
    known = built_in_detectors() if names or joined or not given else {}
    if not given or not {*names} <= {*known}:
        known = all_detectors()  # only where it must: it looks through every installed package
    unknown = [name for name in names if name not in known]
    if unknown or not given:
        close = [match for name in unknown for match in difflib.get_close_matches(name, known)]
        near = f" Did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
        raise InputError(
            f"Unknown detectors {', '.join(unknown) or '(none)'}; expected some of {', '.join(known)}.{near}"
        )
    chosen: dict[str, Detector] = {}
    for each in given:
        if isinstance(each, str):
            continue
        if not isinstance(each, Detector) or not getattr(each, "name", ""):
            raise InputError(f"Expected names of detectors or Detector objects with a name, got {each!r}.")
        if each.name in chosen or each.name in names:
            raise InputError(f"Two detectors are called {each.name!r}; give one of them another name.")
        chosen[each.name] = copy.deepcopy(each)  # a second run must not add to the first
    asked: list[Detector | type[Detector]] = [*chosen.values(), *(known[name] for name in names)]
    beside = [name for each in asked for name in each.beside if joined]
    known = known if {*beside} <= {*known} else all_detectors()
    for name in (*names, *beside):
        if name not in chosen:
            kind, taken = known[name], inspect.signature(known[name]).parameters
            if lacking := [each for each in asked_for(kind) if each not in options]:
                raise InputError(
                    f"The detector {name!r} needs {' and '.join(lacking)}, which no default can stand for; pass "
                    f"{kind.__name__}({', '.join(f'{each}=...' for each in lacking)}) instead of its name."
                )
            chosen[name] = kind(**{key: value for key, value in options.items() if key in taken})
    return sorted(chosen.values(), key=lambda each: each.rank)


def _add(found: dict[str, type[Detector]], kind: type[Detector]) -> None:
    if not isinstance(kind, type):
        raise InputError(f"A detector is registered as a class, got {kind!r}.")
    name = getattr(kind, "name", "")
    if not name or found.get(name, kind).__qualname__ != kind.__qualname__:
        raise InputError(f"{kind.__qualname__} needs a name of its own as a detector, got {name!r}.")
    found[name] = kind
