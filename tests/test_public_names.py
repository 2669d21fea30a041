"""What users may import: few names, each with a sentence of its own, and no two things of one name in one place."""

import importlib
import inspect
from types import ModuleType

import pytest

from sinklens import __all__ as top

ROOMS = {
    "models": 6,
    "results": 3,
    "attention": 18,
    "capture": 2,
    "detectors": 7,
    "interventions": 22,
    "policies": 12,
    "evidence": 6,
    "passes": 0,
    "studies": 71,
    "lab.tasks": 5,
    "lab.emergence": 9,
    "plots": 53,
}
"""Most names that a room may show. Raise one for a name that users need; helpers are imported from their module."""

TOP = 11
IN_ALL = 159
"""Different things at the top and in detectors, interventions, studies and plots, where users look first."""


def shown(room: str) -> dict[str, object]:
    module = importlib.import_module(f"sinklens.{room}")
    return {name: getattr(module, name) for name in getattr(module, "__all__", [])}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_few_names_and_says_what_each_is(room: str) -> None:
    names = shown(room)
    assert len(names) <= ROOMS[room], sorted(names)
    for name, thing in names.items():
        assert not isinstance(thing, ModuleType), f"{name} is a module: import it from the package itself"
        if inspect.isclass(thing) or inspect.isfunction(thing):
            said = (inspect.getdoc(thing) or "").split("\n\n")[0]
            assert said.rstrip().endswith((".", ":", "::")), f"{room}.{name} does not begin with a sentence: {said!r}"


def test_the_names_that_users_see_first_are_few() -> None:
    import sinklens

    assert len(top) <= TOP
    things = [getattr(sinklens, name) for name in top]
    for room in ("detectors", "interventions", "studies", "plots"):
        things += shown(room).values()
    assert len({id(thing) for thing in things}) <= IN_ALL


def test_studies_and_plots_share_no_name() -> None:
    """A run is a verb and a figure is not, so that one import does not hide the other."""
    assert not shown("studies").keys() & shown("plots").keys()
    assert not shown("studies").keys() & shown("detectors").keys()
