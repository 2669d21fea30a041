"""The pretend GPU computes what the CPU does, and refuses what a GPU refuses."""

import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionCall, ReceivedMass
from sinklens.attention.kernel import attend
from tests.pretend_cuda.counts import counting
from tests.pretend_cuda.rules import SAME, DeviceFault
from tests.pretend_cuda.tensor import GpuTensor

pytestmark = pytest.mark.cuda
ANOTHER = "same device"


@pytest.fixture(autouse=True)
def pretending() -> None:
    if not isinstance(torch.zeros(1, device="cuda"), GpuTensor):
        pytest.skip("this is a real GPU")


def x() -> Tensor:
    return torch.arange(12.0, device="cuda").view(3, 4)


FAULTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "sum of two devices": (ANOTHER, lambda: x() + torch.ones(3, 4)),
    "numpy": ("numpy", lambda: x().numpy()),
    "numpy by itself": ("numpy", lambda: np.asarray(x())),
    "CPU tensor indexed by a GPU's": ("indexed tensor", lambda: torch.arange(5)[torch.tensor([1], device="cuda")]),
    "gather": (ANOTHER, lambda: x().gather(0, torch.zeros(1, 4, dtype=torch.long))),
    "generator": ("generator", lambda: torch.rand(3, device="cuda", generator=torch.Generator())),
    "CPU tensor changed in place": (ANOTHER, lambda: torch.zeros(3, 4).add_(x())),
    "CPU number changed in place": (ANOTHER, lambda: torch.zeros(()).add_(x()[0, 0])),
    "cat": (ANOTHER, lambda: torch.cat([x(), torch.zeros(1, 4)])),
    "integer product": ("integers", lambda: x().long() @ x().long().T),
    "linear": (ANOTHER, lambda: torch.nn.functional.linear(x(), torch.ones(2, 4))),
    "isin": (ANOTHER, lambda: torch.isin(x().long(), torch.tensor([1]))),
    "searchsorted": (ANOTHER, lambda: torch.searchsorted(torch.arange(3.0), x())),
    "CPU number in a product": (ANOTHER, lambda: torch.dot(x()[0], x()[0].cpu())),
    "fused attention": (ANOTHER, lambda: attend_fused(x(), torch.zeros(3, 4))),
    "two GPUs": (ANOTHER, lambda: x() + torch.ones(3, 4, device="cuda:1")),
    "numbers of two GPUs": (ANOTHER, lambda: x()[0, 0] + torch.ones((), device="cuda:1")),
    "index on the other GPU": ("indexed tensor", lambda: x()[torch.tensor([1], device="cuda:1")]),
    "no such GPU": ("ordinal", lambda: torch.zeros(1, device="cuda:7")),
}


def attend_fused(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(a[None, None], b[None, None], b[None, None])


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_refused(name: str) -> None:
    message, fault = FAULTS[name]
    with pytest.raises((RuntimeError, TypeError), match=message):
        fault()


def test_what_a_gpu_allows_is_computed() -> None:
    a = x()
    assert a.device == torch.device("cuda:0") and a.is_cuda and torch.zeros(1, device="cuda:1").device.index == 1
    assert (a + torch.tensor(2.0)).sum().item() == 90
    a[torch.tensor([1])] = 5.0
    a[0] = torch.zeros(4)
    a.mul_(2)
    assert a.tolist() == [[0] * 4, [10] * 4, [16, 18, 20, 22]]
    assert a.to("cuda:1").device.index == 1 and torch.equal(a.to("cuda:1").cpu(), a.cpu())
    out = torch.empty(3, 3, device="cuda")
    torch.mm(a, a.T, out=out)
    assert torch.equal(out.cpu(), a.cpu() @ a.cpu().T)
    assert torch.equal(copy.deepcopy(a).cpu(), a.cpu()) and torch.equal(pickle.loads(pickle.dumps(a)).cpu(), a.cpu())
    assert a.squeeze_().shape == (3, 4) and a[None].squeeze_(0).shape == (3, 4)
    assert f"{a[1, 1]:.1f}" == "10.0"
    assert torch.histc(a.long(), bins=3, min=0, max=30).tolist() == [4, 6, 2]
    assert torch.empty(2, pin_memory=True).shape == (2,) and not a.is_pinned()


def test_training_and_threads() -> None:
    layer = torch.nn.Linear(4, 2).to("cuda")
    layer(x()).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.device.type == "cuda"
    optimizer = torch.optim.AdamW(layer.parameters())
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    before = layer.weight.detach().cpu().clone()
    optimizer.step()
    assert not torch.equal(layer.weight.detach().cpu(), before)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x()).dtype == torch.bfloat16
    found: list[torch.device] = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device="cuda").device))
    thread.start()
    thread.join()
    assert found == [torch.device("cuda:0")]


def test_waits_are_counted() -> None:
    a = x()
    with counting() as counts:
        _ = a + 1, a.sum(), a[:2], a.argmax()
        assert not counts.syncs
        a.sum().item(), bool(a.any()), a.tolist(), a.cpu(), a[a > 3], a.nonzero(), torch.unique(a), torch.equal(a, a)
        assert sum(counts.syncs.values()) == 8 and all("test_rules.py" in place for place in counts.syncs)
        torch.ones(3).to("cuda"), a[torch.tensor([1])]
        assert sum(counts.crossings.values()) == 2 and sum(counts.syncs.values()) == 8
    a.sum().item()
    assert sum(counts.syncs.values()) == 8


@dataclass
class _Wrong:
    """An edit with a fault that a CPU never shows."""

    kind: str

    def edit_scores(self, block: Any) -> None:
        keys = torch.arange(block.keys.start, block.keys.stop)
        if self.kind == "mask":
            block.scores.masked_fill_(keys == 0, -1.0)
        elif self.kind == "sum":
            block.scores += keys
        else:
            block.scores[..., torch.tensor(0)].numpy()


@pytest.mark.parametrize("kind", ["mask", "sum", "numpy"])
def test_faults_planted_in_the_engine_are_caught(kind: str) -> None:
    q, k, v = (torch.randn(1, 2, 9, 4).to("cuda") for _ in range(3))
    call = AttentionCall(0, q, k, v, 0.5)
    attend(call, [ReceivedMass(call.shape)])
    with pytest.raises(RuntimeError, match="numpy" if kind == "numpy" else SAME) as caught:
        attend(call, [ReceivedMass(call.shape)], [_Wrong(kind)])  # type: ignore[list-item]
    assert kind == "numpy" or isinstance(caught.value, DeviceFault)


def test_a_statistic_left_on_the_cpu_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 2, 9, 4).to("cuda") for _ in range(3))
    call = AttentionCall(0, q, k, v, 0.5)
    statistic = ReceivedMass(call.shape)
    statistic.mass = torch.zeros(statistic.mass.shape)  # as if its device had been forgotten
    with pytest.raises(DeviceFault, match=SAME):
        attend(call, [statistic])
