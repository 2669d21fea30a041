"""The folder of a long run: one process at a time, its plan, its finished parts, and at the end its result."""

import hashlib
import json
import operator
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd

from sinklens.errors import ResultError
from sinklens.results.commit import settle
from sinklens.results.files import mode_of, write_atomically
from sinklens.results.header_file import HEADER, is_file_of_result
from sinklens.results.lock import LOCK, locked
from sinklens.results.parts import Part, PartStore
from sinklens.results.place import check_writable
from sinklens.results.result import Result
from sinklens.results.tables import write_result

PLAN, PARTS = "run-plan.json", "parts"
FORMAT, FORMAT_VERSION = "sinklens-run-plan", 1
ANEW = "start anew with --restart (restart=True)"


class RunFolder:
    """Where a run that takes long keeps its work, so that a killed one goes on and a finished one is not repeated.

    ::

        folder = RunFolder(out, "sinklens-sweep", "sweep")
        with folder.locked():
            kept = folder.begin(spec, restart)  # refuses the folder of another run
            if folder.finished:
                ...  # load the result
            folder.note(kept or {"layout": ...})  # what later runs must take over
            found = folder.load("00000") or ...
            folder.save("00000", found)
            folder.complete(result)

    Args:
        directory: New, empty, or what an earlier run left.
        format: ``format`` of the result that will lie here.
        work: What the run is called in messages.
        warn: Receives a sentence about every part that cannot be used.
    """

    def __init__(self, directory: Path, format: str, work: str, warn: Callable[[str], None] = warnings.warn) -> None:
        self.directory, self.format, self.work, self.warn = directory, format, work, warn
        self.spec: dict[str, Any] = {}
        self._store = PartStore(directory / PARTS, "", warn)

    @property
    def finished(self) -> bool:
        """Whether a result lies here."""
        return (self.directory / HEADER).is_file()

    @property
    def parts(self) -> Path:
        """Directory of unfinished work; it is removed with everything in it when the run is complete."""
        return self.directory / PARTS

    def check(self) -> None:
        """Find out before the run whether it can work and save here.

        Raises:
            ResultError: It is a file, cannot be written, or holds something that is not of such a run.
        """
        out = self.directory
        if mode_of(out) is not None and out.is_dir():
            settle(out)
        if out.is_dir() and not self.finished:
            plan = _read_json(out / PLAN)
            other = None if plan is None else plan.get("result", self.format)
            if other not in (None, self.format):
                raise ResultError(
                    f"Will not start a {self.work} in {out}: an unfinished run for a {other!r} lies there; name a new "
                    "or an empty directory."
                )
            if (out / PLAN).is_file() or all(_left_over(each) for each in out.iterdir()):
                out = out / PARTS / "any"  # only whether one may write here
        check_writable(out, self.format)

    def locked(self) -> AbstractContextManager[None]:
        """Context manager that keeps a second run out.

        Raises:
            ResultError: Another process works here, or the place cannot be written.
        """
        return locked(self.directory, self.work)

    def begin(
        self,
        spec: Mapping[str, Any],
        restart: bool = False,
        *,
        held: Mapping[str, Any] | None = None,
        adds: bool = False,
        same: Callable[[Any, Any], bool] = operator.eq,
    ) -> Any:
        """Take the folder for a run of this description.

        Args:
            spec: Everything that the numbers depend on, as JSON.
            restart: Throw away what lies here of a run.
            held: Description of the finished result that lies here, to be compared with ``spec``; without it the plan
                is, which is there if the work was kept.
            adds: Whether this run adds to the finished result that lies here, whatever its description: it stays until
                this run is complete, and unfinished work of another description goes.
            same: Whether two entries of a description are the same.

        Returns:
            What an unfinished run of the same description noted (:meth:`note`), ``None`` if there is none.

        Raises:
            ResultError: The folder holds something else, another run, or a damaged plan.
        """
        self.check()
        self.spec = json.loads(json.dumps(spec))
        if restart:
            self.clear()
        elif self.finished and held is not None:
            self.refuse_other(held)
            return None
        path = self.directory / PLAN
        if not path.is_file():
            if self.finished and not adds:
                self.refuse_other({})
            return None
        plan = _read_json(path)
        try:
            if plan is None:
                raise ValueError("it cannot be read")
            version = int(plan["format_version"])
            there, kept = dict(plan["spec"]), plan["kept"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{path} is damaged ({error}); {ANEW}.") from error
        if version > FORMAT_VERSION:
            reads = f"this sinklens reads up to {FORMAT_VERSION}"
            raise ResultError(f"{path} has format {version}, {reads}; update it, or {ANEW}.")
        if adds and not same(there, self.spec):
            self.tidy()
            return None
        self.refuse_other(there, same)
        self.spec = there  # parts are known by the description that they were begun under
        return kept

    def note(self, kept: Any = None) -> None:
        """Write the plan before the first part: the description, and what later runs have to take over.

        Raises:
            ResultError: The place cannot be written.
        """
        content = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "result": self.format, "spec": self.spec, "kept": kept,
        }  # fmt: skip
        if _read_json(self.directory / PLAN) != json.loads(json.dumps(content)):
            data = json.dumps(content, indent=1, allow_nan=False) + "\n"
            write_atomically(self.directory / PLAN, data.encode())
        identity = hashlib.sha256(json.dumps([self.spec, kept], sort_keys=True).encode()).hexdigest()
        self._store = PartStore(self.parts, identity, self.warn)
        self._store.clean()

    def names(self) -> list[str]:
        """Names of finished parts."""
        return self._store.names()

    def load(self, name: str, key: str = "") -> Part | None:
        """A finished part, ``None`` where there is none that is whole; see :class:`PartStore`."""
        return self._store.load(name, key)

    def save(
        self, name: str, tables: Mapping[str, pd.DataFrame], key: str = "", meta: Mapping[str, Any] | None = None
    ) -> None:
        """Keep a finished part.

        Args:
            name: Of the part.
            tables: What it found.
            key: What this part alone depends on.
            meta: What else is to be kept, as JSON.

        Raises:
            ResultError: The place cannot be written or is full; the parts before are untouched.
        """
        self._store.save(name, Part(dict(tables), dict(meta or {})), key)

    def complete(self, result: Result, *, keep_work: bool = False) -> None:
        """Save the result, then remove the work; the result's header comes last, so that it marks completeness.

        Args:
            result: Of the kind that this folder is for.
            keep_work: Keep plan and parts, for runs that others add to.

        Raises:
            ResultError: The place cannot be written or is full; the work is still there.
        """
        write_result(self.directory, {"format": result.format, **result.meta}, result.tables, result.arrays)
        if not keep_work:
            self.tidy()

    def reopen(self) -> None:
        """Make a finished run unfinished, once its result was taken apart into parts again; its tables go after it."""
        files = self._files_of_result()
        (self.directory / HEADER).unlink()
        for name in files:
            (self.directory / name).unlink(missing_ok=True)

    def _files_of_result(self) -> list[str]:
        files = (_read_json(self.directory / HEADER) or {}).get("files", {})
        return [name for name in (files if isinstance(files, dict) else {}) if is_file_of_result(name)]

    def tidy(self) -> None:
        """Remove the work of a finished run: parts, plan, and what interrupted writings left."""
        shutil.rmtree(self.parts, ignore_errors=True)
        (self.directory / PLAN).unlink(missing_ok=True)
        for path in self.directory.glob(".*.tmp"):
            if not path.is_dir():
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove a run with its result; other files are kept. What marks the folder as ours goes last."""
        if self.finished or (self.directory / PLAN).is_file():
            for name in self._files_of_result():
                (self.directory / name).unlink(missing_ok=True)
            self.tidy()
            (self.directory / HEADER).unlink(missing_ok=True)

    def refuse_other(self, there: Mapping[str, Any], same: Callable[[Any, Any], bool] = operator.eq) -> None:
        """Refuse to go on with a run of another description.

        Raises:
            ResultError: One sentence about what differs.
        """
        before, after = _leaves(there), _leaves(self.spec)
        names = [name for name in {**before, **after} if not same(before.get(name), after.get(name))]
        if names:
            shown = "; ".join(f"{n}: {_short(before.get(n))} there, {_short(after.get(n))} now" for n in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ResultError(
                f"{self.directory} holds another {self.work} ({shown}{more}); name another directory, or start anew "
                "there with --restart (restart=True)."
            )


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, ``None`` where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _left_over(path: Path) -> bool:
    """What an interruption before the plan was written can leave."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".tmp"))


def _leaves(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping) and content:
        return {k: v for key, value in content.items() for k, v in _leaves(value, f"{name}.{key}".strip(".")).items()}
    return {name: list(content) if isinstance(content, tuple) else content}


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
