"""Training a variant is repeatable, survives interruption, and its folder comes back."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sinklens.errors import InputError, ResultError
from sinklens.lab.checkpoint import Checkpoint
from sinklens.lab.commands import app
from sinklens.lab.tasks import Needle
from sinklens.lab.variants import training
from sinklens.lab.variants.catalogue import VARIANTS
from sinklens.lab.variants.commands import train_variant_command
from sinklens.lab.variants.publish import load_variant, train_variant
from sinklens.lab.variants.settings import VariantSettings
from sinklens.lab.variants.training import build_decoder, scored_loss, train_decoder
from tests.heard import Heard
from tests.lab.killed import Killed, same

TINY = VariantSettings(attention="k-bias", d_model=8, seq_len=12, batch=4, steps=60)


def test_equal_settings_give_equal_weights_and_other_seeds_do_not() -> None:
    torch.manual_seed(1)
    first = train_decoder(TINY)[0].state_dict()
    torch.manual_seed(2)
    assert same(first, train_decoder(TINY)[0].state_dict())
    assert not same(first, train_decoder(replace(TINY, seed=1))[0].state_dict())
    assert torch.initial_seed() == 2


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_decoder(TINY)[0].state_dict()
    original = training.scored_loss
    steps = 0

    def deadly(*args: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 57:  # within the second lot of sequences drawn at once
            raise Killed
        return original(*args)

    monkeypatch.setattr(training, "scored_loss", deadly)
    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        train_decoder(TINY, checkpoint=path, checkpoint_every=9)
    assert Checkpoint.load(path).step == 54
    again = train_decoder(TINY, checkpoint=path, checkpoint_every=9)[0].state_dict()
    assert steps == 57 + 6
    assert same(whole, again)
    with pytest.raises(ResultError, match=r"lr 0\.01 \(saved: 0\.003\)"):
        train_decoder(replace(TINY, lr=0.01), checkpoint=path)


def test_data_follow_the_seed_and_no_step_repeats() -> None:
    def drawn(settings: VariantSettings, done: int = 0) -> list[torch.Tensor]:
        batch_of = training._batches(settings)
        return [batch_of(step) for step in range(done, settings.steps)]

    first, again, other = drawn(TINY), drawn(TINY), drawn(replace(TINY, seed=1))
    assert len(first) == 60 and first[0].shape == (4, 13)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({ids.numpy().tobytes() for ids in first}) == 60
    assert all(torch.equal(a, b) for a, b in zip(first[57:], drawn(TINY, 57), strict=True))


def test_training_lowers_the_loss_and_reports_it() -> None:
    told = Heard()
    train_decoder(replace(TINY, attention="relu", batch=16), progress=told)
    losses = [float(note.removeprefix("loss ")) for note in told.notes]
    assert told.whole and len(losses) == 6, "every tenth step"
    assert losses[-1] < losses[0] - 0.5


def test_optimisers_are_the_studys() -> None:
    adam = training._optimizer(TINY, build_decoder(TINY)).param_groups[0]
    assert (adam["betas"], adam["eps"], adam["weight_decay"]) == ((0.9, 0.99), 1e-8, 1e-4)
    sgd = training._optimizer(replace(TINY, optimizer="sgd"), build_decoder(TINY))
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.9


def test_only_scored_queries_count() -> None:
    prefixed = replace(TINY, prefix=5)
    model, ids = build_decoder(prefixed), prefixed.data.sample(4, 13, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids[:, :-1])
        expected = torch.nn.functional.cross_entropy(logits[:, 4:].flatten(0, 1), ids[:, 5:].flatten())
        torch.testing.assert_close(scored_loss(model, prefixed, ids), expected)
    needle = VariantSettings(task="needle", seq_len=Needle().seq_len, d_model=8, batch=2)
    model, ids = build_decoder(needle), needle.data.sample(2)
    with torch.no_grad():
        logits = model(ids[:, :-1])[:, -8:]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -8:].flatten())
        torch.testing.assert_close(scored_loss(model, needle, ids), expected)


def test_a_loss_that_blows_up_stops_the_training() -> None:
    with pytest.raises(InputError, match="learning rate"):
        train_decoder(replace(TINY, lr=1e30))


def test_a_folder_comes_back(tmp_path: Path) -> None:
    out = train_variant(tmp_path / "k", TINY, device="cpu")
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "recipe.json", "measured.json"}
    model, settings = load_variant(out)
    assert settings == TINY and not model.training
    assert same(model.state_dict(), train_decoder(TINY)[0].state_dict())
    assert json.loads((out / "recipe.json").read_text("utf-8"))["attention_is_read_as"] == "weights"
    assert "L0.missing_mass_bigram" in json.loads((out / "measured.json").read_text("utf-8"))
    before = (out / "recipe.json").stat().st_mtime_ns
    train_variant(out, TINY, device="cpu")
    assert (out / "recipe.json").stat().st_mtime_ns == before
    with pytest.raises(ResultError, match="attention relu"):
        train_variant(out, replace(TINY, attention="relu"), device="cpu")
    (out / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ResultError, match="damaged"):
        load_variant(out)
    with pytest.raises(ResultError, match="no trained variant"):
        load_variant(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "hard"}, "no attention variant"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": float("nan")}, "positive number"),
        ({"optimizer": "muon"}, "adamw, sgd"),
        ({"task": "chess"}, "backcopy, needle"),
        ({"task": "needle"}, "67"),
        ({"prefix": 12}, "leaves nothing to predict"),
        ({"triggers": "ee"}, "different characters"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **changes)


def test_the_commands_defaults_are_those_of_the_settings() -> None:
    parameters = inspect.signature(train_variant_command).parameters
    for field in fields(VariantSettings):
        assert parameters[field.name].default == field.default, field.name


def test_the_commands_load_nothing_heavy_until_they_run() -> None:
    code = "import sys, sinklens.lab.variants.commands; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_commands_list_and_train(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["variants"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0 and all(name in listed.output for name in VARIANTS)
    options = ["--attention", "sigmoid", "--d-model", "8", "--seq-len", "12", "--batch-size", "4", "--steps", "2"]
    options += ["--device", "cpu", "--out", str(tmp_path / "s")]
    trained = CliRunner().invoke(app, ["train", "variant", *options], env={"COLUMNS": "200"})
    assert trained.exit_code == 0, trained.output
    assert "proxy scores" in trained.output and "weight used on position 0" in trained.output
    assert load_variant(tmp_path / "s")[1].attention == "sigmoid"
