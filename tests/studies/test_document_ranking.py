"""Documents ranked by attention: every rule against loops over whole patterns, the card's trials, a planted bias."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens import open as open_result
from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention
from sinklens.studies import DocumentRanking, RankingTask, rank_documents
from sinklens.studies.document_ranking.methods import METHODS, Seen
from sinklens.studies.document_ranking.prefix import attention_after
from sinklens.studies.document_ranking.prompts import (
    attention_from,
    blank_question,
    builtin_tasks,
    make_prompt,
    words_of,
)
from sinklens.studies.document_ranking.result import ranking_words
from tests.families import boot


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return load("induction-2l", device="cpu")


def trials(model: TransformerBridge, count: int, gold_from: int = 0) -> list[RankingTask]:
    """Five documents of eight random tokens; the question is a copy of one."""
    rng = np.random.default_rng(0)
    tasks = []
    for _ in range(count):
        ids = rng.permutation(np.arange(4, 64))[:40].reshape(5, 8).tolist()
        gold = int(rng.integers(gold_from, 5))
        tasks.append(RankingTask(ids, ids[gold], gold))
    return tasks


class Bias(Intervention):
    """So much more on the scores of some keys."""

    def __init__(self, by: float, keys: slice) -> None:
        self.by, self.keys = by, keys

    def edits(self, positions: object) -> list[object]:
        return [self]

    def edit_scores(self, block: Block) -> None:
        if block.rows.start == 0:
            width = block.scores.shape[-1]
            keys = torch.arange(block.keys.start, block.keys.start + width)
            inside = (keys >= self.keys.start) & (keys < self.keys.stop)
            block.scores += self.by * inside


@torch.no_grad()
def naive(
    model: TransformerBridge, task: RankingTask, bos: str = "auto", reverse: bool = False
) -> dict[str, list[float]]:
    """The attention rules, from whole patterns and in loops."""
    blank = blank_question(model, task, 0)
    prompts = [make_prompt(model, task.documents, q, None, bos, reverse) for q in (task.question, blank)]  # type: ignore[arg-type]
    sums = []
    for prompt in prompts:
        cache = model.run_with_cache(torch.tensor([prompt.ids]))[1]
        patterns = [cache[f"blocks.{i}.attn.hook_pattern"][0].double() for i in range(len(model.blocks))]
        rows = range(prompt.question.start, prompt.question.stop)
        mean = [
            sum(float(p[h, t, j]) for p in patterns for h in range(p.shape[0]) for t in rows) / len(rows)
            for j in range(len(prompt.ids))
        ]
        last = [sum(float(p[h, -1, j]) for p in patterns for h in range(p.shape[0])) for j in range(len(prompt.ids))]
        final = [[sum(float(head[t, j]) for head in patterns[-1]) for j in range(len(mean))] for t in rows]
        own = [sum(row[j] for j in rows) ** 2 for row in final]
        top = [sum(row[j] for row in final) / len(rows) for j in range(len(mean))]
        heavy = [sum(w * row[j] for w, row in zip(own, final, strict=True)) / len(rows) for j in range(len(mean))]
        sums.append((mean, last, top, heavy))
    found: dict[str, list[float]] = {
        name: [] for name in ("icr", "calibrated", "query_attention", "last_token", "infini", "infini_weighted")
    }
    spans = prompts[0].spans
    first, end = min(span.start for span in spans), max(span.stop for span in spans)
    for span in spans:
        where = range(span.start, span.stop)
        c = [sums[0][0][j] - sums[1][0][j] for j in where]
        mean = sum(c) / len(c)
        sd = math.sqrt(sum((x - mean) ** 2 for x in c) / (len(c) - 1))
        found["icr"].append(sum(x for x in c if x > mean - 2 * sd))
        found["calibrated"].append(sum(c))
        found["query_attention"].append(sum(sums[0][0][j] for j in where))
        found["last_token"].append(sum(sums[0][1][j] for j in where))
        for name, mass in (("infini", sums[0][2]), ("infini_weighted", sums[0][3])):
            phrases = [sum(mass[m] for m in range(max(first, j - 3), min(end, j + 5)) if m > 0) for j in where]
            found[name].append(max(phrases))
    return found


def test_every_rule_equals_loops_over_whole_patterns() -> None:
    llama = load("tiny-llama", device="cpu")
    texts = RankingTask(["a red fox", "blue sky", "x yz"], "the red fox", 0, "fox")
    for task in (texts, RankingTask([[9, 8, 7, 30], [11, 12], [40, 41, 42]], [11, 12, 13], 1)):
        for reverse in (True, False):
            found = rank_documents(llama, tasks=[task], reverse=reverse).ranks
            for name, scores in naive(llama, task, reverse=reverse).items():
                mine = found[found["method"] == name]
                assert mine["score"].tolist() == pytest.approx(scores, abs=1e-5), name
                order = sorted(range(3), key=lambda i: -scores[i])
                assert [order.index(i) + 1 for i in range(3)] == mine["rank"].tolist()
    mine = found[found["method"] == "overlap"]["score"].tolist()
    assert mine == pytest.approx([0, 2 / 3, 0])
    assert sorted(found[found["method"] == "random"]["rank"]) == [1, 2, 3]
    by_place = [
        rank_documents(llama, tasks=[task], reverse=way, methods=["place"], use=False).ranks for way in (False, True)
    ]
    assert [[*each["rank"]] for each in by_place] == [[1, 2, 3], [3, 2, 1]]


def test_the_trials_of_the_card(model: TransformerBridge) -> None:
    """A copied document is found by all rules that ask every token; the last token looks at the one that follows."""
    found = rank_documents(model, tasks=trials(model, 30))
    table = found.summary().set_index("method")
    for name in ("icr", "calibrated", "query_attention", "infini"):
        assert table.loc[name, "share"] >= 0.95, table
    assert table.loc["last_token", "share"] < table.loc["query_attention", "share"] - 0.3
    assert table.loc["random", "low"] < 0.2 < table.loc["random", "high"]
    assert table["chance"].to_numpy() == pytest.approx(0.2)


def test_a_planted_preference_for_a_place_is_calibrated_away(model: TransformerBridge) -> None:
    tasks = trials(model, 16, gold_from=1)
    span = make_prompt(model, tasks[0].documents, tasks[0].question, None, "auto").spans[0]
    found = rank_documents(
        model, tasks=tasks, use=False, methods=["query_attention", "calibrated"], intervention=Bias(8.0, span)
    )
    table = found.summary().set_index("method")
    assert table.loc["query_attention", "share"] < 0.2 and table.loc["calibrated", "share"] > 0.8, table


def test_the_content_free_question_ranks_nothing() -> None:
    """Question and calibration alike: every calibrated score is zero. A document of one token keeps its token."""
    mass = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spans = [slice(1, 6), slice(6, 11), slice(11, 12)]
    words = frozenset({"a"})
    rows, asked = mass[None], slice(0)
    seen = Seen(mass, mass, mass, rows, asked, spans, words, [words] * 3, 0)
    assert METHODS["icr"](seen) == METHODS["calibrated"](seen) == [0.0, 0.0, 0.0]
    one = Seen(mass, torch.zeros_like(mass), mass, rows, asked, spans, words, [words] * 3, 0)
    assert METHODS["icr"](one)[2] == float(mass[11])
    sunk = mass.clone()
    sunk[0] = 100
    first = Seen(sunk, mass, mass, sunk[None], asked, [slice(0, 5), slice(5, 12)], words, [words] * 2, 0)
    assert max(METHODS["infini"](first)) < 20  # a sink at position 0 does not keep its document


@torch.no_grad()
def test_context_use_against_plain_passes(model: TransformerBridge) -> None:
    """An answer that only the gold document holds loses by its absence; an answer of no document does not."""
    rng = np.random.default_rng(1)
    tasks = []
    for gold in (0, 2, 3, 1, 2, 3):
        ids = rng.permutation(np.arange(4, 64))[:32].reshape(4, 8).tolist()
        tasks.append(RankingTask(ids, ids[gold][:5], gold, ids[gold][5:]))
    found = rank_documents(model, tasks=tasks, methods=["query_attention"])
    use = found.use
    assert (use["lost_gold"] > 1).all() and (use["lost_gold"] > use["lost_other"] + 1).all()
    assert use["share"].mean() > 0.5 and use["share_null"].tolist() == [0.25] * 6
    prompt = make_prompt(model, tasks[0].documents, tasks[0].question, tasks[0].answer, "auto")
    logits, cache = model.run_with_cache(torch.tensor([prompt.ids]))
    n = len(prompt.ids)
    plain = np.mean([float(logits[0, n - 4 + i].log_softmax(-1)[prompt.ids[n - 3 + i]]) for i in range(3)])
    assert use["log_prob"][0] == pytest.approx(plain, abs=1e-4)
    rows = torch.stack([cache[f"blocks.{i}.attn.hook_pattern"][0] for i in range(2)])[:, :, n - 4 : n - 1].sum(
        (0, 1, 2)
    )
    masses = [float(rows[span].sum()) for span in prompt.spans]
    assert use["share"][0] == pytest.approx(masses[0] / sum(masses), abs=1e-5)
    other = [[*task.documents, [60, 61]] for task in tasks]
    none = [RankingTask(d, t.question, 4, t.answer) for d, t in zip(other, tasks, strict=True)]
    assert rank_documents(model, tasks=none, methods=["random"]).use["lost_gold"].abs().mean() < 0.5


def test_sentences_heads_files_and_wrong_input(model: TransformerBridge, tmp_path: Path) -> None:
    tasks = trials(model, 6)
    found = rank_documents(model, tasks=tasks)
    ranks = found.ranks
    gold = ranks[ranks["gold"].astype(bool)]
    hits = {name: sum(some["rank"] == 1) for name, some in gold.groupby("method")}
    name = found.verdict[0].split(" puts")[0]
    rules = set(METHODS) - {"overlap", "place", "random"}
    assert hits[name] == max(hits[each] for each in rules)
    assert (
        f"first in {hits[name]} of 6 tasks" in found.verdict[0] and f"overlap in {hits['overlap']}" in found.verdict[0]
    )
    tops = [int(ranks[(ranks["task"] == i) & (ranks["method"] == name)]["rank"].argmin()) for i in range(6)]
    assert found.verdict[1] == (
        f"In {tops.count(0)} of 6 tasks the document that {name} puts first is the first of the prompt."
    )
    found.save(tmp_path / "ranked")
    opened = open_result(tmp_path / "ranked")
    assert isinstance(opened, DocumentRanking) and opened.verdict == ranking_words(ranks, found.use) == found.verdict
    parts = [
        rank_documents(model, tasks=tasks[:1], heads=[f"L{layer}H{head}" for head in range(4)], methods=["calibrated"])
        for layer in range(2)
    ]
    both = sum(part.ranks["score"].to_numpy() for part in parts)
    whole = ranks[(ranks["task"] == 0) & (ranks["method"] == "calibrated")]["score"].to_numpy()
    assert both == pytest.approx(whole, abs=1e-6)
    less = rank_documents(model, tasks=tasks, methods=["calibrated"], intervention=AblateHeads("all", how="zero"))
    assert less.summary()["n"].tolist() == [6]
    single = rank_documents(model, tasks[0].documents, tasks[0].question)
    assert single.ranks["gold"].isna().all() and "First by icr: document" in single.verdict[0]
    for wrong in (
        {"documents": [[5, 6]], "question": [5]},
        {"documents": [[5, 6], []], "question": [5]},
        {"documents": [[5, 6], "a"], "question": [5]},
        {"documents": [[5], [6]]},
        {"tasks": tasks, "methods": ["bm25"]},
        {"tasks": []},
        {"tasks": [RankingTask([[5], [6]], [5], gold=2)]},
        {"documents": [[5] * 5000, [6]], "question": [5]},
    ):
        with pytest.raises(InputError):
            rank_documents(model, **wrong)  # type: ignore[arg-type]


def test_the_builtin_questions_share_no_content_word_with_their_answers() -> None:
    small = {"the", "a", "an", "of", "to", "in", "on", "for", "was", "were", "did", "do", "how", "what", "which", "who"}
    small |= {"why", "where", "by", "his", "her", "with", "and", "not", "it", "at"}
    small |= {"from", "than", "had", "that", "he", "she", "made", "get", "is", "are", "some", "through"}
    tasks = builtin_tasks()
    assert len(tasks) == 20 and len({task.gold for task in tasks}) > 5
    for task in tasks:
        assert task.gold is not None and len(set(task.documents)) == 6
        shared = words_of(task.question) & words_of(task.documents[task.gold])
        assert shared <= small, (task.question, shared)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_documents_read_once_give_what_whole_passes_give(name: str, tmp_path: Path) -> None:
    """With caches that drop keys too; the same ending twice gives the same numbers, so a question is its own zero."""
    bridge = boot(name, tmp_path)
    ids = torch.randint(4, 250, (48,), generator=torch.Generator().manual_seed(2)).tolist()
    prefix, ending, other = ids[:30], ids[30:42], ids[42:]
    sets = {"question": slice(33, 40), "last": slice(41, 42)}
    endings = [(ending, sets), (other, {"question": slice(31, 35)}), (ending, sets)]
    found = attention_after(bridge, prefix, endings, None, None)
    for (mine, own), sums in zip(endings, found, strict=True):
        for whole, part in zip(attention_from(bridge, [*prefix, *mine], own, None, None), sums, strict=True):
            for key, values in whole.items():
                torch.testing.assert_close(part[key], values, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2][0]["question"], found[0][0]["question"], atol=1e-6, rtol=0)


def test_weights_of_the_question_turn_to_the_token_that_looks_at_the_question() -> None:
    rows = torch.zeros(2, 14, dtype=torch.float64)
    rows[0, 1], rows[0, 12] = 0.9, 0.1  # looks at the first document, hardly at the question
    rows[1, 11], rows[1, 13] = 0.4, 0.6
    words = frozenset({"a"})
    seen = Seen(rows[0], rows[0], rows[0], rows, slice(12, 14), [slice(1, 6), slice(6, 12)], words, [words] * 2, 0)
    assert METHODS["infini"](seen) == pytest.approx([0.45, 0.2])
    assert METHODS["infini_weighted"](seen) == pytest.approx([0.1**2 * 0.9 / 2, 0.6**2 * 0.4 / 2])
