"""What is read back: one damaged header or table gives one sentence that names the file, and nothing else breaks."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

import sinklens
from sinklens import Census, cli
from sinklens.app.dashboard.folder import ResultFolder
from sinklens.app.dashboard.kinds import open_run
from sinklens.errors import ResultError, SinkLensError
from sinklens.results.arrays import read_arrays
from sinklens.results.header_file import ARRAYS, HEADER, MOST_BYTES, read_header
from sinklens.results.table_file import MOST_CELLS

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sinklens.scan("bb-1l", max_sequences=4).save(tmp_path_factory.mktemp("saved") / "census")


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    out = tmp_path / "census"
    out.mkdir()
    for path in original.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def change(directory: Path, **entries: Any) -> None:
    header = json.loads((directory / HEADER).read_text("utf-8"))
    (directory / HEADER).write_text(json.dumps(header | entries), "utf-8")


def sign(directory: Path, name: str, rows: int | None = None) -> None:
    """Make the header name a file as it is now."""
    files = json.loads((directory / HEADER).read_text("utf-8"))["files"]
    files[name]["sha256"] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    files[name] |= {} if rows is None else {"rows": rows}
    change(directory, files=files)


def one_sentence(work: Callable[[], object], name: str = HEADER) -> str:
    with pytest.raises(ResultError) as error:
        work()
    text = str(error.value)
    assert name in text and "\n" not in text and len(text) < 700, text
    return text


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["sinklens", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr().err


# ------------------------------------------------------------------ headers
TEXTS: dict[str, Callable[[str], str]] = {
    "nothing": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "no object": lambda text: "[1, 2]",
    "deep nesting": lambda text: text.replace('"format_version": 1', f'"format_version": 1, "deep": {DEEP}', 1),
    "some nesting": lambda text: text.replace(
        '"format_version": 1', f'"format_version": 1, "x": {"[" * 90}{"]" * 90}', 1
    ),
    "infinity": lambda text: text.replace('"format_version": 1', '"format_version": 1, "seconds": Infinity', 1),
    "a huge number": lambda text: text.replace('"format_version": 1', '"format_version": 1, "seconds": 1e999', 1),
    "many digits": lambda text: text.replace('"format_version": 1', f'"format_version": {"9" * 5000}', 1),
    "no unicode": lambda text: text.replace("bb-1l", "\udcff"),
}


@pytest.mark.parametrize("damage", TEXTS)
def test_a_header_that_is_no_header(
    damage: str, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (saved / HEADER).read_text("utf-8")
    assert TEXTS[damage](text) != text
    (saved / HEADER).write_bytes(TEXTS[damage](text).encode("utf-8", "surrogateescape"))
    said = one_sentence(lambda: sinklens.open(saved))
    assert "is damaged" in said and said == one_sentence(lambda: Census.load(saved))
    assert said == one_sentence(lambda: open_run(saved, "x", "x"))
    assert command(monkeypatch, capsys, "report", saved) == (2, f"Error: {said}\n")
    assert len(ResultFolder(saved).entries()) == 1, "it is listed, and told when it is opened"


WRONG: tuple[Any, ...] = (None, True, -1, 2**70, [1], {"x": {}})


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_entries_of_a_wrong_type(wrong: Any, saved: Path) -> None:
    """Whatever an entry is replaced by: it is refused, or what is read of it still works."""
    header = json.loads((saved / HEADER).read_text("utf-8"))
    places = [(name,) for name in header] + [("model", name) for name in header["model"]]
    places += [("tokens", name) for name in header["tokens"]] + [("settings", name) for name in header["settings"]]
    refused = 0
    for first, *more in places:
        entry = wrong if not more else header[first] | {more[0]: wrong}
        (saved / HEADER).write_text(json.dumps(header | {first: entry}), "utf-8")
        try:
            found = sinklens.open(saved)
            assert isinstance(found, Census) and found.verdict is not None and found.to_markdown()
            open_run(saved, "x", "x")
        except ResultError as error:
            refused += 1
            assert "census" in str(error) and "\n" not in str(error)
    assert refused > 5
    for name in header:  # and without it
        (saved / HEADER).write_text(json.dumps({k: v for k, v in header.items() if k != name}), "utf-8")
        try:
            assert sinklens.open(saved).to_markdown()
        except ResultError as error:
            assert "census" in str(error)


@pytest.mark.parametrize("name", ["../outside.parquet", "/etc/passwd", "heads.parquet/x", "heads.exe", "", "." * 300])
def test_files_outside_or_of_other_kinds_are_refused(name: str, saved: Path) -> None:
    change(saved, files={name: {"sha256": "0" * 64, "rows": 1}})
    assert "is damaged (files" in one_sentence(lambda: sinklens.open(saved))


def test_a_header_is_bounded_before_it_is_read(saved: Path) -> None:
    with (saved / HEADER).open("ab") as file:
        file.truncate(MOST_BYTES + 1)
    assert "a header has at most" in one_sentence(lambda: read_header(saved))


def test_one_damaged_result_leaves_the_others_alone(saved: Path, original: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in original.iterdir():
        (whole / path.name).write_bytes(path.read_bytes())
    (saved / HEADER).write_text(f'{{"format": "sinklens-census", "format_version": {DEEP}')
    folder = ResultFolder(tmp_path)
    assert {entry.name for entry in folder.entries()} == {"census", "whole"}
    assert open_run(folder.path("whole"), "whole", "whole").scores
    one_sentence(lambda: open_run(folder.path("census"), "census", "census"))


# ------------------------------------------------------------------ tables, signed again
COLUMNS: dict[str, Any] = {
    "strings": "zero",
    "NaN": float("nan"),
    "infinite": float("inf"),
    "a layer of a billion": 10**9,
    "negative": -5,
    "half a layer": 0.5,
    "a layer more than there are": 2,
}


@pytest.mark.parametrize("column", ["layer", "head"])
@pytest.mark.parametrize("damage", COLUMNS)
def test_places_that_the_model_does_not_have(
    damage: str, column: str, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_parquet(saved / "heads.parquet")
    table[column] = [COLUMNS[damage]] * len(table)
    table.to_parquet(saved / "heads.parquet", index=False)
    sign(saved, "heads.parquet")
    said = one_sentence(lambda: sinklens.open(saved), "heads.parquet")
    assert f"its column {column} holds" in said
    assert said == one_sentence(lambda: open_run(saved, "x", "x").tables["heads"], "heads.parquet")
    for words in (("report", saved), ("ablate", "bb-1l", "--ranking", saved, "--out", saved.parent / "out")):
        status, err = command(monkeypatch, capsys, *words)
        assert status == 2 and "heads.parquet is damaged" in err and "Traceback" not in err


def test_a_set_of_heads_has_no_layer(saved: Path) -> None:
    table = pd.read_parquet(saved / "heads.parquet").astype({"layer": "Int64"})
    table.loc[0, "layer"] = pd.NA
    table.to_parquet(saved / "heads.parquet", index=False)
    sign(saved, "heads.parquet")
    assert sinklens.open(saved).tables["heads"]["layer"].isna().sum() == 1


def test_a_position_of_a_billion_takes_no_memory(saved: Path) -> None:
    table = pd.read_parquet(saved / "sinks.parquet").assign(position=10**9)
    table.to_parquet(saved / "sinks.parquet", index=False)
    sign(saved, "sinks.parquet")
    run = open_run(saved, "x", "x")
    with pytest.raises(ResultError, match=r"sinks\.parquet is damaged: its column position holds 1000000000"):
        run.tables.cube("sinks")


@pytest.mark.parametrize("columns", [["layer"], ["head", "importance"], []])
def test_tables_without_columns(columns: list[str], saved: Path) -> None:
    table = pd.read_parquet(saved / "heads.parquet")[columns]
    table.to_parquet(saved / "heads.parquet", index=False)
    sign(saved, "heads.parquet", len(pd.read_parquet(saved / "heads.parquet")))
    said = one_sentence(lambda: sinklens.open(saved).report(saved / "report.html"))
    assert "not as sinklens saves them" in said


@pytest.mark.parametrize("damage", ["rows", "large", "no table"])
def test_sizes_are_bounded_before_anything_is_made(damage: str, saved: Path) -> None:
    path = saved / "layers.parquet"
    rows = len(pd.read_parquet(path))
    match damage:
        case "rows":
            sign(saved, path.name, rows + 1)
        case "large":  # a few bytes in the file, gigabytes in memory
            block = pyarrow.table({"layer": pyarrow.array(np.zeros(2_000_000, np.int8))})
            with pyarrow.parquet.ParquetWriter(path, block.schema) as writer:
                for _ in range(MOST_CELLS // 2_000_000 + 1):
                    writer.write_table(block)
            sign(saved, path.name, MOST_CELLS + 2_000_000)
        case "no table":
            path.write_bytes(b"PAR1" + bytes(20) + b"PAR1")
            sign(saved, path.name)
    said = {"rows": f"not {rows + 1}", "large": "cells are read", "no table": "cannot be read"}[damage]
    assert said in one_sentence(lambda: sinklens.open(saved), path.name)
    assert said in one_sentence(lambda: open_run(saved, "x", "x").tables["layers"], path.name)


# ------------------------------------------------------------------ arrays
def test_arrays_stay_on_disk_and_cannot_be_written_to(saved: Path) -> None:
    found = sinklens.open(saved).arrays
    assert found and all(isinstance(each, np.memmap) for each in found.values())
    for each in found.values():
        with pytest.raises(ValueError, match="read-only"):
            each[...] = 0


@pytest.mark.parametrize("damage", ["length", "shape", "offset", "type", "cut"])
def test_arrays_that_do_not_fit_into_their_file(damage: str, saved: Path) -> None:
    path = saved / ARRAYS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + length])
    first = next(name for name in described if name != "__metadata__")
    match damage:
        case "length":
            content = (2**62).to_bytes(8, "little") + content[8:]
        case "cut":
            content = content[: len(content) // 2]
        case _:
            described[first] |= {
                "shape": {"shape": [10**9, 10**9]},
                "offset": {"data_offsets": [0, 2**60]},
                "type": {"dtype": "Q7"},
            }[damage]
            header = json.dumps(described).encode()
            content = len(header).to_bytes(8, "little") + header + content[8 + length :]
    path.write_bytes(content)
    sign(saved, ARRAYS)
    assert "cannot be read" in one_sentence(lambda: sinklens.open(saved), ARRAYS)
    one_sentence(lambda: read_arrays(path), ARRAYS)


def test_a_fifo_in_the_place_of_a_table_does_not_hang(saved: Path) -> None:
    import os

    (saved / "heads.parquet").unlink()
    os.mkfifo(saved / "heads.parquet")
    assert "heads.parquet is missing" in one_sentence(lambda: sinklens.open(saved), "heads.parquet")


def test_every_refusal_is_of_the_family() -> None:
    assert issubclass(ResultError, SinkLensError)
