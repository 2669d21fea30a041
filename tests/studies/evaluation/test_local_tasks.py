"""Files of labelled prompts: what is read, and what is said of a bad line; nothing here needs the harness."""

import json
from pathlib import Path

import pytest

from sinklens.errors import InputError
from sinklens.studies.evaluation.local_tasks import read_task


def test_a_file_is_read_with_answers_by_number_and_by_words(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}',
        "",
        '{"prompt": "a", "choices": ["x", "y"], "answer": "x"}',
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    task = read_task(tmp_path / "sums.jsonl")
    assert task.name == "sums" and [row["answer"] for row in task.rows] == [1, 0]
    assert task.config()["task"] == "sums" and task.config()["output_type"] == "multiple_choice"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no json", "line 1: expected an object such as"),
        ("[1]", "expected an object"),
        ('{"prompt": " ", "choices": ["a", "b"], "answer": 0}', "expected an object"),
        ('{"prompt": "p", "choices": ["a"], "answer": 0}', "at least two texts"),
        ('{"prompt": "p", "choices": ["a", "a"], "answer": 0}', "two choices are the same"),
        ('{"prompt": "p", "choices": ["a", "b"], "answer": 2}', "answer must be one of the choices"),
        ('{"prompt": "p", "choices": ["a", "b"], "answer": true}', "answer must be one of the choices"),
        ("", "holds no prompt"),
    ],
)
def test_a_bad_line_is_named(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(InputError, match=told):
        read_task(tmp_path / "t.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_task(tmp_path / "missing.jsonl")


def test_answers_may_hold_any_text(tmp_path: Path) -> None:
    row = {"prompt": "Was ist grün?", "choices": ["Gras", "{{Blut}}"], "answer": "{{Blut}}"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8")
    assert read_task(tmp_path / "t.jsonl").rows[0]["answer"] == 1
