"""`sinklens needle` from start to end, and its refusals."""

from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from sinklens.cli.program import app
from sinklens.errors import InputError, SinkLensError
from sinklens.interventions import SlidingWindow
from sinklens.studies import NeedleResult

FAST = ("--lengths", "40,80", "--depths", "0,1", "--repeats", "5")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["needle", *arguments], catch_exceptions=True)


def test_grid_heads_and_saved_result(tmp_path: Path) -> None:
    (tmp_path / "near.json").write_text(SlidingWindow(8, 1).to_json())
    out = tmp_path / "run"
    changes = ("--ablate", "top:2", "--intervention", str(tmp_path / "near.json"))
    done = call("induction-2l", *FAST, *changes, "--controls", "2", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "4 of 8 heads are retrieval heads" in done.output and "L1H" in done.output
    assert "BOS was prepended" in done.output and "top 2 uniform" in done.output
    assert "Masking the top 2 heads: exact match on 12 needles" in done.output.replace("\n", " ")
    result = NeedleResult.load(out)
    assert result.variants == ["clean", "near", "top 2 zero", "top 2 mean", "top 2 uniform"]
    assert result.summary().set_index("variant")["exact"].loc["clean"] == 1
    assert {"needle_grid.html", "needle_grid-2.html", "needle_grid.csv"} <= {path.name for path in out.iterdir()}
    again = call("induction-2l", *FAST, *changes, "--controls", "0", "--out", str(out))
    assert again.exit_code == 0 and "retrieval heads" in again.output


def test_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The sea was calm. Nobody spoke for an hour. " * 40)
    own = (
        "--needle",
        "The key lies under a stone.",
        "--question",
        "Where is the key?",
        "--answer",
        "under a stone",
    )
    text = ("--text", str(tmp_path / "book.txt"))
    done = call("tiny-llama", "--kind", "natural", "--lengths", "150", "--depths", "0.5", "--repeats", "2", *own, *text)
    assert done.exit_code == 0, done.output
    assert "book.txt" in done.output.replace("\n", "")
    said = " ".join(done.output.split())
    assert "None of 2 prompts passes the filter 'rouge'" in said
    assert "(no intervals: 2 repeats, they need 5)" in said
    assert said.count("tokens, depth 50%: it says '") == 1 and ", the answer is 'under a stone' (ROUGE-1" in said
    assert "Nothing was saved" in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--kind", "natural", "--needle", "A key."), "all of --needle, --question and --answer"),
        (("--lengths", "many"), "--lengths takes numbers such as 64,128"),
        (("--lengths", "4"), "no room for the needle"),
        (("--how", "resample"), "--how takes some of zero, mean, uniform"),
        (("--controls", "-1"), "controls must be at least 0"),
        (("--chat",), "Random tokens have no chat"),
        (("--keep", "rouge", *FAST), "judges decoded text"),
        (("--keep", "most", *FAST), "keep must be one of exact, contained"),
        (("--ablate", "top:few"), "--ablate top:K takes a number"),
        (("--ablate", "L9H0", *FAST), "L9H0 does not exist"),
        (("--intervention", "missing.json", *FAST), "cannot be read"),
        (("--text", "missing.txt"), "There is no text file"),
        (("--kind", "passkey"), "kind='random'"),
    ],
)
def test_refusals(arguments: tuple[str, ...], sentence: str) -> None:
    done = call("induction-2l", *arguments)
    assert isinstance(done.exception, SinkLensError) and sentence in str(done.exception)


def test_no_retrieval_head_to_ablate() -> None:
    done = call("bb-3l", "--lengths", "30", "--depths", "0", "--repeats", "2", "--ablate", "top:1")
    assert isinstance(done.exception, InputError) and "no retrieval head to ablate" in str(done.exception)
    assert "None of 2 prompts passes the filter 'exact'" in str(done.exception)
    assert "exact match by length" in " ".join(done.output.split()), "the grid is printed all the same"


def test_a_failing_ablation_costs_nothing_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid of top:K was lost with the ablation: it is complete on disk, is printed, and is not run again."""

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    words = (
        "induction-2l",
        *FAST,
        "--ablate",
        "top:2",
        "--controls",
        "0",
        "--how",
        "zero",
        "--out",
        str(tmp_path / "r"),
    )
    with monkeypatch.context() as broken:
        broken.setattr("sinklens.interventions.ablate_heads.AblateHeads.edits", crash)
        done = call(*words)
    assert isinstance(done.exception, RuntimeError) and "exact match by length" in done.output
    kept = NeedleResult.load(tmp_path / "r")
    assert kept.variants == ["clean"] and (tmp_path / "r" / "needle_grid.html").is_file()
    passes: list[int] = []
    grid = import_module("sinklens.studies.needles.grid")
    real = grid.run_needles

    def counted(model: object, instances: list[object], *rest: object, **more: object) -> None:
        passes.append(len(instances))
        real(model, instances, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(grid, "run_needles", counted)
    done = call(*words)
    assert done.exit_code == 0, done.output
    whole = NeedleResult.load(tmp_path / "r")
    assert whole.variants == ["clean", "top 2 zero"] and passes == [len(kept.prompts.to_dataframe())]
    clean = whole.tables["instances"][whole.tables["instances"]["variant"] == "clean"]
    pd.testing.assert_frame_equal(clean, kept.tables["instances"])
    pd.testing.assert_frame_equal(whole.heads.frame, kept.heads.frame)


def test_an_occupied_folder_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = call("no-such-model", "--out", str(tmp_path))
    assert isinstance(done.exception, SinkLensError) and "holds no result.json" in str(done.exception)
