"""How the program ends: errors nobody foresaw in one line, a reader that has gone, Ctrl-C before it has begun."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sinklens import cli
from sinklens.cli import start
from sinklens.cli.unforeseen import unforeseen
from sinklens.errors import InputError
from tests.test_cli import run


class PanicException(BaseException):
    """As the tokenizers library raises it."""


RAISED = [
    KeyError("a"),
    RuntimeError("two\nlines"),
    RecursionError(),
    PanicException("index out of bounds"),
    OSError(28, "No space left on device", "x.parquet"),
    MemoryError(),
    AssertionError(),
    ValueError("x" * 5000),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize("debug", [False, True])
def test_whatever_is_raised_ends_in_one_line(
    raised: BaseException, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr("sinklens.studies.scan", fail)
    monkeypatch.setattr("sys.argv", ["sinklens", "scan", "bb-1l", *(["--debug"] if debug else [])])
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Memory:", "Scan of"))]
    assert end.value.code == 1
    assert ("Traceback" in "\n".join(lines)) is debug
    assert debug or len(lines) == 1
    assert lines[-1].startswith(f"Error: `sinklens scan bb-1l` stopped at {type(raised).__name__}")
    assert len(lines[-1]) < 900
    if isinstance(raised, OSError):
        assert "no room for more on this disk" in lines[-1]
    elif isinstance(raised, MemoryError):
        assert "smaller --batch-size" in lines[-1]
    else:
        assert "report" in lines[-1] and "--debug" in lines[-1]


def test_our_own_errors_are_sentences_still(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, _, err = run(monkeypatch, capsys, "scan", "--text", tmp_path)
    assert status == 2 and err.startswith("Error: ") and "directory" in err and "report it" not in err
    status, _, err = run(monkeypatch, capsys, "scan", "--debug", "--text", tmp_path)
    assert status == 2 and "Traceback" in err and InputError.__name__ in err


def test_a_long_command_is_cut() -> None:
    said = unforeseen(KeyError("a"), ["scan", *["--text", "book.txt"] * 100])
    assert len(said) < 700


# ------------------------------------------------------------------ real processes
def begin(*words: str, **options: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "sinklens.cli", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(os.name == "nt", reason="no pipes that break")
@pytest.mark.parametrize("words", [("models",), ("--help",), ("scan", "bb-1l", "--max-sequences", "2")])
def test_a_reader_that_has_gone(words: tuple[str, ...]) -> None:
    read, write = os.pipe()
    process = begin(*words, stdout=write)
    os.close(write)
    os.close(read)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (start.BROKEN_PIPE, -signal.SIGPIPE)
    assert b"Traceback" not in err and b"BrokenPipe" not in err and b"Exception ignored" not in err


@pytest.mark.skipif(os.name == "nt", reason="another Ctrl-C")
def test_ctrl_c_while_the_program_is_imported() -> None:
    """At the moment in which the slow import begins, told by a module that this process puts in its way."""
    code = (
        "import builtins, os, signal, sys\n"
        "import sinklens.cli\n"
        "usual = builtins.__import__\n"
        "def slow(name, *rest):\n"
        "    if name == 'sinklens.cli.program':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return usual(name, *rest)\n"
        "builtins.__import__ = slow\n"
        "sys.argv = ['sinklens', 'models']\n"
        "sinklens.cli.main()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300, check=False)
    assert found.returncode == start.INTERRUPTED
    assert found.stderr == b"Interrupted; nothing was begun.\n"


def test_the_way_to_main_imports_nothing_slow() -> None:
    code = (
        "import sys; import sinklens.cli; print([name for name in ('torch', 'typer', 'pandas') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300, check=True)
    assert found.stdout.strip() == b"[]"
