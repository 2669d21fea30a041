"""Norms of keys, values and hidden states at one position: against Hugging Face's own cache, and by hand."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from sinklens.capture import capture
from sinklens.detectors import measure
from sinklens.detectors.state_norms import STATES, StateNormDetector, against_others
from sinklens.errors import InputError
from sinklens.interventions import ScaleKeys
from sinklens.models.tokens import tokenize
from tests.attention.test_engine import unchanged
from tests.detectors.records import passes, random_texts
from tests.families import FAMILIES, boot, boot_hf, random_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")
LENGTHS = (24, 11, 24)
ROTATED = ("llama", "gpt2", "qwen3", "gemma2", "gpt_neox", "phi")
"""Rotary, learned and normalised keys, grouped queries, partly rotated keys."""


def rows() -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(random_ids(3, 24), LENGTHS, strict=True)]


def norms_of(bridge: TransformerBridge, **options: Any) -> pd.DataFrame:
    return measure(bridge, tokenize(bridge, rows()), "state_norms", **options).tables["state_norms"]


def naive(norms: list[Tensor], position: int) -> tuple[float, float]:
    """Means over sequences of the norm at a position and of the mean elsewhere; one ``[pos]`` tensor a sequence."""
    own = [float(row[position]) for row in norms if len(row) > max(position, 1)]
    others = [
        sum(float(x) for j, x in enumerate(row) if j != position) / (len(row) - 1)
        for row in norms
        if len(row) > max(position, 1)
    ]
    return sum(own) / len(own), sum(others) / len(others)


def one(table: pd.DataFrame, layer: int, state: str, head: int | None = None) -> pd.Series:
    found = table[(table["layer"] == layer) & (table["state"] == state)]
    found = found if head is None else found[found["kv_head"] == head]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("position", [0, 3, 12])
@pytest.mark.parametrize("name", ROTATED)
def test_keys_values_and_states_are_those_of_hugging_face(name: str, position: int, zoo: Path) -> None:
    bridge, hf = boot(name, zoo), boot_hf(name, zoo)
    with unchanged(bridge):
        table = norms_of(bridge, position=position, batch_size=2)
    caches = [DynamicCache() for _ in rows()]  # without the config it keeps all keys of a sliding layer too
    for row, cache in zip(rows(), caches, strict=True):
        hf(torch.tensor([row]), past_key_values=cache, use_cache=True)
    states = [bridge.run_with_cache(torch.tensor([row]))[1] for row in rows()]
    counted = sum(length > max(position, 1) for length in LENGTHS)
    for layer in range(FAMILIES[name].n_layers):
        for head in range(FAMILIES[name].kv_heads):
            for state, values in (("key", "keys"), ("value", "values")):
                norms = [getattr(cache.layers[layer], values)[0, head].double().norm(dim=-1) for cache in caches]
                own, others = naive(norms, position)
                found = one(table, layer, state, head)
                assert found["norm"] == pytest.approx(own, rel=1e-4), (state, layer, head)
                assert found["others"] == pytest.approx(others, rel=1e-4)
                assert found["ratio"] == pytest.approx(own / others, rel=1e-4)
                assert found["n_sequences"] == counted
    for layer, hook in [(-1, "blocks.0.hook_in"), *((i, f"blocks.{i}.hook_out") for i in range(len(bridge.blocks)))]:
        own, others = naive([cache[hook][0].double().norm(dim=-1) for cache in states], position)
        assert one(table, layer, "hidden")["norm"] == pytest.approx(own, rel=1e-4)
        assert one(table, layer, "hidden")["others"] == pytest.approx(others, rel=1e-4)


@pytest.mark.parametrize(("name", "states"), [("falcon", {"hidden", "value"}), ("mamba", {"hidden"})])
def test_what_cannot_be_seen_has_no_row(name: str, states: set[str], zoo: Path) -> None:
    bridge = boot(name, zoo)
    table = norms_of(bridge)
    assert set(table["state"]) == states and table["kv_head"].isna().equals(table["state"] == "hidden")


def test_a_hybrid_has_keys_where_it_has_attention(zoo: Path) -> None:
    bridge = boot("qwen3_next", zoo)
    table = norms_of(bridge)
    assert set(table.loc[table["state"] == "key", "layer"]) == set(FAMILIES["qwen3_next"].attention_layers)


def test_passes_and_merging_change_nothing() -> None:
    texts = random_texts((9, 5, 12, 1, 7))

    def measured(sizes: tuple[int, ...], cut: int) -> pd.DataFrame:
        detectors = [StateNormDetector(2), StateNormDetector(2)]
        for index, records in enumerate(passes(texts, sizes)):
            for record in records:
                detectors[index >= cut].update(record)
        detectors[0].merge(detectors[1])
        return detectors[0].tables()["state_norms"]

    whole = measured((5,), 1)
    pd.testing.assert_frame_equal(whole, measured((2, 2, 1), 1))
    pd.testing.assert_frame_equal(whole, measured((1, 1, 1, 1, 1), 3))
    assert (whole["n_sequences"] == 4).all()  # the text of one token does not reach position 2
    assert [state for state in STATES if state in set(whole["state"])] == ["hidden", "value"]


def test_by_hand() -> None:
    norms = torch.tensor([[[8.0, 1.0, 3.0], [1.0, 1.0, 1.0]], [[6.0, 2.0, math.nan], [5.0, 0.0, math.nan]]])
    real = torch.tensor([[True, True, True], [True, True, False]])
    own, others, count = against_others(norms, real, 0)
    assert own.tolist() == [14.0, 6.0] and others.tolist() == [4.0, 1.0] and count.tolist() == [2.0]
    assert against_others(norms, real, 2)[2].tolist() == [1.0]
    assert against_others(norms, real, 9)[2].tolist() == [0.0]
    # a text of one token has nothing to be held against
    own, others, count = against_others(norms, torch.tensor([[True, True, True], [True, False, False]]), 0)
    assert own.tolist() == [8.0, 1.0] and others.tolist() == [2.0, 1.0] and count.tolist() == [1.0]


def test_others_that_are_all_zero_have_no_ratio() -> None:
    texts = random_texts((6,))
    texts[0].hidden[0][1:] = 0
    detector = StateNormDetector()
    for record in passes(texts, (1,))[0]:
        detector.update(record)
    assert math.isnan(one(detector.tables()["state_norms"], -1, "hidden")["ratio"])


def test_wrong_input_is_explained(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="No sequence has position 24"):
        norms_of(bridge, position=24)
    with pytest.raises(InputError, match="count from 0"):
        StateNormDetector(-1)
    with pytest.raises(InputError, match="position cannot be merged: 0 and 1"):
        StateNormDetector(0).merge(StateNormDetector(1))


def test_keys_are_known_under_an_intervention_too(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    plain, changed = StateNormDetector(), StateNormDetector()
    capture(bridge, tokenize(bridge, rows()), [plain])
    capture(bridge, tokenize(bridge, rows()), [changed], intervention=ScaleKeys(0, 1.0))
    pd.testing.assert_frame_equal(plain.tables()["state_norms"], changed.tables()["state_norms"], rtol=1e-4)
    assert "key" in set(changed.tables()["state_norms"]["state"])
