"""Packages whose names are loaded on first use, so that what needs no torch starts without it."""

import ast
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """A package that loads a name of its table, or a module in it, when it is asked for it.

    A name may be that of a module in the package (``models.load``): the name wins, as it does where a package imports
    everything itself.
    """

    _homes: Mapping[str, tuple[str, str]]

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in self._homes:
            module, own = self._homes[name]
            found = getattr(import_module(module), own)
        elif name.startswith("_") or find_spec(f"{self.__name__}.{name}") is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        else:
            return import_module(f"{self.__name__}.{name}")
        super().__setattr__(name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def load_lazily(package: str) -> None:
    """Load the names that a package imports below ``if TYPE_CHECKING:`` on first use.

    Type checkers, readers and this function see the same list::

        if TYPE_CHECKING:
            from sinklens.evidence.bootstrap import paired_interval

        load_lazily(__name__)

    Args:
        package: Its ``__name__``.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        name.asname or name.name: (str(line.module), name.name)
        for block in guarded
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }
    module.__dict__["_homes"] = homes
    module.__class__ = _Lazy
