"""Three hundred bad inputs: a sentence each, no traceback, no hang, and nothing half-written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sinklens
from sinklens import cli, load
from sinklens.errors import SinkLensError
from tests import bad_inputs

LONGEST = 20
"""Seconds after which an input counts as one that hangs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@contextmanager
def no_hang() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"nothing was said in {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def whole(out: Path) -> bool:
    """Whether nothing that claims to be a result lies there and cannot be read."""
    if not (out / "result.json").exists():
        return True
    try:
        return bool(sinklens.open(out).meta)
    except SinkLensError:
        return False


def test_three_hundred_bad_inputs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, each with --out: what is refused leaves no trace there."""
    model = load("bb-1l", device="cpu")
    usual = load

    def quick(name: Any, **options: Any) -> Any:
        return model if name == "bb-1l" and {*options.values()} <= {None, "auto", False} else usual(name, **options)

    monkeypatch.setattr("sinklens.models.load", quick)
    monkeypatch.chdir(tmp_path)
    every = [*bad_inputs.MORE, *bad_inputs.bad_options(), *bad_inputs.bad_files(folder)]
    assert len(every) >= 300
    wrong: list[Any] = []
    refused = 0
    for number, words in enumerate(every):
        out = tmp_path / f"out-{number}"
        monkeypatch.setattr("sys.argv", ["sinklens", *words, "--out", str(out)])
        try:
            with no_hang():
                cli.main()
            status: Any = 0
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = repr(error)
        told = capsys.readouterr()
        said = f"{told.out[-300:]}{told.err[-600:]}"
        # 1 is an error that nobody foresaw, a traceback in one line
        if status not in (0, None, 2) or "Traceback" in said or "stopped at" in told.err:
            wrong.append((words, status, told.err[-300:]))
        refused += status == 2
        left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("out-")]
        if left or not whole(out):
            wrong.append((words, "left behind", left))
    assert not wrong, "\n".join(map(str, wrong))
    assert refused > 250
