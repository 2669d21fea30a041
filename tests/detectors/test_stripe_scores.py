"""Previous-token, duplicate-token, induction and echo scores: planted patterns, closed forms, loops, and models."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinklens.attention import TargetMass
from sinklens.capture import LayerRecord, capture
from sinklens.capture.record import ValueNorms
from sinklens.detectors.duplicate_token import DuplicateTokenDetector, duplicate_token_score
from sinklens.detectors.echo import EchoDetector, RazorInductionDetector, echo_score
from sinklens.detectors.head_means import HeadMeans
from sinklens.detectors.induction import InductionDetector, induction_score
from sinklens.detectors.previous_token import PreviousTokenDetector, previous_token_score
from sinklens.detectors.razor_selection import razor_selection
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.target_means import TargetDetector
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch, tokenize
from tests import oracle
from tests.detectors import stripes
from tests.detectors.stripes import one_key, uniform
from tests.families import BOS, boot

NAMES = ("previous_token", "duplicate_token", "induction", "echo", "razor_induction")


def scores(pattern: Tensor, repeats: Repeats) -> dict[str, np.ndarray]:
    """All pure functions on one map."""
    found = {
        "previous_token": previous_token_score(pattern),
        "duplicate_token": duplicate_token_score(pattern, repeats),
        "induction": induction_score(pattern, repeats),
        "echo": echo_score(pattern, repeats),
        "razor_induction": echo_score(pattern, repeats, "razor_induction"),
    }
    return {name: value.numpy() for name, value in found.items()}


def detectors(repeats: Repeats) -> list[TargetDetector]:
    return [
        PreviousTokenDetector(),
        DuplicateTokenDetector(repeats),
        InductionDetector(repeats),
        EchoDetector(repeats),
        RazorInductionDetector(repeats),
    ]


# ------------------------------------------------------------------ planted patterns
def test_a_shift_by_one_is_a_previous_token_head_and_nothing_else() -> None:
    found = scores(one_key(61, lambda i: i - 1), Repeats(30))
    assert found.pop("previous_token") == 1.0
    assert all(value == 0 for value in found.values())


@pytest.mark.parametrize(("block", "repeats", "prefix"), [(30, 2, 1), (16, 4, 0), (16, 4, 1), (2, 2, 3)])
def test_perfect_induction_and_perfect_echo(block: int, repeats: int, prefix: int) -> None:
    probe = Repeats(block, repeats, prefix)
    after = scores(one_key(probe.length, lambda i: i - block + 1), probe)
    same = scores(one_key(probe.length, lambda i: i - block), probe)
    assert after["induction"] == after["razor_induction"] == 1 and same["echo"] == same["duplicate_token"] == 1
    assert same["induction"] == same["razor_induction"] == 0
    if block > 2:  # in a block of two the token after the copy is the token before
        assert after["echo"] == after["duplicate_token"] == after["previous_token"] == 0


def test_attention_on_the_first_copy_is_echo_and_a_duplicate_in_the_second_block_alone() -> None:
    probe = Repeats(5, 4, 1)
    found = scores(one_key(probe.length, lambda i: 1 + (i - 1) % 5 if i > 5 else i), probe)
    assert found["echo"] == 1 and found["duplicate_token"] == 1 and found["razor_induction"] == 0
    last = scores(one_key(probe.length, lambda i: i - 5 if i > 15 else 0), probe)  # the fourth block only
    assert last["echo"] == pytest.approx(1 / 3) and last["duplicate_token"] == 0


@given(block=st.integers(2, 40), repeats=st.integers(2, 5))
def test_uniform_attention_has_the_closed_form_of_razor(block: int, repeats: int) -> None:
    probe = Repeats(block, repeats, prefix=0)
    expected = np.mean([(i // block) / (i + 1) for i in range(block, probe.length)])
    found = scores(uniform(probe.length), probe)
    assert found["echo"] == pytest.approx(expected, abs=1e-6)
    assert found["razor_induction"] == pytest.approx(expected, abs=1e-6)


def test_uniform_references_of_61_tokens() -> None:
    found = scores(uniform(61), Repeats(30))
    harmonic = np.cumsum(1 / np.arange(1, 62))
    assert found["previous_token"] == pytest.approx((harmonic[60] - 1) / 60, abs=1e-6)
    assert found["previous_token"] == pytest.approx(0.062, abs=5e-4)
    assert found["duplicate_token"] == pytest.approx((harmonic[60] - harmonic[30]) / 30, abs=1e-6)
    assert found["duplicate_token"] == found["induction"] == pytest.approx(0.0223, abs=5e-5)
    without_bos = scores(uniform(60), Repeats(30, prefix=0))
    assert without_bos["induction"] == pytest.approx(0.023, abs=5e-4)


@given(seed=st.integers(0, 999), block=st.integers(2, 9), repeats=st.integers(2, 4), prefix=st.integers(0, 2))
def test_pure_functions_equal_loops(seed: int, block: int, repeats: int, prefix: int) -> None:
    probe = Repeats(block, repeats, prefix)
    pattern = torch.rand(3, probe.length, probe.length, generator=torch.Generator().manual_seed(seed)).double().tril()
    found = scores(pattern, probe)
    for name, target in stripes.targets_of(probe).items():
        np.testing.assert_allclose(found[name], stripes.naive(pattern, target), atol=1e-12, err_msg=name)
    batched = scores(pattern[None].expand(2, -1, -1, -1), probe)
    for name in NAMES:
        np.testing.assert_allclose(batched[name], np.stack([found[name]] * 2))


def test_one_token_has_none_before() -> None:
    assert math.isnan(previous_token_score(uniform(1)).item())


# ------------------------------------------------------------------ the probe
def test_where_the_copies_lie() -> None:
    probe = Repeats(block=3, repeats=3, prefix=1)
    assert probe.copies()[:4].eq(-1).all()
    assert probe.copies(1)[7:].tolist() == [[2, 5], [3, 6], [4, 7]]
    assert probe.second_block()[4:7].flatten().tolist() == [1, 2, 3] and probe.second_block()[7:].eq(-1).all()
    for wrong in ((1, 2, 1), (3, 1, 1), (3, 2, -1)):
        with pytest.raises(InputError, match="at least 2"):
            Repeats(*wrong)


def test_a_batch_that_is_no_such_probe_is_refused(zoo: Path) -> None:
    model = boot("llama", zoo)
    detector = EchoDetector(Repeats(3, 2, 1))
    with pytest.raises(InputError, match="7 tokens"):
        detector.targets(tokenize(model, [[BOS, 9, 8, 7, 9, 8]]))
    with pytest.raises(InputError, match="same 3 tokens"):
        detector.targets(tokenize(model, [[BOS, 9, 8, 7, 9, 7, 8]]))


# ------------------------------------------------------------------ from models
def probe_batch(model: object, probe: Repeats, sequences: int) -> TokenBatch:
    rows = []
    for seed in range(sequences):
        block = (torch.randperm(200, generator=torch.Generator().manual_seed(seed))[: probe.block] + 20).tolist()
        rows.append([BOS] * probe.prefix + block * probe.repeats)
    return tokenize(model, rows)  # type: ignore[arg-type]


def measure(model: object, batch: TokenBatch, found: list[TargetDetector], batch_size: int) -> None:
    def statistics(rows: TokenBatch, start: int) -> list[object]:
        targets = {d.name: d.targets(rows) for d in found}
        return [lambda shape: TargetMass(shape, targets)]

    capture(model, batch, found, batch_size=batch_size, statistics=statistics)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "bloom", "qwen3_next"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.filterwarnings("ignore:.*is measured through")
def test_streamed_scores_equal_loops_over_whole_patterns(name: str, batch_size: int, zoo: Path) -> None:
    model, probe = boot(name, zoo), Repeats(11, 3, 1)
    batch = probe_batch(model, probe, 3)
    found = detectors(probe)
    measure(model, batch, found, batch_size)
    layers = [layer for layer in oracle.full_patterns(model, batch.ids) if layer is not None]
    for detector, (metric, target) in zip(found, stripes.targets_of(probe).items(), strict=True):
        assert [detector.name] == [metric.name for metric in detector.metrics] == [metric]
        table = detector.tables()["head_scores"]
        assert set(table["layer"]) == {layer.layer for layer in layers}
        for layer in layers:
            rows = table[table["layer"] == layer.layer]
            by_sequence = np.stack([stripes.naive(pattern, target) for pattern in layer.pattern])
            share = layer.visible.double() / layer.visible.sum(-1, keepdim=True).clamp(min=1)
            null = np.mean([stripes.naive(one[None], target) for one in share])
            np.testing.assert_allclose(rows[metric], by_sequence.mean(0), atol=2e-6)
            np.testing.assert_allclose(rows[f"{metric}_sd"], by_sequence.std(0, ddof=1), atol=2e-6)
            np.testing.assert_allclose(rows[f"{metric}_null"], null, atol=1e-6)
            assert (rows[f"{metric}_n"] == 3).all()


def test_batches_padding_and_merging_change_nothing(zoo: Path) -> None:
    model = boot("llama", zoo)
    rows = [[BOS, *range(30, 30 + n)] for n in (20, 7, 31)]
    tables = []
    for size, groups in ((3, [[0, 1, 2]]), (1, [[0, 1, 2]]), (2, [[0], [1, 2]])):
        parts = [PreviousTokenDetector() for _ in groups]
        for part, group in zip(parts, groups, strict=True):
            batch = tokenize(model, [rows[i] for i in group])

            def statistics(rows: TokenBatch, start: int, part: PreviousTokenDetector = part) -> list[object]:
                targets = {"previous_token": part.targets(rows)}
                return [lambda shape: TargetMass(shape, targets)]

            capture(model, batch, [part], batch_size=size, statistics=statistics, first_sequence=group[0])  # type: ignore[arg-type]
        for other in reversed(parts[1:]):
            parts[0].merge(other)
        tables.append(parts[0].tables()["head_scores"])
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=0, atol=1e-6)
    naive = []  # every query once, whatever sequence it stands in
    for row in rows:
        found = oracle.full_patterns(model, torch.tensor([row]))[0]
        assert found is not None
        naive.append(found.pattern[0].diagonal(-1, -2, -1))
    np.testing.assert_allclose(
        tables[0].query("layer == 0")["previous_token"], torch.cat(naive, -1).mean(-1), atol=1e-6
    )


# ------------------------------------------------------------------ sums of heads
def record(layer: int, batch: TokenBatch, first: int, kv_heads: int | None = None) -> LayerRecord:
    values = None if kv_heads is None else ValueNorms(torch.ones(len(batch), kv_heads, batch.ids.shape[1]), None)
    return LayerRecord(layer, batch, first, "fast", {}, values)


def test_means_leave_out_what_does_not_apply(zoo: Path) -> None:
    batch = tokenize(boot("llama", zoo), [[5, 6, 7], [5, 6]])
    nan = math.nan
    value = torch.tensor([[[1.0, nan, 4.0], [nan, nan, nan]], [[7.0, 3.0, 100.0], [nan, nan, 9.0]]])
    means = HeadMeans()
    means.add(record(0, batch, 4, 1), {"x": value, "x_null": value[:, :1]})
    table = means.table()
    assert table["x"].tolist()[0] == (1 + 4 + 7 + 3) / 4 and math.isnan(table["x"].tolist()[1])  # 100: padding
    assert table["x_sd"].tolist()[0] == pytest.approx(np.std([2.5, 5], ddof=1)) and math.isnan(
        table["x_sd"].tolist()[1]
    )
    assert table["x_n"].tolist() == [2, 0] and table["kv_head"].tolist() == [0, 0] and "x_null_sd" not in table
    alone = HeadMeans()
    alone.add(record(0, batch.rows([0]), 0), {"x": value[:1]})
    assert alone.table()["x_sd"].isna().all() and alone.table()["kv_head"].tolist() == [0, 1]
    assert HeadMeans().table().empty


def test_nothing_seen_is_an_empty_table() -> None:
    found = InductionDetector(Repeats(3)).tables()["head_scores"]
    assert found.empty and [*found][3:] == ["induction", "induction_sd", "induction_n", "induction_null"]


# ------------------------------------------------------------------ Razor's choice
def heads(induction: list[float], echo: list[float] | None = None, group: int = 1) -> pd.DataFrame:
    count = len(induction)
    return pd.DataFrame(
        {
            "layer": 0,
            "head": range(count),
            "kv_head": [head // group for head in range(count)],
            "razor_induction": induction,
            "echo": echo or [0.0] * count,
        }
    )


def test_the_choice_is_by_rank_over_groups_and_a_union() -> None:
    induction = [0.0] * 50
    induction[3], induction[4], induction[7] = 0.9, 0.8, 0.7
    echo = [0.0] * 50
    echo[4] = 0.6
    found = razor_selection(heads(induction, echo), induction_share=0.06, echo_share=0.02)
    assert found.kv_heads == [(0, 3), (0, 4), (0, 7)] and found.table["chosen_by"].tolist()[4] == "both"
    assert found.warnings == ()
    grouped = razor_selection(heads(induction, echo, group=2), induction_share=0.08, echo_share=0.04)
    assert grouped.kv_heads == [(0, 1), (0, 2)]  # the largest of each group
    assert grouped.table["razor_induction"].tolist()[:4] == [0.0, 0.9, 0.8, 0.7]
    assert grouped.table["chosen_by"].tolist()[2] == "both"


def test_default_shares_choose_as_many_as_the_card_says() -> None:
    generator = np.random.default_rng(0)
    found = razor_selection(heads(generator.random(256).tolist(), generator.random(256).tolist()))
    chosen = found.table["chosen_by"]
    assert chosen.isin(["induction", "both"]).sum() == round(0.14 * 256) == 36
    assert chosen.isin(["echo", "both"]).sum() == 3 and found.warnings == ()


def test_what_a_choice_warns_of() -> None:
    few = razor_selection(heads([0.9] + [0.0] * 7, [0.5] * 8))
    assert any("rounds to 0" in note and "echo" in note for note in few.warnings)
    assert not few.table["chosen_by"].isin(["echo", "both"]).any()
    tied = razor_selection(heads([0.5] * 10, [0.9] + [0.0] * 9), induction_share=0.3, echo_share=0.1)
    assert tied.kv_heads == [(0, 0), (0, 1), (0, 2)] and any("tie" in note for note in tied.warnings)
    none = razor_selection(heads([0.9] + [0.0] * 9, [0.07] + [0.0] * 9), induction_share=0.1, echo_share=0.1)
    assert any("0.070" in note and "echo" in note for note in none.warnings)
    unknown = razor_selection(heads([math.nan, 0.3], [math.nan, 0.3]), induction_share=1.0, echo_share=1.0)
    assert unknown.kv_heads == [(0, 1)]
    silent = razor_selection(heads([0.9] * 2), induction_share=1.0, echo_share=0.0)
    assert silent.warnings == ()


def test_shares_and_columns_are_checked() -> None:
    with pytest.raises(InputError, match="share from 0 to 1"):
        razor_selection(heads([1.0]), induction_share=1.4)
    with pytest.raises(InputError, match="kv_head"):
        razor_selection(heads([1.0]).drop(columns="kv_head"))
