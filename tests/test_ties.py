"""Comparisons with ties in mind: what rounding may turn passes, and a fault of the same size does not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ties import in_order, margin, same_choice, same_indicators, same_ranks, same_shares

SCORES = torch.tensor([[1.0, 3.0, 3.0 - 1e-6], [5.0, 2.0, 4.0]])


def test_margins() -> None:
    torch.testing.assert_close(margin(SCORES), torch.tensor([1e-6, 1.0]).double(), atol=1e-6, rtol=0)
    assert margin(SCORES, torch.tensor([0, 2])).tolist() == [2.0, 1.0]


def turned(row: int) -> Tensor:
    return torch.tensor([True, True]) ^ (torch.arange(2) == row)


def test_only_a_near_tie_may_turn() -> None:
    expected, margins = torch.tensor([True, True]), margin(SCORES)
    same_indicators(turned(0), expected, margins)
    same_shares(torch.tensor(0.5), torch.tensor(1.0), margins)
    same_choice(torch.tensor([2, 0]), SCORES)
    in_order(torch.tensor([3.0 - 1e-6, 3.0, 1.0]))
    for ranks in ([1, 2], [2, 2]):
        same_ranks(torch.tensor(ranks), SCORES, torch.tensor([1, 2]))


@pytest.mark.parametrize(
    "compare",
    [
        lambda: same_indicators(turned(1), torch.tensor([True, True]), margin(SCORES)),
        lambda: same_indicators(turned(1), torch.tensor([True, True]), torch.full((2,), torch.nan)),
        lambda: same_shares(torch.tensor(0.0), torch.tensor(1.0), margin(SCORES)),
        lambda: same_shares(torch.tensor(torch.nan), torch.tensor(1.0), margin(SCORES)),
        lambda: same_choice(torch.tensor([2, 2]), SCORES),
        lambda: same_choice(torch.tensor([0, 0]), SCORES),
        lambda: in_order(torch.tensor([1.0, 3.0, 2.0])),
        lambda: same_ranks(torch.tensor([3, 2]), SCORES, torch.tensor([1, 2])),
        lambda: same_ranks(torch.tensor([1, 1]), SCORES, torch.tensor([1, 2])),
    ],
)
def test_a_fault_fails(compare: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        compare()
