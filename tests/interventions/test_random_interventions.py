"""Random interventions, composed, nested, raising anywhere, in generation: the model is what it was, bit for bit."""

import gc
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import SinkLensError
from sinklens.interventions import (
    AblateHeads,
    CalibrateSinks,
    CompensatedWindow,
    EditValues,
    FollowGaze,
    Intervention,
    MaskKeys,
    PaintScores,
    RedistributeAttention,
    ScaleHeads,
    ScaleKeys,
    SetActivations,
    SlidingWindow,
    SteerAttention,
)
from sinklens.models import load
from tests.attention.test_engine import Boom, state
from tests.families import boot

MODELS = ("bb-3l", "tiny-llama", "gemma3")
POS = 12

_zoo: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def zoo_of_this_file(zoo: Path) -> None:
    _zoo[:] = [zoo]


@cache
def model(name: str) -> TransformerBridge:
    bridge: TransformerBridge = boot(name, _zoo[0]) if name == "gemma3" else load(name, device="cpu")
    bridge(ids_for(bridge))  # the first pass makes some bridges register hooks of their own
    return bridge


def ids_for(bridge: TransformerBridge) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(4, int(bridge.cfg.d_vocab), (2, POS), generator=generator)


@st.composite
def one(draw: st.DrawFn, name: str) -> Intervention:
    """An intervention with random settings, of heads and layers that the model has."""
    bridge = model(name)
    layers, n_heads = len(bridge.blocks), int(bridge.cfg.n_heads)
    head = st.builds("L{}H{}".format, st.integers(0, layers - 1), st.integers(0, n_heads - 1))
    heads = draw(st.one_of(st.just("all"), st.lists(head, min_size=1, max_size=4, unique=True)))
    keys = tuple(draw(st.lists(st.integers(0, POS - 1), min_size=1, max_size=3, unique=True)))
    window, sinks = draw(st.integers(1, POS)), draw(st.integers(0, 3))
    share = draw(st.floats(0.05, 0.95))
    where = [(draw(st.integers(0, layers - 1)), key, draw(st.integers(0, 15))) for key in keys]
    return draw(
        st.sampled_from(
            [
                lambda: AblateHeads(heads, draw(st.sampled_from(["zero", "uniform"]))),
                lambda: MaskKeys(keys, heads),
                lambda: ScaleKeys(keys, draw(st.floats(0.01, 50)), heads),
                lambda: SlidingWindow(window, sinks, heads),
                lambda: CompensatedWindow(window, sinks, heads),
                lambda: EditValues(keys),
                lambda: SteerAttention(keys, share, heads),
                lambda: PaintScores(keys, share, first_layer=0, heads=heads),
                lambda: FollowGaze(0, (POS - 2, POS - 1), share, heads=heads),  # type: ignore[arg-type]
                lambda: ScaleHeads(heads, draw(st.floats(0, 3))),
                lambda: CalibrateSinks(heads, beta=share),
                lambda: RedistributeAttention(keys, sinks=(0,), p=share, heads=heads),
                lambda: SetActivations(where, draw(st.sampled_from(["zero", 3.0]))),
            ]
        )
    )()


class Raising:
    """An observer that raises at its n-th layer."""

    def __init__(self, at: int) -> None:
        self.left = at

    def observe(self, call: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Boom


def work(bridge: TransformerBridge, changes: list[Intervention], plan: dict[str, Any]) -> None:
    """Passes and generation inside, a second intervention inside the first, and an exception anywhere."""
    whole = changes[0]
    for other in changes[1:]:
        whole = whole + other
    ids, failing = ids_for(bridge), plan["fails_at"]

    def boom(value: Tensor, hook: Any) -> Tensor:
        raise Boom

    with ExitStack() as stack:
        observers = [] if failing is None else [Raising(failing)]
        stack.enter_context(whole(bridge, observers=observers))
        if plan["hook"]:
            stack.enter_context(bridge.hooks(fwd_hooks=[("blocks.0.hook_out", boom)]))
        if plan["nested"]:
            with pytest.raises(SinkLensError, match="already open"), changes[-1](bridge):
                pass
        if plan["generate"]:
            bridge.generate(ids, max_new_tokens=4, do_sample=False, verbose=False)
        else:
            bridge(ids)
        if plan["raises"]:
            raise Boom


def check(name: str, data: st.DataObject) -> None:
    bridge = model(name)
    changes = data.draw(st.lists(one(name), min_size=1, max_size=3))
    plan = data.draw(
        st.fixed_dictionaries(
            {
                "fails_at": st.one_of(st.none(), st.integers(0, 5)),
                "hook": st.integers(0, 5).map(lambda n: n == 0),
                "nested": st.booleans(),
                "generate": st.booleans(),
                "raises": st.booleans(),
            }
        )
    )
    ids = ids_for(bridge)
    logits, before = bridge(ids), state(bridge)
    with suppress(Boom, SinkLensError):  # an intervention may be refused, for this model or beside another one
        work(bridge, changes, plan)
    assert state(bridge) == before
    assert torch.equal(bridge(ids), logits)


def held() -> int:
    """Bytes of all tensors that anything still refers to."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    return sum(each.numel() * each.element_size() for each in tensors)


def run(name: str, examples: int) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet)
    @given(st.data())
    def every(data: st.DataObject) -> None:
        check(name, data)

    bridge = model(name)
    work(bridge, [ScaleKeys(0, 0.5)], dict.fromkeys(PLAN))  # what is cached on the first use
    before = held()
    every()
    assert held() - before < 100_000, "something of the interventions is still held"


PLAN = ("fails_at", "hook", "nested", "generate", "raises")


@pytest.mark.parametrize("name", MODELS)
def test_random_interventions_leave_the_model_as_it_was(name: str) -> None:
    run(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_five_hundred_of_them(name: str) -> None:
    run(name, 167)
