"""Loading, scanning, reporting and ablating open no socket: a guard in this very process counts."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sinklens import load, open, scan, sweep
from tests.families import build_checkpoint

ALLOWED = {socket.AF_UNIX} if hasattr(socket, "AF_UNIX") else set()
WATCHED = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)

_seen: list[tuple[str, Any]] = []
_watching = False


def _audit(event: str, arguments: Any) -> None:
    if _watching and event in WATCHED:
        _seen.append((event, arguments))
    elif _watching and event == "socket.__new__" and arguments[1] not in ALLOWED:
        _seen.append((event, arguments[1:]))


sys.addaudithook(_audit)  # cannot be taken away again; it does nothing outside of the fixture


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """What was opened or looked up. The hub is not set offline here: it must not even be tried."""
    global _watching
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


def test_the_guard_sees_what_it_should(guard: list[tuple[str, Any]]) -> None:
    with socket.socket() as opened, pytest.raises(OSError):
        opened.connect(("127.0.0.1", 1))
    assert {event for event, _ in guard} >= {"socket.__new__", "socket.connect"}


@pytest.mark.parametrize("kind", ["built-in", "directory"])
def test_no_socket_is_opened(
    kind: str, guard: list[tuple[str, Any]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = "bb-1l" if kind == "built-in" else str(build_checkpoint("llama", tmp_path / "llama"))
    texts = ["The king is dead, long live the king. " * 3]
    model = load(name, device="cpu")
    census = scan(model, texts if kind == "directory" else None, max_sequences=4)
    census.save(tmp_path / "run")
    census.report(tmp_path / "run.html")
    open(tmp_path / "run").report(tmp_path / "again.html")
    found = sweep(model, "zero", texts=texts if kind == "directory" else None, heads=["L0H0"], max_sequences=4)
    found.save(tmp_path / "sweep")
    found.report(tmp_path / "sweep.html")
    assert guard == []
