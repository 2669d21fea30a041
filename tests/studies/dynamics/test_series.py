"""Which checkpoints a series names, in which order, and every name that cannot be one."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from sinklens.errors import InputError, ModelLoadError
from sinklens.studies.dynamics.series import find_series, parse_step, parse_tokens


def folders(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "config.json").write_text("{}")
    return directory


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000125", 125),
        ("checkpoint-500", 500),
        ("step1000-tokens4B", 1000),
        ("stage1-step20000-tokens84B", 20_000),
        ("global_step143000", 143_000),
        ("ckpt_20k", 20_000),
        ("iter_0001000", 1000),
        ("007", 7),
        ("step0", 0),
        ("main", None),
        ("v1-2", None),
        ("", None),
    ],
)
def test_steps_in_names(name: str, step: int | None) -> None:
    assert parse_step(name) == step


def test_tokens_in_names() -> None:
    assert parse_tokens("stage1-step20000-tokens84B") == 84 * 10**9
    assert parse_tokens("step5-tokens500M") == 5 * 10**8 and parse_tokens("step5") is None


def test_folders_in_the_order_of_steps(tmp_path: Path) -> None:
    folders(tmp_path, "checkpoint-1000", "checkpoint-90", "checkpoint-500", "final", ".checkpoint-7")
    (tmp_path / "notes-3").write_text("no folder")
    (tmp_path / "logs").mkdir()
    found = find_series(tmp_path)
    assert found.steps == (90, 500, 1000) and found.ignored == ("final",)
    assert [Path(each.source).name for each in found.checkpoints] == [
        "checkpoint-90",
        "checkpoint-500",
        "checkpoint-1000",
    ]
    assert find_series(str(tmp_path), steps=[1000, 90]).steps == (90, 1000)
    with pytest.raises(InputError, match=r"no checkpoint of step 91; it has 90, 500, 1,000"):
        find_series(tmp_path, steps=[91])


def test_a_model_folder_with_its_checkpoints_and_the_built_in_series(tmp_path: Path) -> None:
    folders(tmp_path / "model" / "checkpoints", "step-1", "step-2")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert find_series(tmp_path / "model").steps == (1, 2)
    built_in = find_series("tiny-llama")
    assert built_in.name == "tiny-llama" and built_in.steps[0] == 0 and built_in.steps[-1] == 8000
    assert len(built_in.steps) == 9


def test_several_sources(tmp_path: Path) -> None:
    folders(tmp_path, "first", "step-20")
    found = find_series([f"0={tmp_path / 'first'}", tmp_path / "step-20", "org/model@step9-tokens2B"])
    assert found.steps == (0, 9, 20)
    assert found.checkpoints[1].source == "org/model@step9-tokens2B" and found.checkpoints[1].tokens == 2 * 10**9
    with pytest.raises(InputError, match=r"'first' tells no training step.*125="):
        find_series([tmp_path / "first", tmp_path / "step-20"])
    with pytest.raises(InputError, match=r"step-20 and first are both of step 20"):
        find_series([tmp_path / "step-20", f"20={tmp_path / 'first'}"])
    with pytest.raises(InputError, match="Revisions go with one hub id"):
        find_series([tmp_path, tmp_path], revisions="step1")
    with pytest.raises(InputError, match="got nothing"):
        find_series([])


def test_revisions_of_a_hub_id() -> None:
    written = find_series("org/model@step1000,step0")
    assert (
        written
        == find_series("org/model", revisions="step0, step1000")
        == find_series("org/model", revisions=["step0", "step1000"])
    )
    assert [each.source for each in written.checkpoints] == ["org/model@step0", "org/model@step1000"]
    with pytest.raises(InputError, match="not both"):
        find_series("org/model@step1", revisions="step2")
    with pytest.raises(InputError, match="'main' tells no training step"):
        find_series("org/model@main")
    with pytest.raises(InputError, match="Nothing is known about the checkpoints of org/model"):
        find_series("org/model", steps=[1])


def test_known_families_by_step() -> None:
    found = find_series("EleutherAI/pythia-160m", steps=[512, 0, 143000])
    assert [each.source for each in found.checkpoints] == [
        f"EleutherAI/pythia-160m@step{step}" for step in (0, 512, 143000)
    ]
    with pytest.raises(InputError, match=r"has 154 checkpoints; choose some of them"):
        find_series("EleutherAI/pythia-160m")
    with pytest.raises(InputError, match="no checkpoint of step 3;"):
        find_series("EleutherAI/pythia-160m", steps=[3])


def test_patterns_are_looked_up_in_the_cache_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"cannot be asked for the revisions of org/model.*name them without"):
        find_series("org/model", revisions="step*")
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    for name in ("main", "step20", "step3", "other5"):
        (refs / name).write_text("0")
    found = find_series("org/model", revisions="step*,other5")
    assert found.steps == (3, 5, 20)
    every = find_series("org/model@*")
    assert every.steps == (3, 5, 20) and every.ignored == ("main",)
    with pytest.raises(InputError, match=r"No revision of org/model matches x\*; there are"):
        find_series("org/model", revisions="x*")


@pytest.mark.parametrize("source", ["/no/such/place", "./nowhere", "a/b/c", "~/nowhere"])
def test_what_is_no_series(source: str) -> None:
    with pytest.raises(InputError, match="no directory"):
        find_series(source)


def test_a_single_checkpoint_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a single checkpoint"):
        find_series("bb-3l")
    with pytest.raises(InputError, match="holds no series of checkpoints; expected"):
        find_series(tmp_path)
    folders(tmp_path, "step-1")
    with pytest.raises(InputError, match="revisions go with a hub id"):
        find_series(tmp_path, revisions="step1")
