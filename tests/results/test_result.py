"""Results of any kind: one way to save, load, open, report and read them; damage is one sentence naming the file."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sinklens
from sinklens.errors import InputError, ResultError
from sinklens.results import Result
from sinklens.results.header_file import HEADER
from sinklens.results.result import KINDS, kind_class
from sinklens.results.tables import save_result
from sinklens.studies.kinds import HOMES

KNOWN = {*HOMES}


@dataclass(frozen=True)
class Toy(
    Result, format="sinklens-test-toy", title="Toys", newest=2, needs=("rows", "more"), header=("settings", "model")
):
    """A kind of its own, as a package or a notebook would make one."""


@pytest.fixture
def toy() -> Toy:
    rows = pd.DataFrame({"layer": [0, 1], "score": [0.25, float("nan")], "name": ["<b>", "é"]})
    meta = {"settings": {"seed": 0}, "model": {"name": "a <model>"}, "verdict": ["It is <so>.", "And so."]}
    return Toy(meta, {"rows": rows, "more": rows.head(1)}, {"cells": np.eye(2, dtype=np.float32)})


def test_it_comes_back_as_it_was(toy: Toy, tmp_path: Path) -> None:
    again = sinklens.open(toy.save(tmp_path / "toy"))
    assert type(again) is Toy and again.meta == toy.meta and again.meta["format_version"] == 2
    assert again.tables.keys() == toy.tables.keys() and again.verdict == ["It is <so>.", "And so."]
    pd.testing.assert_frame_equal(again.to_dataframe(), toy.tables["rows"])
    pd.testing.assert_frame_equal(again.to_dataframe("more"), toy.tables["more"])
    np.testing.assert_array_equal(again.arrays["cells"], np.eye(2))
    mine = again.to_dataframe()
    mine.loc[0, "score"] = 7.0
    assert again.tables["rows"].loc[0, "score"] == 0.25  # a copy was changed
    with pytest.raises(InputError, match=r"no table 'less'.*rows, more"):
        again.to_dataframe("less")


def test_the_version_that_was_saved_stays(toy: Toy, tmp_path: Path) -> None:
    old = Toy({**toy.meta, "format_version": 1}, toy.tables)
    again = sinklens.open(old.save(tmp_path / "old"))
    assert again.meta["format_version"] == 1 == sinklens.open(again.save(tmp_path / "older")).meta["format_version"]


def test_any_kind_has_a_report_and_markdown(toy: Toy, tmp_path: Path) -> None:
    page = toy.report(tmp_path / "deep" / "report.html").read_text("utf-8")
    assert "It is &lt;so&gt;." in page and "<so>" not in page and "a &lt;model&gt;" in page
    assert 'data-table="rows"' in page and 'data-table="more"' in page and "2 of 2 rows" not in page
    text = toy.to_markdown()
    assert text.startswith("# Toys: a <model>\n\n- It is <so>.\n- And so.\n") and "| 0 | 0.25 | <b> |" in text


def test_every_kind_is_known_to_open(tmp_path: Path) -> None:
    for kind in KNOWN:
        save_result(tmp_path / kind, {"format": kind, "format_version": 1}, {}, {})
        found = kind_class(tmp_path / kind)
        assert found.format == kind and found.needs and found.title
        with pytest.raises(ResultError, match=rf"{kind} is damaged: its header names no {found.needs[0]}"):
            sinklens.open(tmp_path / kind)
    assert {kind for kind in KINDS if KINDS[kind].__module__.startswith("sinklens.")} == KNOWN


def test_what_cannot_be_opened_is_one_sentence(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds no result\.json"):
        sinklens.open(tmp_path)
    save_result(tmp_path / "later", {"format": "sinklens-later", "format_version": 1}, {}, {})
    with pytest.raises(ResultError, match=r"holds a 'sinklens-later'.*it knows .*sinklens-census.*sinklens-sweep"):
        sinklens.open(tmp_path / "later")
    directory = toy.save(tmp_path / "toy")
    header = json.loads((directory / HEADER).read_text("utf-8"))
    for changed, sentence in (
        ({"format_version": 3}, "format 3.*reads up to format 2"),
        ({"files": {}}, "its header names no rows, more"),
    ):
        (directory / HEADER).write_text(json.dumps(header | changed))
        with pytest.raises(ResultError, match=sentence):
            sinklens.open(directory)
    (directory / HEADER).write_text(json.dumps({k: v for k, v in header.items() if k != "settings"}))
    with pytest.raises(ResultError, match="its header names no settings"):
        sinklens.open(directory)
    (directory / HEADER).write_text("{")
    with pytest.raises(ResultError, match=r"result\.json is damaged"):
        sinklens.open(directory)
