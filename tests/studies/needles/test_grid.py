"""Grids: numbers against the short form, saving, going on after a kill, and decoded text."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens.errors import InputError, ResultError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.wilson import wilson_interval
from sinklens.interventions import AblateHeads
from sinklens.studies import NeedleResult, NeedleSet, make_needles, measure_needles, retrieval_scores, score_needles
from tests.heard import Heard

CHANGES = {"two": AblateHeads(["L1H0", "L1H1"], "uniform"), "all": AblateHeads("all", "zero")}


@pytest.fixture(scope="module")
def needles(induction: TransformerBridge) -> NeedleSet:
    return make_needles(induction, lengths=(40, 90), depths=(0, 1), repeats=6)


@pytest.fixture(scope="module")
def result(induction: TransformerBridge, needles: NeedleSet) -> NeedleResult:
    return measure_needles(induction, needles, interventions=CHANGES)


def same(left: NeedleResult, right: NeedleResult) -> None:
    assert left.tables.keys() == right.tables.keys()
    for name, table in left.tables.items():
        pd.testing.assert_frame_equal(table, right.tables[name], check_dtype=False, obj=name)


def test_instances_are_those_of_the_short_form(
    induction: TransformerBridge, needles: NeedleSet, result: NeedleResult
) -> None:
    assert result.variants == ["clean", "two", "all"]
    columns = ["instance", "length", "depth", "repeat", "exact", "correct", "log_prob", "rank", "mean_rank"]
    for name, change in {"clean": None, **CHANGES}.items():
        table = result.tables["instances"]
        mine = table[table["variant"] == name][columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, score_needles(induction, needles, change), atol=1e-5, rtol=0)


def test_cells_have_their_intervals(result: NeedleResult) -> None:
    table, grid = result.tables["instances"], result.grid.to_dataframe()
    assert len(grid) == 3 * 4 and set(grid["n"]) == {6}
    for row in grid.to_dict("records"):
        cell = table[(table["length"] == row["length"]) & (table["depth"] == row["depth"])]
        mine = cell[cell["variant"] == row["variant"]].set_index("instance")
        clean = cell[cell["variant"] == "clean"].set_index("instance")
        assert row["exact"] == mine["exact"].mean()
        assert (row["exact_low"], row["exact_high"]) == wilson_interval(int(mine["exact"].sum()), 6)
        interval = paired_interval(mine["log_prob"].to_numpy())
        assert (row["log_prob"], row["log_prob_low"]) == (interval.value, interval.low)
        if row["variant"] == "clean":
            assert pd.isna(row["delta_exact"]) and pd.isna(row["delta_log_prob"])
        else:
            change = mine["log_prob"] - clean["log_prob"]
            assert row["delta_log_prob"] == pytest.approx(change.mean())
            assert row["delta_exact"] == mine["exact"].mean() - clean["exact"].mean()


def test_summary_counts_repeats_and_not_prompts(result: NeedleResult) -> None:
    summary = result.summary().set_index("variant")
    assert summary["n"].tolist() == [24] * 3 and summary["repeats"].tolist() == [6] * 3
    table = result.tables["instances"]
    clean = table[table["variant"] == "clean"].groupby("repeat")["log_prob"].mean()
    assert summary.loc["clean", "log_prob_high"] == paired_interval(clean.to_numpy()).high
    assert summary.loc["clean", "exact"] == 1 and summary.loc["all", "exact"] == 0
    assert summary.loc["all", "delta_exact"] == -1 and pd.isna(summary.loc["clean", "delta_exact"])


def test_heads_are_the_retrieval_scores(induction: TransformerBridge, needles: NeedleSet, result: NeedleResult) -> None:
    expected = retrieval_scores(induction, needles)
    pd.testing.assert_frame_equal(result.heads.frame, expected.frame, atol=1e-6, rtol=0)
    assert result.heads.metrics == expected.metrics
    strong = result.retrieval_heads()
    assert set(strong["layer"]) == {1} and strong["retrieval"].is_monotonic_decreasing
    without = measure_needles(induction, needles, keys=False)
    with pytest.raises(InputError, match="keys=False"):
        _ = without.heads


def test_heads_count_only_what_was_answered_and_keep_both_forms_apart(induction: TransformerBridge) -> None:
    # at 500 tokens a needle at the very start is too much for this model
    some = make_needles(induction, lengths=(67, 500), depths=(0.0,), repeats=4)
    result, expected = measure_needles(induction, some), retrieval_scores(induction, some)
    assert 0 < result.heads.meta["n_kept"] < len(some)
    pd.testing.assert_frame_equal(result.heads.frame, expected.frame, atol=1e-6, rtol=0)
    result.tables["copies"]["set"] /= 2
    halved = result.heads.frame
    assert (halved["retrieval"] - expected.frame["retrieval"] / 2).abs().max() < 1e-6
    assert (halved["retrieval_event"] - expected.frame["retrieval_event"]).abs().max() < 1e-6


def test_sentences_are_those_of_the_tables(result: NeedleResult) -> None:
    table = result.instances.to_dataframe()
    verdict = result.verdict
    for name, sentence in zip(result.variants, verdict, strict=False):
        mine = table[table["variant"] == name]
        by_repeat = [mine[mine["repeat"] == repeat]["exact"].mean() for repeat in sorted(set(mine["repeat"]))]
        rate, n = re.match(rf"{re.escape(name)}: exact match (\S+).* over (\d+) prompts", sentence).groups()  # type: ignore[union-attr]
        assert float(rate) == pytest.approx(sum(by_repeat) / len(by_repeat), abs=0.0051) and int(n) == len(mine)
        assert ("change of exact match" in sentence) == (name != "clean")
    scores = result.heads.to_dataframe()
    count, of = sum(score >= 0.1 for score in scores["retrieval"]), len(scores)
    assert verdict[len(result.variants)].startswith(f"{count} of {of} heads are retrieval heads")
    assert len(verdict) == len(result.variants) + 1, "nothing was decoded"


def test_saved_and_read(result: NeedleResult, tmp_path: Path) -> None:
    read = NeedleResult.load(result.save(tmp_path / "result"))
    same(read, result)
    assert read.meta["needles"]["lengths"] == [40, 90] and "retrieval" in read.meta["metrics"]
    pd.testing.assert_frame_equal(read.heads.frame, result.heads.frame)
    pd.testing.assert_frame_equal(read.summary(), result.summary())
    (tmp_path / "result" / "grid.parquet").write_bytes(b"damaged")
    with pytest.raises(ResultError, match="damaged"):
        NeedleResult.load(tmp_path / "result")


def test_an_interrupted_test_goes_on(
    induction: TransformerBridge, needles: NeedleSet, result: NeedleResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    tokens = sum(len(each.ids) for each in needles.instances)

    def stop(heard: Heard) -> None:
        if sum(heard.done) > 1.3 * tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_needles(induction, needles, interventions=CHANGES, max_tokens=100, out=out, progress=Heard(stop))
    parts = {path.name for path in (out / "parts").iterdir()}
    assert len(parts) >= 10 and not (out / "result.json").exists()
    heard = Heard()
    finished = measure_needles(induction, needles, interventions=CHANGES, out=out, progress=heard)
    assert heard.begun[0][1] == 3 * tokens and heard.whole
    assert heard.skipped >= tokens  # all clean prompts were there
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(finished.tables[name], table, check_dtype=False, atol=1e-5, rtol=0)
    assert sorted(path.name for path in out.iterdir()) == [
        "copies.parquet", "grid.parquet", "instances.parquet", "prompts.parquet", "result.json",
    ]  # fmt: skip
    same(measure_needles(induction, needles, interventions=CHANGES, out=out), NeedleResult.load(out))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_test_loses_nothing(tmp_path: Path) -> None:
    model = load("bb-3l")
    needles = make_needles(model, lengths=(20, 40), depths=(0, 0.5, 1), repeats=4, size=3)
    script = str(Path(__file__).with_name("killed.py"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, script, str(tmp_path / "run"), "9"], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    heard = Heard()
    finished = measure_needles(model, needles, max_tokens=50, out=tmp_path / "run", progress=heard)
    assert 0 < heard.skipped < sum(len(each.ids) for each in needles.instances) and heard.whole
    whole = measure_needles(model, needles, max_tokens=50)
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(finished.tables[name], table, check_dtype=False, atol=1e-5, rtol=0)


def test_folders_of_something_else_are_refused(
    induction: TransformerBridge, needles: NeedleSet, result: NeedleResult, tmp_path: Path
) -> None:
    other = make_needles(induction, lengths=(30,), depths=(0,), repeats=1)
    measure_needles(induction, other, out=tmp_path / "other")
    with pytest.raises(InputError, match="another needle test"):
        measure_needles(induction, needles, out=tmp_path / "other")
    again = measure_needles(induction, needles, out=tmp_path / "other", restart=True)
    assert len(again.prompts.to_dataframe()) == len(needles)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ResultError, match=r"holds no result\.json"):
        measure_needles(induction, needles, out=tmp_path / "notes")

    def stop(heard: Heard) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_needles(induction, needles, out=tmp_path / "begun", progress=Heard(stop))
    with pytest.raises(ResultError, match=r"holds another needle test \(needles"):
        measure_needles(induction, other, out=tmp_path / "begun")


def test_decoded_text(induction: TransformerBridge) -> None:
    some = make_needles(induction, lengths=(40,), depths=(0.5,), repeats=2)
    found = measure_needles(induction, some, generate=12)
    table = found.instances.to_dataframe()
    for row in table.to_dict("records"):
        each = some.instances[row["instance"]]
        assert row["response"] == induction.tokenizer.decode(each.answer) and row["rouge1"] == 1
    said = [sentence for sentence in found.verdict if "it says" in sentence]
    assert len(said) == 1 and repr(table["response"][0].strip()) in said[0], "one of each length, answered or not"
    assert measure_needles(induction, some).instances.to_dataframe()["rouge1"].isna().all()


def test_names_of_interventions(induction: TransformerBridge, needles: NeedleSet) -> None:
    with pytest.raises(InputError, match="need names"):
        measure_needles(induction, needles, interventions={"clean": AblateHeads(["L0H0"])})
    with pytest.raises(InputError, match="does not exist"):
        measure_needles(induction, needles, interventions=AblateHeads(["L7H0"]))
    with pytest.raises(InputError, match="generate"):
        measure_needles(induction, needles, generate=-1)
