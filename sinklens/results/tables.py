"""Results to disk and back: Parquet tables, safetensors arrays and a JSON header, complete or not at all."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sinklens.errors import ResultError
from sinklens.results.files import write_atomically

HEADER = "result.json"
ARRAYS = "arrays.safetensors"
DAMAGED = "damaged result"


def check_writable(directory: Path, kind: str) -> None:
    """Find out before a long run whether its result can be saved.

    Args:
        directory: Where it is to go.
        kind: Its ``format``; an older result of the same kind may be replaced, one of another kind may not.

    Raises:
        ResultError: The place cannot be written, or holds something else.
    """
    if directory.exists() and not directory.is_dir():
        raise ResultError(f"Cannot save to {directory}: it is a file; name a directory.")
    if directory.is_dir() and any(directory.iterdir()):
        held = kind_of(directory)
        if held is None:
            raise ResultError(
                f"Will not save to {directory}: it exists and holds no {HEADER}; name a new or an empty directory."
            )
        if held not in (kind, DAMAGED):  # a damaged one may be made again in its place
            raise ResultError(
                f"Will not save a {kind!r} to {directory}: it holds a {held!r}; name a new or an empty directory."
            )
    parent = directory.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResultError(f"Cannot save to {directory}: {parent} is not writable; choose another place with --out.")


def kind_of(directory: Path) -> str | None:
    """``format`` of the result that lies there, ``None`` without one."""
    path = directory / HEADER
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text("utf-8"))["format"])
    except (ValueError, KeyError, TypeError, OSError):
        return DAMAGED


def save_result(
    directory: Path,
    meta: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write a result directory under a temporary name and rename it when it is complete.

    An older result of the same name is replaced; other files that lie in it are kept.

    Raises:
        ResultError: The place cannot be written or is full; what was there before is untouched.
    """
    check_writable(directory, str(meta["format"]))
    with atomic_directory(directory) as scratch:
        files = {}
        for name, table in tables.items():
            path = scratch / f"{name}.parquet"
            table.to_parquet(path, index=False)
            files[path.name] = {"sha256": _digest(path), "rows": len(table)}
        if arrays:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, scratch / ARRAYS)
            (scratch / ARRAYS).chmod(0o644)  # safetensors writes for the owner only
            files[ARRAYS] = {"sha256": _digest(scratch / ARRAYS)}
        (scratch / HEADER).write_bytes(_header(meta, files))


def complete_result(directory: Path, meta: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
    """Add the result to the directory that its own work lies in: the header last, so that it marks completeness.

    For long runs that keep their state in the result's directory; :func:`save_result` replaces a directory.

    Raises:
        ResultError: The place cannot be written or is full; there is no header then.
    """
    files = {}
    for name, table in tables.items():
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        path = write_atomically(directory / f"{name}.parquet", buffer.getvalue())
        files[path.name] = {"sha256": _digest(path), "rows": len(table)}
    write_atomically(directory / HEADER, _header(meta, files))


def _header(meta: Mapping[str, Any], files: Mapping[str, Any]) -> bytes:
    content = {**meta, "files": files}
    return (json.dumps(content, indent=1, allow_nan=False, default=_plain) + "\n").encode()


def load_result(
    directory: Path, *, kind: str, newest: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, np.ndarray]]:
    """Read a result directory and check that every file is the one that was saved.

    Args:
        directory: What :func:`save_result` wrote.
        kind: Expected ``format`` in the header.
        newest: Newest ``format_version`` this sinklens reads.

    Raises:
        ResultError: No result there, of another kind, of a newer format, or damaged.
    """
    path = directory / HEADER
    if not path.is_file():
        raise ResultError(f"{directory} holds no {HEADER}; expected a directory that sinklens saved.")
    try:
        header = json.loads(path.read_text("utf-8"))
        header["format_version"], files = int(header["format_version"]), dict(header["files"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ResultError(f"{path} is damaged ({error}); make it again.") from error
    if header.get("format") != kind:
        raise ResultError(f"{directory} holds a {header.get('format')!r}, expected {kind!r}.")
    refuse_newer(str(directory), header, newest)
    tables, arrays = {}, {}
    for name, facts in files.items():
        file = directory / Path(name).name  # never outside of the directory, whatever the header says
        if not file.is_file():
            raise ResultError(f"{directory} is incomplete: {name} is missing; make it again.")
        if _digest(file) != facts.get("sha256"):
            raise ResultError(f"{file} is damaged: its contents are not what was saved; make it again.")
        try:
            if file.suffix == ".parquet":
                tables[file.stem] = pd.read_parquet(file)
            else:
                arrays = load_file(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise ResultError(f"{file} cannot be read ({error}); make it again.") from error
    return {k: v for k, v in header.items() if k != "files"}, tables, arrays


def refuse_newer(name: str, header: Mapping[str, Any], newest: int) -> None:
    """Refuse a result that a newer sinklens saved.

    Args:
        name: What to call it.
        header: What it says about itself.
        newest: Newest ``format_version`` this sinklens reads.

    Raises:
        ResultError: It is newer.
    """
    if header["format_version"] > newest:
        raise ResultError(
            f"{name} was saved in format {header['format_version']} by sinklens {header.get('sinklens_version')}; this "
            f"version reads up to format {newest}. Update sinklens."
        )


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A scratch directory beside ``directory`` that takes its place when the block ends without an error."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
    except OSError as error:
        raise ResultError(f"Cannot save to {directory}: {error.strerror or error}.") from error
    try:
        yield scratch
        scratch.chmod(0o755)
        _swap(scratch, directory)
    except OSError as error:
        raise ResultError(
            f"Saving to {directory} failed ({error.strerror or error}); nothing was left there. Free some space or "
            "choose another place."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, directory: Path) -> None:
    if not directory.exists():
        os.rename(scratch, directory)
        return
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    os.rename(directory, old)
    try:
        os.rename(scratch, directory)
    except OSError:
        os.rename(old, directory)
        raise
    for entry in old.iterdir():
        stale = entry.suffix == ".parquet" or entry.name in (HEADER, ARRAYS)
        if not stale and not (directory / entry.name).exists():
            os.rename(entry, directory / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(value: Any) -> Any:
    """Numpy scalars in the header become Python numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into a result header")
