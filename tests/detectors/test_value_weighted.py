"""Value-weighted attention: by hand, against loops over whole patterns and values, and under rescaling."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.detectors.value_weighted import ValueWeightedDetector, value_weighted, weighted_share
from sinklens.models.tokens import tokenize
from tests import oracle
from tests.detectors.stripes import one_key
from tests.families import BOS, boot, boot_hf


def test_a_drained_sink_writes_nothing() -> None:
    pattern = 0.9 * one_key(20, lambda i: 0) + 0.1 * one_key(20, lambda i: i - 1)
    norms = torch.ones(1, 20, dtype=torch.float64)
    norms[0, 0] = 0
    weighted = value_weighted(pattern, norms, normalise=True)
    assert weighted[0, :, 0].nan_to_num().eq(0).all() and weighted[0, 2:].sum(-1).eq(1).all()
    assert weighted[0, 0].isnan().all()  # query 0 sees the drained key alone
    first = torch.arange(20) == 0
    assert weighted_share(pattern.sum(1), norms, first).item() == 0
    assert weighted_share(pattern.sum(1), torch.zeros(1, 20), first).isnan().all()


def test_rescaling_values_against_the_output_changes_nothing() -> None:
    mass = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0))
    norms, keys = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(1)), torch.arange(9) < 2
    one, two = weighted_share(mass, norms, keys), weighted_share(mass, 7 * norms, keys)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_streamed_equals_loops(name: str, batch_size: int, zoo: Path) -> None:
    model, hf_model = boot(name, zoo), boot_hf(name, zoo)
    rows = [[BOS, *range(30, 30 + n)] for n in (25, 8, 14)]
    detector = ValueWeightedDetector(sinks=(0, 2))
    capture(
        model, tokenize(model, rows), [detector], batch_size=batch_size, statistics=lambda b, s: detector.statistics(b)
    )
    table = detector.tables()["head_scores"].set_index(["layer", "head"])
    shares: dict[tuple[int, int], list[list[float]]] = {}
    for row in rows:
        ids = torch.tensor([row])
        values = oracle.value_norms(hf_model, ids)
        for found in oracle.full_patterns(model, ids):
            assert found is not None
            layer = values[found.layer]
            assert layer is not None
            for head in range(4):
                p, seen, norm = found.pattern[0, head], found.visible[0], layer.wo_norm[0, :, head]
                even = seen.double() / seen.sum(-1, keepdim=True)
                one = []
                for weights, size in ((p, 1), (even, 1), (p, norm), (even, norm)):
                    column = (weights * size).sum(0)
                    one.append(float(column[[0, 2]].sum() / column.sum()))
                shares.setdefault((found.layer, head), []).append(one)
    names = ["sink_share", "sink_share_null", "value_weighted_sink_share", "value_weighted_sink_share_null"]
    for key, expected in shares.items():
        np.testing.assert_allclose(table.loc[key, names].tolist(), np.mean(expected, 0), atol=5e-6)


def test_what_cannot_be_read_is_missing(zoo: Path) -> None:
    model = boot("llama", zoo)
    records: list[LayerRecord] = capture(model, tokenize(model, [[BOS, 30, 31]]))
    detector = ValueWeightedDetector()
    for record in records:
        assert record.layer < 0 or record.values is not None
        values = None if record.values is None else replace(record.values, output=None)
        detector.update(replace(record, values=values))
    frame = detector.tables()["head_scores"]
    assert frame["value_weighted_sink_share"].isna().all() and frame["sink_share"].notna().all()
    assert math.isfinite(frame["sink_share"].max()) and ValueWeightedDetector().tables()["head_scores"].empty
