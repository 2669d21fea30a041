"""CompensatedWindow against a cache that really holds one token for the dropped keys, head by head."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, Block
from sinklens.attention.kernel import AttentionCall, attend
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import CompensatedWindow, Intervention, SlidingWindow
from sinklens.interventions.compensated_window import razor_window
from sinklens.interventions.positions import Positions
from tests.families import boot, random_ids
from tests.interventions import invariants, reference

POS = 40
SOME = ("L0H1", "L1H0", "L1H3")


def compressed(
    query: Tensor, keys: Tensor, values: Tensor, row: int, window: int, sinks: int, scaling: float, counted: bool
) -> Tensor:
    """The output of one row from a cache with the compensation token in it (card razorattention, (b)), in fp64."""
    query, keys, values = query.double(), keys.double(), values.double()
    dropped = [key for key in range(row + 1) if row - key >= window and key >= sinks]
    kept = [key for key in range(row + 1) if key not in dropped]
    logits, held = keys[kept] @ query * scaling, values[kept]
    if dropped:
        token = keys[dropped].mean(0) @ query * scaling + (math.log(len(dropped)) if counted else 0.0)
        logits, held = torch.cat([logits, token[None]]), torch.cat([held, values[dropped].mean(0, keepdim=True)])
    weights: Tensor = logits.softmax(-1) @ held
    return weights


class Recorder(AttentionEngine):
    """Keeps each layer's call and output."""

    def __init__(self, model: TransformerBridge, edits: Any) -> None:
        super().__init__(model, edits=edits)
        self.seen: dict[int, tuple[AttentionCall, Tensor]] = {}

    def attend(self, call: AttentionCall) -> Tensor:
        output = super().attend(call)
        self.seen[call.layer] = (call, output.clone())
        return output


def recorded(bridge: TransformerBridge, method: Intervention, ids: Tensor) -> dict[int, tuple[AttentionCall, Tensor]]:
    positions = Positions()
    with positions.watch(bridge), Recorder(bridge, method.edits(positions)) as engine:
        bridge(ids)
    return engine.seen


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_equals_a_cache_with_the_token_in_it(name: str, counted: bool, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    method = CompensatedWindow(6, sinks=2, heads=SOME, counted=counted)
    for layer, (call, output) in recorded(bridge, method, ids).items():
        group = call.query.shape[1] // call.key.shape[1]
        for head in range(4):
            window = 6 if f"L{layer}H{head}" in SOME else POS  # other heads drop nothing
            for row in (0, 5, 8, 21, POS - 1):
                parts = call.query[1, head, row], call.key[1, head // group], call.value[1, head // group]
                expected = compressed(*parts, row, window, 2, call.scaling, counted)
                torch.testing.assert_close(output[1, head, row].double(), expected, atol=2e-5, rtol=0)


def call_with(keys: Tensor, n: int) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)
    query, value = (torch.randn(1, 2, n, 8, generator=generator) for _ in range(2))
    return AttentionCall(0, query, keys, value, 8**-0.5)


def under(method: CompensatedWindow, call: AttentionCall) -> Tensor:
    return attend(call, (), method.edits(Positions()))


def test_equal_keys_are_compensated_exactly_and_only_if_counted() -> None:
    """Card razorattention, check 3: exact when all dropped keys are equal; without log N_d it is not."""
    n = 16
    keys = torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(1))
    keys[:, :, 2:12] = keys[:, :, 2:3]  # everything that the last row drops
    call = call_with(keys, n)
    full, last = attend(call), slice(n - 1, n)
    same = under(CompensatedWindow(4, sinks=2), call)
    torch.testing.assert_close(same[:, :, last], full[:, :, last], atol=1e-5, rtol=0)
    light = under(CompensatedWindow(4, sinks=2, counted=False), call)
    assert float((light - full)[:, :, last].abs().max()) > 1e-2
    gone = attend(call, (), SlidingWindow(4, sinks=2).edits(Positions()))
    assert float((gone - full)[:, :, last].abs().max()) > 1e-2


def test_the_dropped_mass_is_never_over_estimated() -> None:
    n = 64
    call = call_with(3 * torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(2)), n)
    masses = {}

    class Keep:
        def edit_pattern(self, block: Block) -> None:
            masses[len(masses)] = block.pattern[:, -1, 2 : n - 8].sum(-1).clone()

    attend(call, (), [Keep()])
    attend(call, (), [*CompensatedWindow(8, sinks=2).edits(Positions()), Keep()])
    assert bool((masses[1] < masses[0]).all())


@pytest.mark.parametrize("name", ["llama", "bloom", "mistral"])
def test_a_text_that_fits_is_unchanged(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    fits = CompensatedWindow(POS - 4, sinks=4)
    torch.testing.assert_close(reference.under(bridge, fits, ids), bridge(ids), atol=5e-5, rtol=0)
    cut = reference.under(bridge, CompensatedWindow(6, sinks=1), ids)
    assert float((cut - bridge(ids)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_caches_and_padding_change_nothing(name: str, zoo: Path) -> None:
    method = CompensatedWindow(6, sinks=2, heads=SOME)
    invariants.check_decoding(name, method, zoo)
    invariants.check_padded_decoding(name, method, method, zoo)
    invariants.check_left_padding(name, method, zoo)
    invariants.check_both_paths(name, method, zoo)


def test_json_and_what_is_refused(zoo: Path) -> None:
    invariants.check_json(CompensatedWindow(6, sinks=2, heads=SOME, counted=False))
    for make, problem in (
        (lambda: CompensatedWindow(0), "window must be"),
        (lambda: CompensatedWindow(3, sinks=-1), "sinks must be"),
        (lambda: CompensatedWindow(3, counted="no"), "counted must be"),  # type: ignore[arg-type]
        (lambda: razor_window(0), "n_tokens and shortest"),
        (lambda: razor_window(10, ratio=0.5), "ratio must be"),
    ):
        with pytest.raises(InputError, match=problem):
            make()  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedArchitectureError, match="caps its attention scores"):
        reference.under(boot("gemma2", zoo), CompensatedWindow(4), random_ids())
