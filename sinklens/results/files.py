"""Writing files so that an interrupted program leaves the old content or the new, never half of it."""

import os
import stat
from pathlib import Path

from sinklens.errors import ResultError

LONGEST = 200
"""Bytes of a name, which leaves room for the names of files that are being written."""


def write_atomically(path: str | Path, data: bytes) -> Path:
    """Write ``data`` under a temporary name beside ``path``, then rename it; where a link leads to, the link stays.

    Returns:
        The path written.

    Raises:
        ResultError: It is no regular file, the folder cannot be made or written to, or the disk is full; nothing
            half-written stays.
    """
    mode = mode_of(Path(path))
    if mode is not None and not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise ResultError(f"Cannot save to {path}: it is {what}; name a file.")
    target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"{target} cannot be written: {error.strerror or error}; choose another path.") from error
    return Path(path)


def mode_of(path: Path) -> int | None:
    """What lies at a path, or where its link leads; None when there is nothing yet.

    Raises:
        ResultError: The name is none, too long, a link that leads nowhere, or below something that is no directory.
    """
    long = [part for part in path.parts if len(os.fsencode(part)) > LONGEST]
    if long:
        raise ResultError(
            f"Cannot save to {path}: the name {long[0][:20]}... has {len(os.fsencode(long[0]))} bytes, and at most "
            f"{LONGEST} are taken; choose a shorter one."
        )
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise ResultError(
                f"Cannot save to {path}: it is a link to {path.readlink()}, which is not there; make that, or name "
                "another place."
            ) from None
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultError(f"Cannot save to {path}: {reason}; choose another place.") from error
