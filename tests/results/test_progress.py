import io
import sys
import types
import warnings
from typing import Any

import pytest
from rich.console import Console

from sinklens.results.pace import Pace
from sinklens.results.progress import Share
from sinklens.results.show_progress import ShowProgress
from tests.heard import Heard


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Pace.__init__, "__defaults__", (clock,))
    return clock


def shown(terminal: bool = False) -> tuple[ShowProgress, io.StringIO]:
    text = io.StringIO()
    return ShowProgress(Console(file=text, force_terminal=terminal, width=100, color_system=None)), text


# ------------------------------------------------------------------ shares of longer work
def test_shares_add_up_whatever_their_units() -> None:
    whole = Heard()
    whole.begin("All", 10)
    first, second, third = Share(whole, 6), Share(whole, 3), Share(whole, 1)
    first.begin("First", 300)
    for _ in range(300):
        first.advance()
    second.begin("Second", 4)
    second.skip(1)
    second.advance(1)
    second.finish()
    third.finish()
    assert whole.whole and whole.skipped == pytest.approx(0.75) and len(whole.done) == 303


def test_a_share_never_tells_more_than_its_own() -> None:
    whole = Heard()
    part = Share(whole, 2)
    part.begin("Part", 4)
    part.advance(100)
    part.finish()
    assert sum(whole.done) == 2
    part.begin("Nothing", 0)
    part.advance()
    assert sum(whole.done) == 2


# ------------------------------------------------------------------ how long it takes
def test_the_pace_leaves_out_the_first_piece_and_what_was_done_before() -> None:
    clock = Clock()
    pace = Pace(12, clock)
    assert not pace.known and pace.left == float("inf")
    pace.skip(2)
    clock.now = 5.0  # everything that happens once
    pace.advance(1)
    assert not pace.known and pace.left == pytest.approx(5 * 9)
    for _ in range(3):
        clock.now += 2
        pace.advance(1)
    assert pace.known and pace.left == pytest.approx(2 * 6) and pace.total == pytest.approx(11 + 12)
    slow = Pace(10, clock)
    clock.now += 7
    slow.advance(1)
    assert slow.known, "one long piece tells it too"


@pytest.mark.parametrize("seconds", [0.3, 3.0])
def test_work_of_more_than_ten_seconds_is_announced_once_and_rightly(clock: Clock, seconds: float) -> None:
    progress, text = shown()
    progress.begin("Scanning", 40, "Forty layers.")
    for _ in range(40):
        clock.now += seconds
        progress.advance()
    lines = text.getvalue().splitlines()
    assert lines[0] == "Forty layers."
    told = [line for line in lines if line.startswith("This takes about")]
    assert len(told) == 1 and lines[1] == told[0], "before anything else"
    expected = {0.3: "This takes about 12 s; 10 s are left.", 3.0: "This takes about 2 min; 2 min are left."}
    assert told[0] == expected[seconds]


def test_short_work_says_nothing(clock: Clock) -> None:
    progress, text = shown()
    progress.begin("Scanning", 40)
    for _ in range(40):
        clock.now += 0.1
        progress.advance()
    assert text.getvalue() == ""


# ------------------------------------------------------------------ where it is shown
def test_a_log_gets_a_line_every_ten_seconds_and_steps(clock: Clock) -> None:
    progress, text = shown()
    progress.begin("Measuring", 100)
    for number in range(100):
        if number == 50:
            progress.step("2 of 2, sinks")
        clock.now += 1
        progress.advance()
    lines = text.getvalue().splitlines()
    assert "2 of 2, sinks" in lines
    assert next(line for line in lines if "% done" in line) == "12% done, about 88 s left"
    assert 8 <= sum("% done" in line for line in lines) <= 10


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    progress, text = shown(terminal=True)
    with progress:
        progress.begin("Measuring", 3)
        progress.advance()
        assert progress._shown is not None
    assert "Measuring" in text.getvalue() and progress._shown is None
    progress.begin("Again", 1)
    progress.advance()
    assert progress._shown is None, "done"


def test_a_notebook_gets_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            written.append(data["text/plain"])

    module: Any = types.ModuleType("IPython.display")
    module.display = lambda *_, **__: Handle()
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    progress = ShowProgress(Console(force_jupyter=True))
    progress.begin("Measuring", 4)
    progress.advance()
    progress.advance(3)
    assert written[0].startswith("Measuring") and "25%" in written[1] and written[-1] == ""


def test_warnings_are_notes_beside_it_and_only_there() -> None:
    progress, text = shown()
    before = warnings.showwarning
    with pytest.raises(KeyboardInterrupt), progress:
        progress.begin("Measuring", 4)
        warnings.warn("One layer is special.", stacklevel=1)
        raise KeyboardInterrupt
    assert text.getvalue() == "Note: One layer is special.\n" and warnings.showwarning is before
