"""The command line as a user meets it: real subprocess-free runs of the typer app, and every bad input."""

import json
import shutil
from pathlib import Path

import pytest

from sinklens import cli

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["sinklens", *map(str, words)])
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, " ".join(err.split())


@pytest.fixture
def sinklens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    return lambda *words: run(monkeypatch, capsys, *words)


def test_scan_saves_tables_header_and_report(sinklens, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "runs" / "bb"
    status, printed, err = sinklens("scan", "bb-1l", "--out", out, "--max-sequences", 20)
    assert status == 0, err
    assert "attention sink" in " ".join(printed.split()) and "report.html" in " ".join(printed.split())
    names = {path.name for path in out.iterdir()}
    assert {"result.json", "sinks.parquet", "heads.parquet", "tokens.parquet", "report.html"} <= names
    header = json.loads((out / "result.json").read_text("utf-8"))
    assert header["format_version"] == 1 and header["tokens"]["n_sequences"] == 20
    (out / "report.html").unlink()
    (out / "notes.txt").write_text("mine")
    status, printed, err = sinklens("report", out)
    assert status == 0 and (out / "report.html").stat().st_size > 1e6, err
    status, _, err = sinklens("scan", "bb-1l", "--out", out, "--max-sequences", 10)
    assert status == 0, err
    assert (out / "notes.txt").read_text("utf-8") == "mine", "a second scan keeps what is not its own"
    assert not [path for path in out.parent.iterdir() if path.name != "bb"], "nothing half-written stays"


def test_scan_of_a_text_file(sinklens, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    status, printed, err = sinklens("scan", model, "--text", text, "--max-tokens", 64, "--bos", "no", "--batch-size", 4)
    assert status == 0, err
    assert "No BOS was prepended" in " ".join(printed.split())
    assert "Memory: about" in err


def test_help_teaches(sinklens) -> None:  # type: ignore[no-untyped-def]
    for words in (
        ["--help"],
        ["scan", "--help"],
        ["report", "--help"],
        ["models", "--help"],
        ["policies", "--help"],
        ["lab", "--help"],
    ):
        status, printed, _ = sinklens(*words)
        assert status == 0 and "Usage" in printed
    status, printed, _ = sinklens("--version")
    assert status == 0 and printed.startswith("sinklens ")
    status, printed, _ = sinklens("models")
    assert status == 0 and "bb-1l" in printed and "bb-3l" in printed


BAD_SCANS = {
    "missing file": (["--text", "{tmp}/none.txt"], "There is no text file"),
    "empty text": (["--text", "{tmp}/empty.txt"], "is empty"),
    "binary file": (["--text", "{tmp}/binary.bin"], "binary file"),
    "not utf-8": (["--text", "{tmp}/latin.txt"], "not UTF-8"),
    "a directory as text": (["--text", "{tmp}"], "Cannot read"),
    "three tokens": (["--text", "{tmp}/short.txt", "--bos", "no"], "too short to measure"),
    "bos": (["--bos", "maybe"], 'bos must be "auto"'),
    "context": (["--max-tokens", "100000"], "longer than the model's context"),
    "cuda": (["--device", "cuda"], "no CUDA GPU"),
    "device": (["--device", "toaster"], "Unknown device"),
    "dtype": (["--dtype", "int3"], "Unknown dtype"),
    "detectors": (["--detectors", "sinks,spikes"], "Unknown detectors spikes"),
    "batch": (["--batch-size", "0"], "at least 1"),
    "out is a file": (["--out", "{tmp}/short.txt"], "is a file"),
    "out is someone else's": (["--out", "{tmp}/other"], "holds no result.json"),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_bad_input_is_one_sentence(case: str, sinklens, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    if case == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "binary.bin").write_bytes(b"\x00\x01\x02")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    words, message = BAD_SCANS[case]
    status, printed, err = sinklens("scan", model, *(word.format(tmp=tmp_path) for word in words))
    assert status == 2 and message in err and "Traceback" not in err + printed
    assert (tmp_path / "other" / "thesis.tex").read_text("utf-8") == "precious"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bb-3", "Did you mean bb-3l"),
        ("/no/such/place", "There is no directory or file"),
        ("no-such-model-xyz", "built-in"),
    ],
)
def test_unknown_models(name: str, message: str, sinklens) -> None:  # type: ignore[no-untyped-def]
    status, _, err = sinklens("scan", name)
    assert status == 2 and message in err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nothing there", "holds no result.json"),
        ("newer", "Update sinklens"),
        ("truncated table", "is damaged"),
        ("missing table", "is missing"),
        ("no json", "is damaged"),
        ("another kind", "which this sinklens does not know; it knows"),
    ],
)
def test_damaged_results(damage: str, message: str, sinklens, tmp_path: Path, saved: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "census"
    shutil.copytree(saved, out)
    header = json.loads((out / "result.json").read_text("utf-8"))
    match damage:
        case "nothing there":
            (out / "result.json").unlink()
        case "newer":
            (out / "result.json").write_text(json.dumps(header | {"format_version": 99}))
        case "truncated table":
            table = out / "sinks.parquet"
            table.write_bytes(table.read_bytes()[:-50])
        case "missing table":
            (out / "heads.parquet").unlink()
        case "no json":
            (out / "result.json").write_text("{")
        case "another kind":
            (out / "result.json").write_text(json.dumps(header | {"format": "sweep"}))
    status, _, err = sinklens("report", out)
    assert status == 2 and message in err and "Traceback" not in err


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sinklens import load, scan

    return scan(load("bb-1l"), max_sequences=5).save(tmp_path_factory.mktemp("saved") / "census")


def test_unwritable_place_is_refused_before_the_work(
    sinklens,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    status, _, err = sinklens("scan", "no model is loaded for this", "--out", tmp_path / "run")
    assert status == 2 and "not writable" in err


def test_full_disk_leaves_the_old_result(monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path) -> None:
    import pandas as pd

    from sinklens import Census
    from sinklens.errors import ResultError

    out = tmp_path / "census"
    census = Census.load(saved)
    census.save(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(ResultError, match="No space left"):
        census.save(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["census"]


def test_a_closed_pipe_does_not_cost_the_result(sinklens, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("sinklens.cli.scan._print", closed)
    status, _, _ = sinklens("scan", "bb-1l", "--max-sequences", 3, "--out", tmp_path / "run")
    assert status == 141 and (tmp_path / "run" / "report.html").is_file()
