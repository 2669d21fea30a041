"""Residual norms by layer: by hand, streaming against a loop, and against the hidden states of a model."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sinklens.capture import LayerRecord, capture
from sinklens.detectors.residual_peaks import ResidualPeakDetector, peak_ratio
from sinklens.errors import InputError
from sinklens.models.tokens import tokenize
from tests.detectors.records import WINDOWS, Text, collate, passes, random_texts
from tests.families import boot, boot_hf, random_ids

LENGTHS = (9, 4, 1, 12)
LAYERS = range(-1, len(WINDOWS))


# ------------------------------------------------------------------ pure function
def test_peak_by_hand() -> None:
    assert peak_ratio([30.0, 3.0, 2.0, 1.0]) == 15
    assert peak_ratio([30.0, 3.0, 2.0, 1.0], 1) == pytest.approx(3 / 11)
    assert peak_ratio([30.0, 3.0, 2.0, 1.0], -1) == pytest.approx(3 / 35)
    ratios = peak_ratio(np.array([[1.0, 1.0, 1.0], [4.0, 1.0, 3.0]]))
    assert ratios.tolist() == [1, 2]


def test_a_single_token_has_no_peak() -> None:
    assert peak_ratio([3.0]).isnan()
    assert peak_ratio(torch.ones(2, 1)).isnan().all() and peak_ratio(torch.ones(2, 1)).shape == (2,)


def test_a_peak_does_not_swallow_the_others() -> None:
    # 1e8 + 3 is 1e8 in fp32
    assert peak_ratio([1e8, 1.0, 2.0]) == pytest.approx(1e8 / 1.5)
    assert peak_ratio(torch.tensor([1e8, 1.0, 2.0])) == pytest.approx(1e8 / 1.5)


@pytest.mark.parametrize("position", [4, -5])
def test_positions_that_do_not_exist_are_refused(position: int) -> None:
    with pytest.raises(InputError, match=f"There is no position {position} among 4 tokens"):
        peak_ratio([1.0] * 4, position)


# ------------------------------------------------------------------ streaming
def naive(texts: Sequence[Text]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rows, places, found = [], [], []
    previous = math.nan
    for layer in LAYERS:
        norms = [text.hidden[layer + 1].norm(dim=-1).tolist() for text in texts]
        by_position = [[n[k] for n in norms if k < len(n)] for k in range(max(map(len, norms)))]
        mean = [np.mean(values) for values in by_position]
        others = np.mean([np.mean(n[1:]) for n in norms if len(n) > 1])
        common = [k for k, values in enumerate(by_position) if len(values) >= len(texts) / 2]
        peak = max(common, key=lambda k: mean[k])
        ratios = {t: [x / sorted(n)[(len(n) - 1) // 2] for x in n] for t, n in enumerate(norms) if len(n) > 2}
        above = [(t, k) for t, values in ratios.items() for k, x in enumerate(values) if x >= 3]
        largest = [(t, values.index(max(values))) for t, values in ratios.items()]
        strings = [(k, f"t{int(texts[t].ids[k])}", t) for t, k in dict.fromkeys(above + largest)]
        for k, token in sorted({each[:2] for each in strings}):
            mine = [t for place, string, t in strings if (place, string) == (k, token)]
            found.append(
                {
                    "layer": layer,
                    "position": k,
                    "token": token,
                    "n_largest": sum((t, k) in largest for t in mine),
                    "n_peaks": sum((t, k) in above for t in mine),
                    "n_of": len(ratios),
                    "peak_ratio": np.mean([ratios[t][k] for t in mine]),
                }
            )
        rows.append(
            {
                "layer": layer,
                "resid_norm_first": mean[0],
                "resid_norm_others": others,
                "resid_ratio": mean[0] / others,
                "resid_growth": mean[0] - previous,
                "peak_position": peak,
                "peak_norm": mean[peak],
                "peak_ratio": np.mean([max(values) for values in ratios.values()]),
                "n_peak_sequences": len({t for t, _ in above}),
                "n_peaks": len(above),
            }
        )
        previous = mean[0]
        places += [
            {"layer": layer, "position": k, "resid_norm": mean[k], "n_sequences": len(values)}
            for k, values in enumerate(by_position)
        ]
    return pd.DataFrame(rows), pd.DataFrame(places), pd.DataFrame(found)


def detect(records: Sequence[Sequence[LayerRecord]]) -> dict[str, pd.DataFrame]:
    detector = ResidualPeakDetector()
    for layers in records:
        for record in layers:
            detector.update(record)
    return detector.tables()


def same(found: pd.DataFrame, expected: pd.DataFrame, rtol: float = 1e-6) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=rtol, check_dtype=False)


@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (2, 2), (3, 1)])
def test_streaming_equals_a_loop_on_ragged_batches(sizes: tuple[int, ...]) -> None:
    texts = random_texts(LENGTHS)
    found = detect(passes(texts, sizes))
    table, by_position, tokens = naive(texts)
    same(found["layers"][[*table.columns]], table)
    same(found["residual_norms"], by_position)
    same(found["peaks"], tokens)


def test_growth_is_against_the_layer_before_in_depth_not_in_time() -> None:
    texts = random_texts(LENGTHS)
    found = detect([list(reversed(collate(texts)))])["layers"]
    assert found["layer"].tolist() == list(LAYERS)
    assert math.isnan(found["resid_growth"][0])
    np.testing.assert_allclose(found["resid_growth"][1:], np.diff(found["resid_norm_first"]))


def test_planted_peak_and_growth() -> None:
    texts = random_texts([20, 16])
    flat = [replace(text, hidden=tuple(torch.ones_like(h) for h in text.hidden)) for text in texts]
    for text in flat:
        text.hidden[2][0] *= 50  # after block 1
        text.hidden[1][5] *= 3  # after block 0
    found = detect([collate(flat)])["layers"].set_index("layer")
    assert found["resid_ratio"].tolist() == pytest.approx([1, 1 / np.mean([21 / 19, 17 / 15]), 50])
    assert found["resid_growth"][1] == pytest.approx(49 * math.sqrt(6))
    assert found["peak_position"][0] == 5 and found["peak_position"][1] == 0
    assert found["peak_norm"][0] == pytest.approx(3 * math.sqrt(6))


def test_a_peak_must_be_reached_by_half_of_the_sequences() -> None:
    texts = random_texts([20, 8, 8])
    texts[0].hidden[1][15] *= 1e4
    assert detect([collate(texts)])["layers"]["peak_position"][1] < 8
    texts = random_texts([20, 8])
    texts[0].hidden[1][15] *= 1e4
    assert detect([collate(texts)])["layers"]["peak_position"][1] == 15


def test_sequences_of_one_token_have_no_others() -> None:
    found = detect([collate(random_texts([1, 1]))])["layers"]
    assert found[["resid_norm_others", "resid_ratio"]].isna().all(axis=None)
    assert found["resid_norm_first"].notna().all() and (found["peak_position"] == 0).all()


def test_an_undefined_norm_is_not_a_norm_of_zero() -> None:
    texts = random_texts([9, 6])
    texts[0].hidden[2][4] = math.nan  # an overflow in half precision ends like this
    found = detect([collate(texts)])
    norms = found["residual_norms"].set_index(["layer", "position"])["resid_norm"]
    assert norms.index[norms.isna()].tolist() == [(1, 4)]
    table = found["layers"].set_index("layer")
    assert math.isnan(table["resid_ratio"][1]) and table["resid_ratio"].notna().sum() == 2
    assert table["peak_position"][1] != 4
    for text in texts:
        text.hidden[2][:] = math.nan
    table = detect([collate(texts)])["layers"].set_index("layer")
    assert math.isnan(table["peak_norm"][1]) and math.isnan(table["resid_growth"][1])


def test_halves_merge_into_the_whole() -> None:
    texts = random_texts(LENGTHS)
    one, two = ResidualPeakDetector(), ResidualPeakDetector()
    first, second = passes(texts, (1, 3))
    for record in first:
        one.update(record)
    for record in second:
        two.update(record)
    one.merge(two)
    table, by_position, tokens = naive(texts)
    same(one.tables()["layers"][[*table.columns]], table)
    same(one.tables()["residual_norms"], by_position)
    same(one.tables()["peaks"], tokens)


# ------------------------------------------------------------------ models
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba", "gemma2"])
@pytest.mark.filterwarnings("ignore:BloomForCausalLM is measured through the bridge's hooks")
def test_norms_are_those_of_the_hidden_states(name: str, zoo: Path) -> None:
    model, hf_model = boot(name, zoo), boot_hf(name, zoo)
    rows = [random_ids(1, length, seed=length)[0].tolist() for length in (21, 8)]
    detector = ResidualPeakDetector()
    capture(model, tokenize(model, rows), [detector])
    found = detector.tables()
    states = [hf_model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
    if name == "mamba":  # its list begins after the first block
        states = [
            (hf_model.get_input_embeddings()(torch.tensor([row])), *s) for row, s in zip(rows, states, strict=True)
        ]
    table = found["residual_norms"].set_index(["layer", "position"])["resid_norm"]
    # the last block is left out: Hugging Face gives its state after the final norm
    for layer in range(-1, len(model.blocks) - 1):
        for position in range(21):
            norms = [s[layer + 1][0, position].norm() for s in states if position < s[0].shape[1]]
            assert table[layer, position] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-4)
    assert len(found["layers"]) == len(model.blocks) + 1
