"""Secondary sinks: the card's synthetic model, the window of the BOS, labels, invariances, and a loop over states."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens import builtin_corpus
from sinklens.capture.record import LayerRecord
from sinklens.detectors.bos_similarity import bos_cosine
from sinklens.detectors.measure import measure
from sinklens.detectors.secondary_sinks import SecondarySinkDetector, Window, lifetime_label, sink_windows
from sinklens.errors import InputError
from sinklens.interventions import ZeroWeights
from sinklens.models.tokens import TokenBatch
from tests.real_models import real_model

LAYERS, LENGTH, D_MODEL = 36, 300, 64
PLANTED = {222: range(16, 34), 50: range(20, 23), 60: range(6, 35), 90: range(7, 34), 70: range(16, 29)}
"""Position and the layers after which it points along the BOS; 70 points the opposite way."""


ALIGNED = ("aligned, not a sink", "aligned, not judged")


def batch_of(length: int, n: int = 1, bos: bool = True) -> TokenBatch:
    ids = torch.arange(10, 10 + length).repeat(n, 1)
    if bos:
        ids[:, 0] = 1
    real = torch.ones_like(ids, dtype=torch.bool)
    tokens = tuple(f"t{i}" for i in range(length))
    return TokenBatch(ids, real, ids == 1, (tokens,) * n, 1, "caller", "")


def planted(
    layers: int = LAYERS, length: int = LENGTH, start: int = 6, end: int = 35, tokens: Mapping[int, range] = PLANTED
) -> Tensor:
    """Hidden states ``[layer + 1, pos, d_model]``, embedding first: a BOS of norm 500 in a window, else of norm 1."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(layers + 1, length, D_MODEL, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=generator), dim=0)
    for layer in range(-1, layers):
        hidden[layer + 1, 0] = direction * (500 if start <= layer < end else 1)
        for position, life in tokens.items():
            if layer in life:
                sign = -1 if position == 70 else 1
                noise = torch.randn(D_MODEL, generator=generator)
                hidden[layer + 1, position] = sign * 20 * direction + 0.3 * noise
    return hidden


def detect(
    hidden: Tensor, received: float = 0.5, batch: TokenBatch | None = None, **settings: object
) -> dict[str, pd.DataFrame]:
    """Detect in one sequence where one of two heads gives every token this importance and the other gives nothing."""
    layers, length = hidden.shape[0] - 1, hidden.shape[1]
    batch = batch or batch_of(length)
    detector = SecondarySinkDetector(**settings)  # type: ignore[arg-type]
    queries = (length - torch.arange(length)).float()
    mass = torch.stack([received * queries, 0 * queries])[None]
    for layer in range(-1, layers):
        attention = {} if layer < 0 else {"mass": mass, "null_mass": queries[None] * 0.01}
        detector.update(LayerRecord(layer, batch, 0, "fast", attention, hidden=hidden[layer + 1][None]))
    return detector.tables()


def labels(found: dict[str, pd.DataFrame]) -> dict[int, str]:
    return dict(zip(found["secondary_sinks"]["position"], found["secondary_sinks"]["label"], strict=True))


# ------------------------------------------------------------------ the card's check 1
def test_the_planted_tokens_come_back_with_life_and_label() -> None:
    found = detect(planted())
    assert found["secondary_windows"][["bos_position", "start", "end"]].to_numpy().tolist() == [[0, 6, 35]]
    assert labels(found) == {222: "secondary", 50: "noise", 60: "bos_sink", 90: "bos_sink"}
    row = found["secondary_sinks"].set_index("position").loc[222]
    assert (row["first_layer"], row["last_layer"], row["life"]) == (16, 33, 18)
    assert row["share"] == pytest.approx(18 / 29) and row["cosine"] > 0.95 and row["token"] == "t222"
    assert row["importance_max"] == pytest.approx(0.5) and row["importance"] == pytest.approx(0.25)
    assert row["null"] == pytest.approx(0.01)


def test_the_opposite_direction_counts_in_absolute_mode_alone() -> None:
    found = detect(planted(), absolute=True)
    assert labels(found) == {222: "secondary", 50: "noise", 60: "bos_sink", 90: "bos_sink", 70: "secondary"}
    assert found["secondary_sinks"].set_index("position").loc[70, "life"] == 13
    assert found["secondary_sinks"].set_index("position").loc[70, "cosine"] < -0.9


def test_a_life_with_a_gap_counts_its_blocks() -> None:
    hidden = planted()
    hidden[1 + 20, 222] = torch.randn(D_MODEL)
    row = detect(hidden)["secondary_sinks"].set_index("position").loc[222]
    assert (row["first_layer"], row["last_layer"], row["life"]) == (16, 33, 17)


def test_blocks_count_tokens_while_the_window_is_open() -> None:
    layers = detect(planted())["secondary_layers"].set_index("layer")
    assert layers.loc[5, "n_active"] == 0 and math.isnan(layers.loc[5, "n_aligned"])
    assert layers.loc[6, "n_aligned"] == 1 and layers.loc[21, "n_aligned"] == 4 and layers.loc[34, "n_aligned"] == 1
    assert math.isnan(layers.loc[35, "n_aligned"])


# ------------------------------------------------------------------ checks 2 to 4
def test_shallow_models_have_more_than_one_label() -> None:
    tokens = {20: range(4, 6), 30: range(4, 9), 40: range(2, 11), 50: range(5, 6)}
    found = detect(planted(12, 100, 2, 11, tokens))
    # the reference calls everything a bos_sink here: 12 - 15 < 0
    assert labels(found) == {20: "noise", 30: "secondary", 40: "bos_sink", 50: "noise"}


def test_rotation_and_scale_change_nothing() -> None:
    hidden = planted()
    rotation = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1))).Q
    expected = detect(hidden)
    for changed in (hidden @ rotation, hidden * 1e-3):
        found = detect(changed)
        pd.testing.assert_frame_equal(found["secondary_sinks"], expected["secondary_sinks"], rtol=1e-4)
        assert found["secondary_windows"][["start", "end"]].equals(expected["secondary_windows"][["start", "end"]])


def test_aligned_without_attention_is_no_sink() -> None:
    assert labels(detect(planted(), received=0.0))[222] == "aligned, not a sink"
    assert labels(detect(planted(), received=0.3))[222] == "aligned, not a sink"  # strict, as the sink rate
    assert labels(detect(planted(), received=0.3, eps=0.25))[222] == "secondary"
    late = {295: range(16, 34)}
    assert labels(detect(planted(tokens=late)))[295] == "aligned, not judged"
    assert labels(detect(planted(tokens=late), min_queries=5))[295] == "secondary"


def test_a_model_without_attention_is_not_judged() -> None:
    hidden, detector = planted(), SecondarySinkDetector()
    for layer in range(-1, LAYERS):
        detector.update(LayerRecord(layer, batch_of(LENGTH), 0, "none", hidden=hidden[layer + 1][None]))
    found = detector.tables()
    assert labels(found)[222] == "aligned, not judged" and labels(found)[50] == "noise"
    assert found["secondary_sinks"]["importance"].isna().all()


# ------------------------------------------------------------------ the window
def test_windows_of_a_curve() -> None:
    ones = [1.0] * 6
    assert sink_windows([1, 1, 500, 510, 505, 1], ones) == [Window(2, 5)]
    assert sink_windows([1, 1, 500, 510, 520, 530], ones) == [Window(2, 6)]  # never falls
    assert sink_windows([500, 1, 1, 7, 8, 1], ones) == [Window(0, 1), Window(3, 5)]  # leaves and comes back
    assert sink_windows([3, 2.9, 2, 2, 2, 2], ones) == [Window(0, 1)]  # three times is enough
    assert sink_windows([1.0, 2.0, 4.0, 7.0, 9.0, 11.0], ones) == [Window(2, 6)]  # gradual growth, too
    assert sink_windows([10, 20, 40, 70, 90, 99], [10, 20, 40, 70, 90, 99]) == []  # all tokens grow
    assert sink_windows([0.0], [0.0]) == [] and sink_windows([5.0], [math.nan]) == []
    assert sink_windows([2.0], [1.0], large=2) == [Window(0, 1)]


@pytest.mark.parametrize("norms", [[], [[1.0, 2.0]], [1.0, math.nan], [-1.0, 2.0]])
def test_what_is_no_curve_is_refused(norms: list[float]) -> None:
    with pytest.raises(InputError, match="one norm for each layer"):
        sink_windows(norms, norms)
    with pytest.raises(InputError, match="the others' norm for each of 2 layers"):
        sink_windows([1.0, 2.0], [1.0])


def test_a_bos_like_the_others_has_no_window_and_no_tokens() -> None:
    hidden = planted()
    hidden[:, 0] = hidden[:, 0] / hidden[:, 0].norm(dim=-1, keepdim=True)
    found = detect(hidden)
    assert found["secondary_sinks"].empty and len(found["secondary_windows"]) == 1
    assert found["secondary_windows"][["start", "n_aligned", "n_shared"]].isna().all(axis=None)
    assert found["secondary_windows"]["ratio"].item() < 3


def test_a_bos_that_comes_back_has_two_windows() -> None:
    """As in SmolLM2: a token along the BOS for the whole of its first life is secondary, not another BOS."""
    hidden = planted(tokens={222: range(6, 13), 50: range(20, 23)})
    hidden[1 + 13 : 1 + 16, 0] /= 500
    found = detect(hidden)
    assert found["secondary_windows"][["window", "start", "end", "n_aligned"]].to_numpy().tolist() == [
        [0, 6, 13, 1],
        [1, 16, 35, 1],
    ]
    assert labels(found) == {222: "secondary", 50: "noise"}
    assert found["secondary_sinks"].set_index("position").loc[222, "share"] == pytest.approx(7 / 26)
    assert found["secondary_layers"].set_index("layer")["n_active"].loc[[12, 13, 15, 16]].tolist() == [1, 0, 0, 1]


def test_a_direction_that_half_of_the_tokens_share_does_not_count() -> None:
    many = {position: range(16, 34) for position in range(100, 250)}
    found = detect(planted(tokens=many | {90: range(7, 15)}))
    assert labels(found) == {90: "secondary"}
    assert found["secondary_windows"]["n_shared"].item() == 18
    fewer = {position: range(16, 34) for position in range(100, 249)}
    assert len(detect(planted(tokens=fewer))["secondary_sinks"]) == 149


def test_the_labels_are_the_reference_s_where_it_was_made() -> None:
    for window, layers in ((29, 36), (43, 48)):
        for life in range(1, window + 1):
            reference = "secondary" if 4 < life < layers - 15 else "bos_sink" if life >= layers - 15 else "noise"
            if abs(life - (layers - 15)) > 1:
                assert lifetime_label(life, window) == reference, (life, window)
    with pytest.raises(InputError, match="from 1 to the window's 5 layers"):
        lifetime_label(6, 5)


# ------------------------------------------------------------------ which token is the BOS
def test_the_model_s_own_bos_is_the_bos_and_else_the_largest_of_the_first() -> None:
    hidden = planted()
    hidden[:, 1] = hidden[:, 0] * 2
    assert detect(hidden)["secondary_windows"]["bos_position"].item() == 0
    without = batch_of(LENGTH, bos=False)
    assert detect(hidden, batch=without)["secondary_windows"]["bos_position"].item() == 1
    assert 0 not in labels(detect(hidden, batch=without)) and 222 in labels(detect(hidden, batch=without))
    assert detect(hidden, batch=without, candidates=1)["secondary_windows"]["bos_position"].item() == 0


# ------------------------------------------------------------------ against a loop
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cosines_by_hand_and_in_every_precision(dtype: torch.dtype) -> None:
    hidden = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-3.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(bos_cosine(hidden), torch.tensor([1, math.sqrt(0.5), 0, -1]).to(bos_cosine(hidden)))
    assert bos_cosine(hidden).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bos_cosine(hidden, 3)[0].item() == pytest.approx(-1)


def test_streaming_equals_a_loop_over_padded_batches() -> None:
    generator = torch.Generator().manual_seed(3)
    lengths, layers = [40, 25, 33], 8
    batch = batch_of(40, 3)
    real = torch.arange(40)[None] < torch.tensor(lengths)[:, None]
    batch = replace(batch, real=real, tokens=tuple(row[:n] for row, n in zip(batch.tokens, lengths, strict=True)))
    hidden = torch.randn(layers + 1, 3, 40, 4, generator=generator)
    along = torch.rand(layers + 1, 3, 40, 1, generator=generator) < 0.3
    hidden += 6 * along * torch.nn.functional.normalize(hidden[:, :, :1], dim=-1)
    hidden[:, :, 0] /= hidden[:, :, 0].norm(dim=-1, keepdim=True)
    hidden[4:7, :, 0] *= 100 / hidden[4:7, :, 0].norm(dim=-1, keepdim=True)
    mass = torch.rand(layers, 3, 2, 40, generator=generator) * 20
    filler = hidden.masked_fill(~real[None, :, :, None], math.nan)
    detector = SecondarySinkDetector(min_queries=4)
    for layer in range(-1, layers):
        attention = {} if layer < 0 else {"mass": mass[layer], "null_mass": torch.ones(3, 40)}
        detector.update(LayerRecord(layer, batch, 7, "fast", attention, hidden=filler[layer + 1]))
    found = detector.tables()
    assert (
        found["secondary_windows"]["start"].tolist() == [3] * 3
        and found["secondary_windows"]["end"].tolist() == [6] * 3
    )
    expected = []
    for sequence, length in enumerate(lengths):
        for position in range(1, length):
            life = []
            for layer in (3, 4, 5):
                one, other = (hidden[layer + 1, sequence, p].double().numpy() for p in (0, position))
                if one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9:
                    alpha = mass[layer, sequence, :, position].double().numpy() / (length - position)
                    life.append((layer, alpha.mean(), alpha.max()))
            if life:
                blocks, mean, top = zip(*life, strict=True)
                label = "noise" if len(life) < 2 else "bos_sink" if len(life) == 3 else "secondary"
                if label != "noise" and length - position < 4:
                    label = "aligned, not judged"
                elif label != "noise" and max(top) <= 0.3:
                    label = "aligned, not a sink"
                ends = blocks[0], blocks[-1], len(life)
                expected.append((sequence + 7, position, *ends, np.mean(mean), max(top), label))
    columns = ["sequence", "position", "first_layer", "last_layer", "life", "importance", "importance_max", "label"]
    assert {row[-1] for row in expected} == {"noise", "secondary", "bos_sink", *ALIGNED}
    pd.testing.assert_frame_equal(
        found["secondary_sinks"][columns], pd.DataFrame(expected, columns=columns), check_dtype=False, rtol=1e-5
    )


def test_settings_are_checked() -> None:
    for settings in ({"cosine": 1.0}, {"cosine": 0.0}, {"candidates": 0}):
        with pytest.raises(InputError, match="Expected cosine"):
            SecondarySinkDetector(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"with different .* cannot be merged"):
        SecondarySinkDetector().merge(SecondarySinkDetector(0.8))


@pytest.mark.real
@pytest.mark.slow
def test_smollm2s_first_the_is_one_and_two_weights_make_it() -> None:
    """Real positives with their cause: two weights of layer 2 put to zero leave none, two random ones leave all."""
    model = real_model("smollm2")
    batch = builtin_corpus(model, n_sequences=20).tokens
    down = "model.layers.2.mlp.down_proj.weight"
    counts = {}
    for name, weights in {"": [], "cause": ["507, 90", "507, 430"], "random": ["227, 1316", "319, 51"]}.items():
        change = ZeroWeights([f"{down}[{place}]" for place in weights]) if weights else None
        table = measure(model, batch, "secondary_sinks", intervention=change).tables["secondary_sinks"]
        found = table[table["label"] == "secondary"]
        assert set(found["token"]) <= {" the"} and (found["importance"] > 3 * found["null"]).all()
        counts[name] = len(found)
    assert counts[""] == counts["random"] > 5 and counts["cause"] == 0
