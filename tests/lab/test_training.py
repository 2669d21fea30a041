"""Training is repeatable, survives interruption, and refuses to mix up settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sinklens.errors import InputError, ResultError
from sinklens.lab import training
from sinklens.lab.architecture import build_model
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.commands import app
from sinklens.lab.gates import check_gates
from sinklens.lab.report import read_measured
from sinklens.lab.running import choose_device
from sinklens.lab.settings import BackcopySettings
from sinklens.lab.streams import stream
from sinklens.lab.training import train_bb
from tests.lab.killed import Killed, kill_at, same, weights

TINY: dict[str, Any] = {"d_model": 8, "seq_len": 12, "batch": 4, "steps": 6}
QUIET: dict[str, Any] = {"checkpoint_every": 2, "device": "cpu"}


def tiny(out: Path, layers: int = 1, **changes: Any) -> Path:
    return train_bb(layers, out, **(TINY | QUIET | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("trained") / "bb")


def test_equal_settings_give_equal_weights_and_other_seeds_do_not(trained: Path, tmp_path: Path) -> None:
    torch.rand(3)  # the global random state must not matter
    assert same(weights(trained), weights(tiny(tmp_path / "again")))
    assert not same(weights(trained), weights(tiny(tmp_path / "other", seed=1)))


def test_training_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny(tmp_path / "bb")
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_weights_move_and_the_loss_falls(tmp_path: Path) -> None:
    settings = BackcopySettings.choose(1, d_model=16, seq_len=16, batch=32, steps=60, lr=1e-2)
    model, _ = training.train(settings, tmp_path / "state.pt", torch.device("cpu"), 60)
    untrained = build_model(settings)
    ids = settings.task.sample(64, 17, stream(0, "test"))
    losses = [
        torch.nn.functional.cross_entropy(m(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        for m in (untrained, model)
    ]
    assert losses[1] < losses[0] - 0.5
    # The space has id 1, OPT's default padding token, whose embedding would stay put.
    space = [m.model.decoder.embed_tokens.weight[1] for m in (untrained, model)]
    assert not torch.equal(*space)


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, optimizer: str
) -> None:
    whole = tiny(tmp_path / "whole", optimizer=optimizer)
    with monkeypatch.context() as patch:
        kill_at(patch, training, step)
        with pytest.raises(Killed):
            tiny(tmp_path / "parts", optimizer=optimizer)
    assert not (tmp_path / "parts" / "recipe.json").exists()
    if step >= 2:
        assert Checkpoint.load(tmp_path / "parts" / "checkpoint" / "state.pt").step == step - step % 2
    else:
        assert not (tmp_path / "parts").exists()
    assert same(weights(tiny(tmp_path / "parts", optimizer=optimizer)), weights(whole))
    assert not (tmp_path / "parts" / "checkpoint").exists()


def test_a_training_killed_while_publishing_is_finished(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "publish", fail)
        with pytest.raises(Killed):
            tiny(tmp_path / "bb")
    kill_at(monkeypatch, training, 0)  # nothing may be trained again
    assert same(weights(tiny(tmp_path / "bb")), weights(trained))


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        kill_at(patch, training, 4)
        with pytest.raises(Killed):
            tiny(tmp_path / "bb")
    return tmp_path / "bb"


def test_a_checkpoint_of_other_settings_is_refused(interrupted: Path) -> None:
    with pytest.raises(ResultError, match=r"lr 0\.5 \(saved: 0\.003\), seed 3 \(saved: 0\)"):
        tiny(interrupted, lr=0.5, seed=3)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_a_damaged_checkpoint_is_refused(interrupted: Path, damage: str) -> None:
    path = interrupted / "checkpoint" / "state.pt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= damage == "flip"
    content = {
        "cut": raw[: len(raw) // 2],
        "flip": raw,
        "foreign": b"PK\x03\x04 something else",
        "empty": b"",
    }
    path.write_bytes(content[damage])
    with pytest.raises(ResultError, match=r"damaged.*--restart"):
        tiny(interrupted)


def test_a_checkpoint_of_a_newer_format_is_refused(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklens.lab.checkpoint._FORMAT", 0)
    with pytest.raises(ResultError, match="format 1"):
        tiny(interrupted)


def test_no_resume_starts_anew(interrupted: Path, trained: Path) -> None:
    (interrupted / "checkpoint" / "state.pt").write_bytes(b"")
    assert same(weights(tiny(interrupted, resume=False)), weights(trained))


def test_a_finished_training_is_left_alone(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(trained, tmp_path / "bb")
    kill_at(monkeypatch, training, 0)
    assert tiny(folder) == folder
    with pytest.raises(ResultError, match=r"finished model with other settings: layers 2 \(saved: 1\)"):
        tiny(folder, layers=2)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ResultError, match=r"lost its model\.safetensors"):
        tiny(folder)
    (folder / "recipe.json").write_text("{")
    with pytest.raises(ResultError, match="damaged"):
        tiny(folder)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    for resume in (True, False):
        with pytest.raises(InputError, match=r"already holds thesis\.tex"):
            tiny(tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        tiny(tmp_path / "thesis.tex")


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("content", ["{}", "[", '{"format": 1, "task": "cake", "settings": {}}'])
def test_a_strange_recipe_is_refused(tmp_path: Path, resume: bool, content: str) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ResultError, match="another folder"):
        tiny(tmp_path, resume=resume)


def test_a_strange_checkpoint_folder_is_kept(tmp_path: Path, interrupted: Path) -> None:
    (interrupted / "checkpoint" / "mine.pt").write_text("...")
    with pytest.raises(InputError, match="already holds"):
        tiny(interrupted, resume=False)
    assert (interrupted / "checkpoint" / "state.pt").exists()


def test_starting_anew_can_be_interrupted_too(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(trained, tmp_path / "bb")
    for step in (1, 4):
        with monkeypatch.context() as patch:
            kill_at(patch, training, step)
            with pytest.raises(Killed):
                tiny(folder, resume=False, seed=1)
    resumed = weights(tiny(folder, seed=1))
    assert same(resumed, weights(tiny(tmp_path / "whole", seed=1))) and not same(resumed, weights(trained))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"optimizer": "lion"}, "adamw, sgd, not 'lion'"),
        ({"seq_len": 2}, "seq_len must be at least 3"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(tmp_path / "bb", **wrong)


def test_cuda_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_a_diverging_training_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too large"):
        tiny(tmp_path / "bb", optimizer="sgd", lr=1e20, steps=10)


def test_the_folder_tells_how_it_was_made(trained: Path) -> None:
    recipe = json.loads((trained / "recipe.json").read_text("utf-8"))
    assert recipe["settings"] == BackcopySettings.choose(1, **TINY).to_dict()
    assert "--seq-len 12" in recipe["command"] and recipe["torch"] == torch.__version__
    assert set(read_measured(trained)) >= {"backcopy_loss", "L0.attn_bos_nontrigger", "L0.sink_rate"}
    assert "license: mit" in (trained / "README.md").read_text("utf-8")
    assert not [path.name for path in trained.iterdir() if path.name.endswith(".tmp")]


def test_the_command_trains_prints_the_figures_and_repeats_itself(tmp_path: Path) -> None:
    arguments = [
        "train",
        "bb",
        "--layers",
        "2",
        "--out",
        str(tmp_path / "bb"),
        "--steps",
        "3",
        "--d-model",
        "8",
    ]
    arguments += ["--seq-len", "12", "--batch-size", "4", "--device", "cpu"]
    first, second = (CliRunner().invoke(app, arguments, catch_exceptions=False) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    for wanted in ("L0H0", "L1H0", "attention to BOS", "L0.resid_bos_growth", "Some gates are missed"):
        assert wanted in first.output and wanted in second.output
    with pytest.raises(ResultError, match="other settings"):
        CliRunner().invoke(app, [*arguments, "--seed", "1"], catch_exceptions=False)


def test_the_help_teaches_by_example() -> None:
    text = CliRunner().invoke(app, ["train", "bb", "--help"]).output
    assert "sinklens lab train bb --layers 1 --steps 600" in text


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_small_model_of_the_card_passes_its_gates(tmp_path: Path, seed: int) -> None:
    folder = train_bb(1, tmp_path / "bb", steps=600, seed=seed, device="cpu")
    measured = read_measured(folder)
    assert check_gates(measured, 1) == []
    assert measured["bigram_excess"] < 0.05
    assert BigramBackcopy().oracle_bigram_loss(64) == pytest.approx(measured["oracle_bigram_loss"], abs=1e-4)
