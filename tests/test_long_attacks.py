"""Kills, a full disk and two processes on one folder, over every command that works for long (`make test-slow`)."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.attacks import begin, commands, contents, ended, killed, same, small_disk, whole_or_nothing
from tests.lab.conftest import write_texts
from tests.studies.dynamics.conftest import write_series

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")]

NAMES = ("scan", "ablate", "needle", "roles", "dynamics", "active-dormant", "lab train lm")
KILLS = int(os.environ.get("SINKLENS_KILLS", "105")) // len(NAMES)
"""For each command; together at least a hundred."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("given")
    return commands(write_series(folder / "series"), write_texts(folder / "texts"))


@pytest.fixture(scope="module")
def wholes() -> dict[str, tuple[dict[str, Any], float]]:
    """Uninterrupted runs: what they found, and how long they took."""
    return {}


def whole(
    name: str, made: dict[str, list[str]], wholes: dict[str, tuple[dict[str, Any], float]], folder: Path
) -> tuple[dict[str, Any], float]:
    if name not in wholes:
        started, out, log = time.monotonic(), folder / "whole", folder / "whole.log"
        status = ended(begin(made[name], out, log))
        assert status == 0, log.read_text("utf-8")[-1500:]
        wholes[name] = contents(out), time.monotonic() - started
    return wholes[name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_killed_again_and_again_it_gives_what_it_would_have_given(
    name: str, made: dict[str, list[str]], wholes: dict[str, Any], tmp_path: Path
) -> None:
    expected, seconds = whole(name, made, wholes, tmp_path)
    draw, out, log, kills = random.Random(name), tmp_path / "out", tmp_path / "log", 0
    for _ in range(3 * KILLS):
        if kills == KILLS:
            break
        if killed(begin(made[name], out, log), draw.uniform(0, seconds)):
            kills += 1
            whole_or_nothing(out)
        else:
            assert same(contents(out), expected)
            out.rename(tmp_path / f"done-{kills}-{draw.random()}")  # and another one
    status = ended(begin(made[name], out, log))
    assert status == 0, log.read_text("utf-8")[-1500:]
    assert kills == KILLS and same(contents(out), expected)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.endswith(".tmp")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("most", [0, 2_000, 20_000])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_in_the_middle(
    name: str, most: int, made: dict[str, list[str]], wholes: dict[str, Any], tmp_path: Path
) -> None:
    expected, _ = whole(name, made, wholes, tmp_path)
    out, log = tmp_path / "out", tmp_path / "log"
    status = ended(begin(made[name], out, log, small_disk(max(most, 1))))
    said = log.read_text("utf-8", errors="replace")
    assert "Traceback" not in said, said[-1500:]
    assert status in (0, 1, 2)
    if status == 0:  # all its files were smaller
        assert same(contents(out), expected)
    else:
        whole_or_nothing(out)
        assert ended(begin(made[name], out, log)) == 0, log.read_text("utf-8")[-1500:]
        assert same(contents(out), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_on_one_folder(
    name: str, made: dict[str, list[str]], wholes: dict[str, Any], tmp_path: Path
) -> None:
    expected, _ = whole(name, made, wholes, tmp_path)
    out, logs = tmp_path / "out", [tmp_path / "log-1", tmp_path / "log-2"]
    children = [begin(made[name], out, log) for log in logs]
    statuses = [ended(child) for child in children]
    said = [log.read_text("utf-8", errors="replace") for log in logs]
    assert 0 in statuses and set(statuses) <= {0, 2}, said
    assert not any("Traceback" in each for each in said), said
    assert same(contents(out), expected)
