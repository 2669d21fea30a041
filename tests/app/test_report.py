import base64
import gzip
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from sinklens.app.sections import SECTIONS, source
from sinklens.errors import ResultError
from sinklens.studies.census.result import Census
from tests.app.browser import Browser
from tests.plots.synthetic import EVIL, attentionless_census, synthetic_census


class Page(HTMLParser):
    """Elements, attributes and texts of a page, scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def census() -> Census:
    return synthetic_census()


@pytest.fixture(scope="module")
def path(census: Census, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return census.report(tmp_path_factory.mktemp("report") / "new" / "report.html")


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def test_the_file_is_complete_and_alone(path: Path) -> None:
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 10_000_000
    assert path.read_text("utf-8").endswith("</html>\n")


def test_only_our_scripts_exist(page: Page) -> None:
    kinds = [attributes.get("type") for attributes, _ in page.scripts]
    assert kinds.count(None) == 2  # plotly.js once, and the page's own
    assert set(kinds) == {None, "application/json", "text/plain"}
    assert not any("alert(1)" in text for attributes, text in page.scripts if attributes.get("type") is None)


def test_hostile_tokens_are_text(page: Page) -> None:
    assert EVIL in page.text
    assert "<does not dispatch>" in page.text and "toy-<6>l" in page.text
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
    titles = [attributes["title"] or "" for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert any(EVIL in title for title in titles)


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form"}
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    policy = next(a["content"] or "" for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe-eval" not in policy


def test_every_figure_is_valid_json_with_missing_cells(page: Page) -> None:
    figures = {str(a["id"])[:-5]: json.loads(text) for a, text in page.scripts if str(a.get("id")).endswith("-data")}
    divs = [a for tag, a in page.tags if tag == "div" and a.get("class") == "figure"]
    assert {a["id"] for a in divs} == set(figures)
    assert len(divs) == len(figures) >= 15
    assert all(a["aria-label"] for a in divs)
    config = next(json.loads(text) for a, text in page.scripts if a.get("id") == "plot-config")
    assert config["showSendToCloud"] is False and config["displaylogo"] is False


def test_sections_come_in_order_and_are_linked(page: Page) -> None:
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    links = [str(a["href"])[1:] for tag, a in page.tags if tag == "a"]
    assert sections == [link for link in links if link in sections][-len(sections) :]
    order = ["sinks", "tokens", "drains", "peaks", "massive", "roles", "measured", "provenance"]
    assert [anchor for anchor in sections if anchor in order] == order
    assert sections[0] == "sinks" and sections[-1] == "provenance"


def test_verdict_definitions_and_provenance_are_written(page: Page, census: Census) -> None:
    for sentence in (
        *census.meta["verdict"],
        *census.meta["warnings"],
        census.meta["tokens"]["bos"]["statement"],
    ):
        assert sentence in page.text
    for metric in census.meta["metrics"].values():
        assert metric["definition"] in page.text and metric["source"] in page.text
    assert census.meta["created"] in page.text and '"eps": 0.3' in page.text


def test_not_applicable_is_said(page: Page) -> None:
    assert "not applicable: no attention in this layer" in page.text
    assert "fallback through the model" in page.text
    assert "n/a" in page.text


def embedded(page: Page, name: str) -> pd.DataFrame:
    packed = next(text for a, text in page.scripts if a.get("id") == f"table-{name}")
    csv = gzip.decompress(base64.b64decode(packed)).decode("utf-8")
    return pd.read_csv(io.StringIO(csv), keep_default_na=False, na_values=[""])


def test_every_table_can_be_saved(page: Page, census: Census) -> None:
    buttons = {a["data-table"] for tag, a in page.tags if tag == "button"}
    assert buttons == set(census.tables)
    for name, table in census.tables.items():
        saved = embedded(page, name)
        assert list(saved.columns) == list(table.columns) and len(saved) == len(table)
    assert EVIL in embedded(page, "tokens")["token"].tolist()
    pd.testing.assert_series_equal(
        embedded(page, "heads")["drain"], census.tables["heads"]["drain"], rtol=1e-5, check_dtype=False
    )


def test_a_model_without_attention_never_reads_zero(tmp_path: Path) -> None:
    page = Page(attentionless_census().report(tmp_path / "none.html").read_text("utf-8"))
    assert "Not applicable: no layer of this model has attention." in page.text
    assert "sink heads: not applicable" in page.text
    assert not re.search(r"\b0 of 0\b", page.text)


@pytest.mark.parametrize(
    ("detectors", "tables", "missing"),
    [
        (["sinks"], ["heads", "sinks", "eps_sweep"], {"drain", "drain_wo"}),
        (["value_drains"], [], set()),
        (["massive_activations"], ["massive", "massive_channels", "massive_episodes"], set()),
        (["residual_peaks"], ["residual_norms"], set()),
    ],
)
def test_what_was_not_measured_is_said(
    census: Census, tmp_path: Path, detectors: list[str], tables: list[str], missing: set[str]
) -> None:
    kept = {name: census.tables[name] for name in (*tables, "tokens", "profile", "layers")}
    of = {
        "sinks": "n_sink_heads sink_rate_first",
        "residual_peaks": "resid_norm_first resid_norm_others resid_ratio",
    }
    of["massive_activations"] = "max_abs median_abs max_over_median"
    columns = " ".join(of.get(name, "") for name in detectors).split()
    kept["layers"] = kept["layers"][["layer", "attention", "window", *columns]]
    if "heads" in kept:
        kept["heads"] = kept["heads"].drop(columns=list(missing))
    settings = census.meta["settings"] | {"detectors": detectors}
    small = Census(census.meta | {"settings": settings}, kept)
    page = Page(small.report(tmp_path / "small.html").read_text("utf-8"))
    lacking = [each for each in SECTIONS if not each.optional and not {*each.needs} <= {*kept}]
    said = page.text.count(f"Not measured: this scan ran only the detectors {detectors[0]}.")
    assert said == len(lacking) + 1 + 2 * ("heads" in kept)  # norms of states; inside drains and roles
    assert ("Not measured in this run: drain, drain_wo." in page.text) == bool(missing)
    for each in SECTIONS:
        assert (f"{each.title}: {each.made_by}" in page.text) == (not {*each.needs} <= {*kept})


def test_large_tables_are_cut_and_the_page_says_so(
    census: Census, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MAX_ROWS", 101)
    monkeypatch.setattr(source, "_CUT_ROWS", 100)
    page = Page(census.report(tmp_path / "cut.html").read_text("utf-8"))
    sinks = embedded(page, "sinks")
    assert len(sinks) == 100 and "The 5 most important keys of every head, of 960 rows" in page.text
    top = census.tables["sinks"].groupby(["layer", "head"])["importance"].max()
    assert sinks.groupby(["layer", "head"])["importance"].max().to_numpy() == pytest.approx(top.to_numpy(), rel=1e-5)
    assert "The first 100, of 336 rows" in page.text and "heads.csv 20 rows" in page.text


def test_maps_beyond_the_room_are_named(census: Census, tmp_path: Path) -> None:
    big = replace(census.maps["L2H1"])
    many = Census.of(census.meta, census.tables, {f"L{i}H0": replace(big, layer=i) for i in range(300)})
    page = Page(many.report(tmp_path / "many.html").read_text("utf-8"))
    assert "Left out to keep this file small: L" in page.text and "L299H0" in page.text


def test_a_report_is_replaced_whole_or_not_at_all(census: Census, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    lacking = replace(census, tables={k: v for k, v in census.tables.items() if k != "tokens"})
    with pytest.raises(ResultError, match="lacks tokens"):
        lacking.report(target)
    assert target.read_text("utf-8") == "old"
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="file"):
        census.report(tmp_path / "file" / "report.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "report.html"]


# ---------------------------------------------------------------- in a browser


@pytest.mark.browser
def test_the_report_works_in_a_browser(path: Path, tmp_path: Path, requires_chromium: str) -> None:
    with Browser(requires_chromium, tmp_path / "profile") as browser:
        browser.open(path)
        browser.wait_for("document.documentElement.dataset.ready === 'yes'")
        # What lies in closed details is drawn when they open.
        drawn = "[...document.querySelectorAll('.figure')].filter((d) => d.querySelector('.main-svg')).length"
        everything = browser.evaluate("document.querySelectorAll('.figure').length")
        assert 10 < browser.evaluate(drawn) < everything
        browser.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
        browser.wait_for(f"{drawn} === {everything}")
        assert browser.evaluate("document.documentElement.dataset.failed || ''") == ""

        # A hover names the very token, among repeated and hostile ones, that stands at the position.
        browser.evaluate("Plotly.Fx.hover('fig-value_norm', {xval: 6, yval: 1}, 'xy')")
        texts = "[...document.querySelectorAll('#fig-value_norm .hovertext text')]"
        label = f"{texts}.map((t) => t.textContent).join(' ')"
        browser.wait_for(f"{label}.includes('token 6')")
        assert "6 <script>alert(1)</scrip…" in browser.evaluate(label)

        # Downloads: tables are unpacked in the page, and Plotly's camera works under the policy.
        csv = browser.evaluate("window.sinklensTable('tokens')")
        assert csv.startswith("sequence,position,token_id") and EVIL in csv
        png = browser.evaluate("Plotly.toImage('fig-value_norm', {format: 'png', width: 300, height: 200})")
        assert png.startswith("data:image/png")

        # The hostile tokens are text: no element was made of them.
        scripts = browser.evaluate("[...document.scripts].map((s) => s.type + s.textContent.slice(0, 9))")
        assert not any("alert" in script for script in scripts)
        assert browser.evaluate("document.querySelectorAll('main b').length") == 0
        assert EVIL in browser.evaluate("document.body.textContent")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.problems == []


@pytest.mark.browser
def test_the_policy_forbids_requests(path: Path, tmp_path: Path, requires_chromium: str) -> None:
    with Browser(requires_chromium, tmp_path / "profile") as browser:
        browser.open(path)
        browser.wait_for("document.documentElement.dataset.ready === 'yes'")
        refused = "fetch('data:text/plain,x').then(() => 'allowed', () => 'refused')"
        assert browser.evaluate(refused) == "refused"
