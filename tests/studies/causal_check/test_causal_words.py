"""Every number of a causal check's sentences against the tables, by other code; on generated tables too."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinklens import load
from sinklens.evidence.bootstrap import Interval
from sinklens.studies import make_needles
from sinklens.studies.causal_check.equal_harm import NEAR, equal_harm
from sinklens.studies.causal_check.result import CausalCheck, p_words
from sinklens.studies.causal_check.run import run_causal_check

NUMBER = r"[+-]?\d+\.\d+"


@st.composite
def checks(draw: st.DrawFn) -> CausalCheck:
    """A result with any harms: ties, no controls, controls that break the model."""
    ways = draw(st.lists(st.sampled_from(["zero", "mean", "uniform"]), min_size=1, max_size=3, unique=True))
    rows: list[dict[str, Any]] = []
    share, nats = st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([-0.01, 0.0, 0.1, 0.5, 2.6])
    for way in ways:
        for kind, most in (("tested", 1), ("random", 3), ("matched", 2), ("idle", 1)):
            for number in range(1 if kind == "tested" else draw(st.integers(0, most))):
                base = {"way": way, "top": 2, "kind": kind, "draw": number, "heads": f"L0H{number},{kind}"}
                exact, loss, answer = draw(share), draw(nats), draw(nats)
                values = (("exact", 1.0, 1 - exact, exact), ("log_prob", -0.2, -0.2 - answer, answer))
                for measure, clean, value, harm in (*values, ("loss", 3.0, 3 + loss, loss)):
                    ends = {"harm_low": harm - 0.05, "harm_high": harm + 0.05}
                    rows.append(base | {"measure": measure, "clean": clean, "value": value, "harm": harm} | ends)
    spread = draw(st.sampled_from([None, 0.2]))
    meta: dict[str, Any] = {"loss_spread": spread, "n_needles": 4}
    meta["idle_heads"] = {"heads": [], "max_logit_change": None}
    return CausalCheck(meta, {"sets": pd.DataFrame(rows)})


def holds(check: CausalCheck) -> None:
    """The sentences say what the rows of ``sets`` say, and nothing that they refute."""
    sets, said = check.sets, " ".join(check.verdict)
    ways = [*dict.fromkeys(sets["way"])]
    first = check.verdict[0]
    for way in ways:
        mine = sets[sets["way"] == way].set_index(["kind", "measure"])
        tested = {name: mine.loc[("tested", name)] for name in ("exact", "log_prob", "loss")}
        tested = {name: row.iloc[0] if isinstance(row, pd.DataFrame) else row for name, row in tested.items()}
        pair = re.findall(rf"{way} ({NUMBER})", first)
        assert float(pair[0]) == pytest.approx(tested["exact"]["value"], abs=0.0051)
        assert float(pair[1]) == pytest.approx(tested["loss"]["harm"], abs=0.0051)
        [line] = [text for text in check.verdict if text.startswith(f"{way} masking") and "exact match" in text]
        for kind, pattern in (("random", r"(\d+) random disjoint"), ("matched", r"(\d+) random sets? of equal")):
            rows = sets[(sets["way"] == way) & (sets["kind"] == kind) & (sets["measure"] == "exact")]
            found = re.search(pattern, line)
            assert (int(found[1]) if found else 0) == len(rows)
            if not found:
                continue
            reach = int((rows["harm"].to_numpy() >= tested["exact"]["harm"]).sum())
            p = (1 + reach) / (1 + len(rows))
            told = re.search(r"\(p = ([\d.]+): ([^)]*)\)", line[found.start() :])
            assert told and float(told[1]) == pytest.approx(p, rel=0.06)
            assert told[2].startswith(f"{reach} of {len(rows)} control" if reach else "no control does as much")
            assert reach or p <= 0.05 or "no smaller p" in told[2], "never a large p without what keeps it there"
        loss, answer = tested["loss"]["harm"], tested["log_prob"]["harm"]
        warned = f"{way} masking of the top 2 heads harms plain text as much" in said
        assert warned == (loss >= answer and tested["loss"]["harm_low"] > 0)
        spread = check.meta["loss_spread"]
        own = sets[(sets["way"] == way) & (sets["kind"] == "random") & (sets["measure"] == "loss")]["harm"]
        harmful = 0 if spread is None else int((own > spread).sum())
        told = re.search(rf"(\d+) of (\d+ random sets?) (harms?) plain text by (themselves|itself) under {way}", said)
        assert (int(told[1]) if told else 0) == harmful
        if told:
            assert told[2] == f"{len(own)} random set{'s' * (len(own) != 1)}"
            assert told[3] == ("harms" if harmful == 1 else "harm") and (told[4] == "itself") == (harmful == 1)
    if check.meta["loss_spread"] is not None:
        tested_loss = sets[(sets["kind"] == "tested") & (sets["measure"] == "loss")].set_index("way")["harm"]
        above = tested_loss > check.meta["loss_spread"]
        assert ("do not agree on plain text" in said) == (above.any() and not above.all())


@settings(max_examples=60, deadline=None)
@given(checks())
def test_no_sentence_that_its_table_refutes(check: CausalCheck) -> None:
    holds(check)


def test_a_large_p_says_why() -> None:
    """One control allows no p below .5: "p = 0.5" alone read as if nothing had happened to a set that lost all."""
    assert p_words(0.5, 1, 0) == "p = 0.5: no control does as much harm, and 1 control allows no smaller p"
    assert p_words(2 / 11, 10, 1) == "p = 0.18: 1 of 10 controls do as much harm"
    assert p_words(1 / 21, 20, 0) == "p = 0.048: no control does as much harm"


@given(
    st.floats(-1, 3), st.floats(0, 0.5), st.lists(st.floats(-1, 3) | st.just(math.nan), max_size=12), st.integers(1, 4)
)
def test_equal_harm_takes_the_nearest_within_the_stated_width(
    value: float, half: float, others: list[float], count: int
) -> None:
    taken = equal_harm(Interval(value, value - half, value + half, 9, "BCa"), others, count)
    distance = np.abs(np.array(others, dtype=float) - value)
    width = max(value - (value - half), value + half - value, NEAR * abs(value))
    inside = int(np.nansum(distance <= width))
    assert len(taken) == len({*taken}) == min(count, inside)
    assert all(distance[number] <= width for number in taken)
    if taken:
        left = np.delete(distance, taken)
        assert not (left < max(distance[taken])).any(), "no nearer one was left out"


@pytest.fixture(scope="module")
def induction_check() -> CausalCheck:
    model = load("induction-2l")
    needles = make_needles(model, lengths=[40], depths=[0.5], repeats=6, size=4)
    return run_causal_check(model, ["L1H0", "L1H1"], top=[1, 2], needles=needles, controls=4, max_sequences=6)


def test_the_ways_stand_side_by_side_in_the_first_sentence(induction_check: CausalCheck) -> None:
    table = induction_check.summary().set_index(["top", "way", "measure"])
    first = induction_check.verdict[0]
    assert first.startswith("Masking the top head: exact match on 6 needles")
    assert first.index("zero") < first.index("mean") < first.index("uniform")
    for way in ("zero", "mean", "uniform"):
        value = float(table["tested"].loc[(1, way, "exact")])
        assert f"{way} {value:.2f}" in first


def test_controls_of_equal_own_harm_are_near_the_tested_set(induction_check: CausalCheck) -> None:
    loss = induction_check.sets[induction_check.sets["measure"] == "loss"]
    for (way, top), group in loss.groupby(["way", "top"]):
        tested = group[group["kind"] == "tested"].iloc[0]
        harm = tested["harm"]
        half = max(tested["harm_high"] - harm, harm - tested["harm_low"], NEAR * abs(harm))
        matched = group[group["kind"] == "matched"]
        assert ((matched["harm"] - harm).abs() <= half + 1e-9).all(), (way, top)
        assert not any({*names.split(",")} & {*tested["heads"].split(",")} for names in matched["heads"])
    assert "within 25 % of the tested set's rise" in induction_check.meta["equal_harm"].replace("25%", "25 %")
