"""The command line: thin commands over the Python API. Errors are one sentence and exit status 2."""

from typing import TYPE_CHECKING, Any

from sinklens.cli.start import main

if TYPE_CHECKING:
    from sinklens.cli.program import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    """``app``, loaded when it is asked for: :func:`main` has to be there first, to end quietly at Ctrl-C."""
    if name == "app":
        from sinklens.cli.program import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
