"""Writing files so that an interrupted program leaves the old content or the new, never half of it."""

import os
from pathlib import Path

from sinklens.errors import ResultError


def write_atomically(path: str | Path, data: bytes) -> Path:
    """Write ``data`` under a temporary name beside ``path``, then rename it.

    Returns:
        The path written.

    Raises:
        ResultError: The folder cannot be made or written to, or the disk is full; nothing half-written stays.
    """
    target = Path(path)
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
    return target
