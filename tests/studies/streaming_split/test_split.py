"""Gates made into a split: the released code's rule, ties, both ends, groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import InputError
from sinklens.interventions import CompensatedWindow, SlidingWindow
from sinklens.studies.streaming_split.split import split_gates

GATES = {
    (layer, kv): value for layer, row in enumerate([[0.1, 0.9, 0.3], [1.0, 0.0, 0.7]]) for kv, value in enumerate(row)
}


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=60, unique=True), st.floats(0.01, 0.99))
def test_without_ties_it_is_the_quantile(values: list[int], sparsity: float) -> None:
    gates = {(0, number): value / 1000 for number, value in enumerate(values)}
    split = split_gates(gates, 1, sparsity=sparsity)
    alphas = np.array(list(gates.values()))
    position = sparsity * (len(alphas) - 1)  # of the quantile among the sorted gates
    if abs(position - round(position)) > 1e-2:  # else the jitter decides about the gate that is the quantile
        assert len(split.streaming_kv) == int(np.floor(position)) + 1
    assert {*split.retrieval_kv, *split.streaming_kv} == {*gates}
    assert min(gates[head] for head in split.retrieval_kv) > max(gates[head] for head in split.streaming_kv)
    assert split.sparsity == len(split.streaming_kv) / len(gates)


def test_ties_fall_at_random_and_are_told() -> None:
    gates = {(0, number): 1.0 for number in range(8)} | {(1, number): 0.0 for number in range(8)}
    split = split_gates(gates, 1, sparsity=0.75)
    assert len(split.retrieval_kv) == 4 and all(layer == 0 for layer, _ in split.retrieval_kv)
    assert len(split.tied) == 8 and "8 gates tie at the cut and 4 of them were chosen at random" in split.statement
    assert split_gates(gates, 1, sparsity=0.75) == split
    others = {split_gates(gates, 1, sparsity=0.75, seed=seed).retrieval_kv for seed in range(20)}
    assert len(others) > 5
    clear = split_gates(gates, 1, sparsity=0.5)
    assert clear.tied == () and "No gates tie" in clear.statement


def test_both_ends_and_thresholds() -> None:
    assert split_gates(GATES, 2, sparsity=0).streaming_kv == ()
    assert split_gates(GATES, 2, sparsity=1).retrieval_kv == ()
    by_threshold = split_gates(GATES, 2, threshold=0.7)
    assert by_threshold.retrieval_kv == ((0, 1), (1, 0), (1, 2))  # a gate at the threshold is in
    assert by_threshold.asked_sparsity is None and by_threshold.cut == 0.7
    assert "3 of 6 KV heads are retrieval heads (gate >= 0.7)" in by_threshold.statement
    assert "1 of 1 KV head is a retrieval head (gate >= 0)" in split_gates({(0, 0): 0.5}, 1, threshold=0).statement


def test_groups_and_interventions() -> None:
    split = split_gates(GATES, 2, threshold=0.95)
    assert split.retrieval_heads == ((1, 0), (1, 1))
    assert split.streaming_heads == (*((0, head) for head in range(6)), *((1, head) for head in range(2, 6)))
    assert split.window(8, 2) == SlidingWindow(8, 2, split.streaming_heads)
    compensated = split.compensated_window(8, 2, counted=False)
    assert compensated == CompensatedWindow(8, 2, split.streaming_heads, counted=False)
    with pytest.raises(InputError, match="No head streams"):
        split_gates(GATES, 2, sparsity=0).window(8, 2)


def test_layers_without_gates_are_left_out() -> None:
    split = split_gates({**GATES, (2, 0): float("nan")}, 1, threshold=0.5)
    assert (2, 0) not in {*split.retrieval_kv, *split.streaming_kv}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "either a sparsity"),
        ({"sparsity": 0.5, "threshold": 0.5}, "either a sparsity"),
        ({"sparsity": 1.5}, "sparsity must be a share"),
        ({"threshold": float("nan")}, "threshold must be a finite number"),
    ],
)
def test_what_is_refused(options: dict[str, float], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        split_gates(GATES, 1, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no gate"):
        split_gates({}, 1, sparsity=0.5)
