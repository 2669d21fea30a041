"""What people see of a real model's census, on the small run of SmolLM2 that is committed: no model is needed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.build import build_app
from sinklens.app.dashboard.callbacks.head import head_view
from sinklens.app.dashboard.callbacks.navigate import describe
from sinklens.app.dashboard.differences import differences
from sinklens.app.dashboard.lines import lines_of
from sinklens.app.dashboard.state import State
from sinklens.app.sections.found import section_of
from sinklens.studies import Census
from tests.app.dashboard.screen import Screen, served
from tests.small_run import DATA, RUNS, measured
from tests.studies.census.verdict.test_models import refutations

TEXT, TOKEN = 1, 4


@pytest.fixture(scope="module", params=[*RUNS])
def census(request: pytest.FixtureRequest) -> Census:
    return Census.load(DATA / request.param)


def test_its_licence_lies_beside_it_and_it_is_small() -> None:
    assert "Apache License 2.0" in (DATA / "README.md").read_text("utf-8")
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert sum(sizes) < 1_050_000
    header = (DATA / "smollm2" / "result.json").read_text("utf-8")
    assert "/" not in Census.load(DATA / "smollm2").meta["model"]["path"] and not re.search(r'"/|"[A-Z]:\\', header)


def test_its_sentences_hold(census: Census) -> None:
    assert refutations(census) == []
    assert "attention sink" in census.verdict[0]


def test_its_report_links_every_sentence(census: Census, tmp_path: Path) -> None:
    page = census.report(tmp_path / "report.html").read_text("utf-8")
    links = re.findall(r'class="see" href="#(\w+)"', page[: page.index("<nav")])
    assert links == [section_of(sentence) for sentence in census.verdict]


def test_any_head_on_any_text(census: Census) -> None:
    """Without the model a head has its numbers and each token's strongest key on every text."""
    bench = open_source(census)
    run: Any = bench.run("live-1")
    for sequence in range(2):
        own = census.sequence(sequence)
        for head in ((0, 0), (11, 4), (29, 8)):
            state = State(head=f"L{head[0]}H{head[1]}", of="text", sequence=sequence)
            view = head_view(bench, describe(bench, state)["head-key"])
            assert view.of == f"numbers: text {sequence} of 2"
            lines = lines_of(run, sequence, head)
            assert lines["kind"] in ("top", "map") and len(lines["lines"]) >= own.length - 1
            if lines["kind"] == "top":
                assert own.top_key is not None
                for query, key, weight in lines["lines"]:
                    assert key == own.top_key[query, head[0], head[1]] and 0 < weight <= 1


def test_the_two_runs_differ_in_the_bos_alone() -> None:
    bench = open_source(DATA)
    found = differences(bench.run("smollm2"), bench.run("smollm2-with-bos"))
    assert len(found) == 1 and found[0].startswith("One has a BOS where the other has none")


@pytest.mark.real
@pytest.mark.parametrize("name", [*RUNS])
def test_it_is_what_the_model_gives(smollm2: Any, name: str) -> None:
    kept, now = Census.load(DATA / name), measured(smollm2, name)
    assert [*kept.tables] == [*now.tables]
    for column in ("importance", "null", "entropy"):
        np.testing.assert_allclose(kept.tables["heads"][column], now.tables["heads"][column], rtol=2e-3, atol=1e-4)
    assert kept.tables["tokens"]["token_id"].tolist() == now.tables["tokens"]["token_id"].tolist()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from served(build_app(DATA))


@pytest.mark.browser
def test_a_walk_without_the_model(screen: Screen) -> None:
    """The strongest head at the start, another text, another head by its lines, a token, and the run with a BOS."""
    census = Census.load(DATA / "smollm2")
    table = census.tables["heads"]
    screen.open("?run=smollm2")
    strongest = table[table["is_sink"]].sort_values("importance").iloc[-1]
    screen.says("#head-title", f"L{strongest['layer']}H{strongest['head']}")
    assert census.verdict[0][:40] in screen.value("document.querySelector('#headline').textContent")
    for _ in range(TEXT):
        screen.page.click("#text-after")
    screen.says("#grid-of", f"text {TEXT} of 2")
    screen.click_cell("grid", 3, 20)
    screen.says("#head-title", "L20H3")
    screen.says("#map-note", "start the dashboard with --model")
    screen.page.locator("#look label", has_text="lines").click()
    screen.says("#map-note", "strongest key alone")
    screen.page.click(f"#lines [data-role='query'][data-position='{TOKEN}']")
    screen.says("#token-title", f"Token {TOKEN}:")
    screen.until(f"document.querySelector('#token-of').textContent === 'text {TEXT} of 2'")
    screen.until("document.querySelector('#token-heads .heatmaplayer image')")
    shown = screen.value(
        "[...document.querySelector('#token-heads .js-plotly-plot')._fullData[0].z].map((row) => [...row])"
    )
    own = census.sequence(TEXT)
    np.testing.assert_allclose(np.asarray(shown, dtype=float), own.importance[TOKEN], rtol=1e-5)
    screen.choose("compare", "smollm2-with-bos")
    screen.says("#headline", "Not like with like")
    screen.says("#differ", "One has a BOS where the other has none")
    assert "texts differ" not in screen.value("document.querySelector('#differ').textContent")
    screen.until("document.querySelectorAll('#pair .heatmaplayer image').length === 3")
