import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sinklens.app.dashboard import stored
from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.callbacks.grid import grid_view
from sinklens.app.dashboard.kinds import open_run
from sinklens.app.dashboard.stored import MemoryTables, StoredTables, as_cube
from sinklens.errors import ResultError
from sinklens.results.header_file import HEADER
from sinklens.results.tables import save_result
from sinklens.studies import Census


@pytest.mark.parametrize("small", [10, 300_000], ids=["read in parts", "read whole"])
def test_arrays_and_heads_are_the_rows_of_the_table(
    saved: Path, census: Census, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_SMALL", small)
    tables, memory = StoredTables(saved / "made-up"), MemoryTables(census.tables)
    table = census.tables["sinks"]
    first = tables.head("sinks", 2, 1)  # before the arrays are there
    cube = tables.cube("sinks")
    assert cube["importance"].shape == (6, 4, 48)
    for row in table.sample(60, random_state=0).to_dict("records"):
        at = (row["layer"], row["head"], row["position"])
        for column in ("importance", "null"):
            expected = np.float32(row[column])
            np.testing.assert_equal(cube[column][at], expected)
            np.testing.assert_equal(memory.cube("sinks")[column][at], expected)
    assert np.isnan(cube["importance"][3]).all()  # the layer without attention
    for found in (first, tables.head("sinks", 2, 1), memory.head("sinks", 2, 1)):
        own = table[(table["layer"] == 2) & (table["head"] == 1)].sort_values("position")
        np.testing.assert_array_equal(found["importance"], own["importance"].to_numpy(np.float32))
    assert tables.head("sinks", 99, 0) == {} == tables.cube("none") == tables.head("none", 0, 0)


def test_a_late_head_is_read_alone_from_a_long_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_SMALL", 10)
    rows = [(layer, head, position) for layer in (0, 80) for head in (0, 90) for position in range(500)]
    table = pd.DataFrame(rows, columns=["layer", "head", "position"]).assign(importance=np.arange(2000.0))
    save_result(tmp_path / "x", {"format": "x", "format_version": 1}, {"sinks": table}, {})
    found = StoredTables(tmp_path / "x").head("sinks", 80, 90)
    np.testing.assert_array_equal(found["importance"], np.arange(1500, 2000))


def test_tables_are_read_as_saved(saved: Path, census: Census) -> None:
    tables = StoredTables(saved / "made-up")
    assert set(tables.names) == set(census.tables)
    pd.testing.assert_frame_equal(tables.frame("heads"), census.tables["heads"], check_dtype=False)
    assert tables.count("tokens") == len(census.tables["tokens"]) and len(tables.frame("tokens", 5)) == 5
    assert tables.columns("layers") == list(census.tables["layers"].columns)


def test_the_first_rows_of_a_long_table(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_SMALL", 10)
    assert StoredTables(saved / "made-up").frame("sinks", 7)["position"].tolist() == list(range(7))


def test_damage_is_found_when_a_table_is_used(saved: Path) -> None:
    tables = StoredTables(saved / "broken")
    with pytest.raises(ResultError, match=r"heads\.parquet is damaged"):
        tables.frame("heads")
    assert len(tables.frame("layers"))  # the others are whole


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "sinklens-census"}', '{"files": []}'])
def test_a_damaged_header_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / HEADER).write_text(content)
    with pytest.raises(ResultError, match="is damaged"):
        open_run(tmp_path, "x", "x")


def test_a_newer_format_is_refused_and_an_unknown_kind_is_shown(saved: Path, tmp_path: Path) -> None:
    header = json.loads((saved / "tiny" / HEADER).read_text("utf-8"))
    save_result(tmp_path / "newer", header | {"format_version": 99}, {}, {})
    with pytest.raises(ResultError, match="format 99"):
        open_run(tmp_path / "newer", "newer", "newer")
    heads = pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "induction": [0.9, 0.1, np.nan], "label": list("abc")})
    meta = {
        "format": "sinklens-later",
        "format_version": 3,
        "metrics": {"induction": {"definition": "d", "source": "s"}},
    }
    save_result(tmp_path / "later", meta, {"heads": heads, "other": heads.assign(layer=0, head=0, label="x")}, {})
    run = open_run(tmp_path / "later", "later", "later")
    assert [(score.name, score.definition) for score in run.scores] == [("heads.induction@", "d (s)")]
    np.testing.assert_array_equal(run.values("heads.induction@"), [[0.9, 0.1], [np.nan, np.nan]])
    assert [fact.value for fact in run.facts(0, 0)] == ["0.9", "a"]
    np.testing.assert_allclose(np.asarray(run.grid("heads.induction@").data[0].z), [[0.9, 0.1], [np.nan, np.nan]])


def test_rows_by_domain_are_one_grid_each(tmp_path: Path) -> None:
    rows = [(layer, head, domain) for domain in ("code", "prose") for layer in range(2) for head in range(3)]
    heads = pd.DataFrame(rows, columns=["layer", "head", "domain"]).assign(mass=np.arange(12.0), n=7)
    save_result(tmp_path / "x", {"format": "sinklens-later", "format_version": 1}, {"heads": heads}, {})
    run = open_run(tmp_path / "x", "x", "x")
    assert [score.name for score in run.scores] == [f"heads.{c}@{d}" for c in ("mass", "n") for d in ("code", "prose")]
    np.testing.assert_array_equal(run.values("heads.mass@prose"), [[6, 7, 8], [9, 10, 11]])
    assert [(fact.what, fact.value) for fact in run.facts(1, 2)][:2] == [("mass · code", "5"), ("n · code", "7")]


def test_a_known_kind_without_heads_shows_its_figure(tmp_path: Path) -> None:
    grid = pd.DataFrame({"variant": "clean", "length": [64, 128] * 2, "depth": [0.0, 0.0, 1.0, 1.0], "n": 5})
    grid = grid.assign(exact=[1.0, 0.8, 0.6, 0.4], exact_low=0.1, exact_high=0.9)
    meta = {"format": "sinklens-needles", "format_version": 1, "interventions": {}}
    save_result(tmp_path / "x", meta, {"grid": grid}, {})
    bench = open_source(tmp_path / "x")
    figure, _, title = grid_view(bench, {"run": ".", "compare": "", "score": ""})
    assert title == "Needles by length and depth" and figure.data[0].type == "heatmap"


def test_sparse_or_negative_rows_make_no_array() -> None:
    rows = {"layer": np.array([0]), "head": np.array([0]), "position": np.array([10**7]), "x": np.array([1.0])}
    with pytest.raises(ValueError, match="too sparse"):
        as_cube(rows)
    with pytest.raises(ValueError, match="below 0"):
        as_cube(rows | {"position": np.array([-1])})
