"""The joined table, labels and agreement against constructed scores with known answers."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from sinklens.errors import InputError
from sinklens.studies import Roles
from sinklens.studies.head_roles.rules import Rule, choose_rules
from tests.studies.head_roles.synthetic import HEADS, KV_HEADS, LAYERS, scores

RETRIEVAL = [0.0, 0.0, 0.0, 0.0, 0.05, 0.0, 0.1, 0.2, 0.9, 0.8, 0.0, 0.6]
INDUCTION = [0.0, 0.1, 0.0, 0.0, 0.1, 0.0, 0.2, 0.4, 0.9, 0.7, 0.1, 0.3]
MODEL = {"name": "m", "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS}


def pair(roles: Roles, first: str, second: str) -> pd.Series:
    table = roles.agreement()
    return table[(table["first"] == first) & (table["second"] == second)].iloc[0]


def test_labels_follow_their_rules() -> None:
    roles = Roles.of({"a": scores(retrieval=RETRIEVAL), "b": scores(induction=INDUCTION)})
    assert roles.roles == {
        "retrieval": ((1, 2), (1, 3), (2, 0), (2, 1), (2, 3)),
        "induction": ((1, 3), (2, 0), (2, 1)),
    }
    assert roles.ranking("retrieval")[:3] == [(2, 0), (2, 1), (2, 3)]
    criteria = roles.criteria().set_index("criterion")
    assert criteria.loc["retrieval", "cut"] == 0.1 and criteria.loc["retrieval", "n_at_cut"] == 1
    assert "2404.15574" in criteria.loc["retrieval", "rule_source"]
    assert criteria.loc["induction", "definition"] == "what induction means"
    assert roles.verdict[0] == "retrieval: 5 of 12 heads (L2H0, L2H1, L2H3, L1H3, L1H2), retrieval >= 0.1."


def test_a_pair_is_compared_as_ranking_as_labels_and_with_chance() -> None:
    roles = Roles.of({"a": scores(retrieval=RETRIEVAL), "b": scores(induction=INDUCTION)})
    row = pair(roles, "retrieval", "induction")
    assert row["unit"] == "head" and row["n"] == 12
    assert (row["n_first"], row["n_second"], row["n_both"]) == (5, 3, 3)
    assert row["jaccard"] == 0.6 and row["both_chance"] == 15 / 12
    assert row["p"] == pytest.approx(math.comb(5, 3) / math.comb(12, 3))
    assert row["top"] == 3 and row["top_both"] == 2 and row["top_jaccard"] == 0.5 and row["top_chance"] == 0.75
    assert row["spearman"] == pytest.approx(spearmanr(RETRIEVAL, INDUCTION)[0])
    assert row["spearman_low"] < row["spearman"] < row["spearman_high"]
    assert row["tied_first"] == 6 / 12 and row["tied_second"] == 7 / 12
    assert row["auc_first"] == pytest.approx(26 / 27) and row["auc_second"] == 1
    ten = Roles.of({"a": scores(retrieval=RETRIEVAL), "b": scores(induction=INDUCTION)}, top=10).agreement()
    assert ten["top"].item() == 10 and ten["top_tied_first"].item() == 2
    with pytest.raises(InputError, match="top must be at least 1"):
        Roles.of({"a": scores(retrieval=RETRIEVAL)}, top=0)


def test_each_score_is_judged_by_the_labels_of_the_other() -> None:
    turned = INDUCTION[::-1]
    row = pair(Roles.of({"a": scores(retrieval=RETRIEVAL), "b": scores(induction=turned)}), "retrieval", "induction")

    def naive(values: list[float], labels: list[bool]) -> float:
        inside = [x for x, y in zip(values, labels, strict=True) if y]
        outside = [x for x, y in zip(values, labels, strict=True) if not y]
        return float(np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside]))

    first, second = naive(RETRIEVAL, [x >= 0.4 for x in turned]), naive(turned, [x >= 0.1 for x in RETRIEVAL])
    assert row["auc_first"] == pytest.approx(first) and row["auc_second"] == pytest.approx(second)
    assert abs(first - second) > 0.02


def test_an_empty_label_set_gives_nan_and_not_zero() -> None:
    nothing = [0.0] * 11 + [0.01]
    row = pair(Roles.of({"a": scores(retrieval=nothing), "b": scores(induction=INDUCTION)}), "retrieval", "induction")
    assert row["n_first"] == 0 and row["n_both"] == 0
    assert row[["jaccard", "jaccard_chance", "p", "p_in_layers", "both_chance", "auc_second"]].isna().all()
    assert row["top"] == 3 and not math.isnan(row["spearman"])


def test_heads_without_a_score_are_left_out() -> None:
    some = [math.nan] * 4 + RETRIEVAL[4:]
    roles = Roles.of({"a": scores(retrieval=some), "b": scores(induction=INDUCTION)})
    row = pair(roles, "retrieval", "induction")
    assert row["n"] == 8 and row["spearman"] == pytest.approx(spearmanr(RETRIEVAL[4:], INDUCTION[4:])[0])
    label = roles.to_dataframe()["is_retrieval"]
    assert label[:4].isna().all() and not label[4:].isna().any()
    none = Roles.of({"a": scores(retrieval=[math.nan] * 12), "b": scores(induction=INDUCTION)})
    assert none.agreement().iloc[0].drop(["first", "second", "unit", "n"]).isna().all()
    assert none.verdict[0].startswith("retrieval: not applicable")


def test_a_score_of_kv_heads_is_compared_over_kv_heads() -> None:
    gate = np.repeat([0.1, 0.2, 1.0, 0.3, 1.0, 0.4], 2)
    parts = {"a": scores(retrieval=RETRIEVAL), "b": scores(streaming_gate=gate)}
    roles = Roles.of(parts, model=MODEL)
    assert roles.criteria()["unit"].tolist() == ["head", "kv_head"]
    assert roles.to_dataframe()["kv_head"].tolist() == [0, 0, 1, 1] * 3
    row = pair(roles, "retrieval", "streaming_gate")
    group = np.array(RETRIEVAL).reshape(-1, 2).max(1)
    assert row["unit"] == "kv_head" and row["n"] == 6
    assert row["spearman"] == pytest.approx(spearmanr(group, gate[::2])[0])
    # the top half of six gates: 0.35 lies half way between the third and the fourth
    assert roles.criteria()["cut"].tolist()[1] == pytest.approx(0.35)
    assert (row["n_first"], row["n_second"], row["n_both"]) == (3, 3, 2)
    quarter = Roles.of(parts, model=MODEL, rules=[Rule("duo", "streaming_gate", "mine", share=0.25)]).criteria()
    assert quarter["cut"].tolist()[1] == pytest.approx(0.85), "a share of the six KV heads, not of the twelve heads"
    as_heads = Roles.of(parts)  # without KV heads each gate is a head's
    assert as_heads.criteria()["unit"].tolist() == ["head", "head"]
    assert as_heads.agreement()["n"].item() == 12
    assert as_heads.criteria()["rule"].tolist()[1] == "streaming_gate in the top 25 %, ties included"


def test_ties_with_the_quantile_are_all_labelled_and_counted() -> None:
    gate = [1.0] * 5 + [0.5] * 7
    roles = Roles.of({"a": scores(streaming_gate=gate)})
    row = roles.criteria().iloc[0]
    assert row["cut"] == 1.0 and row["n_labelled"] == 5 and row["n_at_cut"] == 5


def test_equal_names_get_their_part_in_front() -> None:
    parts = {"one": scores(retrieval=RETRIEVAL, n_runs=[1] * 12), "two": scores(retrieval=INDUCTION, n_runs=[2] * 12)}
    roles = Roles.of(parts)
    table = roles.to_dataframe()
    assert table["retrieval"].tolist() == RETRIEVAL and table["two.retrieval"].tolist() == INDUCTION
    assert table["n_runs"].tolist() == [1] * 12 and table["two.n_runs"].tolist() == [2] * 12
    assert list(roles.roles) == ["retrieval", "two.retrieval"]
    assert roles.roles["two.retrieval"] == tuple((x // 4, x % 4) for x in range(12) if INDUCTION[x] >= 0.1)


def test_evidence_decides_where_a_rule_says_so() -> None:
    rate = [0.6] * 6 + [0.1] * 6
    parts = {"s": scores(importance=rate, is_sink=[True] * 5 + [False] * 7)}
    assert len(Roles.of(parts).roles["sink"]) == 5
    words = ["dormant", "idle", "active", "unclear"] * 3
    roles = Roles.of({"d": scores(sink_mass=rate, label=words)})
    assert roles.roles["dormant"] == ((0, 0), (1, 0), (2, 0))
    alone = Roles.of({"s": scores(importance=rate)})  # a score of that name without the evidence is only ranked
    assert alone.roles == {} and math.isnan(alone.criteria()["n_labelled"].astype(float).item())


def test_the_caller_can_set_rules() -> None:
    mine = Rule("strong", "retrieval", "mine", at_least=0.5)
    assert Roles.of({"a": scores(retrieval=RETRIEVAL)}, rules=[mine]).roles == {"strong": ((2, 0), (2, 1), (2, 3))}
    new = Rule("own", "mystery", "mine", share=0.25)
    assert len(Roles.of({"a": scores(mystery=np.arange(12.0))}, rules=[new]).roles["own"]) == 3
    assert choose_rules([mine], shared=True)["induction"].at_least == 0.4
    for wrong in ({}, {"at_least": 1.0, "share": 0.5}):
        with pytest.raises(InputError, match="exactly one of"):
            Rule("x", "y", "z", **wrong)
    with pytest.raises(InputError, match="between 0 and 1"):
        Rule("x", "y", "z", share=1.0)


def test_scores_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match=r"L2H0, and the model has 2 layers x 4 heads"):
        Roles.of({"a": scores(retrieval=RETRIEVAL)}, model=MODEL | {"n_layers": 2})
    with pytest.raises(InputError, match="no scores"):
        Roles.of({})


def test_agreement_is_the_same_whatever_the_order_of_rows() -> None:
    one = scores(retrieval=RETRIEVAL)
    shuffled = type(one)(one.frame.sample(frac=1, random_state=3), one.metrics, {})
    first, second = (Roles.of({"a": each, "b": scores(induction=INDUCTION)}) for each in (one, shuffled))
    pd.testing.assert_frame_equal(first.agreement(), second.agreement())
    pd.testing.assert_frame_equal(first.to_dataframe(), second.to_dataframe())
