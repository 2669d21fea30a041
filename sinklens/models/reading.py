"""Files that people name: only regular ones, and only as much of them as can be meant."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sinklens.errors import InputError

MOST_BYTES = 256 * 2**20
"""Largest text or table that is read: about fifty million tokens, far more than a scan looks at."""


def readable(path: Path) -> Path:
    """The path of a regular file of at most 256 MiB; a link to one is one.

    Raises:
        InputError: A directory, a pipe, a device, or a file that is larger. Nothing has been read then.
        OSError: There is no such file, or it may not be looked at.
    """
    found = path.stat()
    kinds = ((stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_kind, kind in kinds if is_kind(found.st_mode)), "device")
        raise InputError(f"Cannot read {path}: it is a {kind}, expected a file; write what it holds into one.")
    if found.st_size > MOST_BYTES:
        raise InputError(f"{path} has {found.st_size:,} bytes, more than the {MOST_BYTES:,} that are read; cut it.")
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: As :func:`readable`.
        OSError: It cannot be read.
        ValueError: It is no JSON, or nested more deeply than anything sinklens writes.
    """
    try:
        return json.loads(readable(path).read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def named_text(path: Path, what: str) -> str:
    """The UTF-8 text of a file that somebody named.

    Args:
        path: Its place.
        what: What it was to be, as in "The ranking".

    Raises:
        InputError: It is not there or holds no text, in one sentence.
    """
    with _told(path, what):
        return readable(path).read_text(encoding="utf-8-sig")


def named_json(path: Path, what: str) -> Any:
    """What a JSON file holds that somebody named; errors as of :func:`named_text`."""
    with _told(path, what):
        return read_json(path)


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{what} {path} cannot be read: there is no such file; check the path.") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} cannot be read: byte {error.start} is not UTF-8 text; convert it.") from error
    except ValueError as error:
        raise InputError(f"{what} {path} cannot be read as JSON: {error}.") from error
