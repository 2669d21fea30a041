"""MLPs by rows and memory given back: a long pass finds what a whole one finds, and all is as before."""

from pathlib import Path

import pytest
import torch

from sinklens.capture import capture, heap, mlp_rows, run
from sinklens.capture.heap import give_back
from sinklens.capture.mlp_rows import mlp_by_rows
from tests.attention.test_engine import state
from tests.families import boot, random_ids

IDS = random_ids(2, 40)


def rows_seen(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """How many rows each forward call of a module of this kind had, by the module's identity."""
    seen: dict[int, list[int]] = {}
    plain = type(module).forward

    def forward(self: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        seen.setdefault(id(self), []).append(states.shape[1])
        return plain(self, states)

    monkeypatch.setattr(type(module), "forward", forward)
    return seen


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral"])
def test_rows_change_nothing_that_is_found(name: str, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot(name, zoo)
    capture(bridge, IDS)  # what a bridge sets up in its first pass stays
    before, whole = state(bridge), capture(bridge, IDS)
    monkeypatch.setattr(run, "LONG", 1)
    monkeypatch.setattr(mlp_rows, "ROWS", 7)
    parts = capture(bridge, IDS)
    for mine, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine.attention, other.attention, equal_nan=True, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mine.residual.norm, other.residual.norm, atol=1e-5, rtol=1e-4)
    assert state(bridge) == before


def test_a_dense_mlp_takes_some_rows_and_one_with_a_hook_all(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot("llama", zoo)
    first, second = (block.mlp.original_component for block in bridge.blocks)
    monkeypatch.setattr(mlp_rows, "ROWS", 16)
    seen = rows_seen(first, monkeypatch)
    with torch.no_grad(), mlp_by_rows(bridge):
        bridge(IDS)
    assert seen == {id(first): [16, 16, 8], id(second): [16, 16, 8]}
    seen.clear()
    handle = first.down_proj.register_forward_pre_hook(lambda module, arguments: None)
    with torch.no_grad(), mlp_by_rows(bridge):
        bridge(IDS)
    handle.remove()
    assert seen == {id(first): [40], id(second): [16, 16, 8]}
    with pytest.raises(ZeroDivisionError), mlp_by_rows(bridge):
        _ = 1 / 0
    assert "forward" not in second.__dict__


def test_giving_back_is_harmless_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back()
    monkeypatch.setattr(heap, "_trim", lambda: None)
    give_back()
