import shutil
from pathlib import Path

import pytest

from tests.families import checkpoint
from tests.rooms import no_gradients

__all__ = ["no_gradients"]


@pytest.fixture
def llama(zoo: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint("llama", zoo), tmp_path / "llama"))
