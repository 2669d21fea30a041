"""Active and dormant heads: criteria and rule by hand, agreement, and the detector against loops over patterns."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens.detectors.active_dormant import (
    ActiveDormantDetector,
    Thresholds,
    agreement,
    head_label,
    state_by_ablation,
    state_by_mass,
    state_by_norm,
)
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from tests.detectors.records import WINDOWS, collate, make_text, random_texts, visible

NAN = math.nan


# ------------------------------------------------------------------ criteria and rule
def test_mass_has_a_zone_between_and_a_null() -> None:
    found = [state_by_mass(mass, 0.05) for mass in (0.0, 0.3, 0.31, 0.49, 0.5, 0.97)]
    assert found == ["active", "active", "unclear", "unclear", "dormant", "dormant"]
    # in a short text even attention gives the sink as much
    assert state_by_mass(0.55, 0.3) == "active" and state_by_mass(0.6, 0.3) == "dormant"
    assert state_by_mass(NAN, 0.1) is None and state_by_mass(0.5, NAN) is None


def test_norm_and_ablation_have_their_lines() -> None:
    assert [state_by_norm(ratio) for ratio in (0.49, 0.5, NAN)] == ["dormant", "active", None]
    assert [state_by_norm(ratio, Thresholds(norm=0.1)) for ratio in (0.09, 0.49)] == ["dormant", "active"]
    intervals = [(0.031, 2), (-2, -0.031), (-0.03, 0.03), (0.0, 0.0), (0.02, 0.04), (-1, 1), (NAN, 1)]
    expected = ["active", "active", "dormant", "dormant", "unclear", "unclear", None]
    assert [state_by_ablation(*interval, effect=0.03) for interval in intervals] == expected
    assert state_by_ablation(0.0, 0.0, NAN) is None


def test_the_rule_for_every_pair() -> None:
    labels = {
        (mass, ablation): head_label(mass, ablation)
        for mass in ("active", "dormant", "unclear", None)
        for ablation in ("active", "dormant", "unclear", None)
    }
    assert {pair for pair, label in labels.items() if label == "dormant"} == {("dormant", "dormant")}
    assert {pair for pair, label in labels.items() if label == "loaded sink"} == {("dormant", "active")}
    assert {mass for (mass, _), label in labels.items() if label == "active"} == {"active", "unclear", None}
    assert {mass for (mass, _), label in labels.items() if label == "idle"} == {"active", "unclear", None}
    assert all(label == "unclear" for (_, ablation), label in labels.items() if ablation == "unclear")
    assert all(label == "not judged" for (_, ablation), label in labels.items() if ablation is None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"active_mass": 0.6},
        {"dormant_mass": 1.0},
        {"active_mass": 0.0},
        {"norm": 0.0},
        {"effect": -0.1},
        {"spread": 0.0},
    ],
)
def test_thresholds_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="positive thresholds"):
        Thresholds(**wrong)


# ------------------------------------------------------------------ agreement
def test_agreement_and_kappa_by_hand() -> None:
    a = ["active"] * 6 + ["dormant"] * 4
    b = ["active"] * 5 + ["dormant"] * 4 + ["active"]  # 8 of 10 agree
    c = ["unclear", None, np.nan, "active", "active", *["dormant"] * 5]
    found = agreement(pd.DataFrame({"a": a, "b": b, "c": c}), ["a", "b", "c"]).set_index(["criterion", "other"])
    assert found.loc[("a", "b"), "n"] == 10 and found.loc[("a", "b"), "agreement"] == pytest.approx(0.8)
    chance = 0.6 * 0.6 + 0.4 * 0.4
    assert found.loc[("a", "b"), "kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert found.loc[("a", "c"), "n"] == 7 and found.loc[("a", "c"), "agreement"] == pytest.approx(6 / 7)
    nothing = agreement(pd.DataFrame({"a": ["unclear"], "b": ["active"]}), ["a", "b"]).iloc[0]
    assert nothing["n"] == 0 and math.isnan(nothing["agreement"])
    same = agreement(pd.DataFrame({"a": ["active"] * 3, "b": ["active"] * 3}), ["a", "b"]).iloc[0]
    assert same["agreement"] == 1 and math.isnan(same["kappa"])  # chance explains all of it


# ------------------------------------------------------------------ detector
def even(batch: TokenBatch) -> dict[str, Tensor]:
    return {"even": batch.ids % 2 == 0, "odd": batch.ids % 2 == 1}


def detect(texts: list, classes: Callable[..., dict[str, Tensor]] = even, **settings: object) -> ActiveDormantDetector:
    detector = ActiveDormantDetector("texts", classes, **settings)  # type: ignore[arg-type]
    for record in collate(texts):
        detector.update(record)
    return detector


def test_masses_and_norms_equal_a_loop_over_patterns() -> None:
    texts = random_texts((14, 9, 22), seed=2)
    found = detect(texts).tables()
    rows = found["active_dormant_sequences"].set_index(["layer", "head", "domain", "class", "sequence"])
    for sequence, text in enumerate(texts):
        for layer, window in enumerate(WINDOWS):
            seen = visible(len(text), window)
            for name, parity in (("even", 0), ("odd", 1)):
                queries = [i for i in range(1, len(text)) if text.ids[i] % 2 == parity]
                for head in range(4):
                    row = rows.loc[(layer, head, "texts", name, sequence)]
                    mass = np.mean([text.patterns[layer][head, i, 0].item() for i in queries])
                    null = np.mean([seen[i, 0].item() / seen[i].sum().item() for i in queries])
                    norm = np.mean([text.outputs[layer].flip(-1)[head, i].item() for i in queries])
                    assert row["mass"] == pytest.approx(mass, abs=1e-6) and row["null"] == pytest.approx(null)
                    assert row["norm"] == pytest.approx(norm, rel=1e-6) and row["n_queries"] == len(queries)
    assert (rows.loc[1]["null"] < rows.loc[0]["null"]).all()  # few queries of the windowed layer see position 0
    table = found["active_dormant"].set_index(["layer", "head", "domain", "class"])
    means = (
        found["active_dormant_sequences"].groupby(["layer", "head", "domain", "class"])[["mass", "null", "norm"]].mean()
    )
    pd.testing.assert_frame_equal(table[["mass", "null", "norm"]], means)


def test_ratios_are_to_the_layer_and_to_the_head_s_own_most() -> None:
    table = detect(random_texts((14, 9, 22))).tables()["active_dormant"].set_index(["layer", "head", "class"])
    layer = table.loc[0].xs("odd", level="class")["norm"]
    assert table.loc[(0, 2, "odd"), "norm_ratio"] == pytest.approx(layer[2] / layer.mean())
    own = table.loc[(0, 2)]["norm"]
    assert table.loc[(0, 2, "odd"), "own_ratio"] == pytest.approx(own["odd"] / own.max())
    assert table["own_ratio"].groupby(level=[0, 1]).max().tolist() == [1.0] * 8
    alone = detect(random_texts((14, 9)), lambda batch: {"all": batch.real}).tables()["active_dormant"]
    assert alone["own_ratio"].isna().all() and alone["norm_ratio"].notna().all()


def test_one_head_has_no_layer_to_compare_with() -> None:
    generator = torch.Generator().manual_seed(0)
    text = make_text([torch.rand(1, 12, 12, generator=generator).tril().softmax(-1)])
    (_, record) = collate([text])
    detector = ActiveDormantDetector()
    detector.update(replace(record, outputs=torch.rand(1, 1, 12)))
    found = detector.tables()["active_dormant"]
    assert len(found) == 1 and found["norm_ratio"].isna().all() and found["norm"].notna().all()
    detector = ActiveDormantDetector()
    detector.update(replace(record, outputs=None))
    assert detector.tables()["active_dormant"]["norm"].isna().all()  # unknown, and not 0


def test_without_a_bos_at_the_start_the_bos_s_mass_is_not_the_sink_s() -> None:
    texts = random_texts((14, 9, 22), without_bos=(1,))
    rows = detect(texts).tables()["active_dormant_sequences"]
    assert rows[rows["sequence"] == 1]["mass"].isna().all() and rows[rows["sequence"] != 1]["mass"].notna().all()
    assert detect(texts, keys=(1,)).tables()["active_dormant"]["mass"].isna().all()  # position 1 was not measured


def test_a_measured_sink_goes_before_the_bos() -> None:
    (_, record, _) = collate(random_texts((14,)))
    sink = torch.full((1, 4, 14), 0.25)
    detector = ActiveDormantDetector(keys=(3, 5))
    detector.update(replace(record, attention=record.attention | {"mass_sink": sink}))
    row = detector.tables()["active_dormant"].iloc[0]
    assert row["mass"] == pytest.approx(0.25)
    expected = np.mean([((i >= 3) + (i >= 5)) / (i + 1) for i in range(1, 14)])
    assert row["null"] == pytest.approx(expected)


def test_domains_stay_apart_when_merged() -> None:
    texts = random_texts((14, 9, 22))
    one, two = ActiveDormantDetector("prose"), ActiveDormantDetector("code")
    for record in collate(texts[:2]):
        one.update(record)
    for record in collate(texts[2:], 2):
        two.update(record)
    one.merge(two)
    table = one.tables()["active_dormant"]
    assert set(table["domain"]) == {"prose", "code"} and len(table) == 2 * 4 * 2
    assert table.loc[table["domain"] == "prose", "n_sequences"].eq(2).all()
    assert table["own_ratio"].max() == 1 and table["own_ratio"].min() < 1
