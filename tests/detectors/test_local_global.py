"""Local and global heads, WAAD and FAI: constructed maps by hand, loops, and a sink head that must not look far."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionCall
from sinklens.attention.kernel import attend
from sinklens.capture import LayerRecord, capture
from sinklens.detectors.attention_entropy import EntropyDetector, normalised_entropy
from sinklens.detectors.local_global import (
    LocalGlobalDetector,
    future_influence,
    mean_distance,
    span_labels,
    windowed_distance,
)
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch, tokenize
from tests import oracle
from tests.detectors.stripes import one_key, uniform
from tests.families import BOS, boot


# ------------------------------------------------------------------ constructed maps
def test_distances_of_known_heads() -> None:
    back = one_key(61, lambda i: i - 7)
    assert mean_distance(back).item() == pytest.approx(54 * 7 / 61)
    assert windowed_distance(back, 10)[0, 7:].eq(7).all() and windowed_distance(back, 5)[0, 7:].eq(5).all()
    assert mean_distance(uniform(61)).item() == pytest.approx(15)  # the mean over queries of i / 2
    first = torch.arange(61) == 0
    assert mean_distance(uniform(61), first).item() == pytest.approx(14.75)
    assert math.isnan(mean_distance(one_key(9, lambda i: 0), torch.arange(9) == 0).item())
    resting = 0.9 * one_key(61, lambda i: 0) + 0.1 * one_key(61, lambda i: i - 1)
    assert mean_distance(resting).item() > 25 and mean_distance(resting, first).item() == pytest.approx(1.0)


def test_a_one_hot_column_has_all_the_future_influence() -> None:
    found = future_influence(one_key(61, lambda i: 5))[0]
    assert found[5] == 1 and found[torch.arange(61) != 5].nan_to_num().eq(0).all()
    assert found.isnan().sum() == 10 and found[-10:].isnan().all()
    even = future_influence(uniform(61), low=10, high=50)[0]
    assert even[3].item() == pytest.approx(np.mean([1 / (t + 1) for t in range(13, 54)]))
    assert even[45].item() == pytest.approx(np.mean([1 / (t + 1) for t in range(55, 61)]))


def test_entropy_as_a_share() -> None:
    assert normalised_entropy(uniform(30)).item() == pytest.approx(1)
    assert normalised_entropy(one_key(30, lambda i: i - 1)).item() == 0
    half = torch.eye(5, dtype=torch.float64)
    half[4] = torch.tensor([0.5, 0.5, 0, 0, 0])
    assert normalised_entropy(half[None]).item() == pytest.approx(math.log(2) / math.log(5) / 4)


def test_a_query_that_sees_one_key_has_no_share_of_an_entropy() -> None:
    one = torch.ones(1, 2, dtype=torch.bool)
    batch = TokenBatch(torch.tensor([[5, 6]]), one, ~one, (("a", "b"),), None, "caller", "")
    entropy = torch.tensor([[[1e-6, 0.5]]])  # rounding leaves a little where there is no choice
    detector = EntropyDetector()
    attention = {"entropy": entropy, "entropy_null": torch.tensor([[0.0, math.log(2)]])}
    detector.update(LayerRecord(0, batch, 0, "fast", attention))
    assert detector.tables()["head_scores"]["normalised_entropy"].item() == pytest.approx(0.5 / math.log(2))


def test_labels_by_rank() -> None:
    distances = [3.0, 1.0, 2.0, 9.0, 8.0, 5.0, 5.0, 4.0, math.nan, 6.0, 7.0]
    labels = span_labels(distances, 0.3)
    assert [i for i, label in enumerate(labels) if label == "local"] == [0, 1, 2]
    assert [i for i, label in enumerate(labels) if label == "global"] == [3, 4, 10] and labels[8] == ""
    assert span_labels([1.0], 0.3) == [""] and span_labels([2.0, 1.0], 0.5) == ["global", "local"]
    assert span_labels([1.0, 1.0, 1.0], 0.4) == ["local", "", "global"]
    for share in (0, 0.6, -1):
        with pytest.raises(InputError, match=r"at most 0\.5"):
            span_labels([1.0], share)


# ------------------------------------------------------------------ from maps made by hand
def planted(keys: list[list[int]], detector: LocalGlobalDetector, layer: int = 0, sink: float = 0.0) -> None:
    """A record of one sequence whose head h attends to ``keys[h][i]``, the first head resting on position 0."""
    heads, length = len(keys), len(keys[0])
    eye = torch.eye(length)
    query = torch.stack([30 * eye[row] for row in keys])
    if sink:
        query[0, 1:, 0] = 30 + math.log(sink / (1 - sink))
    batch = TokenBatch(
        torch.arange(length)[None],
        torch.ones(1, length, dtype=torch.bool),
        torch.zeros(1, length, dtype=torch.bool),
        (tuple(str(i) for i in range(length)),),
        None,
        "caller",
        "",
    )
    call = AttentionCall(layer, query[None], eye.expand(1, heads, -1, -1), torch.zeros(1, heads, length, 2), 1.0)
    statistics = [make(call.shape) for make in detector.statistics(batch)]
    attend(call, statistics)
    attention: dict[str, Tensor] = {}
    for statistic in statistics:
        attention |= statistic.compute()
    detector.update(LayerRecord(layer, batch, 0, "fast", attention))


def back(length: int, steps: int) -> list[int]:
    return [max(0, i - steps) for i in range(length)]


def test_a_sink_head_is_global_unless_sinks_are_left_out() -> None:
    length = 61
    keys = [back(length, step) for step in (1, 2, 20, 25, 3, 28, 10, 12, 14, 15)]  # head 0 is the sink head
    found: dict[bool, dict[str, pd.DataFrame]] = {}
    for exclude in (False, True):
        detector = LocalGlobalDetector(by_token=True, exclude_sinks=exclude)
        planted(keys, detector, sink=0.9)
        found[exclude] = detector.tables()
    frame = found[True]["head_scores"]
    assert frame["span"].tolist()[0] == "global" and frame["span_without_sink"].tolist()[0] == "local"
    assert frame["distance"].tolist()[0] > 25
    assert frame["distance_without_sink"].tolist()[0] == pytest.approx(59 / 60, abs=1e-3)  # query 1 attends to itself
    assert set(frame.index[frame["span_without_sink"] == "global"]) == {2, 3, 5}
    # with the sink head among the global ones, the future influence is mostly the sink's
    with_sink, without = (found[exclude]["local_global_tokens"] for exclude in (False, True))
    assert with_sink["fai"][0] == pytest.approx((0.9 + without["fai"][0] * 2) / 3, abs=0.25)
    assert with_sink["fai"][0] > 0.5 and with_sink["fai"][0] > without["fai"][0]
    assert with_sink["fai"].isna().sum() == 10 and with_sink["fai"][-10:].isna().all()
    # the sink head is local now, but its windowed distance still counts the sink as the window's length
    assert without["waad"].tolist()[40:] == pytest.approx([(0.9 * 10 + 0.1 * 1 + 2 + 3) / 3] * 21, abs=1e-3)


def test_waad_and_fai_by_hand() -> None:
    length = 61
    detector = LocalGlobalDetector(by_token=True, share=0.5)
    planted([back(length, 4), back(length, 20)], detector)
    tokens = detector.tables()["local_global_tokens"]
    assert tokens["waad"].tolist()[4:] == pytest.approx([4.0] * 57, abs=1e-4)
    queries = [min(s + 50, 60) - (s + 10) + 1 for s in range(11, 30)]  # of which one attends to s
    assert tokens["fai"].tolist()[11:30] == pytest.approx([1 / n for n in queries], abs=1e-4)
    assert tokens["position"].tolist() == list(range(61)) and tokens["sequence"].eq(0).all()


def test_only_the_response_counts_when_asked() -> None:
    def response(batch: TokenBatch) -> Tensor:
        rows = torch.zeros_like(batch.real)
        rows[:, 40:] = True
        return rows

    detector = LocalGlobalDetector(by_token=True, share=0.5, queries=response)
    planted([back(61, 4), back(61, 45)], detector)
    heads, tokens = detector.tables().values()
    assert heads["distance"].tolist() == pytest.approx([4, np.mean([min(i, 45) for i in range(40, 61)])], abs=1e-3)
    assert tokens["waad"].isna().tolist() == [True] * 40 + [False] * 21
    assert tokens["fai"][15] == pytest.approx(1 / 21, abs=1e-4)  # query 60, of the queries 40 to 60


def test_nothing_seen_is_empty() -> None:
    found = LocalGlobalDetector(by_token=True).tables() | {"entropy": EntropyDetector().tables()["head_scores"]}
    assert len(found) == 3 and all(frame.empty for frame in found.values())
    assert [*LocalGlobalDetector().tables()] == ["head_scores"]


def test_few_heads_are_said() -> None:
    detector = LocalGlobalDetector()
    planted([back(20, 1)], detector)
    assert detector.verdict(detector.tables(), {}) == ["30% of 1 head rounds to 0: no head is called local or global."]
    enough = LocalGlobalDetector(share=0.5)
    planted([back(20, 1), back(20, 5)], enough)
    assert enough.verdict(enough.tables(), {}) == [] == detector.verdict({}, {})


# ------------------------------------------------------------------ from models
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "bloom"])
@pytest.mark.parametrize("sizes", [(3,), (1, 2)])
@pytest.mark.filterwarnings("ignore:.*is measured through")
def test_streamed_equals_loops(name: str, sizes: tuple[int, ...], zoo: Path) -> None:
    model = boot(name, zoo)
    rows = [[BOS, *range(30, 30 + n)] for n in (39, 7, 25)]
    parts = []
    for index, size in enumerate(sizes):
        first = sum(sizes[:index])
        spans = LocalGlobalDetector(by_token=True, window=6, low=3, high=9, share=0.4)
        entropy = EntropyDetector()
        batch = tokenize(model, rows[first : first + size])
        capture(
            model,
            batch,
            [spans, entropy],
            statistics=lambda rows, start, spans=spans: spans.statistics(rows),
            first_sequence=first,
        )
        parts.append((spans, entropy))
    for spans, entropy in parts[1:]:
        parts[0][0].merge(spans)
        parts[0][1].merge(entropy)
    spread = parts[0][1].tables()["head_scores"]
    table, by_token = parts[0][0].tables().values()
    collected: dict[tuple[int, int], list[list[float]]] = {}
    curves: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    for sequence, row in enumerate(rows):
        for layer in oracle.full_patterns(model, torch.tensor([row])):
            assert layer is not None
            p, seen = layer.pattern[0], layer.visible[0]
            waad, fai = windowed_distance(p, 6), future_influence(p, 3, 9)
            for head in range(4):
                curves[sequence, layer.layer, head] = waad[head], fai[head]
                for i in range(len(row)):
                    weights, n = p[head, i, : i + 1], int(seen[i].sum())
                    far, left = torch.arange(i, -1, -1).double(), weights[1:].sum()
                    outside = (weights[1:] * far[1:]).sum() / left if left > 0 else torch.tensor(math.nan)
                    keys = [i - j for j in range(1, i + 1) if seen[i, j]]
                    share = weights / weights.sum()
                    nats = -sum(x.item() * math.log(x.item()) for x in share if x > 0)
                    collected.setdefault((layer.layer, head), []).append(
                        [
                            float((weights * far).sum() / weights.sum()),
                            float(np.mean([i - j for j in range(i + 1) if seen[i, j]])),
                            float(outside),
                            float(np.mean(keys)) if keys else math.nan,
                            float((weights * far.clamp(max=6)).sum()),
                            float(np.mean([min(i - j, 6) for j in range(i + 1) if seen[i, j]])),
                            nats,
                            math.log(n),
                            nats / math.log(n) if n > 1 else math.nan,
                        ]
                    )
    expected = np.array([np.nanmean(np.array(values), 0) for _, values in sorted(collected.items())])
    names = ["distance", "distance_null", "distance_without_sink", "distance_without_sink_null"]
    names += ["windowed_distance", "windowed_distance_null"]
    np.testing.assert_allclose(table[names], expected[:, :6], atol=1e-4)
    np.testing.assert_allclose(spread[["entropy", "entropy_null", "normalised_entropy"]], expected[:, 6:], atol=1e-4)
    for sequence, row in enumerate(rows):
        tokens = by_token[by_token["sequence"] == sequence]
        assert len(tokens) == len(row)
        for column, kind, place in (("waad", "local", 0), ("fai", "global", 1)):
            chosen = table[table["span"] == kind]
            assert len(chosen) == round(0.4 * len(table))
            heads = zip(chosen["layer"], chosen["head"], strict=True)
            mean = torch.stack([curves[sequence, layer, head][place] for layer, head in heads]).mean(0)
            np.testing.assert_allclose(tokens[column], mean, atol=2e-5)
    assert isinstance(table, pd.DataFrame)
