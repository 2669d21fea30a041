from pathlib import Path

import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.errors import MissingExtraError, ResultError
from tests.plots.synthetic import synthetic_census


@pytest.fixture
def fig() -> go.Figure:
    return plots.residual_peaks(synthetic_census(16).tables["layers"])


def test_html_is_self_contained_and_keeps_the_share_button_off(fig: go.Figure, tmp_path: Path) -> None:
    path = plots.export_html(fig, tmp_path / "a.html")
    text = path.read_text("utf-8")
    assert '"showSendToCloud": false' in text and "<script src=" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_a_failed_write_leaves_nothing(fig: go.Figure, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ResultError, match="taken"):
        plots.export_html(fig, tmp_path / "taken")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="file"):
        plots.export_html(fig, tmp_path / "file" / "a.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"]


def test_without_kaleido_one_sentence_says_what_to_do(
    fig: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*export_html"):
        plots.export_png(fig, tmp_path / "a.png")


def test_without_a_browser_one_sentence_says_what_to_do(
    fig: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = pytest.importorskip("kaleido.errors", reason="needs the export extra")

    def no_browser(*args: object, **kwargs: object) -> bytes:
        raise errors.ChromeNotFoundError

    monkeypatch.setattr(go.Figure, "to_image", no_browser)
    with pytest.raises(MissingExtraError, match=r"Chrome or Chromium.*export_html"):
        plots.export_png(fig, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_png(fig: go.Figure, tmp_path: Path, requires_chromium: str) -> None:
    pytest.importorskip("kaleido", reason="needs the export extra")
    path = plots.export_png(fig, tmp_path / "a.png", width=400, scale=1)
    assert path.read_bytes().startswith(b"\x89PNG")
