"""`sinklens calibrate`: the built-in example, a labelled CSV, interruptions, and bad input in one sentence."""

import sys
from pathlib import Path

import pytest

from sinklens import cli, load
from sinklens.errors import InputError
from sinklens.models.builtin import data_dir
from sinklens.results.run_folder import PARTS, PLAN
from sinklens.studies import Calibration, score_task
from sinklens.studies.calibration import kept_scores
from sinklens.studies.calibration.labelled_csv import LabelledTexts

QUICK = ("tiny-llama", "--heads", "L3H3,L0H3", "--gammas", "0.25,4", "--controls", "2", "--device", "cpu")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sinklens", "calibrate", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_built_in_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = (*QUICK, "--max-prompts", "40", "--objective", "entropy", "--out", out)
    assert run(monkeypatch, *words) == 0
    printed = capsys.readouterr()
    found = Calibration.load(out)
    assert "40 prompts with 4 labels" in printed.err and "valid answers" in printed.out
    assert all(" ".join(each.split()) in " ".join(printed.out.split()) for each in found.verdict)
    split = found.meta["split"]
    assert not {*split["search"]} & {*split["report"]} and len(split["search"]) + len(split["report"]) == 40
    assert (
        all(each in (out / "report.html").read_text("utf-8") for each in found.verdict)
        and not (out / PLAN).exists()
        and not (out / PARTS).exists()
    )
    # what is reported is what the model answers on those prompts
    task = LabelledTexts.read().some(40).task(load("tiny-llama", device="cpu"))
    plain = score_task(load("tiny-llama", device="cpu"), task.rows(split["report"])).rates
    row = found.summary().set_index("variant").loc["unchanged"]
    assert (row["accuracy"], row["valid_rate"]) == (plain.accuracy, plain.valid_rate)
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    # a finished run can be made again in its place, and its report written from the tables alone
    assert run(monkeypatch, *words) == 0
    monkeypatch.setattr(sys, "argv", ["sinklens", "report", str(out)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)


def test_an_interrupted_run_goes_on_with_nothing_answered_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*QUICK, "--max-prompts", "12", "--objective", "entropy")
    assert run(monkeypatch, *words, "--out", tmp_path / "whole") == 0
    answered: list[str] = []

    def stopping(model: object, task: object, intervention: object = None, **options: object) -> object:
        if len(answered) == 3:
            raise KeyboardInterrupt
        answered.append("")
        return score_task(model, task, intervention, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(kept_scores, "score_task", stopping)
    assert run(monkeypatch, *words, "--out", tmp_path / "cut") == 130
    assert "the same command goes on" in capsys.readouterr().err
    first = next((tmp_path / "cut" / PARTS).glob("*.zip"))
    first.write_bytes(first.read_bytes()[:100])  # as a disk may leave it
    other = (*QUICK, "--max-prompts", "14", "--out", tmp_path / "cut")
    assert run(monkeypatch, *other) == 2 and "holds another calibration" in capsys.readouterr().err
    monkeypatch.setattr(kept_scores, "score_task", score_task)
    assert run(monkeypatch, *words, "--out", tmp_path / "cut") == 0
    printed = capsys.readouterr().err
    assert "3 answer sets are there from before" in printed and "is computed again" in printed
    whole, cut = Calibration.load(tmp_path / "whole"), Calibration.load(tmp_path / "cut")
    assert whole.search.equals(cut.search) and whole.answers.equals(cut.answers) and whole.verdict == cut.verdict


def test_a_csv_with_template_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text('\ufeffreview,mood\n"Good, and\nlong",pos\nBad,neg\nFine,pos\n', encoding="utf-8")
    labelled = LabelledTexts.read(path, text="review", label="mood")
    assert labelled.texts[0] == "Good, and\nlong" and labelled.names == ("neg", "pos")
    model = load("tiny-llama", device="cpu")
    task = labelled.task(model, template="{text}:\n", answers={"pos": [" the", " a"], "neg": [" not"]})
    assert task.answers == (1, 0, 1) and len(task.labels[0][1]) == 2
    prompt = model.tokenizer.decode(task.prompts.ids[0, : int(task.prompts.lengths[0])], skip_special_tokens=True)
    assert prompt.endswith("Good, and\nlong:\n")
    with pytest.raises(InputError, match="no label 'bad'"):
        labelled.task(model, answers={"bad": [" x"]})
    with pytest.raises(InputError, match="where the text goes"):
        labelled.task(model, template="no place")
    with pytest.raises(InputError, match="no single token of this model; name tokens"):
        LabelledTexts(("a", "b"), ("incomprehensibilities", "the"), "x").task(model)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no rows"),
        ("text,label\n", "has no rows"),
        ("text,lable\na,b\n", "has no column 'label' but 'text', 'lable'"),
        ("text,label\na,x\nb\n", "Row 3 of"),
        ("text,label\na,x,more\nb,y\n", "more fields than the header has"),
        ("text,label\na,x\n,y\n", "Row 3 of"),
        ("text,label\na,x\nb,x\n", "has the one label 'x'"),
        ('text,label\n"a,x\n', "cannot be read as a CSV file"),
        (b"\xff\xfe\x00t", "cannot be read as a CSV file"),
    ],
)
def test_a_bad_csv_is_one_sentence(content: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence) as error:
        LabelledTexts.read(path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_done_is_said_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    cases = [
        (("--data", tmp_path / "none.csv"), "cannot be read as a CSV file"),
        (("--method", "magic"), "gamma, act or a file of an intervention"),
        (("--method", "act", "--gammas", "2"), "belong to the method gamma"),
        (("--gammas", "two"), "--gammas takes numbers"),
        (("--per", "layer"), "per must be head or index"),
        (("--share", "1"), "share must lie between 0 and 1"),
        (("--answer", "pos"), "LABEL=TOKEN"),
        (("--max-prompts", "1"), "at least 4"),
        (("--out", tmp_path / "file"), "it is a file"),
        (("--out", tmp_path / "other"), "holds no result.json"),
    ]
    for words, sentence in cases:
        assert run(monkeypatch, "not/a/model", *words) == 2
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error


def test_the_prompts_are_what_their_page_says() -> None:
    found = LabelledTexts.read()
    source = (data_dir() / "texts" / "shakespeare.txt").read_text("utf-8")
    assert len(found.texts) == 200 and found.names == ("and", "of", "the", "to")
    assert all(found.labels.count(name) == 50 for name in found.names)
    assert all(f"{text} {label}" in source for text, label in zip(found.texts, found.labels, strict=True))


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert text.count("sinklens calibrate") >= 4 and "--answer" in text
