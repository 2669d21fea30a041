"""A series from its first checkpoint to its result: killed, damaged, changed, extended, refused."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens import load
from sinklens.errors import InputError, ModelLoadError, ResultError
from sinklens.results.header_file import HEADER, kind_of
from sinklens.results.lock import locked
from sinklens.results.progress import Share
from sinklens.results.run_folder import PARTS, PLAN
from sinklens.studies import Dynamics, measure_dynamics
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.census.domains import Domains, choose_domains
from sinklens.studies.dynamics import run as run_module
from sinklens.studies.dynamics.measure import measure_checkpoint
from tests import families
from tests.edited import edit_weights
from tests.heard import Heard
from tests.studies.dynamics.conftest import CODE, PROSE, SMALL, STEPS, TEXTS, break_tokenizer


def measure(series: Path, out: Path | None = None, **options: Any) -> Dynamics:
    return measure_dynamics(series, TEXTS, out=out, **(SMALL | options))


def same(one: Dynamics, other: Dynamics) -> bool:
    for name, table in one.tables.items():
        pd.testing.assert_frame_equal(table, other.tables[name])
    return one.tables.keys() == other.tables.keys() and one.meta["spec"] == other.meta["spec"]


@pytest.fixture(scope="module")
def whole(made: Path) -> Dynamics:
    return measure(made)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that are measured."""
    names: list[str] = []
    original = run_module.DynamicsRun._measure

    def counting(self: Any, checkpoint: Any, model: Any, folder: Any) -> None:
        names.append(checkpoint.name)
        original(self, checkpoint, model, folder)

    monkeypatch.setattr(run_module.DynamicsRun, "_measure", counting)
    return names


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the same weights on the same tokens once: most tests here ask what is run again, not what comes out."""

    def measured(model: Any, domains: Domains, *, progress: Share, **options: Any) -> Any:
        weights = [(str(each.dtype), each.detach().float().numpy().tobytes()) for each in model.parameters()]
        key = (hash(tuple(weights)), str(domains.batch.ids.tolist()), domains.of, str(options))
        if key not in _MEASURED:
            _MEASURED[key] = measure_checkpoint(model, domains, progress=progress, **options)
        progress.finish()
        return _MEASURED[key]

    monkeypatch.setattr(run_module, "measure_checkpoint", measured)


_MEASURED: dict[Any, Any] = {}


# ------------------------------------------------------------------ the whole way
def test_each_step_is_its_checkpoint_on_the_same_tokens(made: Path, whole: Dynamics) -> None:
    assert whole.to_dataframe()["step"].unique().tolist() == list(STEPS)
    assert whole.domains == ["all", "prose", "code"]
    assert len(whole.heads()) == 4 * 3 * 8 and len(whole.layers()) == 4 * 3 * 3
    for step in (0, 80):
        model = load(str(made / f"step-{step}"))
        alone = measure_checkpoint(model, choose_domains(model, TEXTS, split=True, **SMALL), eps=0.3)  # type: ignore[arg-type]
        for name, table in alone.items():
            own = whole.tables[name]
            own = own[own["step"] == step].drop(columns=["step", "name"]).reset_index(drop=True)
            pd.testing.assert_frame_equal(own, table)
    strongest = whole.to_dataframe().query("domain == 'all'").set_index("step")["importance_first_max"]
    assert strongest[700] > 1.1 * strongest[0]


def test_it_is_saved_and_loaded(whole: Dynamics, tmp_path: Path) -> None:
    whole.save(tmp_path / "out")
    assert kind_of(tmp_path / "out") == "sinklens-dynamics"
    loaded = Dynamics.load(tmp_path / "out")
    assert same(whole, loaded) and loaded.meta == whole.meta and loaded.verdict == whole.verdict
    (tmp_path / "out" / "heads.parquet").unlink()
    with pytest.raises(ResultError, match=r"heads\.parquet is missing"):
        Dynamics.load(tmp_path / "out")


def test_the_header_tells_where_it_comes_from(whole: Dynamics) -> None:
    meta = whole.meta
    assert meta["tokens"]["n_sequences"] == 12 and meta["tokens"]["domains"]["prose"]["n_sequences"] == 6
    assert meta["model"]["n_layers"] == 2 and meta["series"]["steps"] == list(STEPS)
    assert set(meta["metrics"]) == {"sink_score", "delta_logit", "value_drain", "residual_peak", "massive_activation"}
    assert all(metric["version"] >= 1 for metric in meta["metrics"].values())
    assert "BOS" in meta["tokens"]["bos"]["statement"] and meta["settings"]["eps"] == 0.3


def test_a_finished_run_is_not_run_again(made: Path, whole: Dynamics, tmp_path: Path, counted: list[str]) -> None:
    heard = Heard()
    first = measure(made, tmp_path / "out", progress=heard)
    assert same(first, whole) and counted == [f"step-{step}" for step in STEPS]
    ((_, work, about),) = heard.begun
    assert about.startswith("4 checkpoints of ") and "steps 0 to 700, on 12 sequences each." in about
    assert work == 4 and heard.whole and len(heard.done) > 4
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {HEADER, "steps.parquet", "heads.parquet", "layers.parquet", "checkpoints.parquet"}
    again = measure(made, tmp_path / "out")
    assert same(again, whole) and len(counted) == 4


# ------------------------------------------------------------------ interrupted
KILLED = """
import sys
import torch
torch.set_num_threads(1)
from sinklens.studies import measure_dynamics
print("ready", flush=True)
from tests.heard import Heard
def worked(heard):
    if sum(heard.done) > 2.3:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
measure_dynamics(sys.argv[1], {"prose": [sys.argv[3]], "code": [sys.argv[4]]}, out=sys.argv[2],
                 max_tokens=24, max_sequences=6, progress=Heard(worked))
"""


def test_a_killed_run_goes_on(made: Path, whole: Dynamics, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(made), str(out), PROSE, CODE]
    killed = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (out / PLAN).is_file() and not (out / HEADER).exists() and len(list((out / PARTS).iterdir())) == 2
    heard = Heard()
    assert same(measure(made, out, progress=heard), whole)
    assert counted == ["step-80", "step-700"] and heard.skipped == 2 and heard.whole
    assert "2 of them finished before" in heard.begun[0][2]
    assert not (out / PLAN).exists() and not (out / PARTS).exists() and same(Dynamics.load(out), whole)


def interrupted(made: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    with monkeypatch.context() as patch:
        original = run_module.measure_checkpoint
        calls = []

        def failing(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return original(*args, **options)

        patch.setattr(run_module, "measure_checkpoint", failing)
        with pytest.raises(KeyboardInterrupt):
            measure(made, out)


def test_a_damaged_part_is_measured_again(
    made: Path, whole: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    interrupted(made, tmp_path / "out", monkeypatch)
    part = sorted((tmp_path / "out" / PARTS).iterdir())[1]
    part.write_bytes(part.read_bytes()[:-9])
    counted.clear()
    with pytest.warns(UserWarning, match=r"Part 0*9-.* cannot be used .* computed again"):
        found = measure(made, tmp_path / "out")
    assert same(found, whole) and counted == ["step-9", "step-80", "step-700"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"max_tokens": 20}, "tokens"),
        ({"eps": 0.4}, r"settings\.eps: 0\.3 there, 0\.4 now"),
        ({"loading": {"dtype": "bfloat16"}}, "dtype: as stored there, bfloat16 now"),
        ({"bos": "yes"}, "tokens"),
    ],
)
def test_other_settings_are_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], what: str
) -> None:
    interrupted(made, tmp_path / "unfinished", monkeypatch)
    measure(made, tmp_path / "finished", steps=[0, 9])
    for out in ("unfinished", "finished"):
        with pytest.raises(ResultError, match=rf"holds another measurement \(.*{what}.*--restart"):
            measure(made, tmp_path / out, **changes)
    anew = measure(made, tmp_path / "finished", steps=[0, 9], restart=True, **changes)
    assert same(Dynamics.load(tmp_path / "finished"), anew)


def test_a_damaged_plan_or_result_is_refused_until_restarted(
    made: Path, whole: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(made, tmp_path / "one", monkeypatch)
    (tmp_path / "one" / PLAN).write_text("{")
    measure(made, tmp_path / "two")
    (tmp_path / "two" / "steps.parquet").write_bytes(b"nonsense")
    for out in ("one", "two"):
        with pytest.raises(ResultError, match=r"damaged.*--restart"):
            measure(made, tmp_path / out)
        assert same(measure(made, tmp_path / out, restart=True), whole)


def test_a_folder_with_something_else_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    for restart in (False, True):
        with pytest.raises(ResultError, match="Will not save"):
            measure(made, tmp_path, restart=restart)
    assert (tmp_path / "thesis.tex").read_text("utf-8") == "..."


def test_two_runs_in_one_folder(made: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out", "measurement"), pytest.raises(ResultError, match="Another measurement works in"):
        measure(made, tmp_path / "out")


# ------------------------------------------------------------------ more checkpoints
def test_more_checkpoints_join_a_result(made: Path, whole: Dynamics, tmp_path: Path, counted: list[str]) -> None:
    measure(made, tmp_path / "out", steps=[9, 700])
    assert counted == ["step-9", "step-700"]
    before = {path.name for path in (tmp_path / "out").iterdir()}
    assert same(measure(made, tmp_path / "out"), whole) and counted == ["step-9", "step-700", "step-0", "step-80"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == before, "nothing of the smaller result is left"
    with pytest.raises(ResultError, match=r"not asked for now \(step-0, step-80\)"):
        measure(made, tmp_path / "out", steps=[9, 700])


def test_joining_can_be_interrupted_too(
    made: Path, whole: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    measure(made, tmp_path / "out", steps=[9, 700])
    interrupted(made, tmp_path / "out", monkeypatch, after=1)
    assert not (tmp_path / "out" / HEADER).exists() and len(list((tmp_path / "out" / PARTS).iterdir())) == 3
    counted.clear()
    assert same(measure(made, tmp_path / "out"), whole) and counted == ["step-80"]


def test_a_checkpoint_that_changed_is_measured_again(series: Path, tmp_path: Path, counted: list[str]) -> None:
    before = measure(series, tmp_path / "out")
    counted.clear()
    edit_weights(series / "step-80", lambda weights: weights["model.layers.1.mlp.down_proj.weight"].mul_(2))
    with pytest.warns(UserWarning, match=r"Part 0*80-.* of something else\) and is computed again"):
        after = measure(series, tmp_path / "out")
    assert counted == ["step-80"]
    differ = before.to_dataframe()["loss"] != after.to_dataframe()["loss"]
    assert set(before.to_dataframe().loc[differ, "step"]) == {80}


# ------------------------------------------------------------------ checkpoints that are no good
@pytest.mark.parametrize(
    ("damage", "step"), [("cut", 80), ("no weights", 80), ("no config", 0), ("gone", 700), ("NaN", 0), ("NaN", 80)]
)
def test_a_damaged_checkpoint_is_missing_and_the_others_are_measured(
    series: Path, whole: Dynamics, tmp_path: Path, damage: str, step: int, counted: list[str]
) -> None:
    place = series / f"step-{step}"
    weights = place / "model.safetensors"
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no weights":
            weights.unlink()
        case "no config":
            (place / "config.json").unlink()
        case "gone":
            shutil.rmtree(place)
            place.mkdir()
        case "NaN":
            edit_weights(place, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    with pytest.warns(UserWarning, match=f"step-{step} is missing: "):
        found = measure(series, tmp_path / "out")
    table = found.checkpoints().set_index("step")
    assert not table.loc[step, "measured"] and str(place) in table.loc[step, "reason"]
    assert "\n" not in table.loc[step, "reason"] and found.verdict[-1].startswith(f"Missing: step-{step}. ")
    rest = [name for name in STEPS if name != step]
    assert found.to_dataframe()["step"].unique().tolist() == rest == table[table["measured"]].index.tolist()
    expected = whole.to_dataframe().query("step != @step").reset_index(drop=True)
    pd.testing.assert_frame_equal(found.to_dataframe(), expected)
    assert any(f"step-{step} is missing" in note for note in found.meta["warnings"])


def test_a_repaired_checkpoint_joins_later(
    made: Path, series: Path, whole: Dynamics, tmp_path: Path, counted: list[str]
) -> None:
    (series / "step-9" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="step-9 is missing"):
        measure(series, tmp_path / "out")
    counted.clear()
    shutil.copy(made / "step-9" / "model.safetensors", series / "step-9")
    assert same(measure(series, tmp_path / "out"), whole) and counted == ["step-9"]


def test_no_checkpoint_at_all(series: Path, tmp_path: Path) -> None:
    for step in STEPS:
        (series / f"step-{step}" / "model.safetensors").unlink()
    with (
        pytest.warns(UserWarning, match="is missing"),
        pytest.raises(ModelLoadError, match=r"None of the 4 checkpoints can be loaded; the first: .*no weights"),
    ):
        measure(series, tmp_path / "out")


def test_another_tokenizer_is_refused_and_what_was_finished_is_kept(
    series: Path, whole: Dynamics, tmp_path: Path, counted: list[str]
) -> None:
    kept = (series / "step-80" / "tokenizer.json").read_text("utf-8")
    break_tokenizer(series / "step-80")
    with pytest.raises(InputError, match=r"tokenizer of step-80 gives other ids.*--steps"):
        measure(series, tmp_path / "out")
    assert counted == ["step-0", "step-9"]
    (series / "step-80" / "tokenizer.json").write_text(kept)
    assert same(measure(series, tmp_path / "out"), whole)
    assert counted == ["step-0", "step-9", "step-80", "step-700"]


def test_another_model_is_refused(series: Path) -> None:
    shutil.rmtree(series / "step-80")
    families.build_checkpoint("gpt2", series / "step-80")
    with pytest.raises(InputError, match=r"step-80 is another model \(GPT2LMHeadModel.*LlamaForCausalLM"):
        measure(series)


def test_texts_too_short_to_measure(made: Path) -> None:
    with pytest.raises(InputError, match=r"No sequence has the 10 tokens"):
        measure_dynamics(made, "a few words", max_tokens=6)


def test_a_series_without_attention_is_not_applicable(tmp_path: Path) -> None:
    families.build_checkpoint("mamba", tmp_path / "step-1")
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-2")
    found = measure(tmp_path)
    assert found.heads().empty and found.to_dataframe()["importance_first"].isna().all()
    assert found.to_dataframe()["loss"].notna().all() and found.verdict[0].startswith(
        "Attention sinks are not applicable"
    )
    found.save(tmp_path / "out")
    assert Dynamics.load(tmp_path / "out").heads().empty


def test_the_plan_is_a_readable_file(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(made, tmp_path / "out", monkeypatch)
    plan = json.loads((tmp_path / "out" / PLAN).read_text("utf-8"))
    assert plan["format_version"] == 1 and plan["spec"]["domains"] == {"prose": 6, "code": 6}


# ------------------------------------------------------------------ the built-in series
def test_the_sink_of_the_built_in_model_comes_about() -> None:
    found = measure_dynamics("tiny-llama", steps=[0, 743, 8000], max_sequences=40)
    table = found.to_dataframe().query("domain == 'prose'").set_index("step")
    assert table["n_sink_heads"].tolist()[:2] == [0, 0] and table.loc[8000, "n_sink_heads"] >= 4
    assert table.loc[0, "max_over_median"] < 15 and table.loc[8000, "max_over_median"] > 50
    assert table.loc[0, "drain_wo"] > 0.8 and table.loc[8000, "drain_wo"] < 0.5
    assert table.loc[8000, "loss"] < 4.2 < table.loc[0, "loss"]
    assert "appears between steps 743 and 8,000" in found.verdict[0]


def test_the_same_tokenizer_files_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(*given: Any, **words: Any) -> Any:
        asked.append(given)
        return builtin_domains(*given, **words)

    monkeypatch.setattr("sinklens.studies.dynamics.entry.builtin_domains", counted)
    found = measure_dynamics("tiny-llama", steps=[0, 125], max_sequences=2)
    assert len(asked) == 1 and found.to_dataframe()["step"].nunique() == 2
