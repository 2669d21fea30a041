"""Extreme tokens of a corpus: a planted one, none, parts that go on after a kill, and processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from sinklens import open as open_result
from sinklens.cli.program import app
from sinklens.errors import InputError, ResultError
from sinklens.models.tokens import as_batch
from sinklens.results.progress import Silent
from sinklens.studies import ExtremeTokens, find_extreme_tokens
from sinklens.studies.extreme_tokens.run import cut
from tests.passes.planted_sink import SINK, planted_sink, planted_super_weight, sink_ids


def corpus() -> torch.Tensor:
    ids = sink_ids(9, 20)
    ids[3, 7] = ids[8, 0] = SINK
    ids[5, 0] = 9
    return ids


@pytest.fixture(scope="module")
def found() -> ExtremeTokens:
    return find_extreme_tokens(planted_super_weight(), tokens=corpus(), batch_size=2, chunk_tokens=50)


def test_the_planted_token_is_found_wherever_it_stands(found: ExtremeTokens) -> None:
    expected = (corpus() == SINK).numpy()
    assert np.array_equal(found.mask, expected) and found.lengths.tolist() == [20] * 9
    tokens, channels = found.tokens, found.channels
    assert set(tokens["token_id"]) == {SINK} and set(tokens["channel"]) == {11}
    assert tokens[["first_layer", "last_layer"]].drop_duplicates().to_numpy().tolist() == [[0, 1]]
    assert found.channels_of(0) == [11] and found.channels_of(7) == []
    assert channels["n_tokens"].tolist() == [int(expected.sum())] * 2
    assert channels["token_share"].tolist() == pytest.approx([expected.mean()] * 2)
    assert (channels["threshold"] <= channels["peak"]).all()
    entries = found.tables["entries"]
    for row in tokens.itertuples():
        mine = entries[(entries["sequence"] == row.sequence) & (entries["position"] == row.position)]
        top = mine.loc[mine["value"].abs().idxmax()]
        assert (row.layer, row.value) == (top["layer"], top["value"])
        assert row.ratio == pytest.approx(abs(top["value"]) / top["median"])
    share, first = 100 * expected.mean(), int(expected[:, 0].sum())
    assert f"({share:.2f} %) are extreme, {first} of them at position 0" in found.verdict[0]


def test_an_oracle_over_plain_states(found: ExtremeTokens) -> None:
    """Every entry above both bounds and five medians of its channel, one layer at a time."""
    model, ids = planted_super_weight(), corpus()
    with torch.no_grad():
        _, cache = model.run_with_cache(ids)
    rows = set()
    for layer in range(2):
        for sequence, states in enumerate(cache[f"blocks.{layer}.hook_out"].abs()):
            bound = max(100.0, 300 * float(states.flatten().sort().values[(states.numel() - 1) // 2]))
            for position, channel in (states > bound).nonzero().tolist():
                if states[position, channel] > 5 * states[:, channel].median():
                    rows.add((sequence, position, layer, channel))
    names = ["sequence", "position", "layer", "channel"]
    assert rows == set(found.tables["entries"][names].itertuples(index=False, name=None))


def test_without_a_plant_nothing_is_extreme() -> None:
    nothing = find_extreme_tokens(planted_sink(strength=0), tokens=sink_ids(3))
    assert not nothing.mask.any() and nothing.channels.empty
    assert nothing.verdict == ["None of 72 tokens in 3 sequences is extreme."]
    for wrong in ({"absolute": 0, "ratio": 0}, {"batch_size": 0}, {"chunk_tokens": 0}, {"executor": "threads"}):
        with pytest.raises(InputError):
            find_extreme_tokens(planted_sink(), tokens=sink_ids(2), **wrong)  # type: ignore[arg-type]


class _Stop(Silent):
    """Ends the work after some tokens."""

    def __init__(self, after: float) -> None:
        self.left = after

    def advance(self, work: float = 1.0, note: str = "") -> None:
        self.left -= work
        if self.left < 0:
            raise KeyboardInterrupt


def test_it_goes_on_where_it_stopped_and_is_read_without_sinklens(tmp_path: Path, found: ExtremeTokens) -> None:
    model, out = planted_super_weight(), tmp_path / "run"
    options: dict[str, Any] = {"tokens": corpus(), "batch_size": 2, "chunk_tokens": 50, "out": out}
    with pytest.raises(KeyboardInterrupt):
        find_extreme_tokens(model, progress=_Stop(100), **options)
    kept = len(list((out / "parts").glob("*.zip")))
    assert 0 < kept < 3
    ended = find_extreme_tokens(model, **options)
    pd.testing.assert_frame_equal(ended.tables["entries"], found.tables["entries"])
    again = find_extreme_tokens(model, **options)  # finished: nothing is computed
    assert np.array_equal(again.mask, found.mask)
    assert np.array_equal(load_file(next(out.glob("*.safetensors")))["mask"], found.mask)
    assert isinstance(open_result(out), ExtremeTokens)
    with pytest.raises(ResultError):
        find_extreme_tokens(model, **options | {"ratio": 200.0})
    sizes = [(job.part.first, job.part.tokens) for job in cut(as_batch(model, corpus()), 100, 300, 2, 50)]
    assert sizes == [(0, 80), (4, 80), (8, 20)]


def test_the_command_and_processes_give_the_same(tmp_path: Path, tiny_directory: Path) -> None:
    args = ["extreme", str(tiny_directory), "--absolute", "0", "--ratio", "4", "--max-sequences", "4"]
    outs = []
    for executor in ("serial", "processes:1"):
        outs.append(tmp_path / executor.replace(":", ""))
        ran = CliRunner().invoke(app, [*args, "--executor", executor, "--out", str(outs[-1])])
        assert ran.exit_code == 0, (ran.output, ran.exception)
    one, two = (open_result(out) for out in outs)
    assert isinstance(one, ExtremeTokens) and isinstance(two, ExtremeTokens)
    assert np.array_equal(one.mask, two.mask) and one.mask.any()
    assert one.verdict == two.verdict
