import pytest

from sinklens.plots.axes import log_axis, log_ticks, thinned
from sinklens.plots.style import CATEGORICAL, CONFIG, layer_list, new_figure, number, token_label, visible_text
from tests.plots.synthetic import EVIL


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "·the"),
        ("\n", "⏎"),
        ("\r\n\t", "␍⏎⇥"),
        ("", "∅"),
        ("\u200b", "U+200B"),
        ("\u202eabc", "U+202Eabc"),
        ("\u00a0x\u3000", "⍽x␣"),
        ("\ud83d", "U+D83D"),
        ("\u0301", "◌\u0301"),
        ("né", "né"),
    ],
)
def test_nothing_in_a_token_stays_invisible(token: str, shown: str) -> None:
    assert visible_text(token) == shown


def test_labels_are_escaped_after_they_are_cut() -> None:
    assert token_label(EVIL) == "&lt;script&gt;ale…"
    assert token_label("&" * 40, limit=5) == "&amp;" * 4 + "…"
    # Plotly shows &quot; as it stands.
    assert token_label("\"'") == "\"'"


def test_nothing_can_be_uploaded_from_a_figure() -> None:
    assert CONFIG["showSendToCloud"] is False
    assert CONFIG["typesetMath"] is False


def test_missing_numbers_are_not_zeros() -> None:
    assert number(None) == number(float("nan")) == "n/a"
    assert number(0.0) == "0"


def test_layer_list() -> None:
    assert layer_list([]) == "layer "
    assert layer_list([4, 5]) == "layers 4, 5"
    assert layer_list([9, 0, 1, 2]) == "layers 0-2, 9"


@pytest.mark.parametrize(("low", "high"), [(1e-5, 3.0), (9.0, 11.0), (1.0, 1.01), (0.5, 2000.0)])
def test_log_scales_have_labels_within_their_range(low: float, high: float) -> None:
    values, labels = log_ticks(low, high)
    assert len(values) == len(labels) == len(set(labels))
    assert all(low * 0.999 <= value <= high * 1.001 for value in values)


def test_log_axis_survives_zeros_and_a_single_value() -> None:
    assert log_axis([0.0, float("nan")])["type"] == "log"
    low, high = log_axis([5.0, 5.0])["range"]
    assert low < high


def test_thinned() -> None:
    assert thinned(5, 64) == [0, 1, 2, 3, 4]
    assert len(thinned(1000, 64)) <= 64
    assert thinned(0, 8) == []


def test_titles_are_escaped_and_subtitles_wrapped() -> None:
    fig = new_figure("<b>", "word " * 60)
    assert fig.layout.title.text.startswith("&lt;b&gt;<br>")
    assert fig.layout.title.text.count("<br>") >= 3


def test_colours_are_distinct() -> None:
    assert len(set(CATEGORICAL)) == len(CATEGORICAL)
