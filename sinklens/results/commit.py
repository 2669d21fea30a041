"""A new result in the place of an old one, all at once: what a kill interrupts is finished or removed later.

New files are written into a folder of their own inside the directory. Renaming that folder to ``.sinklens-new`` is the
moment at which the new result counts: whatever happens then, the next one who opens the directory or saves there moves
its files to their places, the header last. Until that moment the old result is untouched. Files that no header lists
are the user's own and stay.
"""

import contextlib
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from sinklens.errors import ResultError
from sinklens.results.header_file import HEADER, is_file_of_result, read_header

NEW = ".sinklens-new"
_HERE = re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname())[:60]
_SCRATCH = re.compile(r"\.sinklens-(\w+)-(\d+)-\w+\.tmp")


def is_ours(name: str) -> bool:
    """Whether a file or folder is what saving leaves when it is killed."""
    return name == NEW or _SCRATCH.fullmatch(name) is not None


@contextlib.contextmanager
def committed(directory: Path) -> Iterator[Path]:
    """A folder to write a result into, its header included; it takes its place when the block ends without an error.

    Args:
        directory: Where the result goes; made if it is not there.

    Raises:
        ResultError: The place cannot be written or is full; what was there before is untouched.
    """
    made = not directory.exists()
    scratch: Path | None = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        settle(directory)
        scratch = Path(tempfile.mkdtemp(prefix=f".sinklens-{_HERE}-{os.getpid()}-", suffix=".tmp", dir=directory))
        yield scratch
        os.rename(scratch, directory / NEW)
        _take_over(directory)
    except OSError as error:
        raise ResultError(
            f"Saving to {directory} failed ({error.strerror or error}); what was there before is untouched. Free some "
            "space or choose another place."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # there is something in it
                directory.rmdir()


def finish(directory: Path) -> None:
    """Finish a saving that was killed after everything had been written, and say so in a warning.

    Raises:
        ResultError: It cannot be finished there.
    """
    if not (directory / NEW).is_dir():
        return
    try:
        if _take_over(directory):
            warnings.warn(
                f"Saving to {directory} was interrupted when everything was written; it is finished now.", stacklevel=2
            )
    except OSError as error:
        raise ResultError(
            f"Saving to {directory} was interrupted and cannot be finished there ({error.strerror or error}); copy it "
            "to a place that can be written, and open it there."
        ) from error


def settle(directory: Path) -> None:
    """Finish what was written before a kill, and remove what was not written whole; each is said in a warning.

    Raises:
        ResultError: It cannot be finished there.
    """
    finish(directory)
    for path in directory.iterdir():
        match = _SCRATCH.fullmatch(path.name)
        if match and match[1] == _HERE and not _lives(int(match[2])):
            shutil.rmtree(path, ignore_errors=True)
            warnings.warn(f"An interrupted saving had left half a result in {directory}; it is removed.", stacklevel=2)


def _take_over(directory: Path) -> bool:
    """Move the new files to their places, the header last; whether there were any."""
    try:
        return _moved(directory)
    except FileNotFoundError:
        if (directory / NEW).exists():
            raise
        return True  # another process has done it meanwhile


def _moved(directory: Path) -> bool:
    new = directory / NEW
    header = new / HEADER
    if not header.exists():  # killed when all was in its place
        shutil.rmtree(new)
        return False
    after, before = _listed(header) or set(), _listed(directory / HEADER)
    for name in sorted(path.name for path in new.iterdir() if path.name != HEADER):
        target = directory / name
        if before is not None and name not in before and target.exists():
            own = next(path for n in count(1) if not (path := target.with_name(f"{name}.own{n}")).exists())
            os.replace(target, own)
            warnings.warn(f"{target} was not of the result that lay there; it is {own.name} now.", stacklevel=2)
            before.add(name)
        os.replace(new / name, target)
    for name in filter(is_file_of_result, (before or set()) - after):
        (directory / name).unlink(missing_ok=True)
    os.replace(header, directory / HEADER)
    os.rmdir(new)
    return True


def _listed(header: Path) -> set[str] | None:
    """Files of a result; None where its header cannot be read, which then is taken for that of a damaged one."""
    if not header.exists():
        return set()
    try:
        return {*read_header(header.parent).files}
    except ResultError:
        return None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True
