"""Results to disk and back: Parquet tables, safetensors arrays and a JSON header, complete or not at all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from sinklens.errors import ResultError
from sinklens.results.arrays import read_arrays
from sinklens.results.commit import committed, finish
from sinklens.results.header_file import ARRAYS, HEADER, checked, read_json, refuse_newer
from sinklens.results.place import check_writable
from sinklens.results.table_file import read_table


def save_result(
    directory: Path,
    meta: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write a result into a directory, where it takes the place of an older one all at once.

    Other files that lie there are kept.

    Raises:
        ResultError: The place cannot be written or is full; what was there before is untouched.
    """
    check_writable(directory, str(meta["format"]))
    write_result(directory, meta, tables, arrays)


def write_result(
    directory: Path,
    meta: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """:func:`save_result` into a directory that is known to be ours: a long run's own.

    Raises:
        ResultError: The place cannot be written or is full; what was there before is untouched.
    """
    with committed(directory) as scratch:
        files: dict[str, dict[str, Any]] = {}
        for name, table in tables.items():
            path = scratch / f"{name}.parquet"
            table.to_parquet(path, index=False)
            files[path.name] = {"sha256": digest(path), "rows": len(table)}
        if arrays:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, scratch / ARRAYS)
            (scratch / ARRAYS).chmod(0o644)  # safetensors writes for the owner only
            files[ARRAYS] = {"sha256": digest(scratch / ARRAYS)}
        text = json.dumps({**meta, "files": files}, indent=1, allow_nan=False, default=_plain)
        (scratch / HEADER).write_text(text + "\n", "utf-8")


def load_result(
    directory: Path, *, kind: str, newest: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame], dict[str, np.ndarray]]:
    """Read a result directory and check that every file is the one that was saved.

    Args:
        directory: What :func:`save_result` wrote.
        kind: Expected ``format`` in the header.
        newest: Newest ``format_version`` this sinklens reads.

    Returns:
        The header, the tables, and the arrays, which stay on disk until they are used and cannot be written to.

    Raises:
        ResultError: No result there, of another kind, of a newer format, or damaged.
    """
    finish(directory)
    content = read_json(directory / HEADER)
    if isinstance(content, dict) and isinstance(version := content.get("format_version"), int) and version > newest:
        refuse_newer(str(directory), content, newest)  # before the schema: a newer one may declare other entries
    header = checked(directory / HEADER, content)
    if header.format != kind:
        raise ResultError(f"{directory} holds a {header.format!r}, expected {kind!r}.")
    tables, arrays = {}, {}
    for name, facts in header.files.items():
        file = directory / name
        if not file.is_file():
            raise ResultError(f"{directory} is incomplete: {name} is missing; make it again.")
        if digest(file) != facts.sha256:
            raise ResultError(f"{file} is damaged: its contents are not what was saved; make it again.")
        if file.suffix == ".parquet":
            tables[file.stem] = read_table(file, header)
        else:
            arrays = read_arrays(file)
    return {k: v for k, v in content.items() if k != "files"}, tables, arrays


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Numpy scalars in the header become Python numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into a result header")
