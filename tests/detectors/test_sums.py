"""Sums by layer that take as few bytes as hold them."""

import torch
from torch import Tensor

from sinklens.detectors.base import LARGE, LONG, LayerSums


def sums_of(*values: Tensor) -> Tensor:
    sums = LayerSums()
    for value in values:
        sums.add(0, "x", value)
    return sums.layers[0]["x"]


def test_large_sums_are_no_wider_than_they_need_to_be() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [torch.randint(0, 2, (LARGE,), generator=generator).double() for _ in range(3)]
    norms = [torch.rand(LARGE, generator=generator).double() for _ in range(3)]
    counts[0][5] = torch.nan
    assert sums_of(*counts).dtype == torch.float8_e4m3fn and sums_of(norms[0]).dtype == torch.float32
    torch.testing.assert_close(sums_of(*counts).double(), sum(counts), atol=0, rtol=0, equal_nan=True)
    many = sums_of(torch.full((LARGE,), 9.0), torch.full((LARGE,), 8.0))  # 17 takes more than 8 bits
    assert many.dtype == torch.float16 and torch.equal(many.double(), torch.full((LARGE,), 17.0).double())
    assert (
        sums_of(torch.ones(LONG)).dtype == torch.float8_e4m3fn and sums_of(torch.ones(LONG - 1)).dtype == torch.double
    )
    assert sums_of(*norms).dtype == torch.float64
    torch.testing.assert_close(sums_of(*norms), sum(norms), atol=0, rtol=0)
    fine = norms[0] / 3  # more digits than fp32 has
    torch.testing.assert_close(sums_of(fine, -fine), torch.zeros(LARGE).double(), atol=2e-8, rtol=0)


def test_small_sums_stay_exact() -> None:
    value = torch.rand(7, dtype=torch.float64) / 3
    assert torch.equal(sums_of(value, value), value + value)
    assert sums_of(torch.ones(3), torch.ones(5)).tolist() == [2, 2, 2, 1, 1]
