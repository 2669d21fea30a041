"""Tables of a result, in memory or on disk: small ones whole, per-position ones as dense arrays made once."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from sinklens.errors import ResultError
from sinklens.results.arrays import read_arrays
from sinklens.results.commit import finish
from sinklens.results.header_file import ARRAYS, HEADER, checked, read_json
from sinklens.results.table_file import check_places, check_size, read_table
from sinklens.results.tables import digest

KEY: Final = ("layer", "head", "position")
COLUMNS: Final = ("importance", "null", "value_norm", "output_norm")
"""Of the per-position tables, what the dashboard draws."""

_SMALL: Final = 300_000
_PAUSE: Final = 1.0

Cube = dict[str, np.ndarray]
"""Columns of a table by layer, head and position as ``float32 [layer head position]``, NaN where it has no row."""


class Tables(Mapping[str, pd.DataFrame], ABC):
    """Named tables of one result."""

    names: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.names:
            raise KeyError(name)
        return self.frame(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @abstractmethod
    def frame(self, name: str, limit: int | None = None) -> pd.DataFrame:
        """A table, or its first ``limit`` rows; not to be changed."""

    @abstractmethod
    def count(self, name: str) -> int:
        """How many rows a table has."""

    @abstractmethod
    def columns(self, name: str) -> list[str]:
        """The columns of a table."""

    @abstractmethod
    def cube(self, name: str) -> Cube:
        """A table by layer, head and position as arrays; empty when there is no such table."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The result's arrays, empty when it has none."""
        return {}

    def head(self, name: str, layer: int, head: int) -> dict[str, np.ndarray]:
        """The rows of one head by position; empty when the table has none."""
        cube = self.cube(name)
        return {
            column: cells[layer, head]
            for column, cells in cube.items()
            if layer < cells.shape[0] and head < cells.shape[1]
        }


class MemoryTables(Tables):
    """Tables of a result that was computed here."""

    def __init__(self, tables: Mapping[str, pd.DataFrame], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        self.names = tuple(tables)
        self._tables, self._arrays = tables, dict(arrays or {})
        self._cubes: dict[str, Cube] = {}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays themselves."""
        return self._arrays

    def frame(self, name: str, limit: int | None = None) -> pd.DataFrame:
        """The table itself."""
        return self._tables[name] if limit is None else self._tables[name].head(limit)

    def count(self, name: str) -> int:
        """Its rows."""
        return len(self._tables[name])

    def columns(self, name: str) -> list[str]:
        """Its columns."""
        return [str(column) for column in self._tables[name].columns]

    def cube(self, name: str) -> Cube:
        """Made on first use."""
        if name not in self._cubes:
            table = self._tables.get(name, pd.DataFrame())
            found = {column: table[column].to_numpy() for column in (*KEY, *COLUMNS) if column in table}
            self._cubes[name] = {} if table.empty else as_cube(found)
        return self._cubes[name]


class StoredTables(Tables):
    """Tables of a saved result, read when asked for.

    A census of 1,024 heads and 4,096 tokens has tables of four million rows: reading them whole would keep the first
    view waiting for seconds. Every file is compared with its digest in the header before its first use.

    Args:
        directory: The result.

    Raises:
        ResultError: Its header is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        finish(directory)
        content = read_json(directory / HEADER)
        self.header = checked(directory / HEADER, content)
        self._files, self.kind = self.header.files, self.header.format
        self.meta: dict[str, Any] = {name: value for name, value in content.items() if name != "files"}
        self.names = tuple(Path(name).stem for name in self._files if name.endswith(".parquet"))
        self._checked: set[str] = set()
        self._frames: dict[str, pd.DataFrame] = {}
        self._cubes: dict[str, Cube] = {}
        # a lock for each table: reading a large one in the background must not keep a small one waiting
        self._locks = {name: threading.RLock() for name in self.names}
        self._none = threading.RLock()

    def frame(self, name: str, limit: int | None = None) -> pd.DataFrame:
        """Read a table; small ones are kept."""
        with self._lock(name):
            if name in self._frames:
                return self._frames[name] if limit is None else self._frames[name].head(limit)
            path = self._path(f"{name}.parquet")
            check_size(path, self.header)
            try:
                if limit is not None and self.count(name) > _SMALL:
                    batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=limit)
                    first: pd.DataFrame = pyarrow.Table.from_batches([next(batches)]).to_pandas()
                    return first.head(limit)
            except (OSError, ValueError, StopIteration) as error:
                raise ResultError(f"{path.name} cannot be read ({error}); make it again.") from error
            frame = read_table(path, self.header)
            if len(frame) <= _SMALL:
                self._frames[name] = frame
            return frame if limit is None else frame.head(limit)

    def count(self, name: str) -> int:
        """Rows, as the header says."""
        facts = self._files.get(f"{name}.parquet")
        return 0 if facts is None else facts.rows or 0

    def columns(self, name: str) -> list[str]:
        """Columns, from the file's own schema."""
        with self._lock(name):
            return [str(column) for column in pyarrow.parquet.read_schema(self._path(f"{name}.parquet")).names]

    def cube(self, name: str) -> Cube:
        """Read the numbers of a per-position table column by column; kept, a tenth of the table's size in memory."""
        with self._lock(name):
            if name not in self._cubes:
                self._cubes[name] = {} if name not in self.names else self._read_cube(name)
            return self._cubes[name]

    def head(self, name: str, layer: int, head: int) -> dict[str, np.ndarray]:
        """From the arrays, or while a large table is still being read in the background from its file alone."""
        if name in self._cubes or self.count(name) <= _SMALL:
            return super().head(name, layer, head)
        path = self._path(f"{name}.parquet")
        try:
            names = pyarrow.parquet.read_schema(path).names
            wanted = [column for column in (*KEY, *COLUMNS) if column in names]
            chosen = [("layer", "==", layer), ("head", "==", head)]
            table = pyarrow.parquet.read_table(path, columns=wanted, filters=chosen)
            if not len(table):
                return {}
            here = np.zeros(len(table), dtype=np.int64)  # its only layer and head
            rows = {column: table[column].to_numpy() for column in wanted}
            return {column: cells[0, 0] for column, cells in as_cube(rows | {"layer": here, "head": here}).items()}
        except (OSError, ValueError, KeyError) as error:
            raise ResultError(f"{path.name} cannot be read ({error}); make it again.") from error

    def arrays(self) -> dict[str, np.ndarray]:
        """The result's arrays, empty when it has none."""
        if ARRAYS not in self._files:
            return {}
        return read_arrays(self._path(ARRAYS))

    def warm(self) -> None:
        """Read the per-position tables in the background, so that the first click does not wait for them."""
        names = [name for name in ("sinks", "value_drains") if name in self.names and self.count(name) > 20_000]
        if names:
            timer = threading.Timer(_PAUSE, self._warm, (names,))  # after the first view has been drawn
            timer.daemon = True
            timer.start()

    def _warm(self, names: list[str]) -> None:
        for name in names:
            try:
                self.cube(name)
            except ResultError:
                return  # said again, and then to the user, when the table is asked for

    def _read_cube(self, name: str) -> Cube:
        path = self._path(f"{name}.parquet")
        check_size(path, self.header)
        try:
            schema = pyarrow.parquet.read_schema(path)
            wanted = [name for name in schema.names if name in (*KEY, *COLUMNS)]
            table = pyarrow.parquet.read_table(path, columns=wanted)
            columns = {column: table[column].to_numpy() for column in wanted}
            check_places(path, {column: columns[column] for column in KEY}, self.header)
            return as_cube(columns) if len(table) else {}
        except (OSError, ValueError, KeyError) as error:
            raise ResultError(f"{path.name} cannot be read ({error}); make it again.") from error

    def _lock(self, name: str) -> threading.RLock:
        return self._locks.get(name, self._none)

    def _path(self, file: str) -> Path:
        """Where a file lies, once it is known to be the one that was saved."""
        path = self.directory / file
        if file not in self._files or not path.is_file() or path.is_symlink():
            raise ResultError(f"This result is incomplete: {file} is missing; make it again.")
        if file not in self._checked:
            if _digest(path, path.stat().st_mtime_ns, path.stat().st_size) != self._files[file].sha256:
                raise ResultError(f"{file} is damaged: its contents are not what was saved; make it again.")
            self._checked.add(file)
        return path


def as_cube(columns: Mapping[str, np.ndarray]) -> Cube:
    """Spread rows over layer, head and position.

    Args:
        columns: ``layer``, ``head``, ``position`` and the columns to spread.

    Raises:
        KeyError: One of the three is missing.

    >>> rows = {"layer": [0, 1], "head": [0, 0], "position": [1, 0], "x": [0.5, 2.0]}
    >>> as_cube({name: np.array(values) for name, values in rows.items()})["x"].tolist()
    [[[nan, 0.5]], [[2.0, nan]]]
    """
    layer, head, position = (np.asarray(columns[name]) for name in KEY)
    if min(int(layer.min()), int(head.min()), int(position.min())) < 0:
        raise ValueError("a layer, head or position is below 0")
    shape = (int(layer.max()) + 1, int(head.max()) + 1, int(position.max()) + 1)
    if int(np.prod(shape)) > 4 * len(layer) + 1_000_000:
        raise ValueError(f"its rows are too sparse for {shape[0]} x {shape[1]} x {shape[2]} cells")
    flat = (layer * shape[1] + head) * shape[2] + position
    out: Cube = {}
    for name, values in columns.items():
        if name not in KEY:
            cells = np.full(int(np.prod(shape)), np.nan, dtype=np.float32)
            cells[flat] = values
            out[name] = cells.reshape(shape)
    return out


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    return digest(path)
