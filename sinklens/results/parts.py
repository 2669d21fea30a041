"""Finished parts of a long run on disk: each is saved whole or not at all, and damage is noticed."""

import hashlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sinklens.results.files import write_atomically

META = "meta.json"


@dataclass(frozen=True)
class Part:
    """What one part of a run found.

    Attributes:
        tables: By name.
        meta: What else is to be kept, as JSON.
    """

    tables: dict[str, pd.DataFrame]
    meta: dict[str, Any] = field(default_factory=dict)


class PartStore:
    """Parts in a directory, one file ``<name>-<digest>.zip`` each.

    A file is renamed into place when it is complete. The digest covers its bytes and everything that its numbers depend
    on, so the name tells whether it still is what was written and belongs to this very run.

    Args:
        directory: Where they lie; made when the first part is saved.
        identity: What all parts of the run depend on, in one string.
        warn: Receives a sentence about every file that cannot be used.
    """

    def __init__(self, directory: Path, identity: str, warn: Callable[[str], None] = warnings.warn) -> None:
        self.directory, self.identity, self.warn = directory, identity, warn

    def names(self) -> list[str]:
        """Names of the parts that are there, in order."""
        found = (re.fullmatch(r"(.+)-[0-9a-f]{64}\.zip", path.name) for path in self.directory.glob("*.zip"))
        return sorted({match[1] for match in found if match})

    def load(self, name: str, key: str = "") -> Part | None:
        """A finished part, ``None`` where there is none; one that is damaged or another's is removed with a warning.

        Args:
            name: Of the part.
            key: What this part alone depends on.
        """
        for path in sorted(self.directory.glob(f"{name}-*.zip")):
            try:
                content = path.read_bytes()
                if path.name == self._file(name, key, content):
                    return _unpacked(content)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                reason = "its contents are not what was saved, or of something else"
            self.warn(f"Part {name} in {path} cannot be used ({reason}) and is computed again.")
            path.unlink(missing_ok=True)
        return None

    def save(self, name: str, part: Part, key: str = "") -> None:
        """Write a part; an older one of the same name goes.

        Raises:
            ResultError: The place cannot be written or is full; the parts before are untouched.
        """
        content = _packed(part)
        path = write_atomically(self.directory / self._file(name, key, content), content)
        for other in self.directory.glob(f"{name}-*.zip"):
            if other != path:
                other.unlink(missing_ok=True)

    def clean(self) -> None:
        """Delete what an interrupted writing left behind."""
        for path in self.directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _file(self, name: str, key: str, content: bytes) -> str:
        digest = hashlib.sha256(json.dumps([self.identity, name, key]).encode() + content).hexdigest()
        return f"{name}-{digest}.zip"


def _packed(part: Part) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, not deflated: Parquet is compressed already
        _add(archive, META, json.dumps(part.meta).encode())
        for name, table in part.tables.items():
            written = io.BytesIO()
            table.to_parquet(written, index=False)
            _add(archive, f"{name}.parquet", written.getvalue())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), content)  # without the time of day, so that equal parts are equal files


def _unpacked(content: bytes) -> Part:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tables = {
            name.removesuffix(".parquet"): pd.read_parquet(io.BytesIO(archive.read(name)))
            for name in archive.namelist()
            if name != META
        }
        return Part(tables, json.loads(archive.read(META)))
