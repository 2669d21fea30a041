"""Sections of the scan report on domains, secondary sinks, alignment and compression: there when measured, else not."""

import re
from pathlib import Path

import pandas as pd
import pytest

from sinklens import Census, scan
from sinklens.app.sections import SECTIONS
from tests.app.browser import Browser
from tests.plots.synthetic import EVIL, synthetic_census
from tests.studies.dynamics.conftest import CODE, PROSE

ANCHORS = {
    "domains": "domains",
    "token_types": "types",
    "secondary_sinks": "secondary",
    "decorrelation": "direction",
    "compression": "compression",
}


@pytest.fixture(scope="module")
def census() -> Census:
    detectors = ("sinks", "residual_peaks", "secondary_sinks", "decorrelation", "compression")
    texts = {"prose": PROSE, EVIL: CODE}
    return scan("tiny-llama", texts, max_tokens=32, split=True, max_sequences=8, detectors=detectors)


@pytest.fixture(scope="module")
def page(census: Census, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return census.report(tmp_path_factory.mktemp("sections") / "report.html")


def section(text: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}">(.*?)</section>', text, re.DOTALL)
    return "" if found is None else found[1]


def test_every_measured_section_is_there_and_linked(census: Census, page: Path) -> None:
    text = page.read_text("utf-8")
    for table, anchor in ANCHORS.items():
        assert table in census.tables and f'href="#{anchor}"' in text and section(text, anchor)
    for name in ("domains", "decorrelation", "compression"):
        assert f'id="fig-{name}-data"' in text and f'data-table="{name}"' in section(text, ANCHORS[name])
    assert 'id="fig-token-types-data"' in text
    shown = section(text, "domains")
    table = census.tables["domains"]
    counts = table.groupby("domain", sort=False)["is_sink_first"].sum()
    assert f"Position 0 is a sink for {counts['prose']} of 16 heads on prose" in shown
    assert EVIL not in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    low, high = table["importance_first_difference_low"], table["importance_first_difference_high"]
    differing = ((low > 0) | (high < 0)) & (table["domain"] == "prose")
    assert shown.count("<tr>") - 1 == min(20, int(differing.sum()))


@pytest.mark.parametrize("table", list(ANCHORS))
def test_nothing_is_shown_of_what_was_not_measured(census: Census, tmp_path: Path, table: str) -> None:
    tables = {name: frame for name, frame in census.tables.items() if name != table}
    text = Census(census.meta, tables).report(tmp_path / "report.html").read_text("utf-8")
    assert f'id="{ANCHORS[table]}"' not in text and f'href="#{ANCHORS[table]}"' not in text
    for other, anchor in ANCHORS.items():
        assert other == table or f'id="{anchor}"' in text


def test_an_older_census_has_none_of_them(tmp_path: Path) -> None:
    text = synthetic_census().report(tmp_path / "report.html").read_text("utf-8")
    assert not any(f'id="{anchor}"' in text for anchor in ANCHORS.values())
    assert all(entry.optional == (entry.anchor in ANCHORS.values()) for entry in SECTIONS)


def test_secondary_sinks_come_first_in_their_table(census: Census, tmp_path: Path) -> None:
    columns = census.tables["secondary_sinks"].columns
    rows = [
        {
            "label": label,
            "token": token,
            "position": place + 3,
            "importance_max": 0.1 * place,
            "first_layer": 1,
            "life": 2,
        }
        for place, (label, token) in enumerate(
            [("noise", "a"), ("secondary", EVIL), ("bos_sink", "c"), ("secondary", "d")]
        )
    ]
    table = pd.DataFrame(rows).reindex(columns=columns)
    changed = Census(census.meta, census.tables | {"secondary_sinks": table})
    shown = section(changed.report(tmp_path / "report.html").read_text("utf-8"), "secondary")
    places = [shown.index(f">{place}<") for place in (6, 4, 5, 3)]
    assert places == sorted(places) and EVIL not in shown and "&lt;script&gt;" in shown


def test_no_secondary_sink_is_said(census: Census, tmp_path: Path) -> None:
    empty = census.tables["secondary_sinks"].iloc[:0]
    changed = Census(census.meta, census.tables | {"secondary_sinks": empty})
    shown = section(changed.report(tmp_path / "report.html").read_text("utf-8"), "secondary")
    assert "Not applicable: no token points along the BOS" in shown and "<table" not in shown


@pytest.mark.browser
def test_they_draw_in_a_browser(page: Path, requires_chromium: str, tmp_path: Path) -> None:
    with Browser(requires_chromium, tmp_path / "profile") as browser:
        browser.open(page)
        for name in ("domains", "decorrelation", "compression"):
            browser.evaluate(f"document.getElementById('fig-{name}').scrollIntoView()")
            browser.wait_for(f"document.querySelector('#fig-{name} .main-svg') !== null")
        assert browser.problems == []
