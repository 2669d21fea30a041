"""The errors a user can meet: each says what was expected, what came and what to do about it.

The command line prints them as one sentence without a traceback and exits with status 2.
"""


class SinkLensError(Exception):
    """Base of every error that sinklens raises on purpose."""


class InputError(SinkLensError, ValueError):
    """Something the caller passed (text, tokens, tensor, option) cannot be used as it is."""


class ModelLoadError(SinkLensError):
    """A model, its weights or its tokenizer could not be loaded."""


class UnsupportedArchitectureError(SinkLensError):
    """No exact way to measure this architecture is known, so no number is given."""


class MissingExtraError(SinkLensError):
    """An optional part (dashboard, export, cluster) is not installed."""


class ResultError(SinkLensError):
    """A saved result is damaged, incomplete, of a newer format, or cannot be written."""
