"""The walk of a new user on a real language model: a text, a head, a token, an intervention, two runs compared.

With ``SINKLENS_SCREENSHOTS=DIR`` the screens are kept there, for the documentation.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinklens.app.dashboard.build import build_app
from sinklens.studies import Census, scan
from tests.app.dashboard.screen import Screen, opened, served

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.browser, pytest.mark.real]

TEXT, TOKEN = 2, 6


@pytest.fixture(scope="module")
def runs(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs of SmolLM2: as its tokenizer does, without a BOS, and with one."""
    folder = tmp_path_factory.mktemp("runs")
    scan(smollm2, max_sequences=4).save(folder / "smollm2")
    scan(smollm2, max_sequences=4, bos="yes").save(folder / "smollm2-with-bos")
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, smollm2: Any) -> Iterator[str]:
    yield from served(build_app(runs, models=[smollm2]))


def keep(screen: Screen, name: str, *, top: str = "") -> None:
    """A screenshot for the documentation, where one is asked for."""
    folder = os.environ.get("SINKLENS_SCREENSHOTS")
    if folder:
        screen.value(f"document.querySelector('{top}').scrollIntoView()" if top else "window.scrollTo(0, 0)")
        # where the model lies on this machine is nobody's business
        bare = "c.textContent.replace(/'[^']*[/]/g, \"'\")"
        screen.value(f"document.querySelectorAll('#python code').forEach((c) => {{ c.textContent = {bare}; }})")
        screen.page.set_viewport_size({"width": 1200, "height": 760})
        screen.page.mouse.move(2, 2)
        screen.page.wait_for_timeout(400)
        screen.page.screenshot(path=Path(folder) / f"{name}.png")


def test_a_walk_through_smollm2(screen: Screen, runs: Path) -> None:
    census = Census.load(runs / "smollm2")
    table = census.tables["heads"]
    screen.open("?run=smollm2")
    strongest = table[table["is_sink"]].sort_values("importance").iloc[-1]
    screen.says("#head-title", f"L{strongest['layer']}H{strongest['head']}")
    screen.until("document.querySelector('#map .main-svg') && document.querySelector('#strip .chosen')")
    assert screen.value("document.querySelector('#head-value').textContent") == screen.value(
        "document.querySelector('#head-title').textContent"
    )
    keep(screen, "overview")

    # another text: its maps are computed by themselves, because the model is loaded
    for _ in range(TEXT):
        screen.page.click("#text-after")
    screen.says("#grid-of", f"text {TEXT} of 4")
    screen.says("#map-note", f"Text {TEXT}.")
    screen.page.locator("#look label", has_text="layer").click()
    screen.until("document.querySelector('#layer .main-svg')")
    screen.until("!document.querySelector('#map-note').textContent.includes('Not all')")
    keep(screen, "layer")
    screen.page.locator("#look label", has_text="lines").click()
    screen.says("#map-note", "Lines show every weight")
    screen.page.click(f"#lines [data-role='query'][data-position='{TOKEN}']")
    screen.says("#token-title", f"Token {TOKEN}:")
    keep(screen, "lines")

    # the panel of a token against the rows of that text
    screen.until(f"document.querySelector('#token-of').textContent === 'text {TEXT} of 4'")
    own = census.sequence(TEXT)
    row = census.tables["tokens"].query("sequence == @TEXT and position == @TOKEN").iloc[0]
    facts = screen.value("document.querySelector('#token-facts').textContent")
    assert (
        int(re.search(r"of (\d+) heads", facts)[1]) == int((own.importance[TOKEN] > 0.3).sum()) == row["n_sink_heads"]
    )  # type: ignore[index]
    screen.until("document.querySelector('#token-heads .heatmaplayer image')")
    full = "document.querySelector('#{} .js-plotly-plot')._fullData".format
    shown = screen.value(f"[...{full('token-heads')}[0].z].map((row) => [...row])")
    np.testing.assert_allclose(np.asarray(shown, dtype=float), own.importance[TOKEN], rtol=1e-5)
    norms = screen.value(f"[...{full('token-norm')}.find((trace) => trace.name === 'this token').y]")
    np.testing.assert_allclose(np.asarray(norms, dtype=float), own.resid_norm[TOKEN], rtol=1e-5)  # type: ignore[index]
    keep(screen, "token", top="#positions-card")


def test_an_intervention_on_smollm2_beside_its_control(screen: Screen) -> None:
    screen.open(f"?run=smollm2&sequence={TEXT}&of=text&method=MaskKeys")
    screen.until("document.querySelector('#computing').open && document.querySelector('.fields')")
    screen.page.click("#compute")
    screen.until("location.search.includes('compare=live-')", 180)
    screen.says("#history", "MaskKeys(keys=0)")
    cells = screen.value("[...document.querySelectorAll('#history tbody tr:first-child td')].map((c) => c.textContent)")
    tested, controls = float(cells[0]), float(cells[1].split(" ")[0])
    assert "5 of as many other positions" in cells[1] and tested > controls  # hiding the sink costs more
    screen.says("#headline", "Controls, 5 random sets of as many other positions")
    assert not screen.value("document.querySelector('#differ')")
    keep(screen, "intervention", top="#computing")
    with screen.page.expect_download() as waiting:
        screen.page.locator("#history button", has_text=re.compile("^JSON$")).click()
    content = json.loads(Path(waiting.value.path()).read_text("utf-8"))
    assert content["trials"][0]["intervention"]["intervention"]["kind"] == "MaskKeys"
    before = screen.value("location.search")
    screen.page.reload()
    screen.until("document.querySelector('#pair .main-svg') && document.querySelector('#computing').open")
    assert screen.value("location.search") == before


def test_runs_that_differ_are_said_to_differ(screen: Screen) -> None:
    screen.open("?run=smollm2")
    screen.choose("compare", "smollm2-with-bos")
    screen.says("#headline", "Not like with like")
    screen.says("#differ", "One has a BOS where the other has none")
    screen.until("document.querySelectorAll('#pair .heatmaplayer image').length === 3")
    names = "[...document.querySelector('#positions .js-plotly-plot').data].map((t) => t.name)"
    screen.until(f"{names}.includes('B attention received')")
    keep(screen, "compare")


def test_a_dark_page_where_the_system_asks_for_one(
    chrome: Any, address: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for screen in opened(chrome, address, tmp_path, request, color_scheme="dark"):
        screen.open("?run=smollm2")
        screen.until("document.querySelector('#map .main-svg') && document.querySelector('#strip .chosen')")
        luminance = (
            "(part, what) => { const style = getComputedStyle(document.querySelector(part));"
            "const c = style[what].match(/[\\d.]+/g).map(Number); "
            "return (0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]) / 255; }"
        )
        for part in ("body", ".card", "header"):
            assert screen.value(f"({luminance})('{part}', 'backgroundColor')") < 0.25, part
        for part in ("h2", ".note", "#strip-legend"):
            assert screen.value(f"({luminance})('{part}', 'color')") > 0.5, part
        for part in ("#grid .xtick text", "#positions .ytick text"):
            screen.until(f"document.querySelector('{part}')")
            assert screen.value(f"({luminance})('{part}', 'fill')") > 0.5, part
        keep(screen, "dark")
