"""Parts of a sweep: cut so that nothing is lost or doubled."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

from sinklens import tokenize
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.passes.head_sets import Depth
from sinklens.studies.ablation import layout as layout_module
from sinklens.studies.ablation.layout import Layout, choose_layout, cut


def ragged(lengths: list[int]) -> TokenBatch:
    width = max(lengths)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    strings = tuple(("x",) * length for length in lengths)
    return TokenBatch(
        torch.ones_like(real, dtype=torch.long), real, torch.zeros_like(real), strings, None, "nobody", ""
    )


head_sets = st.lists(
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=3).map(lambda s: tuple(sorted(s))),
    min_size=1,
    max_size=15,
    unique=True,
)


@given(
    sets=head_sets,
    lengths=st.lists(st.integers(2, 5), min_size=1, max_size=8),
    chunk=st.integers(1, 4),
    passes=st.integers(1, 6),
    estimate=st.booleans(),
)
def test_parts_hold_every_set_and_sequence_once(
    sets: list[tuple[tuple[int, int], ...]], lengths: list[int], chunk: int, passes: int, estimate: bool
) -> None:
    layout = Layout(chunk, chunk, passes, 0)
    parts = cut("zero", sets, ragged(lengths), layout, depth=Depth([1] * 4), first=7, estimate=estimate)
    held = [(heads, sequence) for part in parts for heads in part.head_sets for sequence in part.sequences]
    assert sorted(held) == sorted((heads, sequence) for heads in sets for sequence in range(len(lengths)))
    assert [part.number for part in parts] == list(range(7, 7 + len(parts)))
    for part in parts:
        assert len({lengths[index] for index in part.sequences}) == 1, "one length in a part"
        assert len(part.sequences) <= chunk and part.work > 0
        firsts = [min(layer for layer, _ in heads) for heads in part.head_sets]
        assert firsts == sorted(firsts)
        if not estimate:
            shares = [(4 - first) / 4 for first in firsts]
            assert part.work == pytest.approx((1 + sum(shares)) * len(part.sequences))
            assert sum(shares[:-1]) < passes, "no larger than it must be"


def test_a_part_of_one_layer_at_a_time_when_that_is_enough_work() -> None:
    sets = [((layer, head),) for layer in range(3) for head in range(4)]
    parts = cut("zero", sets, ragged([4]), Layout(1, 1, 1, 0), depth=Depth([1] * 3))
    assert [len(part.head_sets) for part in parts][:4] == [1, 1, 1, 1]
    assert len(cut("zero", sets, ragged([4]), Layout(1, 1, 100, 0), depth=Depth([1] * 3))) == 1, (
        "small sweeps are one part"
    )


def test_sizes_follow_memory_and_the_caller(tiny: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    easy = choose_layout(tiny, 100, 64)
    assert easy.chunk == 64 and easy.rows == 64, "4,096 tokens of a small model in one pass"
    assert choose_layout(tiny, 3, 64).chunk == 3
    assert choose_layout(tiny, 100, 64, batch_size=5).chunk == 5
    assert choose_layout(tiny, 100, 64, backward=True).memory > easy.memory
    monkeypatch.setattr(layout_module, "free_memory", lambda model: 2 * easy.memory - 1000)
    tight = choose_layout(tiny, 100, 64)
    assert tight.chunk < 64 and tight.memory < easy.memory
    assert choose_layout(tiny, 100, 64, workers=4).memory < tight.memory, "workers share the memory"
    monkeypatch.setattr(layout_module, "free_memory", lambda model: 0)
    assert choose_layout(tiny, 100, 64).chunk == choose_layout(tiny, 100, 64).rows == 1
    assert choose_layout(tiny, 100, 64, batch_size=5).rows == 5
    with pytest.raises(InputError, match="batch_size"):
        choose_layout(tiny, 100, 64, batch_size=0)


def test_parts_of_a_large_model_are_short(tiny: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layout_module.NOMINAL, "cpu", 2e5)  # as if the model were half a million times larger
    slow = choose_layout(tiny, 100, 64)
    assert slow.chunk == 1 and slow.passes == layout_module.CLEAN_PASSES


def test_real_tokens_are_cut_by_length(tiny: TransformerBridge) -> None:
    batch = tokenize(tiny, [[5, 6, 7], [5, 6], [8, 9, 10]])
    parts = cut("zero", [((0, 0),)], batch, Layout(8, 8, 1, 0), depth=Depth([1] * 2))
    assert sorted(part.sequences for part in parts) == [(0, 2), (1,)]
    assert np.isclose(sum(part.work for part in parts), 3 * 2)
