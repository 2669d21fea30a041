"""`sinklens active-dormant` and its report as a user meets them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens import load
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.studies import ActiveDormant, find_active_dormant
from tests import families
from tests.studies.dynamics.conftest import CODE, PROSE

SMALL = ("--max-tokens", "24", "--max-sequences", "8")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text(PROSE)
    (folder / "b.py").write_text(CODE)
    return ("--text", f"prose={folder / 'a.txt'}", "--text", f"code={folder / 'b.py'}")


def test_it_measures_prints_and_saves(sinklens: Any, model: Path, texts: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "a"
    status, printed, err = sinklens("active-dormant", model, *texts, *SMALL, "--out", out)
    assert status == 0, err
    assert "128 ablations" in err and "16 sequences of 24 tokens" in printed
    for title in ("Labels", "Largest differences", "Agreement of the criteria"):
        assert title in printed
    saved = ActiveDormant.load(out)
    same = find_active_dormant(load(str(model)), {"prose": PROSE, "code": CODE}, max_tokens=24, max_sequences=8)
    for name, table in same.tables.items():
        pd.testing.assert_frame_equal(saved.tables[name], table)
    page = (out / "report.html").read_text("utf-8")
    assert "sinklens active and dormant heads" in page and saved.verdict[0] in page
    assert 'id="heads-figure-data"' in page and 'data-table="contrasts"' in page and 'data-table="by_sequence"' in page
    (out / "report.html").unlink()
    status, printed, _ = sinklens("report", out)
    assert status == 0 and (out / "report.html").read_text("utf-8") == page


def test_a_built_in_task_brings_its_classes(sinklens: Any) -> None:
    status, printed, err = sinklens("active-dormant", "bb-1l", "--max-sequences", "20")
    assert status == 0, err
    assert "L0H0 is active on trigger" in printed and "and dormant on other" in printed and "A / D" in printed
    assert "Nothing was saved" in printed


def test_built_in_domains_are_the_default(sinklens: Any) -> None:
    status, printed, err = sinklens("active-dormant", "--max-sequences", "6", "--max-tokens", "32")
    assert status == 0, err
    assert "tiny-llama" in printed and "prose" in printed and "code" in printed and "shakespeare" in printed


def test_classes_and_thresholds(sinklens: Any, model: Path, texts: tuple[str, ...], tmp_path: Path) -> None:
    classes = ("--class", r"line=\n", "--class", "mark=.", "--class", "mark=,")
    words = (*texts, *SMALL, *classes, "--effect", "0.5", "--dormant-mass", "0.4", "--out", tmp_path / "a")
    status, _, err = sinklens("active-dormant", model, *words)
    assert status == 0, err
    found = ActiveDormant.load(tmp_path / "a")
    tokenizer = load(str(model)).tokenizer
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("\n", ".", ",")}  # type: ignore[misc]
    assert found.meta["classes"] == {"line": [ids["\n"]], "mark": sorted((ids["."], ids[","]))}
    assert found.meta["settings"]["thresholds"]["effect"] == 0.5
    assert {"line", "other"} <= set(found.to_dataframe()["class"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--class", "x"], "A class is written NAME=TOKEN"),
        (["--class", "x=ab"], "'ab' is 2 tokens of this model; each --class names one token"),
        (["--class", "other=a"], 'Every class needs a name, not "other"'),
        (["--keys", "x"], "--keys takes numbers such as 0,1; got 'x'"),
        (["--keys", "99"], "sink must be positions that every sequence has"),
        (["--active-mass", "0.9"], "Expected 0 < active_mass <= dormant_mass < 1"),
        (["--text", "/no/text"], "There is no text file /no/text"),
        (["--dtype", "float8"], "Unknown dtype 'float8'"),
    ],
)
def test_every_wrong_input_is_one_sentence(
    sinklens: Any, model: Path, texts: tuple[str, ...], words: list[str], sentence: str
) -> None:
    given = words if "--text" in words else [*texts, *words]
    status, _, err = sinklens("active-dormant", model, *given, *SMALL)
    assert status == 2 and sentence in err and "Traceback" not in err


def test_a_model_without_attention(sinklens: Any, texts: tuple[str, ...], tmp_path: Path) -> None:
    families.build_checkpoint("mamba", tmp_path / "mamba")
    status, _, err = sinklens("active-dormant", tmp_path / "mamba", *texts, *SMALL)
    assert status == 2 and "has no attention heads to judge" in err


def test_a_place_that_holds_something_else(sinklens: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    status, _, err = sinklens("active-dormant", "--out", tmp_path)
    assert status == 2 and "Will not save to" in err


def test_the_triggers_are_those_of_the_task(sinklens: Any, tmp_path: Path) -> None:
    assert sinklens("active-dormant", "bb-1l", "--max-sequences", "5", "--out", tmp_path / "a")[0] == 0
    assert ActiveDormant.load(tmp_path / "a").meta["classes"] == {"trigger": sorted(BigramBackcopy().trigger_ids)}
