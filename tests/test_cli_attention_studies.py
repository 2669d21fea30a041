"""`sinklens rank`, `paths`, `conflict`, `near-far`, `inject`, `pool`, `span`, `recall`: what they print and refuse."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sinklens import load
from sinklens import open as open_result
from sinklens.cli import app
from sinklens.errors import InputError
from sinklens.studies import (
    ConflictHeads,
    DocumentRanking,
    Injection,
    NearFar,
    PatchedPaths,
    PoolingComparison,
    SpanHeads,
)
from sinklens.studies.path_patching.prompts import repeated_prompts, text_prompts


def run(*words: object) -> str:
    ran = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.output.split())


def said(sentences: list[str], printed: str) -> bool:
    return all(" ".join(each.split()) in printed for each in sentences)


def test_rank_orders_files_and_tells_whether_they_are_used(tmp_path: Path) -> None:
    files = []
    for name, text in (("dog", "The dog ran to the park."), ("cake", "Lily baked a big cake."), ("sun", "It was hot.")):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text(text, "utf-8")
    out = tmp_path / "rank"
    words = ("rank", "tiny-llama", *files, "--question", "Who baked?", "--gold", "2", "--answer", "Lily")
    printed = run(*words, "--methods", "icr,overlap", "--out", out)
    found = open_result(out)
    assert isinstance(found, DocumentRanking) and said(found.verdict, printed)
    assert [*found.ranks["method"].unique()] == ["icr", "overlap"] and len(found.use) == 1
    assert found.ranks[found.ranks["gold"].astype(bool)]["document"].unique().tolist() == [1]
    assert "cake.txt" in printed and (out / "report.html").is_file()
    for bad, sentence in (
        (files[:1], "two or more documents"),
        ([*files, "--question", "Who?", "--gold", "4"], "--gold is the number of one of the 3 documents"),
        ([*files, "--question", "Who?", "--answer", "Lily"], "--gold is the number"),
        ([*files, "--question", "Who?", "--methods", "bm25"], r"methods must be some of .* got bm25"),
    ):
        with pytest.raises(InputError, match=sentence):
            run("rank", "tiny-llama", *bad)


def test_paths_of_random_tokens_and_of_a_file(tmp_path: Path) -> None:
    out = tmp_path / "paths"
    printed = run(
        "paths", "induction-2l", "--receivers", "L1H0.k", "--senders", "L0H0,L0H1", "--heads", "L0H0", "--controls", 2,
        "--out", out,
    )  # fmt: skip
    found = open_result(out)
    assert isinstance(found, PatchedPaths) and said(found.verdict, printed) and (out / "report.html").is_file()
    assert found.paths["sender"].tolist() == ["L0H0", "L0H1"] and found.paths["effect"][0] > 0.3
    pair = {"clean": "The cat sat on a", "corrupted": "The dog sat on a", "correct": " cat", "wrong": " dog"}
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([pair, pair]), "utf-8")
    printed = run("paths", "tiny-llama", "--prompts", file, "--senders", "L0H0")
    assert "2 sequences of" in printed and "Of 1 sender L0H0 " in printed
    for bad, sentence in (
        ([], "holds none"),
        ([{**pair, "clean": 3}], "entry 0"),
        ([pair, {"clean": "x"}], "entry 1"),
        ([pair, {**pair, "corrupted": "The dog sat on a big red mat"}], "one length in tokens.*pair 1"),
        ([{**pair, "wrong": " cat"}], "answers of pair 0 begin with the same token"),
    ):
        file.write_text(json.dumps(bad), "utf-8")
        with pytest.raises(InputError, match=sentence):
            run("paths", "tiny-llama", "--prompts", file)
    file.write_text("[", "utf-8")
    for path in (file, tmp_path / "none.json"):
        with pytest.raises(InputError, match=r"The file of --prompts .* cannot be read"):
            run("paths", "tiny-llama", "--prompts", path)


def test_repeated_prompts_differ_in_one_token_that_only_the_first_copy_tells() -> None:
    model = load("induction-2l", device="cpu")
    pairs = repeated_prompts(model, 3, seed=4)
    clean, corrupted = pairs.clean.ids, pairs.corrupted.ids
    assert clean.shape == corrupted.shape and ((clean != corrupted).sum(1) == 1).all()
    start = clean.shape[1] - 13
    assert (clean[:, start : start + 5] == clean[:, start + 8 :]).all()
    assert (clean != corrupted).nonzero()[:, 1].tolist() == [start + 4] * 3
    assert clean[:, start + 5].tolist() == pairs.correct and clean[:, start + 7].tolist() == pairs.wrong
    assert torch.equal(repeated_prompts(model, 3, seed=4).clean.ids, clean)
    with pytest.raises(InputError, match="at least one pair"):
        repeated_prompts(model, 0)
    with pytest.raises(InputError, match="at least one pair"):
        text_prompts(model, [])


def test_conflict_takes_prompts_from_a_file(tmp_path: Path) -> None:
    said_of = [("dog", " cat"), ("ball", " tree"), ("girl", " hat"), ("sun", " moon")]
    prompts = [
        {"prompt": f"The {a} likes the{b}. The {a} likes the", "context": b, "memory": " big", "unrelated": " red"}
        for a, b in said_of
    ]
    file, out = tmp_path / "prompts.json", tmp_path / "conflict"
    file.write_text(json.dumps(prompts), "utf-8")
    printed = run(
        "conflict", "tiny-llama", "--prompts", file, "--top", 1, "--how", "zero", "--controls", 2, "--out", out
    )
    found = open_result(out)
    assert isinstance(found, ConflictHeads) and said(found.verdict, printed) and (out / "report.html").is_file()
    assert {*found.pruned["way"]} <= {"zero"} and "Heads that take sides" in printed
    file.write_text(json.dumps(prompts[:3]), "utf-8")
    for words, sentence in ((["--prompts", file], "at least 4 prompts"), (["--how", "median"], "some of zero, mean")):
        with pytest.raises(InputError, match=sentence):
            run("conflict", "tiny-llama", *words)


def test_what_heads_lose_by_near_or_far_keys_and_what_inserted_tokens_draw(tmp_path: Path) -> None:
    out = tmp_path / "near-far"
    words = ("--controls", 2, "--max-sequences", 3, "--out", out)
    printed = run("near-far", "induction-2l", "L0H0", "L0H1", "--window", 4, *words)
    found = open_result(out)
    assert isinstance(found, NearFar) and said(found.verdict, printed) and (out / "report.html").is_file()
    assert found.costs["heads"][0] == "L0H0, L0H1" and len(found.costs) == 6
    with pytest.raises(InputError, match="L7H0"):
        run("near-far", "induction-2l", "L7H0")
    out = tmp_path / "inject"
    words = ("--places", "second,5", "--counts", "1,2", "--draws", 1, "--max-sequences", 2, "--out", out)
    printed = run("inject", "tiny-llama", "--token", "7", *words)
    injected = open_result(out)
    assert isinstance(injected, Injection) and said(injected.verdict, printed) and (out / "report.html").is_file()
    assert [*dict.fromkeys(injected.heads["place"])] == ["second", "5"] and {*injected.heads["count"]} == {1, 2}
    for bad, sentence in (
        (("--places", "nowhere"), "places must be some of"),
        (("--counts", "x"), "--counts takes numbers"),
    ):
        with pytest.raises(InputError, match=sentence):
            run("inject", "tiny-llama", *bad)


def test_poolings_from_a_file_and_heads_of_a_span(tmp_path: Path) -> None:
    file, out = tmp_path / "pairs.json", tmp_path / "pool"
    pairs = [("Who ran?", "The dog ran to the park."), ("Who baked?", "Lily baked a big cake.")]
    file.write_text(json.dumps([{"question": a, "document": b} for a, b in pairs]), "utf-8")
    printed = run("pool", "tiny-llama", "--pairs", file, "--layers", "1", "--poolings", "mean,sink_free", "--out", out)
    found = open_result(out)
    assert isinstance(found, PoolingComparison) and said(found.verdict, printed) and (out / "report.html").is_file()
    assert found.ranks["n"].unique().tolist() == [2] and {*found.ranks["pooling"]} == {"mean", "sink_free"}
    with pytest.raises(InputError, match="poolings must be some of"):
        run("pool", "tiny-llama", "--poolings", "max")
    out, file = tmp_path / "span", tmp_path / "tasks.json"
    documents = ["The dog ran to the park.", "Lily baked a big cake.", "It was hot."]
    asked = [("Who baked?", 2, "Lily"), ("Who ran?", 1, "The dog")] * 2
    tasks = [{"documents": documents, "question": q, "gold": gold, "answer": a} for q, gold, a in asked]
    file.write_text(json.dumps(tasks), "utf-8")
    printed = run("span", "tiny-llama", "--tasks", file, "--top", 2, "--controls", 1, "--out", out)
    heads = open_result(out)
    assert isinstance(heads, SpanHeads) and said(heads.verdict, printed) and (out / "report.html").is_file()
    assert heads.heads["chosen"].sum() == 2 and {*heads.steered["task"]} == {1, 3}
    for wrong in ({"documents": documents}, 3, tasks[0] | {"documents": documents[0]}):
        file.write_text(json.dumps([wrong]), "utf-8")
        with pytest.raises(InputError, match="--tasks takes a JSON list"):
            run("span", "tiny-llama", "--tasks", file)


def test_recall_refuses_facts_that_the_model_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([{"prompt": "a", "topic": "b", "answer": "c"}]), "utf-8")
    for words, sentence in ((("--facts", file), "at least 10 facts"), ((), "The model knows")):
        with pytest.raises(InputError, match=sentence):
            run("recall", "tiny-llama", *words)
