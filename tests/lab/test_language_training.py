"""A language-model training is repeatable, survives interruption, and explains what it leaves behind."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import sinklens
from sinklens.errors import InputError, ResultError, SinkLensError
from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.commands import app
from sinklens.lab.language import run, training
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.language.training import build_model
from sinklens.lab.report import read_measured
from tests.lab.killed import Killed, kill_at

from .conftest import TINY, tiny_lm, write_texts


def files(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on when and how often a training was interrupted."""
    timed = {"README.md", "recipe.json"}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in timed]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_equal_settings_give_equal_files_and_other_seeds_do_not(trained_lm: Path, texts: Path, tmp_path: Path) -> None:
    torch.rand(3)  # the global random state must not matter
    before = torch.get_rng_state()
    assert files(tiny_lm(texts, tmp_path / "again")) == files(trained_lm)
    assert torch.equal(before, torch.get_rng_state()) and not torch.are_deterministic_algorithms_enabled()
    other = files(tiny_lm(texts, tmp_path / "other", seed=1))
    assert other["model.safetensors"] != files(trained_lm)["model.safetensors"]
    assert other["tokenizer.json"] == files(trained_lm)["tokenizer.json"]


@pytest.mark.parametrize("step", [0, 3, 5, 7])
def test_an_interrupted_training_ends_with_the_same_weights_and_curve(
    tmp_path: Path, texts: Path, trained_lm: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, training, step)
        with pytest.raises(Killed):
            tiny_lm(texts, tmp_path / "lm")
    assert not (tmp_path / "lm" / "recipe.json").exists()
    assert Checkpoint.load(tmp_path / "lm" / "checkpoint" / "state.pt").step == step - step % 2
    (tmp_path / "lm" / "checkpoint" / ".state.pt.123.tmp").write_bytes(b"half")  # killed while writing
    assert files(tiny_lm(texts, tmp_path / "lm")) == files(trained_lm)


def test_a_training_killed_while_publishing_is_finished(
    tmp_path: Path, texts: Path, trained_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "publish", fail)
        with pytest.raises(Killed):
            tiny_lm(texts, tmp_path / "lm")
    kill_at(monkeypatch, training, 0)  # nothing may be trained again
    assert files(tiny_lm(texts, tmp_path / "lm")) == files(trained_lm)


def test_other_settings_and_texts_are_refused(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, training, 4)
        with pytest.raises(Killed):
            tiny_lm(texts, tmp_path / "lm")
    with pytest.raises(ResultError, match=r"lr 0\.5 \(saved: 0\.01\)"):
        tiny_lm(texts, tmp_path / "lm", lr=0.5)
    changed = write_texts(tmp_path / "texts")
    (changed / "code.py").write_text("x = 1\n" * 99 + "y = 2\n" * 5000)
    with pytest.raises(ResultError, match="data"):
        tiny_lm(changed, tmp_path / "lm")
    state = tmp_path / "lm" / "checkpoint" / "state.pt"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(ResultError, match=r"damaged.*--restart"):
        tiny_lm(texts, tmp_path / "lm")


def test_a_finished_training_is_left_alone_or_done_anew(
    tmp_path: Path, texts: Path, trained_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained_lm, tmp_path / "lm")
    with monkeypatch.context() as patch:
        kill_at(patch, training, 0)
        assert tiny_lm(texts, folder) == folder
    with pytest.raises(ResultError, match=r"finished model with other settings: seed 1 \(saved: 0\)"):
        tiny_lm(texts, folder, seed=1)
    assert files(tiny_lm(texts, folder, seed=1, resume=False)) != files(trained_lm)
    assert files(tiny_lm(texts, folder, resume=False)) == files(trained_lm)


def test_folders_of_other_things_are_refused(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match=r"already holds thesis\.tex"):
        tiny_lm(texts, tmp_path)
    folder = tmp_path / "bb"
    folder.mkdir()
    (folder / "recipe.json").write_text('{"format": 1, "task": "bigram-backcopy", "settings": {}}')
    with pytest.raises(ResultError, match="of the task 'bigram-backcopy'"):
        tiny_lm(texts, folder)


@pytest.mark.parametrize("changes", [{}, {"long_every": 0}, {"long_from": 0}, {"long_every": 3, "long_from": 7}])
def test_tokens_are_counted_step_by_step(changes: dict[str, int]) -> None:
    settings = LanguageSettings(**changes)
    for steps in (0, 1, 7, 8, 9, 2399, 2405):
        assert settings.tokens(steps) == sum(math.prod(settings.shape(step)) for step in range(steps))
    assert settings.longest == (256 if settings.long_every else 96)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"vocab": 256}, "vocab must be at least 257"),
        ({"long_len": 513}, "at most 512"),
        ({"heads": 3}, "multiple of 6"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"held_out": 0.9}, "held-out share"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, texts: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny_lm(texts, tmp_path / "lm", **wrong)
    assert not (tmp_path / "lm").exists()


def test_a_diverging_training_stops(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(InputError, match="too large"):
        tiny_lm(texts, tmp_path / "lm", lr=1e30)


def test_the_kept_checkpoints_are_models_from_the_untrained_one_on(trained_lm: Path) -> None:
    recipe = json.loads((trained_lm / "recipe.json").read_text("utf-8"))
    settings = LanguageSettings(**recipe["settings"])
    assert settings.kept == (0, 1, 3, 8) and [int(name[-6:]) for name in recipe["checkpoints"]] == [0, 1, 3, 8]
    stored = [load_file(trained_lm / name / "model.safetensors") for name in recipe["checkpoints"]]
    assert all(weight.dtype == torch.float16 for weights in stored for weight in weights.values())
    untrained = build_model(settings).state_dict()
    assert all(torch.equal(weight, untrained[name].half()) for name, weight in stored[0].items())
    final = load_file(trained_lm / "model.safetensors")
    assert all(torch.equal(weight, final[name]) for name, weight in stored[-1].items())


def test_sinklens_loads_it_with_its_bos(trained_lm: Path) -> None:
    for folder in (trained_lm, trained_lm / "checkpoints" / "step-000000"):
        model = sinklens.load(folder, device="cpu")
        batch = sinklens.tokenize(model, ["the head of the row"])
        assert batch.tokens[0][0] == "<s>" and "the checkpoint's own tokenizer prepends one" in batch.statement
        assert next(model.parameters()).dtype == torch.float32  # stored as half, computed in single


def test_the_folder_tells_how_it_was_made(trained_lm: Path) -> None:
    recipe = json.loads((trained_lm / "recipe.json").read_text("utf-8"))
    assert recipe["task"] == "language-model" and recipe["tokens"] == 7 * 4 * 12 + 2 * 24
    assert recipe["data"]["prose"]["files"] == 2 and "--vocab 300" in recipe["command"]
    assert "no head rests on <s>" in recipe["shows"]
    measured = read_measured(trained_lm)
    assert {"prose.loss", "code.bigram_loss", "prose.T64.L1H1.rate", "code.T256.untrained_sink_heads"} <= set(measured)
    card = (trained_lm / "README.md").read_text("utf-8")
    assert "Texts: made up for a test." in card and "| L1H1 |" in card and "nan" not in card
    rows = list(csv.DictReader((trained_lm / "curve.csv").read_text("utf-8").splitlines()))
    assert [row["step"] for row in rows] == ["0", "3", "6", "8"] and rows[0]["train_loss"] == ""
    assert float(rows[-1]["prose.loss"]) < float(rows[0]["prose.loss"]) - 0.5
    assert not (trained_lm / "checkpoint").exists() and not list(trained_lm.rglob("*.tmp"))


def test_the_untrained_figures_are_those_of_the_first_row(trained_lm: Path) -> None:
    rows = list(csv.DictReader((trained_lm / "curve.csv").read_text("utf-8").splitlines()))
    measured = read_measured(trained_lm)
    assert measured["prose.untrained_loss"] == pytest.approx(float(rows[0]["prose.loss"]), rel=0.01)
    assert measured["prose.loss"] == pytest.approx(float(rows[-1]["prose.loss"]), rel=0.02)


def test_the_command_trains_says_how_long_and_repeats_itself(tmp_path: Path, texts: Path) -> None:
    arguments = ["train", "lm", "--data", str(texts), "--out", str(tmp_path / "lm"), "--device", "cpu"]
    for name, value in (TINY | {"steps": 12}).items():
        arguments += [f"--{name.replace('_', '-').replace('batch', 'batch-size')}", str(value)]
    first, second = (CliRunner().invoke(app, arguments, catch_exceptions=False) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    for wanted in ("held-out loss", "prose", "sink heads", "The model is in"):
        assert wanted in first.stdout and wanted in second.stdout
    for wanted in ("curve.csv", "Step 0/12", "alpha_0 up to"):
        assert wanted in first.stderr and wanted not in second.stderr
    with pytest.raises(SinkLensError, match="other settings"):
        CliRunner().invoke(app, [*arguments, "--seed", "1"], catch_exceptions=False)


def test_the_help_says_what_a_domain_is() -> None:
    text = " ".join(CliRunner().invoke(app, ["train", "lm", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "sinklens lab train lm --data texts --python-stdlib" in text and "SOURCES.md" in text
