"""Sweeps: the numbers of the plain loop, controls that are controls, and a table that survives anything."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, tokenize
from sinklens.attention.plan import _check_input
from sinklens.errors import InputError, ResultError, UnsupportedArchitectureError
from sinklens.evidence import Answers
from sinklens.interventions import AblateHeads, MaskKeys, ScaleKeys, mean_outputs
from sinklens.interventions.head_outputs import prompt_outputs
from sinklens.passes.attribution import attribute_heads
from sinklens.results import RunFolder
from sinklens.results.lock import LOCK
from sinklens.results.run_folder import PLAN
from sinklens.studies import Sweep, sweep
from sinklens.studies.ablation.question import Question
from tests import families
from tests.heard import Heard, HeardParts
from tests.studies.ablation.killed import INTERVENTIONS, run_sweep
from tests.ties import TIE, margin

IDS = [row[: 24 - 6 * (number % 2)] for number, row in enumerate(families.random_ids(6, 24).tolist())]
EXACT = {"check_exact": True}


def naive(model: TransformerBridge, intervention: Any, heads: Any, row: list[int]) -> dict[str, float]:
    """Loss, KL and top-1 agreement of one sequence, from two plain forward passes."""
    ids = torch.tensor([row])
    with torch.no_grad():
        clean = model(ids)[0, :-1].double().log_softmax(-1)
        with replace(intervention, heads=heads)(model):
            changed = model(ids)[0, :-1].double().log_softmax(-1)
    target = ids[0, 1:, None]
    decisive = torch.minimum(margin(clean), margin(changed, clean.argmax(1)))
    return {
        "clean_loss": -float(clean.gather(1, target).mean()),
        "loss": -float(changed.gather(1, target).mean()),
        "kl": float((clean.exp() * (clean - changed)).sum(1).mean()),
        "top1_agreement": float((clean.argmax(1) == changed.argmax(1)).double().mean()),
        "near ties": float((decisive < TIE).double().mean()),
    }


def test_every_head_equals_the_plain_loop(tiny: TransformerBridge) -> None:
    interventions = {"none": AblateHeads("all"), "less": ScaleKeys(0, 0.3), "even": AblateHeads("all", "uniform")}
    result = sweep(tiny, interventions, tokens=IDS, batch_size=2)
    effects = result.effects.to_dataframe()
    assert len(effects) == 3 * 8 * 6 and not effects.duplicated(["intervention", "variant", "sequence"]).any()
    for row in effects[effects["sequence"].isin([0, 3])].to_dict("records"):
        heads = [(row["layer"], row["head"])]
        expected = naive(tiny, interventions[row["intervention"]], heads, IDS[row["sequence"]])
        turned = expected.pop("near ties")
        for name, value in expected.items():
            tolerance = 2e-5 + turned if name == "top1_agreement" else 2e-5
            assert row[name] == pytest.approx(value, abs=tolerance), (row["intervention"], row["variant"], name)
        assert row["delta_loss"] == row["loss"] - row["clean_loss"]
        assert row["n_tokens"] == len(IDS[row["sequence"]]) - 1
    assert effects["delta_loss"].abs().max() > 0.01, "something happened"
    assert effects["logit_diff"].isna().all(), "no answers were given"
    assert (effects["exact"] & (effects["kind"] == "head") & (effects["k"] == 1)).all()


def test_summary_is_the_mean_with_an_interval_around_it(tiny: TransformerBridge) -> None:
    result = sweep(tiny, tokens=IDS)
    effects, summary = result.effects.to_dataframe(), result.summary.to_dataframe()
    means = effects.groupby("variant")["delta_loss"].mean()
    for row in summary.to_dict("records"):
        assert row["n_sequences"] == 6
        assert row["delta_loss"] == pytest.approx(means[row["variant"]])
        assert row["delta_loss_low"] < row["delta_loss"] < row["delta_loss_high"]
    order = result.ranking()["delta_loss"]
    assert order.is_monotonic_decreasing and len(order) == 8
    assert result.ranking(by="top1_agreement")["top1_agreement"].is_monotonic_increasing


def test_groups_and_controls(tiny: TransformerBridge) -> None:
    result = sweep(tiny, tokens=IDS, groups={"pair": "L0H1,L1H2"}, controls=4)
    summary = result.summary.to_dataframe()
    assert set(summary["kind"]) == {"group", "random"}, "no single heads unless asked"
    group, random_sets = summary[summary["kind"] == "group"].iloc[0], summary[summary["kind"] == "random"]
    assert len(random_sets) == 4 and random_sets["heads"].is_unique
    for number, row in enumerate(random_sets.to_dict("records")):
        assert row["variant"] == f"random-pair/{number}" and row["draw"] == number and row["control_of"] == "pair"
        assert [name[:2] for name in row["heads"].split(",")] == ["L0", "L1"], "one head of each tested layer"
        assert not {"L0H1", "L1H2"} & set(row["heads"].split(","))
    assert group["control_n"] == 4
    assert group["control_mean"] == pytest.approx(random_sets["delta_loss"].mean())
    assert group["control_sd"] == pytest.approx(random_sets["delta_loss"].std())
    assert group["control_rank"] == 1 + (random_sets["delta_loss"] > group["delta_loss"]).sum()
    assert random_sets["control_n"].isna().all()
    effects = result.effects.to_dataframe()
    both = effects[(effects["variant"] == "pair") & (effects["sequence"] == 2)].iloc[0]
    assert both["loss"] == pytest.approx(naive(tiny, AblateHeads("all"), ["L0H1", "L1H2"], IDS[2])["loss"], abs=2e-5)


def test_given_heads_get_controls_that_cost_nothing_twice(tiny: TransformerBridge) -> None:
    heard = Heard()
    result = sweep(tiny, tokens=IDS, heads=["L0H1", "L0H2"], controls=2, progress=heard)
    summary = result.summary.to_dataframe().set_index("variant")
    assert summary.loc["L0H1", "control_n"] == 2
    assert all(name.startswith("L0H") for name in summary["heads"])
    n_sets = summary["heads"].nunique()
    assert heard.begun[0][2].startswith(f"{n_sets} head sets on") and n_sets < len(summary), (
        "a set that several variants need runs once"
    )
    same = result.effects.to_dataframe().groupby(["heads", "sequence"])["loss"].nunique()
    assert (same == 1).all()


def test_own_ranking_makes_the_top_sets(tiny: TransformerBridge) -> None:
    heard = Heard()
    result = sweep(tiny, ["zero", "uniform"], tokens=IDS, ranking="own", top=[1, 3], controls=2, progress=heard)
    summary = result.summary.to_dataframe()
    for label in ("zero", "uniform"):
        best = result.ranking(label)["variant"].tolist()
        rows = summary[summary["intervention"] == label].set_index("variant")
        assert rows.loc["top-1", "heads"] == best[0]
        assert set(rows.loc["top-3", "heads"].split(",")) == set(best[:3])
        assert rows.loc["top-1", "delta_loss"] == rows.loc[best[0], "delta_loss"], "not run a second time"
        assert rows.loc["random-3/1", "control_of"] == "top-3" and rows.loc["random-3/1", "k"] == 3
    assert len(heard.begun) == 1 and heard.whole, "both stages are told as one"
    assert any("chosen on the texts" in note for note in result.meta["warnings"])


def test_a_given_ranking(tiny: TransformerBridge) -> None:
    result = sweep(tiny, tokens=IDS, ranking=["L1H3", "L0H0", "L1H0"], controls=0)
    summary = result.summary.to_dataframe()
    assert summary["heads"].tolist() == ["L1H3", "L0H0,L1H3"] and summary["kind"].tolist() == ["top", "top"]


def test_mean_and_resample_are_made_from_the_texts(tiny: TransformerBridge) -> None:
    result = sweep(tiny, ["mean", "resample"], tokens=IDS, heads=["L1H1"], controls=0)
    effects = result.effects.to_dataframe()
    assert set(effects["sequence"]) == set(range(5)), "the sequence that was resampled from is left out"
    batch = tokenize(tiny, IDS)
    row = effects[(effects["intervention"] == "mean") & (effects["sequence"] == 1)].iloc[0]
    mean = AblateHeads("all", "mean", mean_outputs(tiny, batch))
    assert any(row["loss"] == pytest.approx(naive(tiny, mean, ["L1H1"], ids)["loss"], abs=2e-5) for ids in IDS)
    losses = effects[effects["intervention"] == "resample"]["loss"].tolist()
    matches = []
    for source in (0, 2, 4):  # the longest ones
        other = AblateHeads("all", "resample", prompt_outputs(tiny, batch.rows([source])))
        rest = [ids for number, ids in enumerate(IDS) if number != source]
        expected = [naive(tiny, other, ["L1H1"], ids)["loss"] for ids in rest]
        matches.append(expected == pytest.approx(losses, abs=2e-5))
    assert matches.count(True) == 1


def test_answers_give_logit_differences(tiny: TransformerBridge) -> None:
    answers = Answers(torch.tensor([3, -1, 5, 10, 0, 17]), torch.arange(10, 16), torch.arange(20, 26))
    result = sweep(tiny, tokens=IDS, answers=answers, heads=["L0H2"], controls=0, batch_size=2)
    effects = result.effects.to_dataframe().set_index("sequence")
    assert np.isnan(effects.loc[1, "logit_diff"]) and effects["logit_diff"].notna().sum() == 5
    with torch.no_grad(), AblateHeads(["L0H2"])(tiny):
        logits = tiny(torch.tensor([IDS[2]]))[0, 5]
    assert effects.loc[2, "logit_diff"] == pytest.approx(float(logits[12] - logits[22]), abs=1e-4)
    assert effects.loc[2, "delta_logit_diff"] == effects.loc[2, "logit_diff"] - effects.loc[2, "clean_logit_diff"]
    with pytest.raises(InputError, match="answers for 6 sequences"):
        sweep(tiny, tokens=IDS[:3], answers=answers)


def test_approx_estimates_all_and_runs_a_sample(tiny: TransformerBridge) -> None:
    result = sweep(tiny, "zero", tokens=IDS, approx=5)
    effects, summary = result.effects.to_dataframe(), result.summary.to_dataframe()
    estimated, exact = summary[~summary["exact"]], summary[summary["exact"]]
    assert len(estimated) == 8 and len(exact) == 5
    assert estimated["loss"].isna().all() and estimated["kl"].isna().all() and estimated["delta_loss"].notna().all()
    assert (estimated["n_sequences"] == 6).all()
    values = attribute_heads(tiny, tokenize(tiny, IDS[::2]), AblateHeads("all"))
    row = effects[~effects["exact"] & (effects["variant"] == "L1H2") & (effects["sequence"] == 2)].iloc[0]
    assert row["delta_loss"] == pytest.approx(float(values[1, 2, 1]), abs=1e-5)
    agreement = result.meta["approx"]["zero"]["delta_loss"]
    pairs = exact.merge(estimated, on="variant")
    assert agreement["spearman"] == pytest.approx(spearmanr(pairs["delta_loss_x"], pairs["delta_loss_y"]).statistic)
    assert agreement["n_heads"] == 5 and agreement["low"] <= agreement["spearman"] <= agreement["high"]
    everything = sweep(tiny, "zero", tokens=IDS)
    true = everything.summary.to_dataframe().set_index("variant")["delta_loss"]
    assert exact.set_index("variant")["delta_loss"].to_dict() == pytest.approx(
        true[exact["variant"]].to_dict(), abs=1e-6
    )
    assert result.ranking()["variant"].is_unique
    assert "correlation" in " ".join(result.verdict)


def test_the_exact_sample_is_drawn_at_random(tiny: TransformerBridge) -> None:
    common: dict[str, Any] = {"heads": None, "groups": None, "ranking": None, "top": None, "controls": 0}
    drawn = set()
    for seed in range(6):
        question = Question.ask(tiny, **common, rank_by="delta_loss", approx=3, seed=seed)
        listed, _ = question.first_variants()
        drawn.add(tuple(variant.name for variant, exact in listed if exact))
    assert len(drawn) > 3 and all(len(names) == 3 for names in drawn)
    assert {head for names in drawn for head in names} == {
        f"L{layer}H{head}" for layer in range(2) for head in range(4)
    }


def test_the_loss_of_bb3_hangs_on_one_head(bb3: TransformerBridge) -> None:
    result = sweep(bb3, max_sequences=20)
    best = result.ranking().iloc[0]
    assert best["variant"] == "L1H0" and best["delta_loss_low"] > 1
    assert result.ranking().iloc[1]["delta_loss_high"] < 0.2
    text = result.to_markdown()
    assert "L1H0" in text and "built-in corpus" in text and "nan" not in text


def test_save_and_load(tiny: TransformerBridge, tmp_path: Path) -> None:
    result = sweep(tiny, tokens=IDS, groups={"pair": "L0H1,L1H2"}, controls=2)
    again = Sweep.load(result.save(tmp_path / "sweep"))
    assert again.meta == json.loads(json.dumps(result.meta))
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, **EXACT)
    assert again.to_markdown() == result.to_markdown()


class Stopped(Exception):
    pass


def stop_after(parts: int, out: Path) -> HeardParts:
    def stop(heard: HeardParts) -> None:
        if len(heard.saved) == parts:
            raise Stopped

    return HeardParts(out, stop)


def same_files(one: Path, other: Path) -> None:
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for name in ("effects.parquet", "summary.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def options(**changed: Any) -> dict[str, Any]:
    return {"tokens": IDS, "batch_size": 2, "ranking": "own", "controls": 1} | changed


def test_an_interrupted_sweep_goes_on(tiny: TransformerBridge, tmp_path: Path) -> None:
    whole = sweep(tiny, ["zero", "mean"], **options(out=tmp_path / "whole"))
    out = tmp_path / "interrupted"
    for parts in (1, 3, 5):
        with pytest.raises(Stopped):
            sweep(tiny, ["zero", "mean"], **options(out=out, progress=stop_after(parts, out)))
        assert len(list((out / "parts").glob("*.zip"))) == {1: 1, 3: 4, 5: 9}[parts]
        (out / "parts" / ".00017-x.zip.1.tmp").write_bytes(b"half a part")
    heard = HeardParts(out)
    result = sweep(tiny, ["zero", "mean"], **options(out=out, progress=heard))
    assert heard.saved[0] == 9 and heard.skipped > 0 and heard.whole
    pd.testing.assert_frame_equal(result.tables["effects"], whole.tables["effects"], **EXACT)
    same_files(out, tmp_path / "whole")
    assert {path.name for path in out.iterdir()} == {"result.json", "effects.parquet", "summary.parquet"}


def test_a_finished_sweep_is_not_run_again(
    tiny: TransformerBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(tiny, **options(out=tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / PLAN).write_text("left by a kill between saving and tidying")
    monkeypatch.setattr("sinklens.studies.ablation.tasks.run_task", None)
    again = sweep(tiny, **options(out=tmp_path))
    pd.testing.assert_frame_equal(again.tables["effects"], first.tables["effects"], **EXACT)
    assert not (tmp_path / PLAN).exists() and (tmp_path / "notes.txt").read_text("utf-8") == "mine"


def test_a_damaged_part_is_computed_again(tiny: TransformerBridge, tmp_path: Path) -> None:
    whole = sweep(tiny, **options())
    with pytest.raises(Stopped):
        sweep(tiny, **options(out=tmp_path, progress=stop_after(3, tmp_path)))
    damaged = sorted((tmp_path / "parts").glob("*.zip"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    heard = HeardParts(tmp_path)
    with pytest.warns(UserWarning, match="Part 00001 .* computed again"):
        result = sweep(tiny, **options(out=tmp_path, progress=heard))
    assert heard.saved[:2] == [1, 3]
    pd.testing.assert_frame_equal(result.tables["effects"], whole.tables["effects"], **EXACT)
    assert any("cannot be used" in note for note in result.meta["warnings"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": IDS[:5]}, "texts.sequences: 6 there, 5 now"),
        ({"tokens": [[*IDS[0][:-1], 9], *IDS[1:]]}, "texts.hash"),
        ({"controls": 2}, "controls: 1 there, 2 now"),
        ({"batch_size": 3}, "batch_size: 2 there, 3 now"),
        ({"interventions": "uniform"}, "interventions.zero: zero there, none now"),
        ({"heads": ["L0H0", "L1H1"]}, "heads: all there, L0H0,L1H1 now"),
        ({"top": [1]}, "top"),
        ({"answers": Answers(torch.tensor([1] * 6), torch.tensor([4] * 6), torch.tensor([5] * 6))}, "answers"),
    ],
)
def test_another_sweep_is_refused(
    changed: dict[str, Any], message: str, tiny: TransformerBridge, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        sweep(tiny, **options(out=tmp_path, progress=stop_after(2, tmp_path)))
    with pytest.raises(ResultError, match=r"holds another sweep .*--restart") as refused:
        sweep(tiny, **options(out=tmp_path, **changed))
    assert message in str(refused.value)
    assert len(list((tmp_path / "parts").iterdir())) == 2, "nothing was touched"


def test_other_weights_are_refused_and_restart_starts_anew(tiny_directory: Path, tmp_path: Path) -> None:
    model = load(tiny_directory)
    sweep(model, **options(out=tmp_path))
    with torch.no_grad():
        model.original_model.get_parameter(next(iter(dict(model.original_model.named_parameters())))).mul_(1.01)
    with pytest.raises(ResultError, match=r"model\.weights"):
        sweep(model, **options(out=tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    result = sweep(model, **options(out=tmp_path, restart=True))
    pd.testing.assert_frame_equal(Sweep.load(tmp_path).tables["effects"], result.tables["effects"], **EXACT)
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"


def test_means_of_the_first_run_are_kept(
    tiny: TransformerBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        sweep(tiny, "mean", **options(out=tmp_path, progress=stop_after(1, tmp_path)))
    monkeypatch.setattr("sinklens.studies.ablation.interventions.mean_outputs", None)
    sweep(tiny, "mean", **options(out=tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [("plan", "run-plan.json is damaged"), ("table", "effects.parquet is damaged"), ("newer plan", "has format 99")],
)
def test_damage_is_one_sentence_and_restart_mends_it(
    damage: str, message: str, tiny: TransformerBridge, tmp_path: Path
) -> None:
    progress = HeardParts(tmp_path) if damage == "table" else stop_after(1, tmp_path)
    with contextlib.suppress(Stopped):
        sweep(tiny, **options(out=tmp_path, progress=progress))
    path = tmp_path / ("effects.parquet" if damage == "table" else PLAN)
    if damage == "newer plan":
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"format_version": 99}))
    else:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ResultError, match=message) as refused:
        sweep(tiny, **options(out=tmp_path))
    assert "--restart" in str(refused.value)
    sweep(tiny, **options(out=tmp_path, restart=True))
    assert len(Sweep.load(tmp_path).effects) > 0


def test_only_a_sweeps_own_folder_is_used(tiny: TransformerBridge, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ResultError, match="Will not save to"):
        sweep(tiny, **options(out=tmp_path, restart=True))
    other = tmp_path / "census"
    other.mkdir()
    (other / "result.json").write_text('{"format": "sinklens-census"}')
    with pytest.raises(ResultError, match="it holds a 'sinklens-census'"):
        sweep(tiny, **options(out=other, restart=True))
    with pytest.raises(ResultError, match="it is a file"):
        sweep(tiny, **options(out=tmp_path / "thesis.tex"))
    assert (tmp_path / "thesis.tex").read_text("utf-8") == "precious" and [*tmp_path.iterdir()].count(other) == 1
    killed_early = tmp_path / "early"
    killed_early.mkdir()
    (killed_early / LOCK).write_text("process 1 on nowhere\n")
    (killed_early / f".{PLAN}.77.tmp").write_text("{")
    sweep(tiny, **options(out=killed_early))
    assert {path.name for path in killed_early.iterdir()} == {"result.json", "effects.parquet", "summary.parquet"}


def test_two_sweeps_do_not_share_a_folder(tiny: TransformerBridge, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path, "sinklens-sweep", "sweep").locked(),
        pytest.raises(ResultError, match=f"Another sweep works in .*process {os.getpid()} on"),
    ):
        sweep(tiny, **options(out=tmp_path))
    sweep(tiny, **options(out=tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="uses SIGKILL")
def test_killed_again_and_again_it_ends_with_the_same_table(tiny_directory: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.studies.ablation.killed"])
    ids = families.random_ids(16, 24).tolist()

    def start(name: str) -> Any:
        arguments = (str(tiny_directory), ids, str(tmp_path / name), str(tmp_path / f"{name}.log"))
        process = context.Process(target=run_sweep, args=arguments)
        process.start()
        return process

    whole = start("whole")
    whole.join(120)
    assert whole.exitcode == 0
    draw, out, kills = random.Random(0), tmp_path / "killed", 0
    for _ in range(8):
        before = len(list((out / "parts").glob("*.zip")))
        process = start("killed")
        deadline = time.monotonic() + 60
        while process.is_alive() and len(list((out / "parts").glob("*.zip"))) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    last = start("killed")
    last.join(120)
    assert last.exitcode == 0 and kills >= 3, kills
    numbers = (tmp_path / "killed.log").read_text("utf-8").split()
    assert len(numbers) == len(set(numbers)), "no finished part was computed twice"
    n_parts = len((tmp_path / "whole.log").read_text("utf-8").split())
    assert n_parts - kills <= len(numbers) <= n_parts, "a kill can fall between saving a part and writing this log"
    same_files(out, tmp_path / "whole")
    assert Sweep.load(out).meta["interventions"] == {name: name for name in INTERVENTIONS}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ["L7H0"]}, "L7H0 does not exist in this model"),
        ({"groups": {"g": "L0H9"}}, "L0H9 does not exist"),
        ({"groups": {"top-3": "L0H1"}}, "name of its own"),
        ({"groups": {"g": "all"}}, "must list its heads"),
        ({"heads": []}, "no heads to change"),
        ({"ranking": "best"}, 'ranking must be "own"'),
        ({"ranking": ["L0H1", "L0H1"]}, "more than once"),
        ({"top": [1]}, "top needs a ranking"),
        ({"ranking": ["L0H1"], "top": [2]}, "from 1 to 1"),
        ({"controls": -1}, "controls must be at least 0"),
        ({"rank_by": "taste"}, "rank_by must be one of"),
        ({"rank_by": "kl", "approx": 3}, "Estimates have no kl"),
        ({"approx": 3, "groups": {"g": "L0H1"}}, "no single heads to estimate"),
        ({"interventions": "freeze"}, "way of ablation"),
        ({"interventions": []}, "at least one intervention"),
        ({"interventions": AblateHeads("all") + MaskKeys(0)}, "Composition cannot be restricted"),
        ({"interventions": [ScaleKeys(0, 0.5), ScaleKeys(0, 0.5)]}, "Two interventions are called"),
        ({"executor": "gpu"}, "executor must be serial"),
        ({"executor": "processes:0"}, "executor must be serial"),
        ({"tokens": [[5]]}, "two tokens"),
        ({"tokens": None, "texts": "  "}, "is empty"),
        ({"tokens": [[5, 6]], "interventions": "resample"}, "at least two sequences"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_one_sentence(arguments: dict[str, Any], message: str, tiny: TransformerBridge) -> None:
    with pytest.raises(InputError, match=message):
        sweep(tiny, **{"tokens": IDS, **arguments})


def test_a_refused_sweep_leaves_no_folder(tiny: TransformerBridge, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, got -1"):
        sweep(tiny, tokens=IDS, batch_size=-1, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_with_nan_is_refused(tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_directory)
    unseen = next(token for token in IDS[0] if token not in _check_input(model))
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[unseen] = float("nan")
    with pytest.raises(InputError, match="weights hold NaN or infinity"):
        sweep(model, tokens=IDS, heads=["L0H0"], controls=0)
    monkeypatch.setattr(sys.modules["sinklens.studies.ablation.entry"], "check_finite", lambda model: None)
    with pytest.raises(InputError, match="unchanged model's loss on sequence 0 is not a number"):
        sweep(model, tokens=IDS, heads=["L0H0"], controls=0)


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    mamba = load(families.build_checkpoint("mamba", tmp_path / "mamba"))
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        sweep(mamba, tokens=IDS)


def test_the_model_is_the_same_afterwards(tiny: TransformerBridge) -> None:
    ids = torch.tensor(IDS[:1])
    with torch.no_grad():
        before = tiny(ids)
        sweep(tiny, ["zero", "uniform"], tokens=IDS, approx=2)
        assert torch.equal(tiny(ids), before)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in tiny.hook_dict.values())
