"""An error that nobody foresaw, in one line: what was being done, what happened, what to do about it."""

import errno
import shlex
from collections.abc import Sequence

LONGEST = 300


def unforeseen(error: BaseException, words: Sequence[str]) -> str:
    """The sentence for an exception that is not sinklens' own.

    Args:
        error: What was raised.
        words: The command line without the program's name.

    Example:
        >>> unforeseen(KeyError("a"), ["scan", "tiny-llama"]).partition(". ")[0]
        "`sinklens scan tiny-llama` stopped at KeyError: 'a'"
    """
    what = " ".join(str(error).split())
    name = type(error).__name__
    said = f"`{_cut(shlex.join(['sinklens', *words]))}` stopped at {name}{f': {_cut(what)}' if what else ''}"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in what:
        return f"{said}. The memory does not suffice; take shorter texts or fewer, or a smaller --batch-size."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{said}. There is no room for more on this disk; make some, and give the same command again."
    if isinstance(error, PermissionError):
        return f"{said}. Choose a place that you may read and write."
    return (
        f"{said}. This is a mistake of sinklens or of a library: please report it with this line and what --debug "
        "shows (the project's issues)."
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
