"""The probe that takes sink heads away: which heads it picks, what it writes, and its claim on a real model."""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import builtin_corpus, load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "probes"))
    return importlib.import_module("head_ablation")


def test_heads_are_picked_by_attention_on_position_0(probe: Any) -> None:
    values = {(0, 0): 0.2, (0, 1): 0.9, (1, 0): 0.9, (1, 1): 0.1, (2, 0): 0.5, (2, 1): 0.05}
    rows = [{"layer": at[0], "head": at[1], "position": 0, "importance": value} for at, value in values.items()]
    rows += [{"layer": 0, "head": 0, "position": 7, "importance": 1.0}]
    found = probe.pick(pd.DataFrame(rows), 2)
    assert set(found[probe.STRONG]) == {(0, 1), (1, 0)} and set(found[probe.WEAK]) == {(2, 1), (1, 1)}
    assert len(probe.pick(pd.DataFrame(rows), 99)[probe.STRONG]) == 2, "as many are left for the controls"


def test_the_script_writes_what_it_measured(
    probe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max-sequences", "12", "--top", "2", "--controls", "2", "--ways", "zero,uniform", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["head_ablation", "tiny-llama", *words])
    with pytest.warns(UserWarning, match="PNG needs") if not _browser() else _nothing():
        probe.main()
    table, page = pd.read_csv(tmp_path / "head_ablation_tiny-llama.csv"), _page(tmp_path)
    groups = table[table["kind"] == "group"]
    assert (
        len(groups) == 4 and set(groups["intervention"]) == {"zero", "uniform"} and (groups["n_sequences"] == 6).all()
    )
    for row in groups.to_dict("records"):
        own = table[(table["control_of"] == row["variant"]) & (table["intervention"] == row["intervention"])]
        reach = sum(value >= row["delta_loss"] - 1e-6 for value in own["delta_loss"])
        line = next(line for line in page if line.startswith(f"| {row['intervention']} | {row['variant']} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[3]) == pytest.approx(row["clean_loss"], abs=6e-4)
        assert float(cells[4]) == pytest.approx(row["loss"], abs=6e-4)
        assert float(cells[5].split()[0]) == pytest.approx(row["delta_loss"], abs=6e-4)
        assert cells[7] == f"{reach} of {len(own)}" and len(own) == 2
        assert not {*row["heads"].split(",")} & {name for names in own["heads"] for name in names.split(",")}
    assert "Wrote" in capsys.readouterr().out and not any(str(tmp_path) in line for line in page)


def test_nothing_is_measured_on_texts_that_heads_were_chosen_on(probe: Any) -> None:
    batch = builtin_corpus(load("bb-3l")).tokens.rows(range(9))
    one, other = probe.halves(batch)
    assert len(one) + len(other) == 9 and not {*map(tuple, one.ids.tolist())} & {*map(tuple, other.ids.tolist())}


@pytest.mark.real
def test_sink_heads_of_a_real_model(probe: Any, smollm2: TransformerBridge) -> None:
    batch = builtin_corpus(smollm2, n_sequences=8, length=48).tokens
    result = probe.take_away(smollm2, batch, ["zero", "uniform"], 1, 1, 0)
    rows = result.tables["summary"].set_index(["intervention", "variant"])["delta_loss"]
    assert abs(rows["zero", probe.STRONG]) < 0.1, "the strongest sink head is not missed"
    assert rows["uniform", probe.STRONG] > 0.5, "and even attention in it is no ablation"
    assert not any(math.isnan(value) for value in rows)


def _page(directory: Path) -> list[str]:
    return (directory / "head_ablation_tiny-llama.md").read_text("utf-8").splitlines()


def _browser() -> bool:
    from tests.conftest import chromium

    return chromium() is not None


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
