"""Reports of `why`, `follow`, `extreme`, `rank`, `paths`, `conflict` and the like: sentences, figures, tables."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.callbacks.everything import everything_view
from sinklens.app.dashboard.callbacks.grid import grid_view, headline
from sinklens.app.dashboard.callbacks.head import head_view, positions_view
from sinklens.app.dashboard.callbacks.navigate import describe
from sinklens.app.dashboard.state import State
from sinklens.app.drawings import drawings
from sinklens.app.parts import section_of
from sinklens.app.study_parts import PARTS
from sinklens.plots.style import number
from tests.app.study_results import RESULTS, made


def test_every_kind_with_parts_is_made_here() -> None:
    assert {*RESULTS} == {*PARTS}


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_every_sentence_has_its_section(kind: str, tmp_path: Path) -> None:
    result = made(kind)
    page = result.report(tmp_path / "report.html").read_text("utf-8")
    header = page[page.index("<body") : page.index("<nav")]
    linked = re.findall(r'class="see" href="#([a-z-]+)"', header)
    assert result.verdict
    assert linked == [section_of(sentence, PARTS[kind]) for sentence in result.verdict]
    anchors = re.findall(r'<section id="([\w-]+)"', page)
    assert {*linked} <= {*anchors} and len({*anchors}) == len(anchors)
    for part in PARTS[kind]:  # no part whose sentences are never said
        assert part.anchor in linked or part.says == "(?!)", part.title
    shown = re.findall(r'<div class="figure" id="([a-z-]+)-\d+"', page)
    assert all(title in drawings(kind) for part in PARTS[kind] for title in part.figures)
    assert len(shown) == len(drawings(kind)) and {*shown} <= {*anchors}
    for anchor, word in re.findall(r'href="#([a-z-]+)">(Figure|Table)</a>', header):
        assert word == ("Figure" if anchor in shown else "Table")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("sinklens-conflict-heads", "12 of 1,024 heads argue for the context's answer against the other."),
        ("sinklens-conflict-heads", "1 of 1 head argues for the context's answer against the other."),
        ("sinklens-generation", "1,200 tokens generated; attention to position 0, mean over heads: 0.5."),
        ("sinklens-generation", "0 of 1,190 generated tokens with enough tokens after them are massive."),
        ("sinklens-path-patching", "Of 1,056 senders 3 matter."),
        ("sinklens-span-heads", "1 of 1,024 heads depends more on the right document than on a random other one."),
        ("sinklens-super-experts", "None of 6,144 experts is super."),
        ("sinklens-needles", "None of 30 prompts passes the filter 'exact'."),
        ("sinklens-needles", "1 of 1,024 heads is a retrieval head."),
        (
            "sinklens-policies",
            "At a budget of 1,024 keys: not ranked, because they really read more keys: h2o (2e+03).",
        ),
        (
            "sinklens-policies",
            "Not ranked, because all rows that count read everything: fake_quant (+0.034 nats a token).",
        ),
        ("sinklens-policies", "coverage, moa change nothing on texts of this length."),
        ("sinklens-document-ranking", "In 16 of 20 tasks the document that icr puts first is the first of the prompt."),
        ("sinklens-policies", "No policy that drops keys without looking ahead was compared."),
        ("sinklens-effects", "x: no token is predicted, so there is no loss to compare."),
        ("sinklens-roles", "No head has a score."),
        ("sinklens-roles", "No head copied a needle."),
        ("sinklens-streaming-gates", "No KV head has a gate."),
        ("sinklens-factual-recall", "1 of 1,024 heads writes the topic at the last token."),
        ("sinklens-near-far", "Which of the two costs more is not judged."),
        ("sinklens-causal-check", "12 idle heads (W_O = 0: L0H0) are the valid pool of random heads."),
    ],
)
def test_a_thousand_and_one_have_their_section(kind: str, sentence: str) -> None:
    assert section_of(sentence, PARTS[kind]) is not None


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_its_tables_hold_its_numbers(kind: str, tmp_path: Path) -> None:
    """The columns of each part exist, and the first row of its table is written as the table has it."""
    result = made(kind)
    page = result.report(tmp_path / "report.html").read_text("utf-8")
    for part in PARTS[kind]:
        if not part.table:
            continue
        rows = result.tables[part.table] if part.table in result.tables else getattr(result, part.table)
        rows = rows() if callable(rows) else rows
        rows = rows if isinstance(rows, pd.DataFrame) else rows.to_dataframe()
        for column, value in part.where.items():
            rows = rows[rows[column] == value]
        if part.by:
            rows = rows.iloc[rows[part.by].abs().argsort(kind="stable")[::-1]]
        missing = [name for name in part.columns if name not in rows.columns and name != "name"]
        assert not missing, part.title
        section = page[page.index(f'<section id="{part.anchor}"') :]
        section = section[: section.index("</section>")]
        if rows.empty:
            assert "Not measured" in section
            continue
        assert section.count("<tr>") == min(50, len(rows)) + 1
        assert [unescape(re.sub("<.*?>", "", each)).strip() for each in re.findall("<th.*?</th>", section)] == [
            heading.strip() for heading in part.columns.values()
        ]


def page_order(kind: str) -> list[str]:
    """Titles of figures in the order of its sections; those that no section names stand in the first one."""
    named = [title for part in PARTS[kind] for title in part.figures]
    rest = [title for title in drawings(kind) if title not in named]
    first = [title for title in drawings(kind) if title in (*rest, *PARTS[kind][0].figures)]
    return [*first, *(title for title in named if title not in first)]


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_the_dashboard_shows_it(kind: str, tmp_path: Path) -> None:
    result = made(kind)
    result.save(tmp_path / "one")
    for source in (tmp_path, result):
        bench = open_source(source)
        shown = describe(bench, State())
        name = shown["run"]
        figure, _, title = grid_view(bench, shown["grid-key"])
        assert title and (figure.data or figure.layout.annotations[0].text)
        said = str(headline(bench, shown["grid-key"]))
        assert result.verdict[0][:40] in said.replace("\\'", "'") or "cannot be written" not in said
        assert bench.run(name).verdict == result.verdict
        assert [*bench.run(name).drawings] == sorted(drawings(kind), key=page_order(kind).index)
        assert all("(None)" not in score.definition for score in bench.run(name).scores)
        if not bench.run(name).scores:
            assert "has one row per head" in str(head_view(bench, {"run": name}).facts)
        for choice in shown["table-options"]:
            drawn, body = everything_view(bench, {"run": name, "table": choice})
            assert drawn is not None or body
        if shown["head"]:
            beside = positions_view(bench, State(run=name, head=shown["head"]), None)
            assert beside is not None and bench.run(name).beside(shown["head"])


def test_what_a_run_did_not_measure_is_told(tmp_path: Path) -> None:
    policies, roles = made("sinklens-policies"), made("sinklens-roles")
    some = {name: table for name, table in policies.tables.items() if "needle" not in name}
    page = type(policies)(policies.meta, some).report(tmp_path / "report.html").read_text("utf-8")
    assert "Not measured in this run; compare_policies(needles=make_needles(model)) has it." in page
    heads = roles.tables["heads"].drop(columns="retrieval")
    kept = roles.tables | {"heads": heads, "criteria": roles.tables["criteria"].query("criterion != 'retrieval'")}
    kept["agreement"] = kept["agreement"].query("first != 'retrieval' and second != 'retrieval'")
    page = unescape(type(roles)(roles.meta, kept).report(tmp_path / "report.html").read_text("utf-8"))
    assert 'Not measured in this run; find_roles(scores=("retrieval", ' in page and "highest retrieval" not in page
    needles = made("sinklens-needles")
    without = type(needles)(needles.meta | {"heads": None}, needles.tables)
    page = without.report(tmp_path / "report.html").read_text("utf-8")
    assert "Not measured. This result was made without strongest keys" in page


@pytest.mark.parametrize("file", ["arrays.safetensors", "channels.parquet"])
def test_the_dashboard_tells_of_a_damaged_file(file: str, tmp_path: Path) -> None:
    made("sinklens-extreme-tokens").save(tmp_path / "one")
    (tmp_path / "one" / file).write_bytes(b"damaged")
    bench = open_source(tmp_path)
    shown = describe(bench, State())
    assert f"cannot be written: {file} is damaged" in str(headline(bench, shown["grid-key"]))
    run = bench.run(shown["run"])
    drawn = [run.draw(title).layout.annotations for title in run.drawings]
    assert any(file in note.text for notes in drawn for note in notes)
    grid_view(bench, shown["grid-key"])
    head_view(bench, {"run": shown["run"]})


def test_a_number_of_a_report_is_that_of_its_table(tmp_path: Path) -> None:
    result: Any = made("sinklens-massive-sources")
    page = result.report(tmp_path / "report.html").read_text("utf-8")
    row: pd.Series = result.sources.iloc[0]
    assert f"<td>{row['channel']:,}</td>" in page and number(float(row["value"])).split(".")[0] in page
