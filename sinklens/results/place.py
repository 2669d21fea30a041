"""Where a result may go: decided before the work, not after it."""

import os
import stat
from pathlib import Path

from sinklens.errors import ResultError
from sinklens.results.commit import is_ours, settle
from sinklens.results.files import mode_of
from sinklens.results.header_file import DAMAGED, HEADER, kind_of


def check_writable(directory: Path, kind: str) -> None:
    """Find out before a long run whether its result can be saved.

    A link to a directory stands for the directory, and stays. What an earlier saving left there when it was killed is
    finished or removed.

    Args:
        directory: Where it is to go.
        kind: Its ``format``; an older result of the same kind may be replaced, one of another kind may not.

    Raises:
        ResultError: The place cannot be written, or holds something else.
    """
    mode = mode_of(directory)
    if mode is not None and not stat.S_ISDIR(mode):
        what = "a file" if stat.S_ISREG(mode) else "no directory"
        raise ResultError(f"Cannot save to {directory}: it is {what}; name a directory.")
    try:
        if mode is not None:
            settle(directory)
            entries = [path.name for path in directory.iterdir() if not is_ours(path.name)]
        else:
            entries = []
    except OSError as error:
        raise ResultError(f"Cannot save to {directory}: {error.strerror or error}; choose another place.") from error
    if entries:
        held = kind_of(directory)
        if held is None:
            raise ResultError(
                f"Will not save to {directory}: it exists and holds no {HEADER}; name a new or an empty directory."
            )
        if held == DAMAGED:
            raise ResultError(
                f"Will not save to {directory}: its {HEADER} is damaged or of another program; name another directory."
            )
        if held != kind:  # of the same kind it may be damaged, and is made again
            raise ResultError(
                f"Will not save a {kind!r} to {directory}: it holds a {held!r}; name a new or an empty directory."
            )
    parent = directory.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ResultError(f"Cannot save to {directory}: {parent} is a file; name a directory in another place.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResultError(f"Cannot save to {directory}: {parent} is not writable; choose another place with --out.")
