"""The folder of a sweep: one process at a time, the plan it was started with, its parts, and at the end its result."""

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sinklens.errors import ResultError
from sinklens.files import write_atomically
from sinklens.tables import HEADER

PLAN, LOCK, PARTS = "sweep-plan.json", "sweep.lock", "parts"
TABLES = ("effects", "summary")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
FORMAT, FORMAT_VERSION = "sinklens-sweep-plan", 1


def check_folder(out: Path) -> None:
    """Find out before a long run whether a sweep can work in ``out``.

    Raises:
        ResultError: It is a file, cannot be written, or holds something that is no sweep.
    """
    if out.exists() and not out.is_dir():
        raise ResultError(f"Cannot sweep into {out}: it is a file; name a directory.")
    if out.is_dir() and not (out / PLAN).is_file():
        header = out / HEADER
        kind = None
        if header.is_file():
            with contextlib.suppress(ValueError, OSError, AttributeError):
                kind = json.loads(header.read_text("utf-8")).get("format")
            if kind not in (None, "sinklens-sweep"):
                raise ResultError(f"Will not sweep into {out}: it holds a {kind!r}; name a new or an empty directory.")
        elif any(not _ours(entry.name) for entry in out.iterdir()):
            raise ResultError(
                f"Will not sweep into {out}: it holds no sweep but something else; name a new or an empty directory."
            )
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResultError(f"Cannot sweep into {out}: {parent} is not writable; choose another place.")


def _ours(name: str) -> bool:
    """What an interruption before the plan was written can leave."""
    return name == LOCK or (name.startswith(".") and name.endswith(".tmp"))


@contextmanager
def locked(out: Path, work: str = "sweep") -> Iterator[None]:
    """Keep a second sweep (or other long ``work``) out of the folder.

    The operating system holds the lock on ``sweep.lock`` and lets go of it however the process ends, so a lock file
    that a killed process left does no harm.

    Raises:
        ResultError: Another process works there, or the place cannot be written.
    """
    path = out / f"{work}.lock"
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


def read_plan(out: Path) -> dict[str, Any] | None:
    """The plan of an unfinished sweep, ``None`` when there is none.

    Raises:
        ResultError: It is damaged, or of a newer format.
    """
    path = out / PLAN
    if not path.is_file():
        return None
    again = "start anew with --restart (restart=True)"
    try:
        plan: dict[str, Any] = json.loads(path.read_text("utf-8"))
        version = int(plan["format_version"])
        complete = plan["format"] == FORMAT and {"spec", "layout", "interventions"} <= plan.keys()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ResultError(f"{path} is damaged ({error}); {again}.") from error
    if version > FORMAT_VERSION:
        reads = f"this sinklens reads up to {FORMAT_VERSION}"
        raise ResultError(f"{path} has format {version}, {reads}; update it, or {again}.")
    if not complete:
        raise ResultError(f"{path} is damaged (something is missing); {again}.")
    return plan


def write_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan before the first part."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **plan}
    write_atomically(out / PLAN, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def tidy(out: Path) -> None:
    """Remove the work of a finished sweep: parts, plan, and what interrupted writings left."""
    parts = out / PARTS
    for path in [*parts.glob("*.parquet"), *parts.glob(".*.tmp"), *out.glob(".*.tmp"), out / PLAN]:
        path.unlink(missing_ok=True)
    if parts.is_dir() and not any(parts.iterdir()):
        parts.rmdir()


def clear(out: Path) -> None:
    """Remove a sweep with its result; other files are kept. What marks the folder as a sweep goes last."""
    for name in TABLES:
        (out / f"{name}.parquet").unlink(missing_ok=True)
    tidy(out)
    (out / HEADER).unlink(missing_ok=True)


def refuse_other(out: Path, there: Mapping[str, Any], now: Mapping[str, Any], work: str = "sweep") -> None:
    """Refuse to go on with a sweep (or other long ``work``) of something else.

    Raises:
        ResultError: One sentence about what differs.
    """
    before, after = _leaves(there), _leaves(now)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if names:
        shown = "; ".join(f"{n}: {_short(before.get(n))} there, {_short(after.get(n))} now" for n in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ResultError(
            f"{out} holds another {work} ({shown}{more}); name another directory, or start anew there with --restart "
            "(restart=True)."
        )


def _leaves(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping) and content:
        return {k: v for key, value in content.items() for k, v in _leaves(value, f"{name}.{key}".strip(".")).items()}
    return {name: list(content) if isinstance(content, tuple) else content}


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
