"""Writing files so that an interrupted program leaves the old content or the new, never half of it."""

import os
from pathlib import Path

from sinklens.errors import ResultError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, then rename it.

    Raises:
        ResultError: if the folder cannot be made or written to.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"{path} cannot be written: {error.strerror or error}.") from error
