"""The probe on policies and phenomena: a window without sinks loses them, and the page says what the table holds."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens import builtin_corpus, load, scan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "probes"))
    return importlib.import_module("what_policies_keep")


def test_a_window_without_sinks_ends_them_and_one_with_sinks_does_not(probe: Any) -> None:
    model = load("bb-3l")
    batch = builtin_corpus(model).tokens.rows(range(6))
    rules = probe.rules_for(["full", "sink_window:sinks=0", "sink_window"], 8, 64)
    compared, table = probe.measure(model, batch, rules, 20, 8, 0)
    rows = table.set_index("policy")
    assert rows.loc["full", "on_position_0"] == rows.loc["full", "sink_heads"] > 0
    assert rows.loc["window without sinks", "on_position_0"] == 0
    assert rows.loc["sink_window", "on_position_0"] > 0
    assert rows.loc["window without sinks", "delta_loss"] > rows.loc["sink_window", "delta_loss"] + 0.02
    assert pd.isna(rows.loc["full", "lost_by_sink"]) and rows.loc["full", "lose_most"] == "none"
    kept = compared.to_dataframe("heads").query("policy == 'window without sinks'").set_index(["layer", "head"])
    sinks = scan(model, tokens=batch, detectors="sinks", maps=0).sinks.to_dataframe().query("position == 0")
    first = sinks.set_index(["layer", "head"])["importance"]
    ranks = pd.DataFrame({"lost": -kept["mass_post_hoc"], "first": first}).rank()
    assert rows.loc["window without sinks", "lost_by_sink"] == pytest.approx(ranks.corr().iloc[0, 1])


@pytest.mark.filterwarnings("ignore:.*PNG")
def test_the_page_says_what_the_table_holds(probe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["--max-sequences", "2", "--max-tokens", "24", "--budget", "6", "--policies", "full,h2o,tova"]
    monkeypatch.setattr(sys, "argv", ["what_policies_keep", "tiny-llama", *words, "--out", str(tmp_path)])
    probe.main()
    table = pd.read_csv(tmp_path / "what_policies_keep_tiny-llama.csv")
    page = (tmp_path / "what_policies_keep_tiny-llama.md").read_text("utf-8")
    assert [*table["policy"]] == ["full", "h2o", "tova"] and str(tmp_path) not in page
    for row in table.to_dict("records"):
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['policy']} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[1]) == pytest.approx(row["kept"], rel=1e-2)
        assert float(cells[2].split()[0]) == pytest.approx(row["delta_loss"], rel=1e-2, abs=1e-6)
        assert [int(cells[5]), int(cells[6])] == [row["sink_heads"], row["on_position_0"]]
        if row["policy"] != "full":
            assert f"{row['delta_loss']:+.3f} nats a token." in page
