"""The strongest channels of one sequence: against the whole residual stream."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from sinklens.detectors import measure
from sinklens.detectors.channel_profile import ChannelProfileDetector
from sinklens.errors import InputError
from sinklens.models.tokens import tokenize
from tests.detectors.records import D_MODEL, passes, random_texts
from tests.families import boot, random_ids


@pytest.mark.parametrize("sequence", [0, 1, 2])
def test_entries_are_those_of_the_residual_stream(sequence: int, zoo: Path) -> None:
    bridge = boot("llama", zoo)
    ids = random_ids(3, 20)
    rows = [ids[0].tolist(), ids[1, :9].tolist(), ids[2].tolist()]
    batch = tokenize(bridge, rows)
    found = measure(bridge, batch, "channel_profile", sequence=sequence, k=3, batch_size=2).tables["channel_profile"]
    _, cache = bridge.run_with_cache(torch.tensor([rows[sequence]]))
    hooks = {-1: "blocks.0.hook_in", 0: "blocks.0.hook_out", 1: "blocks.1.hook_out"}
    assert set(found["layer"]) == set(hooks)
    for layer, hook in hooks.items():
        hidden = cache[hook][0]
        table = found[found["layer"] == layer]
        largest = hidden.abs().max(0).values
        chosen = table["channel"].drop_duplicates().tolist()
        assert chosen == largest.argsort(descending=True)[:3].tolist()
        assert len(table) == 3 * len(rows[sequence]) and (table["sequence"] == sequence).all()
        for row in table.itertuples():
            assert row.value == pytest.approx(float(hidden[row.position, row.channel]), abs=1e-4)
            assert row.token == batch.tokens[sequence][row.position]
            assert row.median == pytest.approx(float(hidden.abs().median()), rel=1e-4)


def test_other_sequences_and_merging_change_nothing() -> None:
    texts = random_texts((9, 5, 12))

    def measured(sizes: tuple[int, ...], cut: int) -> pd.DataFrame:
        detectors = [ChannelProfileDetector(1, 2), ChannelProfileDetector(1, 2)]
        for index, records in enumerate(passes(texts, sizes)):
            for record in records:
                detectors[index >= cut].update(record)
        detectors[0].merge(detectors[1])
        return detectors[0].tables()["channel_profile"]

    whole = measured((3,), 1)
    pd.testing.assert_frame_equal(whole, measured((1, 1, 1), 1))
    pd.testing.assert_frame_equal(whole, measured((1, 2), 0))
    assert len(whole) == 3 * 2 * 5


def test_more_channels_than_there_are_and_none_seen() -> None:
    detector = ChannelProfileDetector(0, 100)
    assert detector.tables()["channel_profile"].empty
    for record in passes(random_texts((4,)), (1,))[0]:
        detector.update(record)
    assert detector.tables()["channel_profile"]["channel"].nunique() == D_MODEL


def test_wrong_input_is_explained() -> None:
    for arguments in ((-1, 3), (0, 0)):
        with pytest.raises(InputError, match="at least one channel"):
            ChannelProfileDetector(*arguments)
    with pytest.raises(InputError, match="cannot be merged"):
        ChannelProfileDetector(0).merge(ChannelProfileDetector(1))
