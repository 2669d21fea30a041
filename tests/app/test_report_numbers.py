"""Every number in the report is that of its table: all cells of all its tables, and the tiles, against other code."""

import html
import math
import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens import Census, scan
from sinklens.app.page import column_format, html_table
from sinklens.app.sections import SECTIONS, section_of
from sinklens.app.sections.massive import massive_kinds
from sinklens.detectors.registry import built_in_detectors
from sinklens.plots.style import layer_spans
from tests.studies.dynamics.conftest import CODE, PROSE

SECTION_OF = {
    "sinks": {"sinks", "types"},
    "visible_sinks": {"sinks"},
    "attention_summary": {"roles"},
    "value_drains": {"drains"},
    "residual_peaks": {"peaks"},
    "massive_activations": {"massive", "types"},
    "secondary_sinks": {"secondary"},
    "extreme_tokens": {"types"},
}


@pytest.fixture(scope="module")
def census() -> Census:
    return scan("tiny-llama", {"prose": PROSE, "code": CODE}, max_tokens=32, max_sequences=8)


@pytest.fixture(scope="module")
def page(census: Census, tmp_path_factory: pytest.TempPathFactory) -> str:
    return census.report(tmp_path_factory.mktemp("numbers") / "report.html").read_text("utf-8")


def words(cell: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", cell))


def tables(page: str, anchor: str) -> list[tuple[str, pd.DataFrame]]:
    """Caption and cells of every table of a section."""
    body = re.search(rf'<section id="{anchor}">(.*?)</section>', page, re.DOTALL)
    found = []
    for table in re.findall(r"<table>(.*?)</table>", body[1] if body else "", re.DOTALL):
        caption = re.search(r"<caption>(.*?)</caption>", table)
        head = [words(cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", table)]
        rows = [
            [words(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(<td.*?)</tr>", table, re.DOTALL)
        ]
        found.append((words(caption[1]) if caption else "", pd.DataFrame(rows, columns=head)))
    return found


def agrees(shown: str, value: Any) -> bool:
    """Whether a cell is a value, to half a unit of its last digit."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return shown == "n/a"
    if isinstance(value, bool):
        return shown == ("yes" if value else "no")
    if isinstance(value, str):
        return shown.replace("·", " ").replace("⏎", "\n") == value
    plain = shown.replace(",", "")
    digits, _, exponent = plain.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(plain) - float(value)) <= 0.5000001 * unit and (float(plain) == 0) == (float(value) == 0)


def check(shown: pd.DataFrame, expected: pd.DataFrame, columns: dict[str, str]) -> None:
    """Headings are names of columns; rows come in the order of the expected ones."""
    assert len(shown) == len(expected)
    for heading, name in columns.items():
        pairs = zip(shown[heading], expected[name].astype(object).tolist(), strict=True)
        wrong = [(cell, value) for cell, value in pairs if not agrees(cell, value)]
        assert not wrong, (heading, wrong)


def named(heads: pd.DataFrame) -> pd.DataFrame:
    return heads.assign(name=[f"L{layer}H{head}" for layer, head in heads[["layer", "head"]].to_numpy()])


def test_heads(census: Census, page: str) -> None:
    ((_, shown),) = tables(page, "sinks")
    heads = named(census.tables["heads"]).set_index("name", drop=False)
    assert shown["importance"].astype(float).is_monotonic_decreasing and len(shown) == min(20, len(heads))
    columns = {
        "head": "name", "key": "sink_position", "importance": "importance", "null": "null", "ratio": "ratio",
        "sink rate": "sink_rate", "entropy, nats": "entropy", "its null": "entropy_null", "|v| drain": "drain",
        "logit margin": "delta_logit", "|W_O v| drain": "drain_wo", "missing mass": "missing_mass",
    }  # fmt: skip
    check(shown, heads.loc[shown["head"]], columns)


def test_drains(census: Census, page: str) -> None:
    ((caption, shown),) = tables(page, "drains")
    sinks = named(census.tables["heads"]).query("is_sink").nsmallest(8, "drain_wo")
    assert f"({len(sinks)} of {int(census.tables['heads']['is_sink'].sum())} shown)" in caption
    columns = {"head": "name", "|W_O v|, of the others'": "drain_wo", "|v|, of the others'": "drain"}
    check(shown, sinks, columns | {"importance": "importance", "key": "sink_position"})


def test_peaks(census: Census, page: str) -> None:
    ((caption, shown),) = tables(page, "peaks")
    table = census.tables["peaks"].query("n_peaks > 0")
    for row in shown.to_dict("records"):
        same = table[(table["position"] == int(row["position"])) & (table["layer"] == int(row["layer"]))]
        same = same[[agrees(row["token"], token) for token in same["token"]]]
        assert agrees(row["sequences where it is a peak"], int(same["n_peaks"].iloc[0]))
        assert agrees(row["× median norm"], float(same["peak_ratio"].iloc[0]))
    total = len(table[["position", "token"]].drop_duplicates())
    assert f"({len(shown)} of {total} shown)" in caption


def test_massive_activations_by_channel_and_their_lives(census: Census, page: str) -> None:
    (_, kinds), (_, entries) = tables(page, "massive")
    episodes = census.tables["massive_episodes"].query("not everywhere")
    for row in kinds.to_dict("records"):
        place = episodes["bucket"] == row["place"]
        own = episodes[place & (episodes["criterion"] == row["criterion"])]
        own = own[own["channel"] == int(row["channel"])].sort_values("appears")
        spans = [(r.appears, r.leaves_after) for r in own.itertuples()]
        assert row["layers"] == ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
        assert agrees(row["sequences, at most"], int(own["n_sequences"].max()))
        assert agrees(row["largest |h|"], float(own["peak"].max()))
    for _, rows in kinds.groupby("criterion"):
        assert rows["sequences, at most"].astype(int).is_monotonic_decreasing
    assert not kinds.duplicated(["criterion", "place", "channel"]).any()
    table = census.tables["massive"]
    assert entries["channel"].is_unique  # not twenty rows of one channel
    for row in entries.to_dict("records"):
        own = table[table["channel"] == int(row["channel"])]
        top = own.loc[own["value"].abs().idxmax()]
        assert agrees(row["value"], float(top["value"])) and agrees(row["× median"], float(top["ratio"]))
        assert row["largest after layer"] == ("embed" if top["layer"] < 0 else str(top["layer"]))
        mine = census.tables["massive_episodes"].query("channel == @top.channel")
        alive = {at for r in mine.itertuples() for at in range(r.appears, r.leaves_after + 1)}
        assert row["massive after layers"] == layer_spans(alive)


def test_kinds_join_the_episodes_of_a_channel() -> None:
    columns = ["criterion", "bucket", "channel", "appears", "leaves_after", "n_sequences", "n_of", "peak", "peak_layer"]
    rows = [
        ("absolute", "start", 7, 11, 29, 50, 50, 900.0, 12),
        ("absolute", "start", 7, 1, 9, 40, 50, 100.0, 2),
        ("absolute", "start", 3, 4, 4, 50, 50, 950.0, 4),
        ("absolute", "others", 7, 4, 4, 30, 50, 99.0, 4),
    ]
    table = pd.DataFrame(rows, columns=columns).assign(contrast=5.0, everywhere=False)
    found = massive_kinds(table)
    assert found[["channel", "bucket", "layers", "n_sequences", "peak", "peak_layer"]].to_numpy().tolist() == [
        [3, "start", "4", 50, 950.0, 4], [7, "start", "1-9, 11-29", 50, 900.0, 12], [7, "others", "4", 30, 99.0, 4],
    ]  # fmt: skip
    assert massive_kinds(table.assign(everywhere=True)).empty


def test_token_types_and_domains(census: Census, page: str) -> None:
    (_, classes), (_, tokens) = tables(page, "types")
    table = census.tables["token_types"]
    columns = {
        "tokens": "n_tokens", "sink tokens": "n_sinks", "rate": "sink_rate", "share of sink tokens": "sink_share",
        "share of all tokens (null)": "token_share", "occurrence": "occurrence",
    }  # fmt: skip
    check(classes, table[table["by"] == "class"], columns | {"class": "name"})
    check(tokens, table[table["by"] == "token"].head(15), columns)
    found = tables(page, "domains")
    if found:
        domains = named(census.tables["domains"])
        ((_, shown),) = found
        rows = [
            domains[(domains["name"] == row["head"]) & (domains["domain"] == row["domain"])].iloc[0]
            for row in shown.to_dict("records")
        ]
        check(
            shown,
            pd.DataFrame(rows),
            {"importance": "importance_first", "null": "null_first", "low": "importance_first_difference_low"}
            if "low" in shown
            else {},
        )


def test_layers_and_tiles(census: Census, page: str) -> None:
    ((_, shown),) = tables(page, "layers")
    table = census.tables["layers"].query("layer >= 0")
    check(shown, table, {"layer": "layer", "sink heads": "n_sink_heads", "residual ratio": "resid_ratio"})
    tiles = [words(tile) for tile in re.findall(r'<div class="tile"><b>(.*?)</b>', page)]
    heads = census.tables["heads"]
    assert tiles[0] == f"{int(heads['is_sink'].sum())} of {len(heads)}"
    assert agrees(tiles[1], float(heads["sink_rate_first"].mean()))
    layers = census.tables["layers"]
    assert agrees(tiles[2].removesuffix(" ×"), float(layers["resid_ratio"].max()))
    assert agrees(tiles[3], float(layers["max_abs"].max()))


def test_every_sentence_links_to_the_section_that_shows_it(census: Census, page: str) -> None:
    """Which section a sentence belongs to is told by its words: each detector's must be known."""
    header = page[: page.index("<nav")]
    links = re.findall(r'class="see" href="#(\w+)"', header)
    assert links == [section_of(sentence) for sentence in census.verdict]
    anchors = {section.anchor for section in SECTIONS}
    for kind in built_in_detectors().values():
        if kind.by_default or kind.name in SECTION_OF:
            for sentence in kind().verdict(census.tables, census.meta["settings"]):
                assert section_of(sentence) in SECTION_OF[kind.name] & anchors, sentence


def test_the_page_speaks_of_layers(page: str) -> None:
    body = words(page[: page.index('<section id="definitions"')])
    assert not re.search(r"after blocks?\b", body)


VALUES = st.lists(
    st.one_of(st.just(math.nan), st.floats(1e-9, 1e9), st.floats(-1e4, 1e4), st.integers(-10**6, 10**6).map(float)),
    min_size=1, max_size=6,
)  # fmt: skip


@given(values=VALUES)
def test_a_column_has_one_precision_and_no_value_becomes_0(values: list[float]) -> None:
    frame = pd.DataFrame({"x": pd.Series(values, dtype=float)})
    cells = re.findall(r"<td>(.*?)</td>", html_table(frame, {"x": "x"}))
    spec = column_format(frame["x"])
    for cell, value in zip(cells, values, strict=True):
        shown = words(cell)
        if spec == ".3g" and not math.isnan(value):
            assert float(shown.replace(",", "")) == pytest.approx(value, rel=6e-3)
        else:
            assert agrees(shown, value), (shown, value, spec)
    if spec.endswith("f"):
        decimals = {len(words(cell).partition(".")[2]) for cell in cells if words(cell) != "n/a"}
        assert len(decimals) <= 1
