"""One sentence for a saved result that its schema lets pass and its readers cannot use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinklens.errors import ResultError
from sinklens.results.header_file import HEADER


@contextmanager
def blamed(directory: Path | None) -> Iterator[None]:
    """Say of which saved result it is that something cannot be made.

    Args:
        directory: Where the result lies; ``None`` for one that was computed here, whose errors stay what they are.

    Raises:
        ResultError: Instead of an error about an entry or column that is missing, of another type or out of range.
    """
    try:
        yield
    except ResultError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        if directory is None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ResultError(
            f"{directory / HEADER} or a table beside it is not as sinklens saves them ({reason}); make it again."
        ) from error
