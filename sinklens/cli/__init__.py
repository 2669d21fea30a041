"""The command line: thin commands over the Python API. Errors are one sentence and exit status 2."""

from sinklens.cli.program import app, main

__all__ = ["app", "main"]
