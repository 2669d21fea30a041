"""`sinklens roles` as a user meets it: what it prints and saves, what reads its files, and every bad input."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinklens.studies import Roles
from sinklens.studies.ablation.result import Sweep
from sinklens.studies.causal_check.result import CausalCheck
from sinklens.studies.head_roles.criteria import CRITERIA
from sinklens.studies.head_roles.role_file import RoleFile
from tests.studies.head_roles.synthetic import gates_file, retrieval_file

SMALL = ("--max-tokens", "24", "--max-sequences", "6")


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    return retrieval_file(tmp_path), gates_file(tmp_path, name="duo.tsv")


def test_it_measures_prints_and_saves(sinklens: Any, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "roles"
    status, printed, err = sinklens("roles", "bb-3l", "--scores", "sinks,pattern", *SMALL, "--out", out)
    assert status == 0, err
    assert "1 of 2, sinks: attention on one key" in err and "2 of 2, pattern" in err
    assert (
        "bb-3l: OPTForCausalLM, 3 layers x 1 head, float32 on cpu; 1 KV head a layer." in printed
        and "sink: 2 of 3 heads (L1H0, L2H0)" in printed
    )
    assert f"Figure: {out / 'roles.html'}" in printed and "L1H0" in printed and "*" in printed
    roles = Roles.load(out)
    assert roles.criteria()["from"].tolist() == ["sinks", *["pattern"] * 5]
    assert RoleFile.read(out / "head-roles.json").heads("sink") == ((1, 0), (2, 0))
    assert (out / "roles.html").stat().st_size > 1000
    assert sinklens("roles", "bb-3l", "--scores", "sinks,pattern", *SMALL, "--out", out)[0] == 0, "once more"
    status, _, err = sinklens("roles", "bb-3l", "--scores", "sinks", "--max-tokens", "16", "--out", out)
    assert status == 2 and "--restart" in err
    assert sinklens("roles", "bb-3l", "--scores", "sinks", "--max-tokens", "16", "--out", out, "--restart")[0] == 0
    status, printed, _ = sinklens("roles", "bb-3l", "--scores", "sinks", *SMALL)
    assert status == 0 and "Nothing was saved; add --out DIR" in printed


def test_published_tables_are_compared_without_a_model(sinklens: Any, published: Any, tmp_path: Path) -> None:
    retrieval, duo = published
    status, printed, err = sinklens("roles", "--import", retrieval, "--import", duo, "--out", tmp_path / "out")
    assert status == 0, err
    roles = Roles.load(tmp_path / "out")
    assert roles.criteria()["criterion"].tolist() == ["retrieval", "streaming_gate"]
    assert roles.agreement()["unit"].item() == "kv_head"
    assert "3 layers x 4 heads; 2 KV heads a layer" in printed and "of 6 KV heads" in printed
    status, printed, _ = sinklens("roles", "--import", f"mine={duo}", "--query-heads", 8)
    assert status == 0 and "mine: 3 layers x 8 heads" in printed
    status, _, err = sinklens("roles", "--import", duo, "--query-heads", 5)
    assert status == 2 and "do not divide 5 heads" in err


def test_ablate_reads_the_roles_of_a_published_model(sinklens: Any, model: Path, tmp_path: Path) -> None:
    content = {
        f"{layer}-{head}": [0.5 if (layer, head) in ((0, 1), (1, 3)) else 0.01]
        for layer in range(2)
        for head in range(4)
    }
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert (
        sinklens("roles", model, "--scores", "none", "--import", tmp_path / "scores.json", "--out", tmp_path / "r")[0]
        == 0
    )
    file = tmp_path / "r" / "head-roles.json"
    words = ("--controls", 1, "--max-sequences", 2, "--max-tokens", 16)
    groups = ("--group", f"retrieval={file}", "--group", f"again={file}:retrieval")
    status, printed, err = sinklens("ablate", model, *groups, *words, "--out", tmp_path / "a")
    assert status == 0, err
    table = Sweep.load(tmp_path / "a").effects.to_dataframe()
    assert {*table[table["kind"] == "group"]["heads"]} == {"L0H1,L1H3"}
    ranked = ("--ranking", f"{tmp_path / 'scores.json'}:retrieval", "--top", "2")
    status, printed, err = sinklens("ablate", model, *ranked, *words)
    assert status == 0 and "top-2 (2 heads)" in printed, err
    status, _, err = sinklens("ablate", model, "--group", f"x={file}", *words)
    assert status == 2 and "no role 'x'" in err


def test_the_causal_check_is_part_of_it(sinklens: Any, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = ("roles", model, "--scores", "sinks", *SMALL, "--out", tmp_path / "out")
    module = import_module("sinklens.studies.causal_check.run")
    monkeypatch.setattr(module, "LENGTH", 20)
    monkeypatch.setattr(module, "SIZE", 2)
    status, printed, err = sinklens(*words, "--causal", "importance:1")
    assert status == 0, err
    check = CausalCheck.load(tmp_path / "out" / "causal")
    assert check.meta["settings"]["top"] == [1] and {*check.sets["way"]} == {"uniform", "zero", "mean"}
    assert check.meta["ranking"][0] == "L{}H{}".format(*Roles.load(tmp_path / "out").ranking("importance")[0])
    assert "zero masking of the top head: exact match" in printed and "Causal check:" in printed
    for causal, sentence in (("induction", "no score 'induction'"), ("importance:x", "takes SCORE or SCORE:K")):
        status, _, err = sinklens(*words, "--causal", causal)
        assert status == 2 and sentence in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Name a MODEL, or files with --import"),
        (("--scores", "sinks"), "Name a MODEL to measure something on it"),
        (("bb-3l", "--scores", "magic"), "Unknown criteria magic"),
        (("bb-3l", "--scores", "none"), "Unknown criteria (none)"),
        (("--import", "none.json"), "There is no file of head scores none.json"),
        (("bb-3l", "--import", "none.json"), "There is no file of head scores none.json"),
        (("bb-3l", "--scores", "sinks", "--top", "0", *SMALL), "top must be at least 1"),
    ],
)
def test_bad_input_ends_in_one_sentence(sinklens: Any, words: tuple[str, ...], sentence: str) -> None:
    status, _, err = sinklens("roles", *words)
    assert status == 2 and sentence in err and "Traceback" not in err


def test_scores_of_another_model_are_refused(sinklens: Any, published: Any) -> None:
    status, _, err = sinklens("roles", "bb-3l", "--scores", "none", "--import", published[0])
    assert status == 2 and "model-a is of 3 layers x 4 heads (4 KV heads), and the model has 3 x 1 (1)" in err


def test_an_interruption_keeps_what_is_finished(sinklens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    replaced = {**CRITERIA, "pattern": type(CRITERIA["pattern"])("pattern", "x", False, False, ("induction",), stop)}
    monkeypatch.setattr("sinklens.studies.head_roles.run.CRITERIA", replaced)
    status, _, err = sinklens("roles", "bb-3l", "--scores", "sinks,pattern", *SMALL, "--out", tmp_path / "out")
    assert status == 130 and "finished criteria are in" in err and "the same command goes on" in err
    assert len([*(tmp_path / "out" / "parts").glob("sinks-*")]) == 1


def test_help_teaches(sinklens: Any) -> None:
    status, printed, _ = sinklens("roles", "--help")
    assert status == 0 and "sinklens roles induction-2l --out runs/roles" in printed
    for name in CRITERIA:
        assert name in printed


def test_gates_of_a_role_load_as_duo_attention_does(tmp_path: Path, published: Any, sinklens: Any) -> None:
    assert sinklens("roles", "--import", published[0], "--out", tmp_path / "out")[0] == 0
    path = RoleFile.read(tmp_path / "out" / "head-roles.json").gates("retrieval").write(tmp_path / "patterns")
    assert np.loadtxt(path, delimiter="\t").shape == (3, 4)
