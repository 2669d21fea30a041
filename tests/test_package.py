"""The wheel holds what the installed program needs: code, checkpoints, texts, and nothing of the tests."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sinklens.models.builtin import builtin_models, data_dir

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel built from this checkout."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_data_travels_with_the_program(wheel: list[str]) -> None:
    names = set(wheel)
    for model in builtin_models().values():
        place = model.path.relative_to(data_dir())
        assert f"sinklens/_data/{place.as_posix()}/config.json" in names
    assert "sinklens/_data/texts/shakespeare.txt" in names
    assert any(name.startswith("sinklens/app/assets/") for name in names)


def test_nothing_else_is_shipped(wheel: list[str]) -> None:
    assert all(name.startswith(("sinklens/", "sinklens-")) for name in wheel)
    assert not [name for name in wheel if name.endswith((".gguf", ".pyc", ".lock", ".tmp"))]
