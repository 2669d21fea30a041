"""The opened folder: which results lie in it, and nothing outside of it."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sinklens.errors import ResultError
from sinklens.results.commit import NEW, finish
from sinklens.results.header_file import DAMAGED, HEADER, read_header

_DEPTH = 3
_MOST = 500


@dataclass(frozen=True)
class Entry:
    """One result in the folder.

    Attributes:
        name: Its path relative to the folder, ``"."`` for the folder itself; what the address calls it.
        kind: Its ``format``, such as ``sinklens-census``.
        label: What a list shows.
    """

    name: str
    kind: str
    label: str


def refuse_nowhere(source: str) -> None:
    """Refuse what is no place and cannot be the name of a model.

    Raises:
        ResultError: It is neither.
    """
    path = Path(source).expanduser()
    if not path.exists() and (path.is_absolute() or source.startswith(".") or len(path.parts) > 2):
        raise ResultError(  # hub ids are NAME or ORG/NAME
            f"There is no {source}; expected a folder of results, one saved result, or a model's name or folder."
        )


class ResultFolder:
    """A folder of saved results, or one saved result.

    Args:
        root: The folder.

    Raises:
        ResultError: There is no such folder, or no result in it.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ResultError(f"There is no folder {root}; give a folder that 'sinklens scan --out' wrote.")
        self.root = root.resolve()
        if not self.entries():
            raise ResultError(
                f"{root} holds no saved result ({HEADER}), nor does a folder up to {_DEPTH} levels below it; make one "
                "with 'sinklens scan --out DIR', or name a model."
            )

    def entries(self) -> list[Entry]:
        """All results, the folder itself first and then by name; at most 500, three levels deep."""
        found: list[Entry] = []
        for directory, below, files in os.walk(self.root):
            here = Path(directory)
            depth = len(here.relative_to(self.root).parts)
            inside = [*below]
            below[:] = sorted(name for name in below if not name.startswith(".")) if depth < _DEPTH else []
            if (HEADER in files or NEW in inside) and len(found) < _MOST:
                name = here.relative_to(self.root).as_posix()
                found.append(Entry(name, *_describe(here, name)))
        return sorted(found, key=lambda entry: (entry.name != ".", entry.name))

    def path(self, name: str) -> Path:
        """Where a result lies.

        Raises:
            ResultError: There is none of that name, or it lies outside the folder, also by way of a link.
        """
        try:
            path = (self.root / name).resolve()
            header = (path / HEADER).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise ResultError("There is no such result in the opened folder.") from error
        if not path.is_relative_to(self.root) or not header.is_relative_to(path) or "\x00" in name:
            raise ResultError("That result lies outside the opened folder; start the dashboard on the folder it is in.")
        if not header.is_file():
            raise ResultError(f"There is no result {name[:80]!r} in the opened folder.")
        return path


def _describe(directory: Path, name: str) -> tuple[str, str]:
    """Kind, and what a list shows: folder, kind, and the model where the header names one."""
    header = directory / HEADER
    try:
        changed = header.stat().st_mtime_ns
    except OSError:
        changed = 0
    kind, model = _read(directory, changed)
    where = directory.name if name == "." else name
    return kind, f"{where} · {kind.removeprefix('sinklens-')}" + (f" of {model}" if model else "")


@lru_cache(maxsize=2 * _MOST)
def _read(directory: Path, changed: int) -> tuple[str, str]:
    try:
        finish(directory)
        header = read_header(directory)
        return header.format, (header.model.name if header.model is not None else None) or ""
    except ResultError:
        return DAMAGED, ""
