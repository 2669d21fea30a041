"""Figures for a paper: their size, their text as a browser measures it, and what is left of them in grey."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.colors
import plotly.graph_objects as go
import pytest

import sinklens.plots
from sinklens import plots
from sinklens.errors import InputError
from sinklens.plots.axes import light_grid
from sinklens.plots.draws import FIGURES
from sinklens.plots.marks import add_cells, add_line
from sinklens.plots.print_layout import INCHES, PIXELS, PrintWidth, for_print
from sinklens.plots.style import CATEGORICAL, new_figure, signed_colours
from tests.app.browser import Browser
from tests.plots.synthetic import synthetic_census
from tests.plots.test_plain_results import REGISTERED, SPECIAL, made
from tests.plots.text_boxes import TextBoxes

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("plain_results")]
CROWDED = {"retrieval_join"}
"""Names of marks stand on each other where the marks do."""


def figures(name: str) -> Iterator[go.Figure]:
    for kind in FIGURES[name].of:
        drawn = getattr(sinklens.plots, name)(made(name if name in SPECIAL else kind))
        if isinstance(drawn, go.Figure):
            yield drawn


@pytest.fixture(scope="module")
def boxes(requires_chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextBoxes]:
    folder = tmp_path_factory.mktemp("boxes")
    with Browser(requires_chromium, folder / "profile") as browser:
        yield TextBoxes(browser, folder)


@pytest.mark.browser
def test_the_measure_finds_what_is_cut_small_and_written_over(boxes: TextBoxes) -> None:
    fig = new_figure("A title " * 40)
    fig.add_scatter(x=[0, 1], y=[0, 1], name="a")
    fig.add_annotation(text="tiny", font={"size": 8}, x=0.5, y=0.2, showarrow=False)
    fig.add_annotation(text="one", x=0.5, y=0.5, showarrow=False)
    fig.add_annotation(text="two", x=0.5, y=0.5, showarrow=False)
    assert {fault[0] for fault in boxes.faults(fig)} == {"cut", "small", "over"}
    assert boxes.faults(new_figure("A title")) == []


@pytest.mark.browser
@pytest.mark.parametrize("name", REGISTERED)
def test_no_text_is_cut_off_small_or_written_over(boxes: TextBoxes, name: str) -> None:
    for fig in figures(name):
        fits = {"page": for_print(fig, "page"), "screen": fig}
        if (fig.layout.meta or {}).get("least_width") != "page":
            fits["column"] = for_print(fig, "column")
        for width, drawn in fits.items():
            faults = [fault for fault in boxes.faults(drawn) if fault[0] != "over" or name not in CROWDED]
            assert not faults, (width, faults)


# ------------------------------------------------------------------ without a browser
def lines(names: list[str]) -> go.Figure:
    fig = new_figure("Lines", "A note that is long enough to be wrapped to several lines in a column. " * 2)
    for place, name in enumerate(names):
        add_line(fig, [0, 1, 2], [place, place + 1, place], name, CATEGORICAL[place], symbol="circle")
    fig.update_layout(xaxis=light_grid())
    return fig


def grey(colour: str) -> float:
    red, green, blue = plotly.colors.hex_to_rgb(colour)
    return float((0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255)


@pytest.mark.parametrize("width", ["column", "page"])
def test_a_print_keeps_data_and_words_and_leaves_the_figure_alone(width: PrintWidth) -> None:
    fig = lines(["one", "two"])
    before = fig.to_json()
    out = for_print(fig, width)
    assert fig.to_json() == before and out.layout.width == PIXELS[width]
    assert [(list(trace.x), list(trace.y), trace.name) for trace in out.data] == [
        (list(trace.x), list(trace.y), trace.name) for trace in fig.data
    ]
    words = [re.sub(r"<[^>]+>", " ", one.layout.title.text).split() for one in (fig, out)]
    assert words[0] == words[1]
    plot = [one.layout.height - one.layout.margin.t - one.layout.margin.b for one in (fig, out)]
    assert plot[0] == plot[1]  # what the words need is added


def test_what_differs_in_colour_differs_in_grey_or_in_shape() -> None:
    out = for_print(lines(list("abcdefgh")), "page")
    assert len({trace.marker.symbol for trace in out.data}) == len(out.data) == len(CATEGORICAL)
    bars = new_figure("Bars")
    for place, colour in enumerate(CATEGORICAL):
        bars.add_bar(x=[0], y=[1], name=str(place), marker={"color": colour})
    looks = [(trace.marker.color, trace.marker.pattern.shape) for trace in for_print(bars, "page").data]
    assert len({shape for _, shape in looks[1:]}) == len(CATEGORICAL) - 1
    assert abs(grey(looks[0][0]) - grey(looks[1][0])) > 0.35


def test_signed_colours_run_from_dark_to_light() -> None:
    fig = new_figure("Cells")
    add_cells(fig, [[-1.0, 1.0]], [["a", "b"]], **signed_colours(1.0))
    scale = for_print(fig, "page").data[0]
    assert (scale.zmin, scale.zmax) == (-1, 1) and scale.zmid is None
    shades = [grey(colour) for _, colour in scale.colorscale]
    assert shades == sorted(shades) and shades[-1] - shades[0] > 0.6


def test_a_token_stays_text_when_it_is_wrapped() -> None:
    fig = new_figure("<b> &amp; " * 30, "<i> & " * 60)
    out = for_print(fig, "column").layout.title.text
    assert "<b>" not in out and "<i>" not in out and "&lt;b&gt;" in out and "&amp;amp;" in out


def test_what_does_not_fit_a_column_and_other_widths_are_refused(tmp_path: Path) -> None:
    fig = plots.residual_peaks(synthetic_census(16).tables["layers"])
    for width, message in (("broad", "width is a number of pixels, 'column' or 'page', not 'broad'"),):
        wrong: Any = width
        with pytest.raises(InputError, match=message):
            plots.save_figure(fig, tmp_path / "a.png", width=wrong)
    fig.update_layout(meta={"least_width": "page"})
    with pytest.raises(InputError, match="does not fit a column; use width='page'"):
        plots.save_figure(fig, tmp_path / "a.png", width="column")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
def test_pictures_have_the_size_of_the_paper(tmp_path: Path, requires_chromium: str) -> None:
    pytest.importorskip("kaleido", reason="needs the export extra")
    fig = plots.residual_peaks(synthetic_census(16).tables["layers"])
    plots.save_figure(fig, tmp_path / "a.png", width="column", formats=("pdf",))
    png, pdf = (tmp_path / "a.png").read_bytes(), (tmp_path / "a.pdf").read_bytes()
    assert int.from_bytes(png[16:20], "big") == pytest.approx(300 * INCHES["column"], abs=2)
    box = re.search(rb"MediaBox ?\[0 0 ([\d.]+)", pdf)
    assert box is not None and float(box[1]) == pytest.approx(72 * INCHES["column"], abs=2)
