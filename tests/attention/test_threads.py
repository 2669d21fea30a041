"""Threads, tasks and forks that share a bridge: they wait or get a sentence, and the bridge ends as it began."""

import asyncio
import os
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.attention import AttentionEngine, ReceivedMass
from sinklens.capture import capture
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, ScaleKeys
from tests.attention.test_engine import state
from tests.families import boot, random_ids

IDS = random_ids(pos=24)
ROUNDS = 6
NAMES = ["llama", "bloom"]  # fast path and fallback


def together(*works: Callable[[], Any]) -> list[Any]:
    """What each thread returns, or its exception; all begin at the same moment, and none may hang."""
    start = threading.Barrier(len(works))

    def begin(work: Callable[[], Any]) -> Any:
        start.wait(timeout=60)
        try:
            with torch.no_grad():
                return work()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(timeout=300) for future in [pool.submit(begin, work) for work in works]]


def records(bridge: TransformerBridge) -> list[torch.Tensor]:
    return [record.attention["mass"] for record in capture(bridge, IDS, batch_size=1) if record.attention]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_two_threads_that_measure_one_bridge_get_what_one_gets(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    logits, before = bridge(IDS), state(bridge)
    expected = records(bridge)

    def work() -> bool:
        return all(same(records(bridge), expected) for _ in range(ROUNDS))

    assert together(work, work, work) == [True] * 3
    assert state(bridge) == before
    assert torch.equal(bridge(IDS), logits)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_measurements_of_a_bridge_may_come_from_two_threads(name: str, zoo: Path) -> None:
    """Which path is exact is found out by running the model with and without the engine."""
    bridge = boot(name, zoo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this family is measured through hooks
        first, second = together(lambda: records(bridge), lambda: records(bridge))
    assert same(first, second)


def test_an_intervention_of_one_thread_is_not_seen_by_another(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    before, expected = state(bridge), records(bridge)

    def change() -> bool:
        found = []
        for _ in range(ROUNDS):
            with (AblateHeads(["L0H0"]) + ScaleKeys(keys=0, gamma=0.5))(bridge):
                found.append(bridge(IDS))
        return all(torch.equal(found[0], each) for each in found)

    assert together(change, lambda: all(same(records(bridge), expected) for _ in range(ROUNDS))) == [True, True]
    assert state(bridge) == before


def test_two_bridges_work_side_by_side(zoo: Path) -> None:
    """Each waits inside its engine for the other to be there as well: neither may have to wait for the other's end."""
    both = threading.Barrier(2)

    def work(bridge: TransformerBridge) -> list[torch.Tensor]:
        with AttentionEngine(bridge, statistics=[ReceivedMass]):
            both.wait(timeout=60)
            return [bridge(IDS)]

    llama, gpt2 = boot("llama", zoo), boot("gpt2", zoo)
    first, second = together(lambda: work(llama), lambda: work(gpt2))
    assert torch.allclose(first[0], llama(IDS), atol=1e-5)
    assert torch.allclose(second[0], gpt2(IDS), atol=1e-5)


def test_two_bridges_may_be_open_in_one_thread(zoo: Path) -> None:
    llama, gpt2 = boot("llama", zoo), boot("gpt2", zoo)
    with AblateHeads(["L0H0"])(llama):
        expected = llama(IDS)
        with AttentionEngine(gpt2):
            assert torch.equal(llama(IDS), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_pass_of_another_thread_is_refused_and_disturbs_nothing(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    expected, before = bridge(IDS), state(bridge)
    with AblateHeads(["L0H0"])(bridge):
        changed = bridge(IDS)
        (refused,) = together(lambda: bridge(IDS))
        assert isinstance(refused, InputError)
        assert "another thread or task" in str(refused)
        assert torch.equal(bridge(IDS), changed)
    assert state(bridge) == before
    assert torch.equal(bridge(IDS), expected)


def test_a_thread_that_fails_lets_the_next_one_in(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    before = state(bridge)

    def fail() -> None:
        with AblateHeads(["L0H0"])(bridge):
            raise RuntimeError("in the middle")

    for outcome in together(fail, fail, fail):
        assert isinstance(outcome, RuntimeError)
    assert state(bridge) == before


def test_an_intervention_may_end_in_another_thread(zoo: Path) -> None:
    """As web frameworks do, which enter and leave a context in whatever worker is free."""
    bridge = boot("llama", zoo)
    before, opened = state(bridge), AblateHeads(["L0H0"])(bridge)
    assert isinstance(together(opened.__enter__)[0], AttentionEngine)
    together(lambda: opened.__exit__(None, None, None))
    assert state(bridge) == before
    assert len(records(bridge)) == 4  # two sequences, two layers


def alone(work: Any) -> Any:
    """Run a coroutine in a thread of its own: in this one a browser of other tests may keep a loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(ended(work))).result()


async def ended(work: Any) -> Any:
    return await work


def test_a_second_task_gets_a_sentence_and_not_a_deadlock(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    expected, before = bridge(IDS), state(bridge)

    async def first(inside: asyncio.Event, done: asyncio.Event) -> torch.Tensor:
        with AblateHeads(["L0H0"])(bridge):
            inside.set()
            await done.wait()
            return await asyncio.to_thread(torch.no_grad()(bridge.forward), IDS)  # works for this task: it may

    async def second(inside: asyncio.Event, done: asyncio.Event) -> list[Exception]:
        await inside.wait()
        found = []
        for work in (lambda: records(bridge), lambda: bridge(IDS), ScaleKeys(0, 0.5)(bridge).__enter__):
            with pytest.raises(InputError, match="another") as caught:
                work()
            found.append(caught.value)
        done.set()
        return found

    async def both() -> tuple[torch.Tensor, list[Exception]]:
        inside, done = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(first(inside, done), second(inside, done))

    changed, refused = alone(both())
    assert len(refused) == 3
    with AblateHeads(["L0H0"])(bridge):
        assert torch.equal(bridge(IDS), changed)
    assert state(bridge) == before
    assert torch.equal(bridge(IDS), expected)


def test_measuring_in_a_thread_while_the_own_task_is_inside_is_refused_at_once(zoo: Path) -> None:
    bridge = boot("llama", zoo)

    async def work() -> None:
        with AblateHeads(["L0H0"])(bridge), pytest.raises(InputError, match="already open"):
            await asyncio.to_thread(records, bridge)

    alone(asyncio.wait_for(work(), timeout=60))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("name", NAMES)
def test_a_child_forked_in_the_middle_of_another_threads_measurement_has_a_whole_bridge(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    logits, before = bridge(IDS), state(bridge)
    expected = records(bridge)
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with AblateHeads(["L0H0"])(bridge), bridge.hooks(fwd_hooks=[("blocks.0.hook_out", lambda x, hook: x * 2)]):
            inside.set()
            done.wait(timeout=120)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(timeout=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks of processes with threads
        child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            whole = torch.equal(bridge(IDS), logits) and same(records(bridge), expected)
            at_first = [state(bridge)[key] for key in ("forward", "implementation", "hooks")]
            os._exit(0 if whole and at_first == [before[key] for key in ("forward", "implementation", "hooks")] else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(2)
    done.set()
    thread.join(timeout=60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert state(bridge) == before


def test_results_pickle() -> None:
    bb_3l = sinklens.load("bb-1l")
    census = sinklens.scan(bb_3l, sinklens.tokenize(bb_3l, ["t e x t" * 8]))
    again = pickle.loads(pickle.dumps(census))
    assert type(again) is type(census)
    pd.testing.assert_frame_equal(again.heads.to_dataframe(), census.heads.to_dataframe())
    assert again.meta == census.meta
