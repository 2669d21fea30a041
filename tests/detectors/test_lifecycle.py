"""What each half-layer adds to an entry: against run_with_cache, planted, and refused where it does not add up."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.detectors import measure
from sinklens.detectors.lifecycle import LifecycleDetector, steps
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.tokens import tokenize
from tests.attention.test_engine import unchanged
from tests.families import FAMILIES, boot, random_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")
ENTRIES = [(0, 3), (13, 31)]


def rows() -> list[list[int]]:
    ids = random_ids(3, 20)
    return [ids[0].tolist(), ids[1, :11].tolist(), ids[2].tolist()]


def traced(bridge: TransformerBridge, entries: list[tuple[int, int]], **options: Any) -> pd.DataFrame:
    return measure(bridge, tokenize(bridge, rows()), "lifecycle", entries=entries, **options).tables["lifecycle"]


@pytest.mark.parametrize("name", [*FAMILIES])
def test_parts_add_up_in_every_family(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with unchanged(bridge):
        table = traced(bridge, ENTRIES, batch_size=2)
    layers = len(bridge.blocks)
    assert len(table) == layers * (3 + 2)  # the second text does not reach position 13
    assert not table[["before", "after"]].isna().any(axis=None)
    total = table[["before", "attention", "mlp"]].sum(axis=1)  # a half that is not there is NaN and adds nothing
    assert (total - table["after"]).abs().max() < 1e-5 * table["after"].abs().max()
    assert table["mlp"].isna().all() == (name == "mamba") and not table["attention"].isna().any()
    # what enters a layer is what left the one before
    for _, entry in table.groupby(["sequence", "position", "channel"]):
        assert entry["layer"].tolist() == [*range(layers)]
        assert entry["before"].iloc[1:].tolist() == pytest.approx(entry["after"].iloc[:-1].tolist())


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "olmo2", "cohere", "bloom"])
def test_numbers_are_those_of_run_with_cache(name: str, zoo: Path) -> None:
    """Sequential, parallel and post-norm layers; the naive way keeps every activation."""
    bridge = boot(name, zoo)
    table = traced(bridge, ENTRIES)
    for sequence, row in enumerate(rows()):
        _, cache = bridge.run_with_cache(torch.tensor([row]))
        found = table[table["sequence"] == sequence]
        for record in found.to_dict("records"):
            at = (0, record["position"], record["channel"])
            block = f"blocks.{record['layer']}"
            names = {"before": "hook_in", "attention": "hook_attn_out", "mlp": "hook_mlp_out", "after": "hook_out"}
            for column, hook in names.items():
                assert record[column] == pytest.approx(float(cache[f"{block}.{hook}"][at]), abs=2e-4), (column, hook)


def test_a_post_norm_is_part_of_what_is_added(zoo: Path) -> None:
    """In Gemma-2 a norm follows both halves: the raw output of attention is not what is added."""
    bridge = boot("gemma2", zoo)
    table = traced(bridge, [(0, 3)])
    _, cache = bridge.run_with_cache(torch.tensor(rows()[:1]))
    raw, added = (float(cache[f"blocks.0.{name}"][0, 0, 3]) for name in ("attn.hook_out", "ln1_post.hook_out"))
    assert table["attention"].iloc[0] == pytest.approx(added, abs=1e-5) and abs(raw - added) > 1e-3


def plant(value: Tensor, hook: Any, amount: float) -> Tensor:
    changed = value.clone()
    changed[:, 0, 7] += amount
    return changed


def test_a_planted_activation_is_traced_to_who_writes_and_who_cancels_it(zoo: Path) -> None:
    bridge = boot("gemma3", zoo)
    hooks = [
        ("blocks.0.hook_mlp_out", partial(plant, amount=500.0)),
        ("blocks.2.hook_attn_out", partial(plant, amount=-480.0)),
    ]
    with bridge.hooks(fwd_hooks=hooks):
        table = traced(bridge, [(0, 7)])
    for _, entry in table.groupby("sequence"):
        writer, canceller = steps(entry)
        assert writer is not None and canceller is not None
        assert (writer.layer, writer.part) == (0, "mlp") and writer.value == pytest.approx(500, abs=30)
        assert (canceller.layer, canceller.part) == (2, "attention") and canceller.value == pytest.approx(-480, abs=30)
        assert canceller.share == pytest.approx(-0.96, abs=0.1)
    quiet = traced(bridge, [(0, 7)])
    assert quiet["after"].abs().max() < 50


def test_what_does_not_add_up_is_refused(zoo: Path) -> None:
    """A layer that changes its output in another way, as a residual multiplier or an edit does."""
    bridge = boot("llama", zoo)
    with unchanged(bridge):
        for change in (lambda value, hook: 0.5 * value, partial(plant, amount=0.01)):
            with (
                bridge.hooks(fwd_hooks=[("blocks.1.hook_out", change)]),
                pytest.raises(UnsupportedArchitectureError, match="attention and MLP add in layer 1"),
            ):
                traced(bridge, ENTRIES)


def test_half_precision_is_rounded_not_refused(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    detector = LifecycleDetector([(0, 0)])

    class Halved:
        needs = ("hidden", "halves")

        def update(self, record: Any) -> None:
            if record.halves is not None:
                rounded = {name: part.bfloat16() for name, part in record.halves.items()}
                total = rounded["before"] + rounded["attention"] + rounded["mlp"]
                detector.update(replace(record, hidden=total, halves=rounded))

    capture(bridge, tokenize(bridge, rows()), [Halved()])
    assert len(detector.tables()["lifecycle"]) == 3 * 2


def test_merging_joins_sequences(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    whole = traced(bridge, ENTRIES, batch_size=1)
    pd.testing.assert_frame_equal(whole, traced(bridge, ENTRIES, batch_size=3), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="different entries"):
        LifecycleDetector([(0, 1)]).merge(LifecycleDetector([(0, 2)]))


@pytest.mark.parametrize(
    ("entries", "message"),
    [([], "at least one entry"), ([(20, 0)], r"no entry \(20, 0\)"), ([(0, 32)], "below 32"), ([(-1, 0)], "from 0")],
)
def test_wrong_input_is_explained(entries: list[tuple[int, int]], message: str, zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match=message):
        traced(bridge, entries)


# ------------------------------------------------------------------ writer and canceller
def entry(attention: list[float], mlp: list[float], start: float = 0.0) -> pd.DataFrame:
    table = pd.DataFrame({"layer": range(len(mlp)), "attention": attention, "mlp": mlp})
    return table.assign(after=start + (table["attention"].fillna(0) + table["mlp"].fillna(0)).cumsum())


def test_a_negative_entry_is_written_by_what_makes_it_more_negative() -> None:
    writer, canceller = steps(entry([1.0, -3.0, 0.0, 60.0], [2.0, -90.0, -10.0, 5.0]))
    assert writer is not None and canceller is not None
    assert writer[:3] == (1, "mlp", -90.0) and writer.share == pytest.approx(0.9)
    assert canceller[:3] == (3, "attention", 60.0) and canceller.share == pytest.approx(-0.6)


def test_what_is_never_taken_away_has_no_canceller_and_nothing_has_no_writer() -> None:
    assert steps(entry([0.0, 0.0], [5.0, 5.0]))[1] is None
    assert steps(entry([0.0], [0.0])) == (None, None)
    assert steps(entry([], [])) == (None, None)
    # it was there before the first layer, and every half works against it
    writer, canceller = steps(entry([-1.0, -2.0], [-1.0, -2.0], start=100.0))
    assert writer is None and canceller is not None and canceller.layer == 1


def test_what_happens_before_the_peak_does_not_cancel_it() -> None:
    writer, canceller = steps(entry([-50.0, 0.0, -1.0], [60.0, 100.0, 0.0]))
    assert writer is not None and canceller is not None
    assert writer[:2] == (1, "mlp") and canceller[:2] == (2, "attention")


def test_what_comes_back_after_the_peak_did_not_write_it() -> None:
    writer, _ = steps(entry([0.0] * 4, [60.0, 40.0, -95.0, 90.0]))
    assert writer is not None and writer[:2] == (0, "mlp")


def test_a_half_that_is_not_there_is_passed_over() -> None:
    nan = float("nan")
    writer, canceller = steps(entry([4.0, -3.0], [nan, nan]))
    assert writer is not None and canceller is not None
    assert writer[:2] == (0, "attention") and canceller[:2] == (1, "attention")


# ------------------------------------------------------------------ without entries, as in a scan
@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba"])
def test_without_entries_the_largest_channel_of_position_0_is_traced(name: str, zoo: Path) -> None:
    """The channel by a naive search over what run_with_cache keeps; the numbers are those of an entry asked for."""
    bridge = boot(name, zoo)
    batch = tokenize(bridge, rows())
    table = measure(bridge, batch, "lifecycle", batch_size=2).tables["lifecycle"]
    largest = torch.zeros(bridge.cfg.d_model)
    for row in rows():
        _, cache = bridge.run_with_cache(torch.tensor([row]))
        for layer in range(len(bridge.blocks)):
            largest = torch.maximum(largest, cache[f"blocks.{layer}.hook_out"][0, 0].abs())
    channel = int(largest.argmax())
    assert set(table["channel"]) == {channel} and set(table["position"]) == {0}
    pd.testing.assert_frame_equal(table, traced(bridge, [(0, channel)]), rtol=1e-4, atol=1e-5)


def test_without_entries_halves_that_do_not_add_up_leave_an_empty_table(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with bridge.hooks(fwd_hooks=[("blocks.1.hook_out", lambda value, hook: 0.5 * value)]):
        table = measure(bridge, tokenize(bridge, rows()), "lifecycle").tables["lifecycle"]
    assert table.empty and list(table.columns) == list(traced(bridge, ENTRIES).columns)


def test_without_entries_only_the_first_eight_sequences_are_traced_however_they_are_batched(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    batch = tokenize(bridge, random_ids(11, 6).tolist())
    table = measure(bridge, batch, "lifecycle", batch_size=3).tables["lifecycle"]
    assert sorted(set(table["sequence"])) == list(range(8))
    one = measure(bridge, batch.rows(slice(0, 5)), "lifecycle")
    both = one.merge(measure(bridge, batch.rows(slice(5, 11)), "lifecycle", first_sequence=5))
    pd.testing.assert_frame_equal(both.tables["lifecycle"], table, rtol=1e-4, atol=1e-5)
