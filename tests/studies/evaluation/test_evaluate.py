"""Scores of lm-evaluation-harness on a task file, against a loop by hand; sentences against their table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli.program import app
from sinklens.errors import InputError, SinkLensError
from sinklens.interventions import AblateHeads
from sinklens.policies.fake_quant import FakeQuantKV
from sinklens.policies.h2o import H2O
from sinklens.policies.h2o_global import H2OGlobal
from sinklens.policies.matched_random import MatchedRandom
from sinklens.policies.sink_window import SinkWindow
from sinklens.results.progress import Silent
from sinklens.studies import evaluate_tasks
from sinklens.studies.evaluation import run
from sinklens.studies.evaluation.harness import missing_harness
from sinklens.studies.evaluation.result import TaskScores, score_sentences
from sinklens.studies.evaluation.scorer import TextScorer
from sinklens.wording import several

needs_harness = pytest.mark.skipif(missing_harness() is not None, reason=str(missing_harness()))

ROWS = [
    {"prompt": "Once upon a time there was a", "choices": ["little girl", "of"], "answer": 0},
    {"prompt": "The dog ran to the", "choices": ["park", "the the"], "answer": "park"},
    {"prompt": "She was very", "choices": ["happy", "ran"], "answer": "ran"},
    {"prompt": "One day, Tom and", "choices": ["Lily", "xyz", "went"], "answer": 0},
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load("tiny-llama")


def right(model: Any, change: Any) -> list[float]:
    """Whether the likeliest choice is the right one, by hand."""
    scorer, found = TextScorer(model, change), []
    for row in ROWS:
        answer = row["answer"] if isinstance(row["answer"], int) else row["choices"].index(row["answer"])  # type: ignore[attr-defined]
        values = [scorer.log_likelihoods([(str(row["prompt"]), f" {each}")])[0][0] for each in row["choices"]]  # type: ignore[attr-defined]
        found.append(float(np.argmax(values) == answer))
    return found


@needs_harness
def test_scores_are_those_of_a_loop_by_hand_and_a_killed_evaluation_goes_on(
    model: Any, task: Path, tmp_path: Path
) -> None:
    changes = {"window": SinkWindow(1, 2), "no heads": AblateHeads(["L0H0", "L1H1"]), "bits": FakeQuantKV(2)}
    options: dict[str, Any] = {"controls": 2, "out": tmp_path / "run"}

    class Stop(Silent):
        def __init__(self) -> None:
            self.left = 3.5

        def advance(self, work: float = 1.0, note: str = "") -> None:
            self.left -= work
            if self.left < 0:
                raise KeyboardInterrupt

    np.random.seed(3)
    expected_draw = np.random.RandomState(3).random()
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(model, [task], changes, progress=Stop(), **options)
    assert np.random.random() == expected_draw, "the harness sets seeds, and they are put back"
    skipped: list[float] = []

    class Skips(Silent):
        def skip(self, work: float) -> None:
            skipped.append(work)

    found = evaluate_tasks(model, [task], changes, progress=Skips(), **options)
    assert skipped == [1, 1, 1]
    documents = found.to_dataframe("documents").query("metric == 'acc'")
    for name, change in {"unchanged": None, **changes, "window, random 1": MatchedRandom(SinkWindow(1, 2))}.items():
        own = documents[documents["condition"] == name].sort_values("doc")["value"].tolist()
        assert own == right(model, change), name
    scores = found.to_dataframe().query("metric == 'acc'").set_index("condition")
    assert [*scores.index] == [
        "unchanged", "window", "window, random 1", "window, random 2", "no heads", "no heads, random 1",
        "no heads, random 2", "bits",
    ]  # fmt: skip
    for name, row in scores.iterrows():
        own = documents[documents["condition"] == name]["value"].to_numpy()
        clean = documents[documents["condition"] == "unchanged"]["value"].to_numpy()
        assert row["value"] == own.mean() and row["delta"] == pytest.approx((own - clean).mean())
    assert "bits: it changes keys and values" in found.verdict[-1]
    again = sinklens.open(tmp_path / "run")
    assert isinstance(again, TaskScores) and again.verdict == found.verdict
    assert evaluate_tasks(model, [task], changes, **options).verdict == found.verdict
    assert found.report(tmp_path / "report.html").stat().st_size > 5_000


@needs_harness
def test_the_command(task: Path, tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    file.write_text(AblateHeads(["L0H0"]).to_json())
    words = ["evaluate", "tiny-llama", "--tasks", str(task), "--policy", "h2o:budget=8", "--intervention", str(file)]
    done = CliRunner().invoke(app, [*words, "--controls", "1", "--limit", "2"], env={"COLUMNS": "200"})
    assert done.exception is None, done.output
    assert "stories, acc over 2 documents" in done.output and "h2o:budget=8, random 1" in done.output
    done = CliRunner().invoke(app, ["evaluate", "tiny-llama", "--tasks", "no_such_task"])
    assert isinstance(done.exception, InputError) and "knows no task no_such_task" in str(done.exception)


@needs_harness
@pytest.mark.real
def test_a_language_model_knows_capitals_by_the_keys_that_a_rule_keeps_and_not_by_random_ones(smollm2: Any) -> None:
    task = Path(__file__).parent / "capitals.jsonl"
    found = evaluate_tasks(smollm2, [task], {"window": SinkWindow(1, 2), "h2o": H2O(8, 8)}, controls=1)
    print(*found.verdict, sep="\n")
    scores = found.to_dataframe().query("metric == 'acc'").set_index("condition")
    assert scores.loc["unchanged", "value"] > 0.9 and scores.loc["window", "delta_high"] < 0
    assert scores.loc["h2o", "value"] > 0.9  # 16 keys chosen well are enough, and as many random ones are not
    for name in ("h2o", "window"):
        assert scores.loc[f"{name}, random 1", "value"] < scores.loc[name, "value"] - 0.1


CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def chatty(model: Any) -> Any:
    """The model with a chat template that writes the BOS itself."""
    before = getattr(model.tokenizer, "chat_template", None)
    model.tokenizer.chat_template = CHAT
    yield model
    model.tokenizer.chat_template = before


def test_a_chat_template_that_writes_the_bos_gets_no_second_one(chatty: Any) -> None:
    scorer = TextScorer(chatty, None, "yes")
    text = scorer.chat([{"role": "user", "content": "Once upon a time"}])
    assert text == f"{chatty.tokenizer.bos_token}<user> Once upon a time\n<assistant> "
    before, after = scorer.pair(text, "there")
    assert before[: len(scorer.prefix) + 1] == [*scorer.prefix, scorer.encode("<user>")[0]] and after
    assert scorer.pair("Once", " upon")[0][: len(scorer.prefix)] == scorer.prefix
    whole = scorer.encode(text + "there")
    assert before + after == whole  # nothing is lost between the two


@needs_harness
def test_documents_are_put_into_the_chat_template(chatty: Any, task: Path, tmp_path: Path) -> None:
    found = evaluate_tasks(chatty, [task], controls=0, chat=True, out=tmp_path / "run")
    scorer, expected = TextScorer(chatty, None), []
    for row in ROWS:
        answer = row["answer"] if isinstance(row["answer"], int) else row["choices"].index(row["answer"])  # type: ignore[attr-defined]
        context = scorer.chat([{"role": "user", "content": str(row["prompt"])}])
        values = [scorer.log_likelihoods([(context, str(each))])[0][0] for each in row["choices"]]  # type: ignore[attr-defined]
        expected.append(float(np.argmax(values) == answer))
    documents = found.to_dataframe("documents").query("metric == 'acc'").sort_values("doc")
    assert documents["value"].tolist() == expected and found.meta["settings"]["chat"] is True
    with pytest.raises(SinkLensError):  # another question than the one that the folder holds
        evaluate_tasks(chatty, [task], controls=0, out=tmp_path / "run")
    solved = evaluate_tasks(chatty, [task], controls=0, chat=True, fewshot=1)
    assert len(solved.to_dataframe()) == len(found.to_dataframe())


def test_a_chat_without_a_template_is_refused(model: Any, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "missing_harness", lambda: None)
    monkeypatch.setattr(model.tokenizer, "chat_template", None, raising=False)
    with pytest.raises(InputError, match="no chat template"):
        evaluate_tasks(model, [task], chat=True)


def test_what_cannot_be_evaluated_is_refused(model: Any, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "missing_harness", lambda: "Task scores need it.")
    with pytest.raises(SinkLensError, match="Task scores need it"):
        evaluate_tasks(model, [task])
    monkeypatch.setattr(run, "missing_harness", lambda: None)
    for wrong, told in [
        ({"tasks": []}, "at least one task"),
        ({"tasks": [task, task]}, "Two tasks have one name"),
        ({"interventions": {"leak": H2OGlobal(2, 2)}}, "chooses by what comes later"),
        ({"interventions": {"unchanged": H2O(2, 2)}}, "other than 'unchanged'"),
        ({"limit": 0}, "limit must be at least 1"),
    ]:
        with pytest.raises(InputError, match=told):
            evaluate_tasks(model, **({"tasks": [task]} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_every_sentence_is_recomputed_from_the_table(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for task in ("a", "b")[: draw.integers(1, 3)]:
        for metric in ("acc", "acc_norm"):
            rows.append({"condition": "unchanged", "kind": "unchanged", "of": ""} | _score(draw, task, metric))
            for change in ("x", "y")[: draw.integers(0, 3)]:
                rows.append({"condition": change, "kind": "change", "of": ""} | _score(draw, task, metric))
                for number in range(draw.integers(0, 3)):
                    label = f"{change}, random {number + 1}"
                    rows.append({"condition": label, "kind": "control", "of": change} | _score(draw, task, metric))
    expected = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task and row["metric"] == "acc"]
        words = f"{task}, acc over {own[0]['n']} documents: {own[0]['value']:.3f} unchanged"
        if len(own) == 1:
            expected.append(f"{words}.")
        for row in (each for each in own if each["kind"] == "change"):
            others = [each["delta"] for each in own if each["of"] == row["condition"]]
            interval = "" if np.isnan(row["delta_low"]) else f" [{row['delta_low']:+.3f}, {row['delta_high']:+.3f}]"
            beside = "no control of equal budget"
            if others:
                far = sum(abs(delta) >= abs(row["delta"]) for delta in others)
                beside = (
                    f"{several(len(others), 'random control')} of equal budget: {min(others):+z.3f} to "
                    f"{max(others):+z.3f}, {far} of them as far"
                )
            expected.append(
                f"{words}, {row['value']:.3f} under {row['condition']} ({row['delta']:+.3f}{interval}); {beside}."
            )
    assert score_sentences(pd.DataFrame(rows)) == expected


def _score(draw: np.random.Generator, task: str, metric: str) -> dict[str, Any]:
    delta, low = draw.normal(), draw.choice([np.nan, -1.0])
    return {
        "task": task, "metric": metric, "n": 7, "value": draw.uniform(), "delta": delta, "delta_low": low,
        "delta_high": delta + 1,
    }  # fmt: skip
