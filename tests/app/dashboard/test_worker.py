import threading

import pytest

from sinklens.app.dashboard.worker import Cancelled, Worker, WorkerProgress
from sinklens.errors import InputError, ModelLoadError


def test_it_runs_one_computation_and_says_how_far_it_is() -> None:
    worker, go, reached = Worker(), threading.Event(), threading.Event()

    def work(progress: WorkerProgress) -> str:
        progress.step("counting")
        progress.begin("Reading", 4)
        progress.advance()
        reached.set()
        go.wait(10)
        progress.advance(3)
        return "four"

    assert worker.start("starting", work) == 1
    assert reached.wait(10)
    assert worker.status.busy and worker.status.title == "counting" and worker.status.share == 0.25
    with pytest.raises(InputError, match="counting is still running"):
        worker.start("another", work)
    go.set()
    status = worker.wait(10)
    assert not status.busy and status.result == "four" and status.error == "" and status.number == 1
    assert worker.start("again", lambda progress: None) == 2


def test_a_cancelled_one_stops_at_its_next_step_and_the_next_one_runs() -> None:
    worker, reached, go = Worker(), threading.Event(), threading.Event()
    steps = []

    def work(progress: WorkerProgress) -> None:
        for i in range(1000):
            steps.append(i)
            reached.set()
            go.wait(10)
            progress.advance()

    worker.start("long", work)
    assert reached.wait(10)
    worker.cancel()
    go.set()
    status = worker.wait(10)
    assert not status.busy and "Cancelled" in status.error and status.result is None and steps == [0]
    worker.start("next", lambda progress: progress.advance())
    assert worker.wait(10).error == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [(ModelLoadError("There is no model here."), "There is no model here."), (ZeroDivisionError("x"), "ZeroDivision")],
)
def test_a_failing_one_is_said_in_a_sentence(error: Exception, said: str) -> None:
    worker = Worker()

    def work(progress: WorkerProgress) -> None:
        raise error

    worker.start("failing", work)
    assert said in worker.wait(10).error and not worker.status.busy


def test_what_nobody_asked_for_gives_way() -> None:
    worker, began = Worker(), threading.Event()
    ended: list[str] = []

    def long(progress: WorkerProgress) -> None:
        began.set()
        try:
            while True:
                progress.check()
        except Cancelled:
            ended.append("gave way")
            raise

    worker.start("maps", long, gives_way=True)
    assert began.wait(10) and worker.idles
    worker.start("asked for", lambda progress: ended.append("done"))
    assert worker.wait().error == "" and ended == ["gave way", "done"] and not worker.idles
