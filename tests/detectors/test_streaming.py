"""What all detectors promise: the order of passes, their size and how parts are merged change nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinklens.capture import capture
from sinklens.detectors import Detector
from sinklens.detectors.active_dormant import ActiveDormantDetector
from sinklens.detectors.attention_summary import AttentionSummaryDetector
from sinklens.detectors.compression import CompressionDetector
from sinklens.detectors.decorrelation import DecorrelationDetector
from sinklens.detectors.massive_activations import MassiveActivationDetector
from sinklens.detectors.residual_peaks import ResidualPeakDetector
from sinklens.detectors.secondary_sinks import SecondarySinkDetector
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.detectors.visible_sinks import VisibleSinkDetector
from sinklens.models.tokens import tokenize
from tests.detectors.records import collate, random_texts
from tests.families import boot, random_ids

DETECTORS: dict[str, Callable[[], Any]] = {
    "sinks": SinkDetector,
    "value_drains": ValueDrainDetector,
    "massive_activations": MassiveActivationDetector,
    "residual_peaks": ResidualPeakDetector,
    "attention_summary": AttentionSummaryDetector,
    # bounds so low that random states reach them
    "secondary_sinks": partial(SecondarySinkDetector, cosine=0.1, absolute=True, eps=0.1, min_queries=2),
    "compression": CompressionDetector,
    "decorrelation": DecorrelationDetector,
    "active_dormant": ActiveDormantDetector,
    "visible_sinks": VisibleSinkDetector,
}
EVERY = pytest.mark.parametrize("name", DETECTORS)
TEXTS = random_texts((14, 3, 22, 9, 1, 17), seed=5, without_bos=(2, 4))
N = len(TEXTS)


def frames(detector: Detector) -> dict[str, pd.DataFrame]:
    """Every table of the result."""
    return detector.tables()


def same(one: Detector, two: Detector) -> None:
    left, right = frames(one), frames(two)
    assert left.keys() == right.keys()
    for name, frame in left.items():
        pd.testing.assert_frame_equal(frame, right[name], rtol=1e-9, atol=1e-12)


def fed(name: str, cuts: list[tuple[int, int]], backwards: bool = False) -> Any:
    """A detector that saw the texts of these ranges, a pass each."""
    detector = DETECTORS[name]()
    for start, stop in cuts:
        records = collate(TEXTS[start:stop], start)
        for record in reversed(records) if backwards else records:
            detector.update(record)
    return detector


@st.composite
def cut_up(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Consecutive ranges that cover all texts, in any order."""
    marks = sorted(draw(st.sets(st.integers(1, N - 1))))
    ranges = list(zip([0, *marks], [*marks, N], strict=True))
    return draw(st.permutations(ranges))


@EVERY
@settings(max_examples=20)
@given(cuts=cut_up())
def test_size_and_order_of_passes_change_nothing(name: str, cuts: list[tuple[int, int]]) -> None:
    same(fed(name, cuts), fed(name, [(0, N)]))


@EVERY
@settings(max_examples=20)
@given(cuts=cut_up())
def test_order_of_layers_changes_nothing(name: str, cuts: list[tuple[int, int]]) -> None:
    same(fed(name, cuts, backwards=True), fed(name, [(0, N)]))


@EVERY
@settings(max_examples=20)
@given(cuts=cut_up(), data=st.data())
def test_merge_is_associative_and_commutative(name: str, cuts: list[tuple[int, int]], data: st.DataObject) -> None:
    # merge random neighbours until one is left: any bracketing of any order
    parts = [fed(name, [cut]) for cut in cuts]
    while len(parts) > 1:
        left = data.draw(st.integers(0, len(parts) - 2))
        other = parts.pop(left + 1)
        parts[left].merge(other)
    same(parts[0], fed(name, [(0, N)]))


@EVERY
def test_merging_with_an_empty_detector_changes_nothing(name: str) -> None:
    whole = fed(name, [(0, N)])
    whole.merge(DETECTORS[name]())
    same(whole, fed(name, [(0, N)]))
    empty = DETECTORS[name]()
    empty.merge(whole)
    same(empty, whole)


@EVERY
def test_tables_can_be_read_between_updates(name: str) -> None:
    detector = fed(name, [(0, 2)])
    detector.tables()
    for record in collate(TEXTS[2:], 2):
        detector.update(record)
    same(detector, fed(name, [(0, N)]))


@EVERY
def test_merging_leaves_the_other_detector_alone(name: str) -> None:
    one, two = fed(name, [(0, 3)]), fed(name, [(3, N)])
    one.merge(two)
    for record in collate(TEXTS[:3], 0):
        one.update(record)
    same(two, fed(name, [(3, N)]))


@EVERY
def test_nothing_seen_gives_empty_tables_with_their_columns(name: str) -> None:
    empty, full = frames(DETECTORS[name]()), frames(fed(name, [(0, N)]))
    for key, frame in empty.items():
        assert frame.empty
        assert list(frame.columns) == list(full[key].columns)


@EVERY
def test_a_model_without_attention(name: str, zoo: Path) -> None:
    model = boot("mamba", zoo)
    rows = [random_ids(1, length)[0].tolist() for length in (20, 12)]
    detector = DETECTORS[name]()
    capture(model, tokenize(model, rows), [detector])
    found = frames(detector)
    if name == "secondary_sinks":
        assert len(found["secondary_windows"]) == 2 and set(found["secondary_layers"]["layer"]) == {0, 1}
        assert not set(found["secondary_sinks"]["label"]) & {
            "secondary",
            "bos_sink",
        }  # nothing is known about attention
    elif name in ("massive_activations", "residual_peaks", "compression", "decorrelation"):
        assert sorted(set(next(iter(found.values()))["layer"])) == [-1, 0, 1]
    else:
        assert all(frame.empty for frame in found.values())  # not applicable, and not 0


def test_a_model_with_some_attention(zoo: Path) -> None:
    model = boot("qwen3_next", zoo)  # attention in block 3 alone
    detectors = {name: make() for name, make in DETECTORS.items()}
    capture(model, tokenize(model, random_ids(2, 20)), list(detectors.values()))
    for name in ("sinks", "value_drains", "attention_summary", "active_dormant"):
        assert set(next(iter(frames(detectors[name]).values()))["layer"]) == {3}
    assert set(frames(detectors["residual_peaks"])["layers"]["layer"]) == {-1, 0, 1, 2, 3}
