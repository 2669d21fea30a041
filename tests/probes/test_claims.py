"""The study of published claims: its rule on made-up numbers, its page against its table, and that it can be killed."""

import importlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens.evidence.bootstrap import Interval

ROOT = Path(__file__).parents[2]
CSV, PAGE = ROOT / "figures" / "claims.csv", ROOT / "figures" / "claims.md"
VERDICTS = ("reproduced", "differs", "not reproduced", "not testable here", "not measured")


@pytest.fixture(scope="module")
def probes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "probes"))
        yield


@pytest.fixture(scope="module")
def study(probes: None) -> Any:
    return importlib.import_module("published.study")


@pytest.fixture(scope="module")
def judge(probes: None) -> Any:
    return importlib.import_module("published.verdict").verdict


def between(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 20, "BCa")


def test_every_claim_says_where_its_figures_come_from(study: Any) -> None:
    marks = r"\[(T|2nd|paper|abstract|code|logs|pt|calc)\b"
    for key, claim in study.CLAIMS.items():
        assert re.search(marks, claim.reported), key
        assert "memory" not in claim.reported
        assert re.search(r"arXiv \d{4}\.\d{5}", claim.source), key
        assert set(claim.tested) <= set(claim.figures), key
        assert set(claim.figures) - set(claim.tested) or len(claim.tests) >= 1
        assert claim.measure.__doc__
    kinds = [claim.kind for claim in study.CLAIMS.values()]
    assert len(kinds) >= 30
    assert kinds.count("heads") >= 8


def test_the_rule_on_made_up_numbers(study: Any, judge: Any) -> None:
    for claim in study.CLAIMS.values():
        width = {test.figure: 0.1 * abs(test.holds - test.fails) for test in claim.tests}
        sign = {test.figure: 1 if test.relation == ">=" else -1 for test in claim.tests}
        good, bad, astride = {}, {}, {}
        for test in claim.tests:
            figure, step = test.figure, sign[test.figure] * width[test.figure]
            assert sign[figure] * test.holds > sign[figure] * test.fails, claim.key
            good[figure] = between(*sorted((test.holds, test.holds + step)))
            bad[figure] = between(*sorted((test.fails, test.fails - step)))
            astride[figure] = between(*sorted((test.holds - step, test.holds + step)))
        assert judge(claim, good) == "reproduced", claim.key
        assert judge(claim, bad) == "not reproduced", claim.key
        assert judge(claim, astride) == "differs", claim.key
        assert judge(claim, {}) == "not testable here"
        first = claim.tests[0].figure
        absent = Interval(math.nan, math.nan, math.nan, 0, "none")
        assert judge(claim, good | {first: absent}) == "not testable here"
        if len(claim.tests) > 1:
            last = claim.tests[-1].figure
            assert judge(claim, good | {last: bad[last]}) == "differs"
            assert judge(claim, good | {last: absent}) == "reproduced"
            assert judge(claim, bad | {last: good[last]}) == "not reproduced"


def test_a_value_without_interval_is_judged_alone(study: Any, judge: Any) -> None:
    claim = study.CLAIMS["sink-at-first-token"]
    for value, expected in ((0.6, "reproduced"), (0.3, "differs"), (0.05, "not reproduced")):
        assert judge(claim, {"rate": Interval(value, math.nan, math.nan, 3, "none")}) == expected


QUICK = ["sink-at-first-token", "value-drain", "few-massive-entries", "mean-attention-to-first-token"]


@pytest.fixture(scope="module")
def measured(study: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    work = tmp_path_factory.mktemp("claims")
    quick = importlib.import_module("published.subject").QUICK
    return work, list(study.run(work, {"tiny-llama": "tiny-llama"}, QUICK, quick))


def test_a_quick_run(measured: tuple[Path, list[Any]], judge: Any, study: Any) -> None:
    cells = {cell.claim: cell for cell in measured[1]}
    assert [*cells] == QUICK
    assert cells["few-massive-entries"].reason.startswith("No entry has |h| > 100")
    assert judge(study.CLAIMS["few-massive-entries"], cells["few-massive-entries"].figures) == "not testable here"
    assert judge(study.CLAIMS["value-drain"], cells["value-drain"].figures) == "reproduced"
    uniform = cells["mean-attention-to-first-token"].figures["uniform"].value
    assert uniform == pytest.approx(sum(1 / n for n in range(1, 65)) / 64, abs=1e-6)


def test_finished_cells_are_kept_and_broken_ones_measured_again(
    measured: tuple[Path, list[Any]], study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, cells = measured
    quick = importlib.import_module("published.subject").QUICK
    loads: list[str] = []
    monkeypatch.setattr(
        study, "load", lambda path: loads.append(path) or importlib.import_module("sinklens").load(path)
    )
    again = list(study.run(work, {"tiny-llama": "tiny-llama"}, QUICK, quick))
    assert [cell.figures for cell in again] == [cell.figures for cell in cells]
    assert loads == []
    (work / "tiny-llama" / "value-drain.json").write_text('{"format": 1, "siz')  # what a kill in the middle leaves
    third = list(study.run(work, {"tiny-llama": "tiny-llama"}, QUICK, quick))
    assert loads == ["tiny-llama"]
    assert {c.claim: c.figures for c in third} == {c.claim: c.figures for c in cells}


def test_other_sizes_are_measured_again(measured: tuple[Path, list[Any]], study: Any) -> None:
    subject = importlib.import_module("published.subject")
    file = measured[0] / "tiny-llama" / "value-drain.json"
    assert study._read(file, subject.QUICK) is not None
    assert study._read(file, subject.Sizes()) is None
    content = json.loads(file.read_text("utf-8"))
    assert set(content) == {"format", "sizes", "cell"}


def test_a_page_of_a_quick_run(measured: tuple[Path, list[Any]], probes: None, study: Any) -> None:
    page = importlib.import_module("published.page")
    sizes = importlib.import_module("published.subject").Sizes()
    kept = study.finished(measured[0], ["tiny-llama"], QUICK, sizes)  # a full page takes quick cells where it has none
    assert [cell.claim for cell in kept] == QUICK and all(cell.quick for cell in kept)
    results = page.table(measured[1], ["tiny-llama", "absent"], QUICK)
    text = page.page(results, {"tiny-llama": "one", "absent": "two"}, ["How."])
    _agrees(results, text)
    absent = results[results["model"] == "absent"]
    assert (absent["verdict"] == "not measured").all()
    assert text.count(absent["reason"].iloc[0]) == len(QUICK)
    assert text.count(" (quick) |") == len(QUICK) - 1  # one cell has no figures


@pytest.mark.skipif(not CSV.exists(), reason="the page is not written yet")
def test_the_committed_page_and_table_agree() -> None:
    results = pd.read_csv(CSV, keep_default_na=False, na_values={name: [""] for name in ("value", "low", "high", "n")})
    text = PAGE.read_text("utf-8")
    _agrees(results, text)
    assert "dequantised from Q4" in text


@pytest.mark.skipif(not CSV.exists(), reason="the page is not written yet")
def test_the_committed_verdicts_follow_from_the_committed_figures(study: Any) -> None:
    results = pd.read_csv(CSV, keep_default_na=False, na_values={name: [""] for name in ("value", "low", "high", "n")})
    assert set(results["claim"]) == set(study.CLAIMS)
    for (key, _), own in results.groupby(["claim", "model"]):
        assert own["verdict"].nunique() == 1
        assert own["verdict"].iloc[0] == _plain_verdict(study.CLAIMS[key], own), key


def _plain_verdict(claim: Any, own: pd.DataFrame) -> str:
    """The rule once more, in other words."""
    if own["figure"].iloc[0] == "":
        return "not measured" if own["reason"].iloc[0].startswith("Not measured: ") else "not testable here"
    held, opposite = [], []
    for number, test in enumerate(claim.tests):
        row = own[own["figure"] == test.figure]
        if row.empty or math.isnan(row["value"].iloc[0]):
            if number == 0:
                return "not testable here"
            continue
        ends = row[["low", "high"]].iloc[0].dropna().tolist() or row["value"].tolist()
        worst, best = (min(ends), max(ends)) if test.relation == ">=" else (-max(ends), -min(ends))
        sign = 1 if test.relation == ">=" else -1
        held.append(worst >= sign * test.holds)
        opposite.append(best <= sign * test.fails)
    if all(held):
        return "reproduced"
    return "not reproduced" if opposite[0] else "differs"


def _agrees(results: pd.DataFrame, text: str) -> None:
    """Every verdict and figure of the table stands on the page, and nothing else does."""
    shown = {"reproduced": "**yes**", "differs": "differs", "not reproduced": "**no**"}
    shown |= {"not testable here": "n/a", "not measured": "-"}
    models = [*dict.fromkeys(results["model"])]
    lines = text.splitlines()
    for key in dict.fromkeys(results["claim"]):
        own = results[results["claim"] == key]
        verdicts = own.drop_duplicates("model").set_index("model")["verdict"]
        line = next(line for line in lines if line.startswith(f"| [{key}]"))
        assert [cell.strip() for cell in line.split(" | ")[-len(models) :]] == [
            (shown[verdicts[model]] + (" |" if model == models[-1] else "")) for model in models
        ]
        section = text.split(f"### {key}\n")[1].split("\n#")[0]
        for model, part in own.groupby("model"):
            row = next(line for line in section.splitlines() if line.startswith(f"| {model} |"))
            assert row.endswith(f"| **{verdicts[model]}** |")
            for each in part.to_dict("records"):
                if each["figure"] and not math.isnan(each["value"]):
                    assert f"{each['value']:.3g}" in row
    once = results.drop_duplicates(["claim", "model"])
    for model in models:
        counts = [int((once[once["model"] == model]["verdict"] == verdict).sum()) for verdict in VERDICTS]
        assert f"| {model} | " + " | ".join(map(str, counts)) + " |" in text


@pytest.mark.skipif(not CSV.exists(), reason="the page is not written yet")
def test_the_rows_of_the_readme_are_those_of_the_table() -> None:
    results = pd.read_csv(CSV, keep_default_na=False, na_values={name: [""] for name in ("value", "low", "high", "n")})
    shown = {"reproduced": "yes", "differs": "differs", "not reproduced": "**no**", "not testable here": "n/a"}
    rows = re.findall(
        r"^\| \[.*\]\(figures/claims\.md#([\w-]+)\) \|.*\| (.*) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(rows) >= 5
    for key, *cells in rows:
        for model, cell in zip(("smollm2", "gemma3"), cells, strict=True):
            own = results[(results["claim"] == key) & (results["model"] == model)]
            number, _, verdict = cell.rpartition(" ")
            assert verdict == shown[own["verdict"].iloc[0]], (key, model)
            values = [f"{value:.3g}" for value in own.loc[own["role"] == "tested", "value"]]
            assert not number or number in values, (key, model)
