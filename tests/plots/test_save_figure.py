import importlib.util
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.errors import InputError, ResultError
from sinklens.plots.save_figure import Saving, save_figures
from tests.plots.synthetic import CLOSING, EVIL, synthetic_census

TABLE = pd.DataFrame({"token": [" the", EVIL, '"', ","], "value": [0.1, float("nan"), 1 / 3, 2.0]})


@pytest.fixture
def fig() -> go.Figure:
    return plots.residual_peaks(synthetic_census(16).tables["layers"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def without_kaleido(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "kaleido" else find(name, *rest)
    )


def test_html_is_self_contained_and_keeps_the_share_button_off(fig: go.Figure, tmp_path: Path) -> None:
    assert plots.save_figure(fig, tmp_path / "a.html") == [tmp_path / "a.html"]
    text = (tmp_path / "a.html").read_text("utf-8")
    assert '"showSendToCloud": false' in text and "<script src=" not in text
    assert "<title>Residual norm of position 0 against the other tokens</title>" in text
    assert text.index('charset="utf-8"') < 1024
    assert names(tmp_path) == ["a.html"]


def test_the_same_figure_gives_the_same_file(fig: go.Figure, tmp_path: Path) -> None:
    plots.save_figure(fig, tmp_path / "a")
    plots.save_figure(fig, tmp_path / "b")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_table_and_provenance_lie_beside_it(fig: go.Figure, tmp_path: Path) -> None:
    meta = {"model": f"x{CLOSING}<!--&", "eps": 0.3}
    written = plots.save_figure(fig, tmp_path / "a.html", TABLE, provenance=meta)
    assert [path.name for path in written] == ["a.html", "a.csv", "a.json"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv", dtype={"token": "str"}), TABLE)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == meta
    page = (tmp_path / "a.html").read_text("utf-8")
    block = page.split('<script type="application/json" id="provenance">', 1)[1].split("</script>", 1)[0]
    assert json.loads(block) == meta and not {*block} & {*"<>&"}


def test_no_token_can_end_the_script(tmp_path: Path) -> None:
    plain, evil = (go.Figure(go.Scatter(x=[0], y=[0], text=[token])) for token in ("the", CLOSING))
    for name, one in (("plain", plain), ("evil", evil)):
        plots.save_figure(one, tmp_path / name, shared_js=True)
    pages = [(tmp_path / f"{name}.html").read_text("utf-8") for name in ("plain", "evil")]
    assert pages[0].count("</script") == pages[1].count("</script")


def test_a_result_is_a_table(fig: go.Figure, tmp_path: Path) -> None:
    plots.save_figure(fig, tmp_path / "a", SimpleNamespace(to_dataframe=lambda: TABLE))
    assert len(pd.read_csv(tmp_path / "a.csv")) == len(TABLE)


def test_many_files_share_one_library(fig: go.Figure, tmp_path: Path) -> None:
    written = save_figures([Saving(fig, tmp_path / name, shared_js=True) for name in ("a", "b")])
    assert [path.name for path in written] == ["a.html", "plotly.min.js", "b.html"]
    assert all((tmp_path / f"{name}.html").stat().st_size < 100_000 for name in "ab")
    assert 'src="plotly.min.js"' in (tmp_path / "a.html").read_text("utf-8")


def test_a_dot_in_a_name_is_no_suffix(fig: go.Figure, tmp_path: Path) -> None:
    plots.save_figure(fig, tmp_path / "model-1.5", TABLE)
    plots.save_figure(fig, tmp_path / "model-2.5.html")
    assert names(tmp_path) == ["model-1.5.csv", "model-1.5.html", "model-2.5.html"]


def test_a_failed_write_leaves_nothing(fig: go.Figure, tmp_path: Path) -> None:
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(ResultError, match="taken"):
        plots.save_figure(fig, tmp_path / "taken")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="file"):
        plots.save_figure(fig, tmp_path / "file" / "a")
    assert names(tmp_path) == ["file", "taken.html"]


@pytest.mark.parametrize(
    ("path", "formats", "message"),
    [("a.jpg", (), r"not as \.jpg"), ("a", ("webp",), "not as webp"), ("a.html", ("png", "eps"), "not as eps")],
)
def test_other_formats_are_refused_before_anything_is_written(
    fig: go.Figure, tmp_path: Path, path: str, formats: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plots.save_figure(fig, tmp_path / path, TABLE, formats=formats)
    assert names(tmp_path) == []


def test_without_kaleido_one_sentence_says_what_to_do_and_the_html_is_there(
    fig: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kaleido(monkeypatch)
    with pytest.warns(UserWarning, match=r"PNG needs kaleido.*pip install.*The HTML was written") as caught:
        written = plots.save_figure(fig, tmp_path / "a.png", TABLE)
    assert caught[0].filename == __file__
    assert [path.name for path in written] == ["a.html", "a.csv"] and names(tmp_path) == ["a.csv", "a.html"]


@pytest.mark.parametrize("error", ["ChromeNotFoundError", "BrowserFailedError"])
def test_without_a_browser_one_sentence_says_what_to_do_and_the_html_is_there(
    fig: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    kaleido = pytest.importorskip("kaleido", reason="needs the export extra")
    errors = pytest.importorskip("kaleido.errors")

    def no_browser(*args: object, **kwargs: object) -> None:
        raise getattr(errors, error)("no")

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", no_browser)
    with pytest.warns(UserWarning, match=r"PDF, SVG needs .*Chrome or Chromium.*The HTML was written"):
        plots.save_figure(fig, tmp_path / "a.svg", formats=("pdf",))
    assert names(tmp_path) == ["a.html"]


def test_html_alone_needs_no_browser(fig: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_kaleido(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save_figure(fig, tmp_path / "a.html")


@pytest.mark.browser
def test_pictures_come_from_one_browser(
    fig: go.Figure, tmp_path: Path, requires_chromium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaleido = pytest.importorskip("kaleido", reason="needs the export extra")
    calls = []
    draw = kaleido.write_fig_from_object_sync

    def counted(jobs: list[object], **options: object) -> object:
        calls.append((len(jobs), options["kopts"]))
        return draw(jobs, **options)

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", counted)
    save_figures(
        [
            Saving(fig, tmp_path / "a.png", width=400, height=300, scale=1, formats=("svg",)),
            Saving(fig, tmp_path / "b.pdf", shared_js=True),
        ]
    )
    assert calls == [(3, {"mathjax": False})]  # MathJax would come from the network, and make formulas of tokens
    png = (tmp_path / "a.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20], "big") == 400
    assert int.from_bytes(png[20:24], "big") == 300
    assert b"<svg" in (tmp_path / "a.svg").read_bytes() and (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
