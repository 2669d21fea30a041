"""The join of retrieval, sink and induction scores against plain counting, its sentences against its tables."""

import math
import re
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens.errors import InputError
from sinklens.studies import Roles, find_roles
from sinklens.studies.head_roles.retrieval_join import JOINED, RetrievalJoin, retrieval_join

SCORES = ("retrieval", "importance", "induction")


def table(values: Any) -> pd.DataFrame:
    frame = pd.DataFrame(values, columns=list(SCORES))
    return pd.DataFrame({"layer": np.arange(len(frame)) // 3, "head": np.arange(len(frame)) % 3}).join(frame)


def joined(heads: pd.DataFrame, top: int) -> RetrievalJoin:
    found = retrieval_join(heads, top=top)
    assert found is not None
    return found


def shared_at_random(one: np.ndarray, other: np.ndarray, top: int) -> float:
    """Mean overlap over every way to break ties for the last places."""

    def sets(scores: np.ndarray) -> list[frozenset[int]]:
        edge = np.sort(scores)[-top]
        sure = {*np.flatnonzero(scores > edge).tolist()}
        ties = np.flatnonzero(scores == edge).tolist()
        return [frozenset(sure | {*more}) for more in combinations(ties, top - len(sure))]

    found = [len(a & b) for a in sets(one) for b in sets(other)]
    return float(np.mean(found))


def holds(join: RetrievalJoin) -> None:
    """Every number of the verdict is one of the tables'."""
    said = join.verdict
    if not (join.heads["retrieval"] > 0).any():
        assert said == ["No head copied a needle, so retrieval heads cannot be compared with sink and induction heads."]
        return
    best = join.heads["retrieval"].max()
    named = re.match(r"The strongest retrieval head, L(\d+)H(\d+) \(([\d.]+)\)", said[0])
    assert named
    row = join.heads[(join.heads["layer"] == int(named[1])) & (join.heads["head"] == int(named[2]))].iloc[0]
    assert row["retrieval"] == best and float(named[3]) == pytest.approx(best, abs=0.0051)
    for score in join.scores[1:]:
        told = re.search(rf"([\d.]+) by {JOINED[score]}", said[0])
        assert (
            told
            and float(told[1])
            == (join.heads[score] > row[score]).sum() + ((join.heads[score] == row[score]).sum() + 1) / 2
        )
    for line, score in zip(said[1:], join.scores[1:], strict=True):
        shared = shared_at_random(join.heads["retrieval"].to_numpy(), join.heads[score].to_numpy(), join.top)
        told = re.search(
            rf"by retrieval ([\d.]+) are among the {join.top} strongest by {JOINED[score]} \(([\d.]+) by", line
        )
        assert told and float(told[1]) == pytest.approx(shared, abs=0.051)
        assert float(told[2]) == pytest.approx(join.top**2 / len(join.heads), abs=0.051)


@settings(max_examples=100)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=3, max_size=3), min_size=1, max_size=9), st.data()
)
def test_ranks_overlaps_and_sentences(values: list[tuple[float, ...]], data: st.DataObject) -> None:
    top = data.draw(st.integers(1, len(values)))
    join = joined(table(values), top)
    for name in SCORES:
        np.testing.assert_allclose(join.heads[f"rank_{name}"], rankdata(-join.heads[name]))
    assert join.heads["retrieval"].is_monotonic_decreasing
    for row in join.pairs.to_dict("records"):
        one, other = join.heads[row["first"]].to_numpy(), join.heads[row["second"]].to_numpy()
        assert row["top_both"] == pytest.approx(shared_at_random(one, other, join.top))
        if len(one) > 2 and np.ptp(one) and np.ptp(other):
            assert row["spearman"] == pytest.approx(spearmanr(one, other).statistic)
        whole, n = math.floor(row["top_both"] + 1e-9), len(one)
        ways = sum(math.comb(join.top, k) * math.comb(n - join.top, join.top - k) for k in range(whole, join.top + 1))
        assert row["p"] == pytest.approx(ways / math.comb(n, join.top))
    holds(join)


def test_the_order_of_the_rows_changes_nothing() -> None:
    heads = table([[1, 0.9, 0.8], [1, 0.2, 0.9], [0, 0.9, 0.1], [0.5, 0.9, 0.1], [0, 0, 0]])
    one, other = joined(heads, 2), joined(heads.iloc[::-1], 2)
    pd.testing.assert_frame_equal(one.heads, other.heads)
    assert one.verdict[0] == other.verdict[0] and "L0H1 (1.00)" in one.verdict[0], "a tie by size of the next score"


def test_without_one_of_the_three_there_is_no_join() -> None:
    heads = table([[0.5, 0.5, 0.5]] * 4)
    assert retrieval_join(heads.drop(columns="importance")) is None
    assert retrieval_join(heads.assign(induction=math.nan)) is None
    unanswered = joined(heads.assign(retrieval=math.nan), 2)
    assert unanswered.heads.empty and "No head copied a needle" in unanswered.verdict[0]
    with pytest.raises(InputError, match="top must be at least 1"):
        retrieval_join(heads, top=0)


def test_on_the_induction_model_the_retrieval_heads_are_the_induction_heads() -> None:
    model = load("induction-2l")
    options = {"retrieval": {"lengths": [67], "depths": [0.2, 0.8], "repeats": 5}}
    found = find_roles(model, scores=["retrieval", "pattern", "sinks"], options=options, max_sequences=10, top=4)
    join = found.retrieval_join()
    assert join is not None and join.top == 4
    holds(join)
    row = join.pairs.set_index(["first", "second"]).loc[("retrieval", "induction")]
    assert row["top_both"] == 4 and row["p"] == pytest.approx(1 / math.comb(8, 4))
    assert {*join.verdict} <= {*found.verdict}


@pytest.mark.real
def test_on_smollm2_retrieval_heads_are_induction_heads_and_strong_sink_heads(smollm2: TransformerBridge) -> None:
    """Random needles it cannot answer, passkeys it can; its best heads copy needles and rest on the sink in prose."""
    options = {"retrieval": {"lengths": [128], "depths": [0.5], "repeats": 4, "size": 4}}
    words = {"max_sequences": 8, "max_tokens": 48}
    found: Roles = find_roles(smollm2, scores=["retrieval", "pattern", "sinks"], options=options, **words)  # type: ignore[arg-type]
    join = found.retrieval_join()
    assert join is not None
    holds(join)
    row = join.pairs.set_index(["first", "second"]).loc[("retrieval", "induction")]
    assert row["top_both"] >= 4 and row["p"] < 1e-3
    assert {(18, 6), (17, 3)} <= {*zip(join.heads["layer"][:6], join.heads["head"][:6], strict=True)}
    first = join.heads.iloc[:4]
    assert (first["importance"] > join.heads["importance"].median()).all()
