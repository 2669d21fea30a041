"""Heads that depend on a document: plain passes as oracle, a copying model, a window that cannot see, idle steering."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens import open as open_result
from sinklens.errors import InputError
from sinklens.interventions import FollowGaze, PaintScores, ScaleHeads
from sinklens.models.tokens import bos_prefix
from sinklens.studies import RankingTask, SpanHeads, find_span_heads
from sinklens.studies.document_ranking.prompts import make_prompt
from sinklens.studies.document_ranking.run import answer_log_prob
from sinklens.studies.span_heads.asking import asked_document
from sinklens.studies.span_heads.dependence import dependence, last_outputs, outliers, reinforced_heads
from sinklens.studies.span_heads.result import span_words
from tests.families import boot


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return load("induction-2l", device="cpu")


def tasks(count: int = 12, known: bool = True) -> list[RankingTask]:
    """Four documents of eight tokens: one holds question and answer, a rival the question; or none holds either."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        ids = rng.permutation(np.arange(4, 64))[:40].reshape(5, 8).tolist()
        gold = int(rng.integers(0, 4))
        source = ids[gold] if known else ids[4]
        if known:
            ids[(gold + 1 + int(rng.integers(0, 3))) % 4][:5] = source[:5]
        made.append(RankingTask(ids[:4], source[:5], gold, source[5:]))
    return made


@pytest.fixture(scope="module")
def found(model: TransformerBridge) -> SpanHeads:
    return find_span_heads(model, tasks(), top=2, controls=3)


def test_a_copying_model_has_heads_of_the_document_and_one_that_needs_none_has_not(
    model: TransformerBridge, found: SpanHeads
) -> None:
    heads = found.heads
    best = heads.sort_values("excess", ascending=False).iloc[0]
    assert best["layer"] == 1 and best["low"] > 0.1 and best["dependence"] > 3 * best["other"]
    assert set(heads[heads["chosen"]]["name"]) == set(heads.nlargest(2, "excess")["name"])
    change = found.summary().set_index("kind")["change"]
    assert change["span heads"] > 0.1 > 0 > change["other document"]
    none = find_span_heads(model, tasks(known=False), top=2, controls=0)
    assert none.heads["excess"].abs().max() < 0.5 * best["excess"]
    assert "random heads" not in set(none.steered["kind"]) and "random heads" not in none.verdict[1]


@torch.no_grad()
def test_every_number_equals_plain_passes(model: TransformerBridge, found: SpanHeads) -> None:
    """Heads of the even tasks; clean log-probability and PASTA's edit of whole patterns on an odd one."""
    sums = np.zeros((2, 4))
    for task in tasks()[::2]:
        outputs = []
        for without in (None, task.gold):
            documents = [each for i, each in enumerate(task.documents) if i != without]
            ids = [*make_prompt(model, documents, task.question, None, "auto").ids]
            cache = model.run_with_cache(torch.tensor([ids]))[1]
            outputs.append([cache[f"blocks.{layer}.attn.hook_z"][0, -1].double() for layer in range(2)])
        for layer in range(2):
            for head in range(4):
                sums[layer, head] += float((outputs[0][layer][head] - outputs[1][layer][head]).norm()) / 6
    mine = found.heads.sort_values(["layer", "head"])["dependence"].to_numpy().reshape(2, 4)
    assert mine == pytest.approx(sums, abs=1e-4)
    task = tasks()[3]
    prompt = make_prompt(model, task.documents, task.question, task.answer, "auto")
    ids, end = torch.tensor([prompt.ids]), prompt.answer.start
    assert task.gold is not None
    span = prompt.spans[task.gold]

    def log_prob(logits: torch.Tensor) -> float:
        return float(np.mean([float(logits[0, t - 1].log_softmax(-1)[ids[0, t]]) for t in range(end, ids.shape[1])]))

    def fainter(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        weight = torch.ones(pattern.shape[-1])
        weight[:end] = 0.01
        weight[span] = 1.0
        return pattern * weight / (pattern * weight).sum(-1, keepdim=True)

    rows = found.steered[found.steered["task"] == 3].set_index("kind")
    assert rows["clean"].iloc[0] == pytest.approx(log_prob(model(ids)), abs=1e-4)
    hooks = [(f"blocks.{layer}.attn.hook_pattern", fainter) for layer in range(2)]
    steered = model.run_with_hooks(ids, fwd_hooks=hooks)
    assert rows.loc["all heads", "log_prob"] == pytest.approx(log_prob(steered), abs=1e-3)


def test_a_context_that_a_model_cannot_see_has_no_dependence(tmp_path: Path) -> None:
    """The card's check: two layers with a window of 16 reach 30 tokens back."""
    model = boot("mistral", tmp_path)
    draw = np.random.default_rng(0)
    far, near = draw.integers(4, 250, 10).tolist(), draw.integers(4, 250, 50).tolist()
    whole = last_outputs(model, [*far, *near])
    unseen = dependence(whole, last_outputs(model, near))
    seen = dependence(whole, last_outputs(model, [*far, *near[:30], *near[40:]]))
    assert max(unseen.values()) < 1e-4 < 1e-2 < min(seen.values())


def test_vhr_leaves_out_heads_that_are_large_anyway() -> None:
    divergence, size = np.array([1.0, 9.0, 1.0, 1.0]), np.array([1.0, 1.0, 9.0, 1.0])
    assert not outliers(divergence, size).any()
    assert outliers(divergence, divergence).tolist() == [False, True, False, False]


def test_alpha_one_changes_nothing(model: TransformerBridge) -> None:
    idle = find_span_heads(model, tasks(4), top=1, alpha=1.0, controls=1)
    steered = idle.steered[~idle.steered["kind"].str.match("PAINT|GIFT|VHR")]
    assert len({*steered["kind"]}) == 6 and steered["change"].abs().max() < 1e-4


@torch.no_grad()
def test_other_emphases_equal_their_interventions_and_the_right_document_beats_another(
    model: TransformerBridge, found: SpanHeads
) -> None:
    """A copying model gains by what emphasises its document; VHR's heads are above their layer's median."""
    change = found.summary().set_index("kind")["change"]
    assert change["PAINT"] > change["PAINT, other document"] and change["GIFT"] > change["GIFT, other document"]
    task = tasks()[5]
    prompt = make_prompt(model, task.documents, task.question, task.answer, "auto")
    rows = found.steered[found.steered["task"] == 5].set_index("kind")
    end, span = prompt.answer.start, prompt.spans[task.gold or 0]
    whole, less = (
        last_outputs(model, make_prompt(model, some, task.question, None, "auto").ids)
        for some in (task.documents, [each for i, each in enumerate(task.documents) if i != task.gold])
    )
    chosen = reinforced_heads(whole, less)
    sizes = dependence(whole, less)
    assert 1 <= len(chosen) <= 4
    for layer in range(2):
        mine = np.array([sizes[layer, head] for head in range(4)])
        mine[outliers(mine, np.array([float(less[layer][head] @ less[layer][head]) for head in range(4)]))] = 0
        assert [head for at, head in chosen if at == layer] == np.flatnonzero(mine > np.median(mine)).tolist()
    question = range(prompt.question.start, prompt.question.stop)
    for kind, method in (
        ("PAINT", PaintScores(range(span.start, span.stop), first_layer=1, prompt_length=end)),
        ("GIFT", FollowGaze(range(span.start, span.stop), question, prompt_length=end)),
        ("VHR", ScaleHeads(chosen, 2.0, from_row=end - 1)),
    ):
        assert rows.loc[kind, "log_prob"] == pytest.approx(answer_log_prob(model, prompt, method), abs=1e-6)
        assert abs(rows.loc[kind, "change"]) > 1e-6


def test_the_document_that_a_copying_model_names(model: TransformerBridge, found: SpanHeads) -> None:
    """It goes on with the document that holds the question, or its rival; the answer's words decide."""
    some = tasks()[1::2]
    named = [asked_document(model, task, seed=number) for number, task in enumerate(some)]
    hits = sum(document == task.gold for document, task in zip(named, some, strict=True))
    rows = found.steered[found.steered["kind"] == "asked document"]
    right = sum(row.document == tasks()[row.task].gold for row in rows.itertuples())
    assert right == found.meta["picked"]["asked_right"] and hits >= 2
    assert f"names when asked (right in {right} of 6)" in found.verdict[2]
    means = {kind: some.groupby("task")["change"].mean().mean() for kind, some in found.steered.groupby("kind")}
    assert f"PAINT {means['PAINT']:+.2f} [" in found.verdict[3]
    assert f"(the other heads {means['VHR, other half']:+.2f} [" in found.verdict[3]


def test_sentences_files_and_wrong_input(model: TransformerBridge, found: SpanHeads, tmp_path: Path) -> None:
    heads, steered = found.heads, found.steered
    more = sum(1 for low in heads["low"] if low > 0)
    best = heads.loc[heads["excess"].idxmax()]
    assert found.verdict[0] == (
        f"{more} of 8 heads {'depends' if more == 1 else 'depend'} more on the right document than on a random other "
        f"one, most of all "
        f"{best['name']} ({best['dependence']:.2f} beside {best['other']:.2f})."
    )
    none = span_words(heads.assign(low=-1.0), steered, found.meta["picked"])[0]
    assert none.startswith("None of 8 heads depends more on the right document than on a random other one. Most: ")
    few = span_words(heads.assign(low=float("nan")), steered, found.meta["picked"])[0]  # as four questions give
    assert few.startswith("Which heads depend more on the right document than on a random other one is not judged: ")
    means = {kind: some.groupby("task")["change"].mean().mean() for kind, some in steered.groupby("kind")}
    assert f"log-probability by {means['span heads']:+.2f} [" in found.verdict[1]
    assert f"same layers by {means['random heads']:+.2f} [" in found.verdict[1]
    assert f"difference {means['span heads'] - means['random heads']:+.2f} [" in found.verdict[1]
    assert f"in all heads by {means['all heads']:+.2f} [" in found.verdict[1]
    said = found.meta["tokens"]["bos"]["statement"]  # nobody gave ids: the prompts were put together here
    assert said == bos_prefix(model, "auto")[1] and "caller" not in said
    right = sum(
        row.document == tasks()[row.task].gold for row in steered[steered["kind"] == "picked document"].itertuples()
    )
    assert f"right in {right} of 6): {means['picked document']:+.2f}" in found.verdict[2]
    found.save(tmp_path / "span")
    opened = open_result(tmp_path / "span")
    assert isinstance(opened, SpanHeads) and opened.verdict == span_words(heads, steered, found.meta["picked"])
    some = tasks(4)
    for wrong in (
        {"tasks": some[:3]}, {"top": 0}, {"top": 5}, {"controls": -1}, {"alpha": 0},
        {"tasks": [*some[:3], RankingTask(some[0].documents, [5])]},
        {"tasks": [*some[:3], RankingTask(some[0].documents, [5], 9, [6])]},
    ):  # fmt: skip
        with pytest.raises(InputError):
            find_span_heads(model, **{"tasks": some, "top": 1, **wrong})  # type: ignore[arg-type]
