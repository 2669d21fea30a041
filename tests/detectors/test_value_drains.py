"""Drain ratios: by hand, streaming against a loop, grouped heads, and against the weights of a model."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sinklens.capture import LayerRecord, capture
from sinklens.capture.record import ValueNorms
from sinklens.detectors.value_drains import ValueDrainDetector, drain_ratio
from sinklens.errors import InputError
from sinklens.models.tokens import tokenize
from tests import oracle
from tests.detectors.records import HEADS, KV_HEADS, WINDOWS, Text, collate, passes, random_texts
from tests.families import boot, boot_hf, random_ids

LENGTHS = (9, 4, 1, 12)


# ------------------------------------------------------------------ pure function
def test_drain_by_hand() -> None:
    assert drain_ratio([0.5, 2.0, 3.0]) == pytest.approx(0.2)
    assert drain_ratio([0.5, 2.0, 3.0], 2) == pytest.approx(3 / 1.25)
    assert drain_ratio([0.5, 2.0, 3.0], -1) == pytest.approx(3 / 1.25)
    assert drain_ratio([2.0] * 7, 3) == pytest.approx(1)
    assert drain_ratio([0.0, 1.0]) == 0


def test_drain_keeps_leading_axes_and_takes_arrays() -> None:
    norms = torch.rand(2, 3, 5) + 0.1
    for same in (norms, norms.numpy(), norms.tolist(), norms.double()):
        ratio = drain_ratio(same, 1)
        assert ratio.shape == (2, 3)
        for b in range(2):
            for h in range(3):
                others = [norms[b, h, j].item() for j in (0, 2, 3, 4)]
                assert ratio[b, h].item() == pytest.approx(norms[b, h, 1].item() / np.mean(others), rel=1e-5)


def test_drain_is_not_applicable_without_others() -> None:
    assert drain_ratio([1.0]).isnan()
    assert drain_ratio([1.0, 0.0, 0.0]).isnan()  # others without any value
    assert drain_ratio([0.0, 0.0]).isnan()


def test_drain_survives_a_huge_neighbour() -> None:
    # 1e9 + 1 is 1e9 in fp32, and the others' norm would be lost in the difference
    assert drain_ratio([1e9, 1.0, 3.0]) == pytest.approx(5e8)
    assert drain_ratio(torch.tensor([1e9, 1.0, 3.0])) == pytest.approx(5e8)


@pytest.mark.parametrize("position", [3, -4])
def test_positions_that_do_not_exist_are_refused(position: int) -> None:
    with pytest.raises(InputError, match=f"There is no position {position} among 3 tokens"):
        drain_ratio([1.0, 2.0, 3.0], position)


# ------------------------------------------------------------------ streaming
def naive(texts: Sequence[Text]) -> pd.DataFrame:
    """Mean of ``|v_k|`` over mean of the others' average, both over sequences of two or more tokens."""
    rows = []
    for layer in range(len(WINDOWS)):
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            for key in range(max(map(len, texts))):
                own: dict[str, list[float]] = {"value": [], "output": []}
                others: dict[str, list[float]] = {"value": [], "output": []}
                for text in texts:
                    if key >= len(text) or len(text) < 2:
                        continue
                    for name, norms in (
                        ("value", text.values[layer][kv]),
                        ("output", text.outputs[layer][head]),
                    ):
                        own[name].append(norms[key].item())
                        others[name].append(np.mean([norms[j].item() for j in range(len(text)) if j != key]))
                rows.append(
                    {
                        "layer": layer,
                        "head": head,
                        "kv_head": kv,
                        "position": key,
                        "value_norm": np.mean(own["value"]),
                        "drain": np.mean(own["value"]) / np.mean(others["value"]),
                        "output_norm": np.mean(own["output"]),
                        "drain_wo": np.mean(own["output"]) / np.mean(others["output"]),
                        "n_sequences": len(own["value"]),
                    }
                )
    return pd.DataFrame(rows)


def detect(records: Sequence[Sequence[LayerRecord]]) -> pd.DataFrame:
    detector = ValueDrainDetector()
    for layers in records:
        for record in layers:
            detector.update(record)
    result = detector.tables()
    return result["value_drains"]


@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (2, 2), (3, 1)])
def test_streaming_equals_a_loop_on_ragged_batches(sizes: tuple[int, ...]) -> None:
    texts = random_texts(LENGTHS)
    pd.testing.assert_frame_equal(detect(passes(texts, sizes)), naive(texts), rtol=1e-6, check_dtype=False)


def test_query_heads_know_their_kv_head() -> None:
    table = detect([collate(random_texts([9, 5]))])
    heads = table.groupby("head")["kv_head"].unique()
    assert heads.map(list).tolist() == [[0], [0], [1], [1]]
    first = table[table["layer"] == 0].pivot(index="position", columns="head", values="drain")
    assert (first[0] == first[1]).all() and (first[2] == first[3]).all() and (first[0] != first[2]).any()
    after = table[table["layer"] == 0].pivot(index="position", columns="head", values="drain_wo")
    assert (after[0] != after[1]).all()  # W_O differs between the query heads of a group


def test_planted_drain_is_found_and_only_there() -> None:
    texts = random_texts([9, 12], seed=1)
    planted = [replace(text, values=tuple(torch.ones_like(v) for v in text.values)) for text in texts]
    for text in planted:
        text.values[1][0, 3] = 0.02  # layer 1, KV head 0, position 3
    table = detect([collate(planted)]).set_index(["layer", "head", "position"])["drain"]
    assert table[1, 0, 3] == table[1, 1, 3] == pytest.approx(0.02)
    rest = table.drop([(1, 0, 3), (1, 1, 3)])
    np.testing.assert_allclose(rest[0], 1)
    assert rest.min() == pytest.approx(1) and rest.max() < 1.2  # the others look larger beside it


def test_a_single_token_has_no_others() -> None:
    table = detect([collate(random_texts([1, 1]))])
    assert table[["value_norm", "drain", "output_norm", "drain_wo"]].isna().all(axis=None)
    assert (table["n_sequences"] == 0).all()


def test_without_output_weights_every_query_head_still_has_a_row() -> None:
    texts = random_texts(LENGTHS)
    records = [
        record if record.values is None else replace(record, values=ValueNorms(record.values.value, None))
        for record in collate(texts)
    ]
    table = detect([records])
    expected = naive(texts).assign(output_norm=math.nan, drain_wo=math.nan)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-6, check_dtype=False)


def test_padding_holds_no_meaning() -> None:
    texts = random_texts(LENGTHS)
    records = collate(texts)
    for record in records:
        if record.values is not None and record.values.output is not None:
            for norms in (record.values.value, record.values.output):
                norms[norms.isnan()] = 1e30
    pd.testing.assert_frame_equal(detect([records]), detect([collate(texts)]))


# ------------------------------------------------------------------ models
@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek_v3", "falcon", "qwen3_next"])
@pytest.mark.filterwarnings("ignore:FalconForCausalLM is measured through the bridge's hooks")
def test_norms_are_those_of_the_weights(name: str, zoo: Path) -> None:
    model, lengths = boot(name, zoo), (24, 11)
    ids = random_ids(2, 24)
    mask = (torch.arange(24)[None] < torch.tensor(lengths)[:, None]).long()
    detector = ValueDrainDetector()
    rows = [ids[s, :length].tolist() for s, length in enumerate(lengths)]
    capture(model, tokenize(model, rows), [detector], batch_size=1)
    table = detector.tables()["value_drains"].set_index(["layer", "head", "position"])
    for found in oracle.value_norms(boot_hf(name, zoo), ids, mask):
        if found is None:
            continue
        heads, kv_heads = found.wo_norm.shape[2], found.norm.shape[2]
        for head in range(heads):
            kv = head // (heads // kv_heads)
            for column, norms in (("", found.norm[..., kv]), ("_wo", found.wo_norm[..., head])):
                part = table.loc[found.layer, head]
                np.testing.assert_allclose(part["output_norm" if column else "value_norm"], norms.nanmean(0), rtol=2e-4)
                for key in (0, 5, 10, 20):
                    own = norms[:, key].nanmean()
                    keep = torch.ones(24, dtype=torch.bool)
                    keep[key] = False
                    reach = ~norms[:, key].isnan()
                    others = norms[:, keep].nanmean(1)[reach].mean()
                    assert part["drain" + column][key] == pytest.approx((own / others).item(), rel=2e-4)
        assert (table.loc[found.layer]["kv_head"].groupby("head").first() == np.arange(4) // (4 // kv_heads)).all()
