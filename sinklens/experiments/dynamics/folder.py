"""The folder of a measurement over checkpoints: what was asked, every finished checkpoint, at the end the result."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sinklens.errors import ResultError
from sinklens.experiments.dynamics.series import Checkpoint
from sinklens.experiments.sweeps.folder import locked, refuse_other
from sinklens.files import write_atomically
from sinklens.tables import HEADER, check_writable, load_result, save_result

FORMAT, FORMAT_VERSION = "sinklens-dynamics", 1
PLAN, PARTS = "dynamics-plan.json", "finished-checkpoints"
WORK = "measurement"
TABLES = ("steps", "heads", "layers")
ANEW = "start anew with --restart (restart=True)"
_PIECES, _PIECE = 16, 1 << 16


class DynamicsFolder:
    """Keeps finished checkpoints, each whole or not at all, until the result is complete.

    Args:
        directory: Where to work; new, empty, or what an earlier run left.
        spec: Everything but the checkpoints that the numbers depend on.
        warn: Receives a sentence about every damaged part.
    """

    def __init__(self, directory: Path, spec: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.directory, self.spec, self.warn = directory, dict(spec), warn
        self.identity = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def check(directory: Path) -> None:
        """Find out before a long run whether it can work here.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        unfinished = directory.is_dir() and not (directory / HEADER).is_file()
        if unfinished and ((directory / PLAN).is_file() or all(_ours(each.name) for each in directory.iterdir())):
            directory = directory / PARTS / "any"  # only whether one may write here
        check_writable(directory, FORMAT)

    def locked(self) -> Any:
        """Context manager that keeps a second run out."""
        return locked(self.directory, WORK)

    def begin(self, restart: bool) -> None:
        """Look for an unfinished run of the same thing, and note what this one is.

        Raises:
            ResultError: Another one, or a damaged note.
        """
        if restart:
            self.clear()
        path = self.directory / PLAN
        if path.is_file():
            try:
                plan = json.loads(path.read_text("utf-8"))
                version, spec = int(plan["format_version"]), dict(plan["spec"])
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise ResultError(f"{path} is damaged ({error}); {ANEW}.") from error
            if version > FORMAT_VERSION:
                raise ResultError(f"{path} has format {version}, newer than this sinklens; update it, or {ANEW}.")
            refuse_other(self.directory, spec, self.spec, WORK)
            return
        content = {"format_version": FORMAT_VERSION, "spec": self.spec}
        write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def reopen(self, parts: Mapping[Checkpoint, dict[str, pd.DataFrame]], stamps: Mapping[str, str]) -> None:
        """Turn a finished result back into parts, so that more checkpoints can join it; its header goes last."""
        for checkpoint, tables in parts.items():
            self.save(checkpoint, stamps[str(checkpoint.step)], tables)
        (self.directory / HEADER).unlink()

    def load(self, checkpoint: Checkpoint, mark: str) -> dict[str, pd.DataFrame] | None:
        """The tables of a finished checkpoint with the same files, ``None`` where there are none (intact)."""
        place = self._place(checkpoint)
        if not place.exists():
            return None
        try:
            meta, tables, _ = load_result(place, kind=f"{FORMAT}-part", newest=FORMAT_VERSION)
        except ResultError as error:
            self.warn(f"What was kept of {checkpoint.name} cannot be used and is measured again: {error}")
        else:
            if (meta.get("identity"), meta.get("stamp")) == (self.identity, mark) and set(tables) == set(TABLES):
                return tables
            self.warn(f"The files of {checkpoint.name} have changed since they were measured; it is measured again.")
        shutil.rmtree(place, ignore_errors=True)
        return None

    def save(self, checkpoint: Checkpoint, mark: str, tables: Mapping[str, pd.DataFrame]) -> None:
        """Keep a finished checkpoint.

        Raises:
            ResultError: The place cannot be written or is full; those before are untouched.
        """
        meta = {"format": f"{FORMAT}-part", "format_version": FORMAT_VERSION, "identity": self.identity, "stamp": mark}
        save_result(self._place(checkpoint), meta, {name: tables[name] for name in TABLES}, {})

    def tidy(self) -> None:
        """Remove the work of a finished run."""
        shutil.rmtree(self.directory / PARTS, ignore_errors=True)
        (self.directory / PLAN).unlink(missing_ok=True)
        for path in self.directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove a run with its result; other files are kept. What marks the folder as ours goes last."""
        for name in (*TABLES, "checkpoints"):
            (self.directory / f"{name}.parquet").unlink(missing_ok=True)
        if (self.directory / HEADER).is_file() or (self.directory / PLAN).is_file():
            shutil.rmtree(self.directory / PARTS, ignore_errors=True)
            (self.directory / PLAN).unlink(missing_ok=True)
            (self.directory / HEADER).unlink(missing_ok=True)

    def _place(self, checkpoint: Checkpoint) -> Path:
        digest = hashlib.sha256(checkpoint.name.encode()).hexdigest()[:8]
        return self.directory / PARTS / f"{checkpoint.step:012d}-{digest}"


def stamp(checkpoint: Checkpoint) -> str:
    """Tells whether a checkpoint's files are still the same without reading all of them.

    Of a directory a hash of every file's name, size and 16 pieces of its contents; of a hub id its name, because there
    a revision is taken to be what it was.
    """
    directory = Path(checkpoint.source).expanduser()
    if not directory.is_dir():
        return checkpoint.source
    found = hashlib.sha256()
    for path in sorted(each for each in directory.iterdir() if each.is_file() and not each.name.startswith(".")):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(piece * max(0, size - _PIECE) // max(1, _PIECES - 1))
                found.update(file.read(_PIECE))
    return found.hexdigest()


def _ours(name: str) -> bool:
    """What an interruption before the plan was written can leave."""
    return name == f"{WORK}.lock" or (name.startswith(".") and name.endswith(".tmp"))
