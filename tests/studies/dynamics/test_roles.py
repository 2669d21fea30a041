"""Scores and roles of heads over steps: against single measurements, planted growth, and a loop over pairs."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sinklens import load
from sinklens import open as open_result
from sinklens.errors import InputError, ResultError
from sinklens.studies import Dynamics, find_roles, measure_dynamics
from sinklens.studies.dynamics.role_growth import growth_sentences, role_growth, specialisation, with_excess
from sinklens.studies.dynamics.series import find_series


@pytest.fixture(scope="module")
def grown() -> Dynamics:
    """The first and the last checkpoint of the built-in series."""
    return measure_dynamics("tiny-llama", steps=[0, 8000], roles=["pattern"], max_sequences=2)


def test_each_step_is_what_its_checkpoint_alone_gives(grown: Dynamics) -> None:
    roles = grown.roles()
    for checkpoint in find_series("tiny-llama", steps=[0, 8000]).checkpoints:
        alone = find_roles(load(checkpoint.source), scores=["pattern"])
        here = roles[(roles["step"] == checkpoint.step) & (roles["score"] == "previous_token")]
        heads = alone.to_dataframe()
        assert here["value"].tolist() == pytest.approx(heads["previous_token"].tolist(), abs=1e-6)
        assert here["has_role"].tolist() == heads["is_previous_token"].tolist()
    last, first = (roles[roles["step"] == step].reset_index(drop=True) for step in (8000, 0))
    assert (last["excess"] - (last["value"] - first["value"])).abs().max() < 1e-12
    assert (first["excess"] == 0).all()
    growth = grown.role_growth().set_index(["score", "step"])
    mine = last[last["score"] == "previous_token"]
    row = growth.loc["previous_token", 8000]
    top = mine.loc[mine["excess"].idxmax()]
    assert (row["excess_top"], row["excess_top_layer"], row["excess_top_head"]) == (
        top["excess"],
        top["layer"],
        top["head"],
    )
    assert row["n_labelled"] == mine["has_role"].sum() > growth.loc["previous_token", 0]["n_labelled"]
    said = next(sentence for sentence in grown.verdict if sentence.startswith("previous_token:"))
    assert f"L{top['layer']}H{top['head']} gains most by step 8,000, {top['excess']:+.2f} over step 0" in said
    assert f"heads with the role: 0 to {int(row['n_labelled'])}" in said


def test_the_index_is_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.random(7), np.array([0.0, 0.0, 1.0]), np.array([2.0]), np.array([1.0, np.nan, 3.0, -1.0])):
        x = np.clip(values[~np.isnan(values)], 0, None)
        pairs = sum(abs(a - b) for a in x for b in x)
        assert specialisation(values) == pytest.approx(pairs / (2 * len(x) * x.sum()))
    assert math.isnan(specialisation(np.zeros(3))) and math.isnan(specialisation(np.array([np.nan])))


def test_planted_growth_is_told_and_what_stays_is_not() -> None:
    """One head learns its role; another score is high from the start, by its input, and gains nothing."""
    rows = []
    for step, learned in ((0, 0.1), (10, 0.9)):
        for head in range(4):
            label = head == 2 and step == 10
            rows.append((step, f"step{step}", 0, head, "learned", learned if head == 2 else 0.1, 0.1, label))
            rows.append((step, f"step{step}", 0, head, "always", 0.5 + 0.1 * head, math.nan, pd.NA))
    names = ["step", "name", "layer", "head", "score", "value", "null", "has_role"]
    table = pd.DataFrame(rows, columns=names).astype({"has_role": "boolean"})
    growth = role_growth(with_excess(table)).set_index(["score", "step"])
    assert growth.loc[("learned", 10), "excess_top"] == pytest.approx(0.8)
    assert growth.loc[("learned", 10), "excess_top_head"] == 2 and growth.loc[("learned", 10), "n_labelled"] == 1
    assert (
        growth.loc[("learned", 10), "specialisation"] == pytest.approx(0.5)
        and growth.loc[("learned", 0), "specialisation"] == 0
    )
    assert growth.loc[("always", 10), "excess_top"] == growth.loc[("always", 10), "specialisation_excess"] == 0
    always, learned = growth_sentences(growth.reset_index())
    assert always.startswith("always: no head has more at step 10 than at step 0; mean of heads 0.65 to 0.65")
    assert learned.startswith("learned: L0H2 gains most by step 10, +0.80 over step 0; mean of heads 0.10 to 0.30")
    assert "specialisation 0.00 to 0.50; heads with the role: 0 to 1" in learned


def test_roles_are_kept_joined_and_asked_for_by_name(made: Path, tmp_path: Path) -> None:
    options = {"max_sequences": 2, "max_tokens": 24, "out": tmp_path / "run"}
    steps = find_series(made).steps
    measure_dynamics(made, steps=steps[:1], roles=["pattern"], **options)  # type: ignore[arg-type]
    both = measure_dynamics(made, steps=steps[:2], roles=["pattern"], **options)  # type: ignore[arg-type]
    opened = open_result(tmp_path / "run")
    assert isinstance(opened, Dynamics) and set(opened.roles()["step"]) == {*steps[:2]}
    pd.testing.assert_frame_equal(opened.role_growth(), both.role_growth())
    with pytest.raises(ResultError):
        measure_dynamics(made, steps=steps[:2], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Unknown criteria"):
        measure_dynamics(made, roles=["patterns"])
    without = measure_dynamics(made, steps=steps[:1], max_sequences=2, max_tokens=24)
    assert without.roles().empty and without.role_growth().empty
