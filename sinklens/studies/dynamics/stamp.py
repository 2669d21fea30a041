"""Whether a checkpoint's files are still those that were measured."""

import hashlib
from pathlib import Path

from sinklens.studies.dynamics.series import Checkpoint

_PIECES, _PIECE = 16, 1 << 16


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
