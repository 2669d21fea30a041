"""`sinklens dynamics` and its report as a user meets them."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens.plots import save_figure
from sinklens.studies import Dynamics, measure_dynamics
from tests import families
from tests.studies.dynamics.conftest import CODE, PROSE, TEXTS, write_series

SMALL = ("--max-tokens", "24", "--max-sequences", "6")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("cli") / "run")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text(PROSE)
    (folder / "b.py").write_text(CODE)
    return ("--text", f"prose={folder / 'a.txt'}", "--text", f"code={folder / 'b.py'}")


def test_it_measures_prints_and_saves(sinklens: Any, series: Path, texts: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    status, printed, err = sinklens("dynamics", series, *texts, *SMALL, "--out", out)
    assert status == 0, err
    assert "4 checkpoints of" in err and "steps 0 to 700, on 12 sequences each." in err
    assert "LlamaForCausalLM, 2 layers x 4 heads" in printed and "the same for every checkpoint" in printed
    assert "By step, all domains together" in printed and "loss prose" in printed and "loss in nats" in printed
    saved = Dynamics.load(out)
    same = measure_dynamics(series, TEXTS, max_tokens=24, max_sequences=6)
    for name, table in same.tables.items():
        pd.testing.assert_frame_equal(saved.tables[name], table)
    csv = pd.read_csv(out / "dynamics.csv")
    assert csv["step"].tolist() == saved.to_dataframe()["step"].tolist() and "max_over_median" in csv
    page = (out / "report.html").read_text("utf-8")
    assert "sinklens dynamics of checkpoints" in page and saved.verdict[0] in page
    assert (out / "dynamics.html").read_text("utf-8").count("<html>") == 1
    before = sorted(path.name for path in out.iterdir())
    (out / "report.html").unlink()
    status, printed, err = sinklens("report", out)
    assert status == 0 and f"Report: {out / 'report.html'}" in printed
    assert sinklens("dynamics", series, *texts, *SMALL, "--out", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == before


def test_steps_restart_and_other_settings(sinklens: Any, series: Path, texts: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "a"
    words = ("dynamics", series, *texts, *SMALL, "--steps", "9,700", "--out", out)
    assert sinklens(*words)[0] == 0
    assert Dynamics.load(out).to_dataframe()["step"].unique().tolist() == [9, 700]
    status, _, err = sinklens(*words, "--threshold", "0.4")
    assert status == 2 and "holds another measurement (settings.eps: 0.3 there, 0.4 now)" in err and "--restart" in err
    assert sinklens(*words, "--threshold", "0.4", "--restart")[0] == 0
    assert Dynamics.load(out).meta["settings"]["eps"] == 0.4


def test_a_damaged_checkpoint_is_one_sentence(
    sinklens: Any, series: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(series, tmp_path / "copy"))
    (copy / "step-80" / "model.safetensors").write_bytes(b"cut")
    status, printed, err = sinklens("dynamics", copy, *texts, *SMALL)
    assert status == 0 and "Note: step-80 is missing: The config of" in err and "Traceback" not in err
    assert "Missing: step-80. The config of" in printed and "cut off" in printed and "Nothing was saved" in printed


def test_several_directories_with_steps(sinklens: Any, series: Path, texts: tuple[str, ...]) -> None:
    status, _, err = sinklens("dynamics", f"5={series / 'step-0'}", f"60={series / 'step-9'}", *texts, *SMALL)
    assert status == 0, err
    assert "2 checkpoints of" in err and "steps 5 to 60" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/no/such/place"], "There is no directory /no/such/place"),
        (["bb-3l"], "bb-3l holds no series of checkpoints"),
        (["SERIES", "--steps", "1,x"], "--steps takes numbers such as 0,1000,2000; got '1,x'"),
        (["SERIES", "--steps", "5"], "has no checkpoint of step 5; it has 0, 9, 80, 700"),
        (["SERIES", "--text", "/no/text"], "There is no text file /no/text"),
        (["SERIES", "--revisions", "step1"], "revisions go with a hub id"),
        (["SERIES", "--max-tokens", "6"], "No sequence has the 10 tokens"),
        (["SERIES", "--device", "cuda:77"], "cuda:77"),
        (["EleutherAI/pythia-160m"], "has 154 checkpoints; choose some of them, as with --steps 0,"),
    ],
)
def test_every_wrong_input_is_one_sentence(sinklens: Any, series: Path, words: list[str], sentence: str) -> None:
    status, _, err = sinklens("dynamics", *(str(series) if word == "SERIES" else word for word in words))
    assert status == 2 and sentence in err and "Traceback" not in err


def test_a_place_that_holds_something_else(sinklens: Any, series: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    status, _, err = sinklens("dynamics", series, "--out", tmp_path)
    assert status == 2 and "Will not save to" in err


def test_without_a_browser_there_is_a_note(
    sinklens: Any, series: Path, texts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*words: Any, **options: Any) -> Any:
        warnings.warn("PNG export needs a browser.", stacklevel=2)
        return save_figure(words[0], Path(words[1]).with_suffix(".html"), words[2])

    monkeypatch.setattr("sinklens.plots.save_figure", without)
    status, _, err = sinklens("dynamics", series, *texts, *SMALL, "--steps", "0,9", "--out", tmp_path / "a")
    assert status == 0 and "Note: PNG export needs a browser." in err
    assert (tmp_path / "a" / "dynamics.csv").is_file() and not (tmp_path / "a" / "dynamics.png").exists()


def test_revisions_come_from_the_hub_s_cache(series: Path, texts: tuple[str, ...], tmp_path: Path) -> None:
    """Offline, but two revisions of a hub model lie in the cache as its client leaves them."""
    repository = tmp_path / "hub" / "models--org--toy"
    (repository / "refs").mkdir(parents=True)
    for number, (revision, step) in enumerate({"step9": "step-9", "step700-tokens2B": "step-700"}.items()):
        commit = f"{number:040x}"
        shutil.copytree(series / step, repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
    environment = os.environ | {"HF_HUB_CACHE": str(repository.parent), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."}
    words = ["dynamics", "org/toy", "--revisions", "step*", *texts, *SMALL, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "sinklens.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    found = Dynamics.load(tmp_path / "out")
    table = found.checkpoints()
    assert table["step"].tolist() == [9, 700] and table["tokens"].tolist()[1] == 2 * 10**9
    local = measure_dynamics(series, TEXTS, max_tokens=24, max_sequences=6, steps=[9, 700])
    pd.testing.assert_frame_equal(found.heads().drop(columns="name"), local.heads().drop(columns="name"))


def test_the_help_teaches(sinklens: Any) -> None:
    status, printed, _ = sinklens("dynamics", "--help")
    assert status == 0 and "sinklens dynamics tiny-llama --out runs/emergence" in printed and "SERIES" in printed


def test_families_without_tokenizer_files_are_named(sinklens: Any, tmp_path: Path) -> None:
    families.build_checkpoint("llama", tmp_path / "step-1")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "step-1" / name).unlink(missing_ok=True)
    status, _, err = sinklens("dynamics", tmp_path)
    assert status == 2 and "None of the 1 checkpoints can be loaded" in err and "has no tokenizer" in err
