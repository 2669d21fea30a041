"""The data that ships with sinklens is found from a checkout and from a wheel."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinklens.errors import ResultError
from sinklens.models.builtin import builtin_models, data_dir

builtin = importlib.import_module("sinklens.models.builtin")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that lies elsewhere."""
    package = tmp_path / "site" / "sinklens"
    (package / "models").mkdir(parents=True)
    monkeypatch.setattr(builtin, "__file__", str(package / "models" / "builtin.py"))
    builtin_models.cache_clear()
    yield package
    builtin_models.cache_clear()


def test_data_of_this_checkout() -> None:
    assert (data_dir() / "texts").is_dir()
    for name, model in builtin_models().items():
        assert model.name == name == model.path.name
        assert (model.path / "config.json").is_file() and (model.path / "model.safetensors").is_file()
        assert model.shows and model.recipe["command"]


def test_data_in_a_wheel_comes_before_a_folder_beside_it(installed: Path) -> None:
    beside = installed.parent / "data"
    beside.mkdir()
    assert data_dir() == beside
    inside = installed / "_data"
    inside.mkdir()
    assert data_dir() == inside


def test_a_broken_installation_says_so(installed: Path) -> None:
    with pytest.raises(ResultError, match="neither exists; install sinklens again"):
        data_dir()


def test_a_model_is_a_folder_with_a_recipe(installed: Path) -> None:
    models = installed / "_data" / "models"
    for name, files in {
        "b": {"recipe.json": {"shows": "x"}, "measured.json": {"loss": 1}},
        "a": {"recipe.json": {}},
        "training": {"other.json": {}},
    }.items():
        (models / name).mkdir(parents=True)
        for file, content in files.items():
            (models / name / file).write_text(json.dumps(content))
    found = builtin_models()
    assert list(found) == ["a", "b"]
    assert found["b"].shows == "x" and found["b"].measured == {"loss": 1} and found["b"].recipe == {"shows": "x"}
    assert found["a"].shows == "" and found["a"].measured == {} and found["a"].path == models / "a"
