"""A lock that the operating system holds: one process at a time in a folder, and none after a kill."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sinklens.errors import ResultError

LOCK = "run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(out: Path, work: str) -> Iterator[None]:
    """Keep a second long ``work`` out of the folder, which is made if it is not there.

    The operating system lets go of the lock however the process ends, so a lock file that a killed process left does no
    harm.

    Raises:
        ResultError: Another process works there, or the place cannot be written.
    """
    path = out / LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = _acquire(path)
    except OSError as error:
        raise ResultError(f"Cannot work in {out}: {error.strerror or error}; choose another place.") from error
    if file is None:
        with contextlib.suppress(OSError):
            owner = path.read_text("utf-8").strip()
            raise ResultError(f"Another {work} works in {out} ({owner}); wait for it, or name another directory.")
        raise ResultError(f"Another {work} works in {out}; wait for it, or name another directory.")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not delete open files; a lock file alone does no harm
            path.unlink()
        file.close()


def _acquire(path: Path) -> IO[str] | None:
    """The locked file, or None when another process has it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _try_lock(file):
            file.close()
            return None
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        except FileNotFoundError:
            pass
        file.close()  # its owner removed it while we were opening it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _try_lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 20)  # beyond the text, so that others can read it
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return not _owner_lives(file)  # some cluster file systems have no locks
    return True


def _owner_lives(file: IO[str]) -> bool:
    """Whether the process that the lock file names runs on this machine; one on another machine cannot be asked."""
    file.seek(0)
    words = file.read().split()
    if len(words) != 4 or words[3] != socket.gethostname() or sys.platform == "win32":
        return False
    try:
        os.kill(int(words[1]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
