"""`sinklens ablate` as a user meets it: what it prints and saves, how it goes on, and every bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from sinklens import load, scan
from sinklens.errors import ResultError
from sinklens.interventions import AblateHeads, MaskKeys
from sinklens.results.show_progress import ShowProgress
from sinklens.studies import Sweep, sweep
from sinklens.studies.ablation.ranking_file import read_ranking
from tests import families

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20
SMALL = ("--max-tokens", "32", "--max-sequences", "6")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_it_saves_prints_and_is_not_run_twice(
    sinklens: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "heads"
    words = ("ablate", model, "--text", text, *SMALL, "--how", "zero,uniform", "--gamma", "0.5", "--out", out)
    status, printed, err = sinklens(*words)
    assert status == 0, err
    assert "8 head sets" not in err and "24 head sets on 6 sequences" in err and "forward passes" in err
    assert "zero: of 8 heads L" in printed and "ScaleKeys(keys=0, gamma=0.5)" in printed and f"Tables: {out}" in printed
    result = Sweep.load(out)
    assert len(result.effects) == 3 * 8 * 6 and result.meta["tokens"]["source"] == str(text)
    monkeypatch.setattr("sinklens.studies.ablation.tasks.run_task", None)
    assert sinklens(*words)[0] == 0, "nothing is computed again"
    status, _, err = sinklens(*words[:-4], "--out", out)
    assert status == 2 and "holds another sweep" in err and "gamma=0.5" in err and "--restart" in err


def test_the_same_numbers_as_python(sinklens: Any, model: Path, text: Path, tmp_path: Path) -> None:
    words = ("--text", text, *SMALL, "--ranking", "own", "--top", "1,3", "--controls", 2, "--how", "mean")
    status, printed, err = sinklens("ablate", model, *words, "--bos", "yes", "--out", tmp_path / "out")
    assert status == 0, err
    assert "rank" in printed and "top-3 (3 heads)" in printed
    same = sweep(
        str(model),
        "mean",
        TEXT,
        bos="yes",
        max_tokens=32,
        split=True,
        max_sequences=6,
        ranking="own",
        top=[1, 3],
        controls=2,
    )
    saved = Sweep.load(tmp_path / "out")
    assert saved.tables["effects"].equals(same.tables["effects"])
    assert "prepended to every sequence because the caller asked" in printed


def test_groups_files_and_metrics(sinklens: Any, model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "hide.json"
    other.write_text(MaskKeys(0).to_json())
    words = ("--group", "a=L0H1,L1H1", "--group", "b=L0H2", "--intervention", other, "--metric", "kl", "--controls", 3)
    status, printed, err = sinklens("ablate", model, "--text", text, *SMALL, *words)
    assert status == 0, err
    assert "MaskKeys(keys=0)" in printed and "KL" in printed and "delta loss" not in printed
    assert "Nothing was saved" in printed


def test_answers_from_a_file(sinklens: Any, model: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.csv"
    answers.write_text("text,correct,wrong\nIt was the best,y,n\nIt was the,a,b\nIt was,c,d\n")
    words = ("--heads", "L0H1", "--controls", 0, "--metric", "logit_diff,loss", "--out", tmp_path / "out")
    status, printed, err = sinklens("ablate", model, "--answers", answers, *words)
    assert status == 0, err
    assert "delta logit diff" in printed and str(answers) in printed
    effects = Sweep.load(tmp_path / "out").effects.to_dataframe()
    assert effects["delta_logit_diff"].abs().min() > 0 and effects["n_tokens"].tolist() == [14, 9, 5]
    import torch

    bridge = load(model)
    ids = torch.tensor([bridge.tokenizer("It was the", add_special_tokens=False)["input_ids"]])  # type: ignore[misc]
    with torch.no_grad(), AblateHeads(["L0H1"])(bridge):
        logits = bridge(ids)[0, -1]
    right, wrong = (bridge.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ab")  # type: ignore[misc]
    assert effects["logit_diff"][1] == pytest.approx(float(logits[right] - logits[wrong]), abs=1e-4)


def test_answers_for_sequences_of_a_text(sinklens: Any, model: Path, text: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.csv"
    answers.write_text("sequence,position,correct,wrong\n4,7,y,n\n0,,a,b\n")
    words = ("--text", text, *SMALL, "--heads", "L0H1", "--controls", 0, "--out", tmp_path / "out")
    status, _, err = sinklens("ablate", model, "--answers", answers, *words)
    assert status == 0, err
    effects = Sweep.load(tmp_path / "out").effects.to_dataframe()
    assert effects["logit_diff"].notna().tolist() == [True, False, False, False, True, False]


def test_approx_and_dry_run(sinklens: Any, model: Path, text: Path, tmp_path: Path) -> None:
    words = ("ablate", model, "--text", text, *SMALL, "--approx", "--sample", 5)
    status, printed, err = sinklens(*words)
    assert status == 0 and "rank correlation" in printed and "(estimate)" in printed, err
    status, printed, err = sinklens(*words, "--dry-run", "--out", tmp_path / "out")
    assert status == 0 and printed == "" and not (tmp_path / "out").exists()
    assert "13 head sets on 6 sequences" in err and "All of it takes about" in err


def test_rankings_from_files(sinklens: Any, model: Path, text: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("layer,head,score,other\n0,1,0.2,5\n1,3,0.9,1\n0,0,,3\n1,0,0.5,2\n")
    assert read_ranking(f"{table}:score") == [(1, 3), (1, 0), (0, 1)]
    assert read_ranking(f"{table}:-other") == [(1, 3), (1, 0), (0, 0), (0, 1)]
    names = tmp_path / "heads.txt"
    names.write_text("# mine\nL1H2\nL0H3\n")
    assert read_ranking(str(names)) == [(1, 2), (0, 3)]
    (tmp_path / "named.csv").write_text("head,score\nL0H3,1\nL1H2,2\n")
    assert read_ranking(str(tmp_path / "named.csv")) == [(1, 2), (0, 3)]
    bridge = load(model)
    census = scan(bridge, TEXT, max_tokens=32, split=True)
    census.save(tmp_path / "census")
    heads = census.heads.to_dataframe().sort_values("entropy")
    lowest = list(zip(heads["layer"], heads["head"], strict=True))
    assert read_ranking(f"{tmp_path / 'census'}:-entropy") == lowest
    result = sweep(bridge, "zero", TEXT, max_tokens=32, out=tmp_path / "sweep")
    best = result.ranking().iloc[0]
    assert read_ranking(str(tmp_path / "sweep"))[0] == (best["layer"], best["head"])
    words = ("--ranking", f"{tmp_path / 'census'}:-entropy", "--top", 2, "--controls", 2, "--out", tmp_path / "out")
    status, _, err = sinklens("ablate", model, "--text", text, *SMALL, *words)
    assert status == 0, err
    summary = Sweep.load(tmp_path / "out").summary.to_dataframe()
    assert summary["kind"].tolist() == ["top", "random", "random"]
    assert set(summary["heads"][0].split(",")) == {f"L{layer}H{head}" for layer, head in lowest[:2]}


BAD = {
    "unknown head": (["--heads", "L9H0"], "L9H0 does not exist in this model: the model has 2 layers"),
    "head name": (["--heads", "5.1"], "A head is written like"),
    "group": (["--group", "L0H1"], "A group is written NAME="),
    "group twice": (["--group", "a=L0H1", "--group", "a=L0H2"], "each name once"),
    "way": (["--how", "freeze"], "way of ablation"),
    "gamma": (["--gamma", "-1"], "gamma must be"),
    "intervention file": (["--intervention", "{tmp}/none.json"], "cannot be read"),
    "intervention json": (["--intervention", "{tmp}/short.txt"], "Expected an intervention as JSON"),
    "metric": (["--metric", "taste"], "Unknown metric taste"),
    "top": (["--ranking", "own", "--top", "one"], "--top takes numbers"),
    "top without ranking": (["--top", "1"], "top needs a ranking"),
    "ranking file": (["--ranking", "{tmp}/none.csv"], "There is no ranking"),
    "ranking column": (["--ranking", "{tmp}/scores.csv:nothing"], "has no column of numbers 'nothing'"),
    "ranking of what": (["--ranking", "{tmp}/scores.csv"], "several columns to rank by"),
    "missing file": (["--text", "{tmp}/none.txt"], "There is no text file"),
    "empty text": (["--text", "{tmp}/empty.txt"], "is empty"),
    "one token": (["--text", "{tmp}/one.txt", "--bos", "no"], "two tokens"),
    "executor": (["--executor", "cluster"], "executor must be serial"),
    "address": (["--executor", "tcp://nonsense"], "No Dask scheduler answers"),
    "out is a file": (["--out", "{tmp}/short.txt"], "is a file"),
    "out is someone else's": (["--out", "{tmp}/other"], "holds no result.json"),
    "answers file": (["--answers", "{tmp}/none.csv"], "There is no answers file"),
    "answer columns": (["--answers", "{tmp}/scores.csv"], "columns correct and wrong"),
    "long answers": (["--answers", "{tmp}/words.csv"], "is 4 tokens for this model"),
    "answers and texts": (["--answers", "{tmp}/texts.csv", "--text", "{tmp}/short.txt"], "brings its own texts"),
    "answers of cut texts": (["--answers", "{tmp}/texts.csv", "--max-tokens", "4"], "longer than --max-tokens"),
    "answers for nothing": (
        ["--answers", "{tmp}/far.csv", "--max-sequences", "2"],
        "sequence must be a number from 0 to 1",
    ),
    "device": (["--device", "toaster"], "Unknown device"),
    "batch": (["--batch-size", "0"], "at least 1"),
    "context": (["--max-tokens", "100000"], "longer than the model's context"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, sinklens: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "scores.csv").write_text("layer,head,x,y\n0,1,2,3\n")
    (tmp_path / "words.csv").write_text("sequence,correct,wrong\n0,four,a\n")
    (tmp_path / "texts.csv").write_text("text,correct,wrong\nabcdefgh,a,b\n")
    (tmp_path / "far.csv").write_text("sequence,correct,wrong\n2,a,b\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    words, message = BAD[case]
    status, printed, err = sinklens("ablate", model, *(word.format(tmp=tmp_path) for word in words))
    assert status == 2 and message in err and "Traceback" not in err + printed
    assert (tmp_path / "other" / "thesis.tex").read_text("utf-8") == "precious"


def test_bad_places_are_refused_before_the_work(sinklens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    status, _, err = sinklens("ablate", "no model is loaded for this", "--out", tmp_path / "run")
    assert status == 2 and "not writable" in err


def test_no_attention_is_one_sentence(sinklens: Any, tmp_path: Path) -> None:
    mamba = families.build_checkpoint("mamba", tmp_path / "mamba")
    status, _, err = sinklens("ablate", mamba, *SMALL)
    assert status == 2 and "no attention heads to change" in err


def test_interrupted_it_says_how_to_go_on(
    sinklens: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinklens.studies.ablation import tasks

    words = ("ablate", model, "--text", text, *SMALL, "--batch-size", 1, "--out", tmp_path / "out")
    original, calls = tasks.run_task, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr("sinklens.studies.ablation.tasks.run_task", interrupted)
    status, _, err = sinklens(*words)
    assert status == 130 and f"finished parts are in {tmp_path / 'out'}; the same command goes on" in err
    status, _, err = sinklens(*words)
    assert status == 0 and "6 parts, 2 of them finished before" in err and len(calls) == 3 + 4
    damaged = tmp_path / "out" / "effects.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    status, _, err = sinklens(*words)
    assert status == 2 and "is damaged" in err and "--restart" in err
    assert sinklens(*words, "--restart")[0] == 0


def test_progress_without_a_terminal(sinklens: Any, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShowProgress, "EVERY", 0.0)
    status, _, err = sinklens("ablate", model, "--text", text, *SMALL, "--batch-size", 2)
    assert status == 0 and "% done, about" in err and "100% done, about 0 s left" in err


def test_help_teaches(sinklens: Any) -> None:
    status, printed, _ = sinklens("ablate", "--help")
    assert status == 0 and "sinklens ablate bb-3l --out runs/heads" in printed and "--executor" in printed


def test_the_report_is_saved_and_written_again(sinklens: Any, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, printed, _ = sinklens("ablate", model, "--text", text, *SMALL, "--heads", "L0H0", "--out", out)
    assert status == 0 and f"Report: {out / 'report.html'}" in printed
    first = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert sinklens("report", out)[0] == 0
    assert (out / "report.html").read_bytes() == first
    header = json.loads((out / "result.json").read_text("utf-8"))
    assert header["format_version"] == 1 and header["spec"]["heads"] == "L0H0"


def test_a_scan_does_not_replace_a_sweep(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep("bb-1l", max_sequences=5, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ResultError, match="it holds a 'sinklens-sweep'; name a new or an empty directory"):
        scan("bb-1l", max_sequences=5).save(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
