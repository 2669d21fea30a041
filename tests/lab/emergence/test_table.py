"""The emergence table: cells are trained once, aggregated rightly, and judged as the claims say."""

import json
import math
from pathlib import Path

import pytest
import torch

from sinklens.errors import InputError, ResultError
from sinklens.lab.emergence import CONDITIONS, Condition, choose_conditions, run_table, summarise
from sinklens.lab.emergence import cell as cell_module
from sinklens.lab.emergence.cell import Cell, cell_path, read_cell, run_cell
from sinklens.lab.emergence.claims import CLAIMS, Claim, Test
from sinklens.lab.emergence.judge import judge
from sinklens.lab.emergence.report import markdown
from sinklens.lab.emergence.table import FIGURES
from sinklens.lab.variants.catalogue import VARIANTS
from tests.heard import Heard

TINY = {"d_model": 8, "seq_len": 12, "batch": 4, "steps": 20}
CONDITION = Condition("tiny, relu", "test", TINY | {"attention": "relu"})


def made(condition: str, seed: int, layer: int = 0, attention: str = "softmax", **figures: float) -> Cell:
    measured = {"sink_layer": float(layer)} | {name.replace("__", "."): value for name, value in figures.items()}
    return Cell(condition, seed, {"attention": attention}, measured, 1.0)


def test_a_cell_is_trained_once_and_measured_again_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_cell(tmp_path, CONDITION, 0)
    assert first.figure("loss_backcopy") > 0 and first.settings["attention"] == "relu"

    def no_training(*args: object) -> torch.Tensor:
        raise AssertionError("trained again")

    monkeypatch.setattr("sinklens.lab.variants.training.scored_loss", no_training)
    assert run_cell(tmp_path, CONDITION, 0) == read_cell(cell_path(tmp_path, CONDITION, 0))
    monkeypatch.setattr(cell_module, "read_cell", None)  # not read: it is gone
    cell_path(tmp_path, CONDITION, 0).unlink()
    again = run_cell(tmp_path, CONDITION, 0)
    assert again.measured == pytest.approx(first.measured, nan_ok=True, rel=1e-5)
    with pytest.raises(AssertionError, match="trained again"):
        run_cell(tmp_path, CONDITION, 1)


def test_what_does_not_apply_stays_out(tmp_path: Path) -> None:
    cell = run_cell(tmp_path, CONDITION, 0)
    content = json.loads(cell_path(tmp_path, CONDITION, 0).read_text("utf-8"))
    assert not any("missing_mass" in name or "gate" in name for name in content["measured"])
    assert math.isnan(cell.figure("gate_bigram")) and math.isnan(cell.figure("missing_mass_bigram"))
    table = summarise([cell])
    assert "gate_bigram" not in set(table["figure"]) and "mass_first_bigram" in set(table["figure"])
    reading = table.set_index("figure")["reading"]
    assert reading["mass_first_bigram"] == "proxy" and reading["amount_first_bigram"] == ""


def test_cells_of_other_settings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    run_cell(tmp_path, CONDITION, 0)
    other = Condition(CONDITION.name, "test", CONDITION.changes | {"lr": 0.5})
    with pytest.raises(ResultError, match=r"lr 0\.5 \(saved: 0\.003\)"):
        run_cell(tmp_path, other, 0)
    path = cell_path(tmp_path, CONDITION, 0)
    newer = json.loads(path.read_text("utf-8")) | {"format": 99}
    path.write_text(json.dumps(newer))
    with pytest.raises(ResultError, match="format 99"):
        run_cell(tmp_path, CONDITION, 0)
    path.write_text("{")
    with pytest.raises(ResultError, match="damaged"):
        run_cell(tmp_path, CONDITION, 0)


def test_progress_counts_only_what_is_left(tmp_path: Path) -> None:
    run_cell(tmp_path, CONDITION, 0)
    told = Heard()
    long = Condition("long", "test", TINY | {"steps": 40})
    cells = run_table(tmp_path, [CONDITION, long], [0, 1], progress=told)
    assert [(cell.condition, cell.seed) for cell in cells] == [(n, s) for s in (0, 1) for n in ("tiny, relu", "long")]
    # 100 steps are left: 40 of the long one, then 20, then 40
    (_, work, about) = told.begun[0]
    assert about == "3 of 4 models are trained." and told.whole and told.skipped == 0
    assert [done / work for done in told.done] == pytest.approx([1 / 100] * 100)
    assert told.steps == ["long, seed 0", "tiny, relu, seed 1", "long, seed 1"]
    assert len(told.notes) == 10 and all(note.startswith("loss ") for note in told.notes)
    with pytest.raises(InputError, match="At least one condition"):
        run_table(tmp_path, [CONDITION], [])


def test_figures_are_of_the_sink_layer_and_the_peak_of_layer_0() -> None:
    cell = made("3 layers", 0, layer=1, L0__drain_first=1, L1__drain_first=2, L0__resid_growth=3, L1__resid_growth=4)
    assert cell.figure("drain_first") == 2 and cell.figure("resid_growth") == 3


def test_means_have_students_interval() -> None:
    table = summarise([made("softmax", seed, loss_backcopy=value) for seed, value in ((2, 3.0), (0, 1.0), (1, 2.0))])
    row = table.set_index("figure").loc["loss_backcopy"]
    # t(0.975, 2) = 4.3027; sd 1, n 3
    assert (row["mean"], row["n"], row["values"]) == (2.0, 3, "1;2;3")
    # (losses cannot be below 0, and the interval reaches to -0.48)
    assert row["high"] - row["mean"] == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert row["low"] == 0.0
    free = summarise([made("softmax", seed, excess_bigram=float(seed)) for seed in range(3)]).iloc[0]
    assert free["low"] == pytest.approx(1 - 4.3027 / math.sqrt(3), rel=1e-4)
    shares = summarise([made("softmax", seed, L0__mass_first_bigram=v) for seed, v in enumerate((0.1, 0.9, 0.9))])
    assert (shares.iloc[0]["low"], shares.iloc[0]["high"]) == (0.0, 1.0)
    assert summarise([made("softmax", 0, loss_backcopy=1.0)])["low"].isna().all()


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.9, 0.8), "reproduced"),
        ((0.9, 0.4), "differs"),
        ((0.4, 0.4), "differs"),
        ((0.4, 0.1), "differs"),
        ((0.1, 0.2), "not reproduced"),
        ((math.nan, 0.9), "differs"),
        ((), "not measured"),
    ],
)
def test_verdicts(values: tuple[float, ...], verdict: str) -> None:
    claim = Claim("a paper", "it sinks", "a lot", (Test("c", "mass_first_bigram", ">=", 0.6, fails=0.3),))
    cells = [made("c", seed, L0__mass_first_bigram=value) for seed, value in enumerate(values)]
    row = judge(cells, [claim]).iloc[0]
    assert row["verdict"] == verdict and row["seeds"] == len(values)


def test_a_second_test_that_fails_makes_it_differ() -> None:
    tests = (Test("c", "mass_first_bigram", ">=", 0.6), Test("c", "drain_first", "<=", 0.4))
    cells = [made("c", 0, L0__mass_first_bigram=0.9, L0__drain_first=0.5)]
    assert judge(cells, [Claim("p", "s", "r", tests)])["verdict"].tolist() == ["differs"]


def test_ratios_are_taken_seed_by_seed() -> None:
    claim = Claim("p", "s", "r", (Test("b", "mass_first_bigram", "<=", 0.5, fails=0.9, against="a"),))
    cells = [made(name, s, L0__mass_first_bigram=v) for name, s, v in (("a", 0, 0.8), ("b", 0, 0.2), ("a", 1, 0.1))]
    row = judge([*cells, made("b", 1, L0__mass_first_bigram=0.05), made("b", 2, L0__mass_first_bigram=9.0)], [claim])
    assert row["measured"].item().startswith("0.375 [") and row["seeds"].item() == 2
    assert row["verdict"].item() == "reproduced"
    cells += [made("a", 2, L0__mass_first_bigram=0.5), made("b", 2, L0__mass_first_bigram=0.7)]
    high = judge(cells, [claim])["measured"].item().split(", ")[1].rstrip("]")
    assert float(high) == pytest.approx(0.825 + 12.706 * 0.575, rel=1e-2)  # t(0.975, 1), se of .25 and 1.4; no share
    with pytest.raises(InputError, match="Two cells of 'a' with seed 0"):
        judge([cells[0], made("a", 0)])


def test_every_claim_is_about_rows_and_figures_of_the_table() -> None:
    for claim in CLAIMS:
        for test in claim.tests:
            assert test.condition in CONDITIONS and test.figure in FIGURES
            assert test.against is None or test.against in CONDITIONS
            assert test.fails is None or (test.fails < test.holds) == (test.relation == ">=")


def test_conditions_are_chosen_by_name_and_group() -> None:
    assert {condition.changes["attention"] for condition in choose_conditions(groups=["attention"])} == set(VARIANTS)
    assert [c.name for c in choose_conditions(["no MLP"])] == ["no MLP"]
    assert len(choose_conditions()) == len(CONDITIONS)
    with pytest.raises(InputError, match="Unknown: sgd; known are"):
        choose_conditions(["sgd"])
    for condition in CONDITIONS.values():
        assert condition.settings(2).seed == 2


def test_the_report_names_proxies_and_dashes() -> None:
    cells = [
        made("sigmoid", 0, attention="sigmoid", loss_backcopy=0.01, L0__mass_first_bigram=0.8251),
        made("softmax", 0, loss_backcopy=0.02, L0__mass_first_bigram=0.7),
        made("softmax", 1, loss_backcopy=0.02, L0__mass_first_bigram=0.5),
    ]
    text = markdown(summarise(cells), judge(cells), "How.")
    rows = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert "| 0.83* |" in rows["| sigmoid"] and "| 0.60 (0.50-0.70) |" in rows["| softmax"]
    assert " - |" in rows["| softmax"] and "How." in text and "**not measured**" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in tables} == {5, 12}  # claims, conditions
