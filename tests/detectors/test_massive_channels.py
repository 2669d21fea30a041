"""Episodes of massive activations: counts of all entries against loops, two lives, outlier channels, merging."""

import math
import random
from collections import defaultdict
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.capture.residual import residual_norms
from sinklens.detectors.massive_channels import (
    CHANNEL_COLUMNS,
    ChannelPresence,
    episodes,
    fp32_bound,
    specific_tokens,
)
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

BOUNDS = (100.0, 1000.0)


def record(layer: int, texts: list[Tensor], first: int = 0) -> LayerRecord:
    """Texts ``[pos d_model]`` as one padded record; padding is NaN."""
    width = max(map(len, texts))
    hidden = torch.full((len(texts), width, texts[0].shape[1]), math.nan)
    real = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        hidden[row, : len(text)], real[row, : len(text)] = text, True
    names = tuple(tuple("t" * len(text)) for text in texts)
    batch = TokenBatch(real.long(), real, torch.zeros_like(real), names, None, "caller", "")
    return LayerRecord(layer, batch, first, "none", residual=residual_norms(hidden, real, 1), hidden=hidden)


def presence(layers: list[list[Tensor]], sizes: list[int]) -> ChannelPresence:
    """Counts of ``layers[layer][sequence]`` in passes of these sizes, merged."""
    whole = ChannelPresence(*BOUNDS)
    start = 0
    for size in sizes:
        part = ChannelPresence(*BOUNDS)
        for layer, texts in enumerate(layers):
            chosen = record(layer, texts[start : start + size], start)
            part.update(chosen, chosen.hidden)  # type: ignore[arg-type]
        whole.merge(part)
        start += size
    return whole


def naive(layers: list[list[Tensor]]) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """``(layer, criterion, bucket, channel)`` -> the other columns, with loops over every entry."""
    found: dict[tuple[Any, ...], tuple[float, ...]] = {}
    for layer, texts in enumerate(layers):
        hits: dict[tuple[str, str, int], list[tuple[int, float]]] = defaultdict(list)
        rest: dict[tuple[str, int], list[float]] = defaultdict(list)
        later: dict[int, list[float]] = defaultdict(list)
        for sequence, text in enumerate(texts):
            sizes = sorted(text.abs().flatten().tolist())
            median = sizes[(len(sizes) - 1) // 2]
            for position, state in enumerate(text.tolist()):
                for channel, value in enumerate(state):
                    if position:
                        later[channel].append(abs(value))
                    for criterion, bound in (("absolute", 100.0), ("relative", 1000.0 * median)):
                        if abs(value) > bound:
                            hits[criterion, "others" if position else "start", channel].append((sequence, value))
                        elif position:
                            rest[criterion, channel].append(abs(value))
        for (criterion, bucket, channel), those in hits.items():
            size = sum(abs(value) for _, value in those) / len(those)
            beside = later[channel] if bucket == "start" else rest[criterion, channel]
            count = len(hits.get((criterion, "others", channel), []))
            found[layer, criterion, bucket, channel] = (
                len({sequence for sequence, _ in those}),
                sum(len(text) > (bucket == "others") for text in texts),
                len(those),
                count / len(later[channel]) if later[channel] else math.nan,
                sum(value for _, value in those) / len(those),
                max(abs(value) for _, value in those),
                size / (sum(beside) / len(beside)) if beside else math.nan,
            )
    return found


@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_loops_over_every_entry(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths = [rng.choice([1, 2, 5, 9]) for _ in range(5)]
    layers = []
    for scale in (0.01, 0.1, 60.0):  # none, a few by the ratio, very many by the bound
        texts = [scale * torch.randn(length, 7, generator=generator) for length in lengths]
        for text in texts:
            if rng.random() < 0.7:
                text[0, 2] = rng.choice([-1, 1]) * 2000.0 * scale
            if rng.random() < 0.5:
                text[-1, 4] = 5000.0 * scale
        layers.append(texts)
    expected = naive(layers)
    assert expected
    for sizes in ([5], [2, 3], [1, 1, 1, 1, 1], [3, 2]):
        found = presence(layers, sizes).channels()
        assert tuple(found.columns) == CHANNEL_COLUMNS
        rows = {tuple(row[:4]): tuple(row[4:]) for row in found.itertuples(index=False, name=None)}
        assert rows.keys() == expected.keys()
        for key, values in expected.items():
            assert rows[key] == pytest.approx(values, rel=1e-5, nan_ok=True), key


def channel_rows(*rows: tuple[int, str, str, int, int, float, float, float]) -> pd.DataFrame:
    """``layer, criterion, bucket, channel, n_sequences (of 4), token_share, peak, contrast``."""
    return pd.DataFrame(
        [(at, c, b, ch, n, 4, n, share, peak, peak, contrast) for at, c, b, ch, n, share, peak, contrast in rows],
        columns=[*CHANNEL_COLUMNS],
    )


def test_a_kind_that_comes_back_has_two_episodes() -> None:
    lives = [(1, 700.0), (2, 720.0), (3, 700.0), (6, 2e4), (7, 2.3e4)]
    rows = [(layer, "absolute", "start", 507, 4, 0.0, peak, 50.0) for layer, peak in lives]
    rows.insert(3, (4, "absolute", "start", 507, 1, 0.0, 110.0, 2.0))  # in one sequence of four: gone
    rows += [(-1, "absolute", "start", 507, 4, 0.0, 5e4, 9.0)]  # the embedding is no block
    found = episodes(channel_rows(*rows))
    names = ["channel", "episode", "appears", "leaves_after", "peak", "peak_layer", "n_sequences_least"]
    assert found[names].to_numpy().tolist() == [[507, 0, 1, 3, 720.0, 2, 4], [507, 1, 6, 7, 2.3e4, 7, 4]]
    assert not found["everywhere"].any()
    # a quarter of the sequences is enough when so asked: then block 4 belongs to the first life
    assert episodes(channel_rows(*rows), presence=0.25)["leaves_after"].tolist() == [4, 7]
    assert (found["appears"] <= found["leaves_after"]).all()


def test_outlier_channels_stand_apart() -> None:
    rows = [
        (0, "absolute", "start", 400, 4, 1.0, 9000.0, 5.0),  # large at every token
        (0, "absolute", "others", 400, 4, 1.0, 3000.0, math.nan),
        (0, "absolute", "start", 507, 4, 1.0, 23000.0, 100.0),  # so are its other tokens, a hundred times less
        (0, "absolute", "others", 17, 4, 0.5, 200.0, 30.0),  # at exactly half of the tokens
        (0, "absolute", "others", 18, 4, 0.49, 200.0, 1.1),
    ]
    found = episodes(channel_rows(*rows)).set_index(["bucket", "channel"])["everywhere"]
    assert found.to_dict() == {
        ("start", 507): False,
        ("start", 400): True,
        ("others", 400): True,
        ("others", 17): True,
        ("others", 18): False,
    }
    assert episodes(channel_rows()).empty


def test_half_of_the_sequences_is_enough_and_less_is_not() -> None:
    rows = [(0, "relative", "start", 1, 2, 0.0, 9.0, 9.0), (0, "relative", "start", 2, 1, 0.0, 9.0, 9.0)]
    assert episodes(channel_rows(*rows))["channel"].tolist() == [1]
    for bad in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(InputError, match="presence must be above 0"):
            episodes(channel_rows(*rows), presence=bad)


def test_tokens_with_an_entry_of_their_own() -> None:
    h = torch.ones(8, 4)
    h[3, 0] = -700.0  # one later token
    h[:, 1] = 300.0  # a channel that is large everywhere
    h[0, 1] = 4000.0  # and 13 times larger at position 0
    h[0, 2] = 100.0  # not over the bound

    def tokens(states: Tensor) -> list[int]:
        found = specific_tokens(states[None], states.abs().amax(1)[None], [torch.tensor([100.0])])[0]
        return found[0].nonzero().flatten().tolist()

    assert tokens(h) == [0, 3]
    h[0, 1] = 2900.0  # not ten times its channel's median
    assert tokens(h) == [3]
    assert tokens(h[:1]) == [] and tokens(torch.ones(3, 2)) == []  # a single token is as large as its channel


@pytest.mark.parametrize("bound", [100.0, 0.1, 1e-50, 1e300, 1000 * 0.30000001192092896])
def test_the_bound_decides_as_fp64_would(bound: float) -> None:
    near = torch.tensor(min(bound, 3e38), dtype=torch.float32)
    for value in (near, torch.nextafter(near, torch.tensor(math.inf)), torch.nextafter(near, torch.tensor(0.0))):
        assert bool(value > fp32_bound(bound)) == (value.double().item() > bound)


def test_counts_with_other_bounds_are_not_merged() -> None:
    with pytest.raises(InputError, match="different bounds"):
        ChannelPresence(100, 1000).merge(ChannelPresence(50, 1000))
