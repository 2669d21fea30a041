"""Training is repeatable, survives kill -9, keeps the MLPs at zero, and refuses to mix up settings."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from sinklens.errors import InputError, ResultError
from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.commands import app
from sinklens.lab.folders import STATE
from sinklens.lab.induction import training
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.induction.training import build_model
from sinklens.lab.report import read_measured
from sinklens.lab.streams import stream
from sinklens.lab.tasks.word_task import after_repeat
from tests.lab.induction.tiny import SETTINGS, TINY, tiny, train_slowly
from tests.lab.killed import Killed, kill_at, same, weights


def test_equal_settings_give_equal_weights_and_other_seeds_do_not(trained_induction: Path, tmp_path: Path) -> None:
    torch.rand(3)  # the global random state must not matter
    before = torch.get_rng_state()
    assert same(weights(trained_induction), weights(tiny(tmp_path / "again")))
    assert torch.equal(before, torch.get_rng_state())
    assert not same(weights(trained_induction), weights(tiny(tmp_path / "other", seed=1)))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupted_training_ends_with_the_same_weights(
    trained_induction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, training, step)
        with pytest.raises(Killed):
            tiny(tmp_path / "parts")
    assert not (tmp_path / "parts" / "recipe.json").exists()
    assert (tmp_path / "parts" / STATE).exists() == (step >= 3)
    assert same(weights(tiny(tmp_path / "parts")), weights(trained_induction))
    assert not (tmp_path / "parts" / STATE).parent.exists()


def test_kill_9_loses_no_step_that_was_saved(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(target=train_slowly, args=(str(out),))
    process.start()
    deadline = time.monotonic() + 120
    while not (out / STATE).exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    state = Checkpoint.load(out / STATE)
    assert state.step >= 1
    # what was saved is what an unharmed training has after as many steps
    settings = InductionSettings(**(TINY | {"steps": 100_000}))
    fresh = tmp_path / "fresh.pt"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, training, state.step)
        with pytest.raises(Killed):
            training.train(settings, fresh, torch.device("cpu"), checkpoint_every=1)
    assert same(state.model, Checkpoint.load(fresh).model)


def test_the_mlps_stay_at_zero_and_the_rest_is_trained(trained_induction: Path) -> None:
    untrained = build_model(SETTINGS)
    after, before = weights(trained_induction), untrained.state_dict()
    assert {name for name, weight in untrained.named_parameters() if not weight.requires_grad} == {
        name for name in before if ".mlp." in name or "post_attention" in name
    }
    for name, weight in after.items():
        if ".mlp." in name:
            assert not weight.any()
        elif "post_attention" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert not torch.equal(weight, before[name]), name


def test_the_loss_falls_on_a_batch_seen_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = InductionSettings(**(TINY | {"steps": 60, "d_model": 32}))
    ids = training.sequences(settings, 0, stream(0, "test"))
    monkeypatch.setattr(training, "sequences", lambda *_: ids)
    model, _ = training.train(settings, tmp_path / "state.pt", torch.device("cpu"), 60)
    with torch.no_grad():
        losses = [training.mixture_loss(m, ids, 0.1).item() for m in (build_model(settings), model)]
    assert losses[1] < losses[0] - 2


def test_a_batch_is_half_needles_half_spans_of_one_length_that_grows_late() -> None:
    settings = InductionSettings(**(TINY | {"steps": 100}))
    early = [training.sequences(settings, step, stream(0, step)) for step in range(40)]
    late = [training.sequences(settings, step, stream(0, step)) for step in range(40, 100)]
    assert all(20 <= ids.shape[1] <= 24 for ids in early)
    assert {ids.shape[1] for ids in late} - set(range(20, 68)) == set() and max(ids.shape[1] for ids in late) > 50
    for ids in (*early, *late):
        half = len(ids) // 2
        assert len(ids) == 2 * half and (ids[:, 0] == settings.n_words).all()
        # a needle repeats its key and answer, the last of which asks for nothing more
        assert (after_repeat(ids)[:half].sum(1) == 1 + settings.value_len).all()


def test_the_loss_weighs_what_is_certain_and_what_is_new() -> None:
    model, ids = build_model(SETTINGS), training.sequences(SETTINGS, 0, stream(0, "test"))
    logits = model(ids[:, :-1]).logits.log_softmax(-1)
    certain, new = [], []
    for row, sequence in enumerate(ids.tolist()):
        for query in range(len(sequence) - 1):
            loss = -logits[row, query, sequence[query + 1]]
            (certain if sequence[query] in sequence[:query] else new).append(loss)
    parts = torch.stack(certain).mean(), torch.stack(new).mean()
    torch.testing.assert_close(training.mixture_loss(model, ids, 0.3), parts[0] + 0.3 * parts[1])
    torch.testing.assert_close(training.mixture_loss(model, ids, 0.0), parts[0])


def test_a_finished_training_is_left_alone(
    trained_induction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained_induction, tmp_path / "model")
    kill_at(monkeypatch, training, 0)
    assert tiny(folder) == folder
    with pytest.raises(ResultError, match=r"finished model with other settings: seed 1 \(saved: 0\)"):
        tiny(folder, seed=1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"d_model": 18}, "multiple of 4"),
        ({"short_longest": 99}, "shortest <= short_longest <= longest"),
        ({"longest": 64}, "longest must be at least 65"),
        ({"short_share": 1.5}, "short_share"),
        ({"n_words": 50}, "fits"),
        ({"shortest": 7}, "fits 9"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(tmp_path / "model", **wrong)


def test_a_diverging_training_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too large"):
        tiny(tmp_path / "model", lr=1e30)


def test_the_folder_is_a_model_that_explains_itself(trained_induction: Path) -> None:
    recipe = json.loads((trained_induction / "recipe.json").read_text("utf-8"))
    assert recipe["settings"] == SETTINGS.to_dict() and recipe["torch"] == torch.__version__
    assert "--value-len 3" in recipe["command"] and "--rope-base" not in recipe["command"]
    card = (trained_induction / "README.md").read_text("utf-8")
    assert "license: mit" in card and "| L1H1 |" in card and "NO" in card  # a tiny training misses its gates
    config = LlamaForCausalLM.from_pretrained(trained_induction).config
    assert (config.num_key_value_heads, config.max_position_embeddings, config.intermediate_size) == (1, 67, 1)


def test_the_command_trains_prints_and_puts_seeds_beside_each_other(tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | {"steps": 2}).items()]
    first, second = tmp_path / "a", tmp_path / "b"
    arguments = ["train", "induction", "--device", "cpu", *options]
    for extra in (["--out", str(second), "--seed=1"], ["--out", str(first), "--beside", str(second)]):
        result = CliRunner().invoke(app, [*arguments, *extra], catch_exceptions=False)
        assert result.exit_code == 0
    for wanted in ("L0H0", "L1H1", "Needles of 67 tokens", "Some gates are missed"):
        assert wanted in result.output
    kept = json.loads((first / "seeds.json").read_text("utf-8"))
    for seed, folder in (("0", first), ("1", second)):
        own = {name: value for name, value in read_measured(folder).items() if not name.startswith("L")}
        assert kept[seed] == pytest.approx(own, nan_ok=True) if None not in kept[seed].values() else kept[seed]
    assert "seeds 0, 1" in (first / "README.md").read_text("utf-8")
    assert not (second / "seeds.json").exists()


def test_seeds_beside_each_other_differ_in_their_seed_alone(trained_induction: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained_induction, tmp_path / "model")
    with pytest.raises(InputError, match="has seed 0 like another"):
        tiny(folder, beside=[trained_induction])
    with pytest.raises(ResultError, match="no finished model"):
        tiny(folder, beside=[tmp_path / "nothing"])
    other = shutil.copytree(trained_induction, tmp_path / "other")
    recipe = json.loads((other / "recipe.json").read_text("utf-8"))
    recipe["settings"] |= {"seed": 1, "lr": 0.5}
    (other / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ResultError, match="other settings: lr"):
        tiny(folder, beside=[other])
    assert not (folder / "seeds.json").exists()


def test_the_commands_defaults_are_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def remember(out: Path, **options: Any) -> Path:
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("sinklens.lab.induction.run.train_induction", remember)
    ended = CliRunner().invoke(app, ["train", "induction", "--out", str(tmp_path)])
    assert ended.exit_code == 130 and "the same command goes on from the last checkpoint" in ended.stderr
    for name in ("beside", "device", "checkpoint_every", "resume", "progress"):
        seen.pop(name)
    assert seen == InductionSettings().to_dict()
    assert "--beside seed-1" in CliRunner().invoke(app, ["train", "induction", "--help"]).output
