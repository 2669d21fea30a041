"""Real clicks in a headless Chromium: from the overview to one head on one token, and everything that can go wrong."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinklens.app.dashboard.build import build_app
from tests.app.dashboard.screen import Screen, served

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hit = 1</script> <img src=x onerror='window.hit = 2'> <b>bold</b> &amp; %{x} $y$ </script> "
    "the king is dead, long live the king, and the queen is dead too"
)


@pytest.fixture(scope="module")
def address(saved: Path) -> Iterator[str]:
    yield from served(build_app(saved, device="cpu"))


def test_three_clicks_from_the_overview_to_one_head_on_one_token(screen: Screen) -> None:
    screen.open("?run=tiny")
    screen.says("#headline", "attention sink")
    screen.click_cell("grid", 3, 0)
    screen.says("#head-title", "L0H3")
    screen.until("document.querySelector('#map .main-svg')")
    screen.says("#head-facts", "uniform null")
    screen.page.click("#strip [data-position='0']")
    screen.says("#token-title", "Token 0: <s>")
    screen.says("#token-facts", "BOS")
    screen.until("document.querySelector('#token-norm .main-svg') && location.search.includes('token=0')")
    # and back: the figure of heads leads to another head
    screen.click_cell("token-heads", 1, 3)
    screen.says("#head-title", "L3H1")
    assert screen.value("location.search") == "?run=tiny&head=L3H1&token=0"
    # the frame moved with it
    framed = "document.querySelector('#grid .js-plotly-plot').layout.shapes.map((s) => [s.x0 + 0.5, s.y0 + 0.5])"
    screen.until(f"JSON.stringify({framed}) === '[[1,3],[1,3]]'")


def test_the_keyboard_is_enough(screen: Screen) -> None:
    screen.open("?run=tiny&head=L0H3&token=0")
    screen.until("document.querySelector('#strip .chosen')")
    screen.page.focus("#strip .chosen")
    screen.page.keyboard.press("ArrowRight")
    screen.page.keyboard.press("ArrowRight")
    screen.page.keyboard.press("Enter")
    screen.says("#token-title", "Token 2")
    screen.page.focus("#grid-keys")
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        screen.page.keyboard.press(key)
    screen.says("#head-title", "L2H2")
    screen.page.click("#head-after")
    screen.says("#head-title", "L2H3")
    unnamed = screen.value(
        "[...document.querySelectorAll('button, input:not([type=file]), textarea, [role=listbox]')]"
        ".filter((part) => part.offsetParent "
        "&& !(part.ariaLabel || part.textContent || part.placeholder || part.closest('label') || part.title))"
        ".map((part) => part.outerHTML)"
    )
    assert unnamed == []
    pictures = screen.value("[...document.querySelectorAll('.dash-graph')].map((g) => g.parentElement.ariaLabel)")
    assert len(pictures) >= 4 and all(len(said) > 10 for said in pictures)


def test_the_first_screen_is_full_and_says_what_is_a_mean(screen: Screen) -> None:
    screen.open("?run=tiny")
    for part in ("#map .main-svg", "#strip .chosen", "#positions .main-svg", "#token-norm .main-svg"):
        screen.until(f"document.querySelector('{part}')")
    said = {part: screen.value(f"document.querySelector('#{part}-of').textContent") for part in OF}
    assert said == OF
    screen.page.click("#text-after")
    screen.until("document.querySelector('#grid-of').textContent === 'text 1 of 3'")
    screen.says("#head-of", "text 1 of 3")
    screen.says("#positions-of", "text 1 of 3")
    screen.says("#grid-title", "Importance")
    screen.page.locator("#of label", has_text="mean over 3").click()
    screen.says("#grid-of", "mean over 3 texts")
    assert screen.value("document.querySelector('#text-of').textContent") == "text 1 of 3"


OF = {
    "grid": "mean over 3 texts", "head": "numbers: mean over 3 texts", "positions": "mean over 3 texts",
    "text": "text 0 of 3", "token": "text 0 of 3",
}  # fmt: skip


def test_lines_lead_from_token_to_token(screen: Screen) -> None:
    screen.open("?run=tiny&head=L0H3&token=5&look=lines&of=text&sequence=2")
    screen.until("document.querySelector('#lines .chosen')")
    assert screen.value("document.querySelectorAll('#lines line').length") == 1  # its strongest key alone is kept
    screen.page.click("#maps")  # the model computes all
    screen.says("#map-note", "Lines show every weight")
    screen.until("document.querySelectorAll('#lines line').length > 1")
    total = "[...document.querySelectorAll('#lines line')].reduce((sum, line) => sum + Number(line.dataset.weight), 0)"
    assert abs(screen.value(total) - 1) < 0.02  # all that token 5 reads
    screen.page.click("#lines [data-role='key'][data-position='0']")
    screen.until(
        "location.search.includes('role=key') && document.querySelector('#token-title').textContent[6] === '0'"
    )
    assert screen.value("document.querySelectorAll('#lines line').length") > 40
    # another text: its maps come by themselves now, and those of the whole layer with them
    screen.page.click("#text-before")
    screen.says("#map-note", "Text 1. Lines show every weight")
    screen.page.locator("#look label", has_text="layer").click()
    screen.until("document.querySelector('#layer .main-svg')")
    screen.click_cell("layer", 10, 10)
    screen.says("#head-title", "L0H0")


def test_an_intervention_is_tried_and_a_reload_finds_the_same_state(screen: Screen) -> None:
    screen.open("?run=tiny&head=L0H3&token=0")
    screen.until("document.querySelector('#token-heads .main-svg')")  # it stands above, and moves the list down
    screen.page.click("#computing summary")
    screen.choose("method", "ScaleKeys")
    screen.until("location.search.includes('method=ScaleKeys') && document.querySelector('.fields')")
    screen.page.fill(".fields .labelled:has(span:text('gamma')) input", "0.3162")
    screen.page.keyboard.press("Enter")
    screen.until("location.search.includes('f.gamma=0.3162')")
    screen.page.click("#compute")
    screen.until("location.search.includes('compare=live-')")
    screen.says("#headline", "ScaleKeys(keys=0, gamma=0.3162)")
    screen.says("#headline", "5 random sets of as many other positions")
    screen.says("#history", "ScaleKeys(keys=0, gamma=0.3162)")
    screen.says("#python", "measure_effects(model")
    panels = "document.querySelector('#pair .js-plotly-plot').data.filter((t) => t.type === 'heatmap').length"
    screen.until(f"{panels} === 3")
    screen.until("document.querySelector('#map-b .main-svg')")
    assert not screen.value("document.querySelector('#differ')")  # the same tokens: nothing to warn of
    before = _shown(screen)
    assert before["head"] == "L0H3" and "ScaleKeys" in before["compare"] and before["gamma"] == "0.3162"
    screen.page.reload()
    screen.until(f"document.querySelector('#pair .js-plotly-plot') && {panels} === 3")
    screen.until("document.querySelector('#token-title').textContent.includes('Token 0')")
    screen.until("document.querySelector('#map-b .main-svg') && document.querySelector('.fields')")
    assert _shown(screen) == before
    # back in the browser's history is back on the page
    screen.choose("score", "Entropy")
    screen.until("location.search.includes('score=entropy')")
    screen.page.go_back()
    screen.until("document.querySelector('#score-value').textContent.includes('Sink rate')")


def _shown(screen: Screen) -> dict[str, str]:
    read = {
        "run": "#run-value", "compare": "#compare-value", "score": "#score-value", "head": "#head-title",
        "token": "#token-title",
    }  # fmt: skip
    found = {name: screen.value(f"document.querySelector('{where}').textContent") for name, where in read.items()}
    gamma = screen.value("document.querySelectorAll('.fields input')[1].value")
    return found | {"address": screen.value("location.search"), "gamma": gamma}


def test_two_results_are_chosen_and_compared(screen: Screen) -> None:
    screen.open("?run=tiny")
    screen.choose("compare", "made-up")
    screen.says("#grid-note", "different shapes")
    screen.choose("score", "Entropy")
    screen.says("#grid-title", "Entropy")
    scales = "document.querySelector('#pair .js-plotly-plot').data.map((t) => [t.zmin, t.zmax].join())"
    screen.until(f"new Set({scales}).size === 1 && {scales}.length === 2")


def test_a_damaged_result_is_said_and_the_page_lives_on(screen: Screen) -> None:
    screen.open("?run=tiny&head=L0H3")
    screen.choose("run", "broken")
    screen.until("document.querySelector('#grid') && document.querySelector('#grid').textContent.includes('damaged')")
    screen.choose("run", "tiny")
    screen.says("#grid-title", "Sink rate")
    screen.until("document.querySelector('#grid .js-plotly-plot').data.length > 0")


def test_a_text_full_of_markup_is_text(screen: Screen) -> None:
    screen.open("?run=tiny")
    screen.page.click("#computing summary")
    screen.page.fill("#text", HOSTILE)
    screen.page.click("#compute")
    screen.until("location.search.includes('run=live-')")
    shown = "[...document.querySelectorAll('#strip [data-position]')].map((s) => s.textContent).join('')"
    screen.until(f"{shown}.includes('script')")
    assert screen.value(shown) == "<s>" + HOSTILE.replace(" ", "·")
    screen.page.click("#strip [data-position='1']")
    screen.until("document.querySelector('#token-title').textContent.startsWith('Token 1')")
    screen.click_cell("grid", 0, 0)
    screen.until("document.querySelector('#map .main-svg')")
    assert screen.value("window.hit === undefined && !document.querySelector('#strip b, #strip img, main img[src=x]')")
    assert screen.value("document.querySelectorAll('#run-value b, .headline img').length") == 0


def test_a_bad_file_and_a_long_text_are_refused(screen: Screen, tmp_path: Path) -> None:
    screen.open("?run=tiny")
    screen.page.click("#computing summary")
    bad = tmp_path / "<b>bad.txt"
    bad.write_bytes(b"\xff\xfe\x00 not text")
    screen.page.set_input_files("#upload input[type=file]", bad)
    screen.says("#message", "<b>bad.txt is not a UTF-8 text")
    good = tmp_path / "good.txt"
    good.write_text("<i>stand</i> and unfold yourself " * 400)
    screen.page.set_input_files("#upload input[type=file]", good)
    screen.until("document.querySelector('#text').value.startsWith('<i>stand')")
    screen.page.click("#compute")
    screen.says("#message", "up to 512 with this model")
    assert screen.value("document.querySelectorAll('#message b, #message i').length") == 0
    screen.page.fill("#text", "the king is dead, long live the king, and the queen " * 3)
    screen.page.click("#compute")
    screen.until("location.search.includes('run=live-')")
    screen.until("document.querySelector('#message').textContent === ''")


def test_what_is_shown_can_be_saved(screen: Screen) -> None:
    screen.open("?run=tiny&head=L0H3&token=0")
    screen.until("document.querySelector('#map .main-svg')")
    for card, form, start in (
        ("grid", "CSV", b"layer,head"),
        ("head", "HTML", b"<!DOCTYPE"),
        ("grid", "PNG", b"\x89PNG"),
    ):
        with screen.page.expect_download() as waiting:
            screen.page.locator(f"#{card}-card button", has_text=re.compile(f"^{form}$")).click()
        path = waiting.value.path()
        assert Path(path).read_bytes().startswith(start), (card, form)
