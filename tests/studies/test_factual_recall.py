"""Recall of facts: a planted topic head and a planted layer that holds answers down, plain transformers as oracle."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from sinklens import open as open_result
from sinklens.errors import InputError
from sinklens.models.as_bridge import as_bridge
from sinklens.studies import Fact, FactualRecall, trace_recall
from sinklens.studies.factual_recall.facts import capitals
from sinklens.studies.factual_recall.result import recall_words
from sinklens.studies.factual_recall.run import _derangement, exchanged, over_rivals
from tests.families import byte_tokenizer
from tests.studies.test_path_patching import WIDTH, Naive, plain

COUNT = 14
TOPICS, ANSWERS = range(20, 20 + COUNT), range(40, 40 + COUNT)


def planted(topic: float = 1.0, held: float = 0.5, noise: float = 0.0) -> LlamaForCausalLM:
    """L1H0 writes the topic, L1H1 the answer; layer 2 takes a share of the answer back through L2H0.

    Topics are told apart by eight embedding entries that nothing else uses, answers by fourteen of the unembedding;
    all heads attend evenly.
    """
    model = plain()
    draw = torch.Generator().manual_seed(5)
    codes = torch.linalg.qr(torch.randn(COUNT, WIDTH, generator=draw))[0] * COUNT**0.5
    embed, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        model.model.norm.variance_epsilon = 1e10
        model.model.norm.weight.fill_(1e5)
        embed[:, :WIDTH], head[:, :WIDTH] = 0, 0
        embed[[*TOPICS], :WIDTH] = 2 * codes
        head[[*ANSWERS]] = 2 * torch.eye(32)[WIDTH : WIDTH + COUNT]
        head[[*TOPICS], WIDTH : WIDTH + COUNT] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(noise)
            layer.mlp.down_proj.weight.mul_(noise)
            layer.self_attn.o_proj.weight[:WIDTH], layer.mlp.down_proj.weight[:WIDTH] = 0, 0
        for number in (1, 2):
            attention = model.model.layers[number].self_attn
            attention.q_proj.weight.zero_()
            attention.v_proj.weight[:WIDTH] = 0
            attention.v_proj.weight[:WIDTH, :WIDTH] = torch.eye(WIDTH)
        write = {name: 4 * head[[*ids]].T @ codes / WIDTH for name, ids in (("t", TOPICS), ("a", ANSWERS))}
        first, second = (model.model.layers[number].self_attn.o_proj.weight for number in (1, 2))
        first[:, :WIDTH], first[:, WIDTH : 2 * WIDTH] = topic * write["t"], write["a"]
        second[:, :WIDTH], second[:, WIDTH : 2 * WIDTH] = -held * write["a"], 0
    return model


def facts() -> list[Fact]:
    """Prompts of three lengths with the topic in their middle."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for number, (topic, answer) in enumerate(zip(TOPICS, ANSWERS, strict=True)):
        before, after = (torch.randint(100, 250, (2 + extra,), generator=draw).tolist() for extra in (0, number % 3))
        found.append(Fact([*before, topic, *after], topic, answer))
    return found


def test_planted_heads_and_the_planted_layer_are_found(tmp_path: Path) -> None:
    found = trace_recall(as_bridge(planted(), tokenizer=byte_tokenizer()), facts(), top=1, controls=3)
    heads = found.heads.set_index("name")
    assert heads.index[heads["is_topic"]].tolist() == ["L1H0"] == heads.index[heads["chosen"]].tolist()
    assert heads.loc["L1H0", "sds"] >= 5 and heads.loc["L1H0", "low"] > 0 and heads.loc["L1H0", "shuffled"] < 0
    assert heads.loc["L1H1", "answer"] > 1 > abs(heads.loc["L1H1", "topic"])
    assert found.meta["suppressor"] == 2 and found.meta["clean"]["known"] >= 12
    layers = found.layers.set_index("layer")
    assert layers.loc[2, "high"] < 0 < layers.loc[1, "low"]
    # the last norm is linear, so what the last layer takes comes back when it is left out
    assert layers.loc[2, "total"] == pytest.approx(layers.loc[2, "attention"], abs=1e-3)
    assert layers.loc[2, "skipped"] > 0.1 and layers.loc[2, "lens"] == pytest.approx(found.meta["clean"]["log_prob"])
    assert layers.loc[1, "lens"] - layers.loc[2, "lens"] == pytest.approx(layers.loc[2, "skipped"], abs=1e-4)
    # its topic is not what answers are made of here: no head stands between it and them
    assert abs(found.pruned.set_index("kind").loc["topic", "change"]) < 1
    found.save(tmp_path / "recall")
    opened = open_result(tmp_path / "recall")
    assert isinstance(opened, FactualRecall)
    assert opened.verdict == recall_words(
        found.layers, found.heads, found.pruned, found.meta["clean"], found.meta["suppressor"]
    )
    assert opened.verdict[1].startswith("1 of 12 heads writes the topic at the last token, beyond topics exchanged")
    row = layers.loc[2]
    assert (
        f"changes its logit by {row['total']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] against"
        in opened.verdict[-1]
    )
    assert "it holds the right answer down" in opened.verdict[-1]


@torch.no_grad()
def test_every_column_equals_plain_transformers() -> None:
    """Heads' writes, blocks' writes and the lens, one prompt at a time."""
    model = planted(noise=0.02)
    own = copy.deepcopy(model)
    asked = facts()
    found = trace_recall(as_bridge(model, tokenizer=byte_tokenizer()), asked, controls=0)
    naive, parts = Naive(own), []
    known = [
        n for n, fact in enumerate(asked) if own(torch.tensor([fact.prompt])).logits[0, -1, [*ANSWERS]].argmax() == n
    ]
    for number in known:
        ids = torch.tensor([asked[number].prompt])
        out = own(ids, output_hidden_states=True)
        seen: list[torch.Tensor] = []
        handle = own.model.norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        z = naive.run(ids)[1]
        handle.remove()
        final = seen[0][0, -1]
        scale = own.model.norm.weight / (final.square().mean() + own.model.norm.variance_epsilon).sqrt()
        stream = [*(state[0, -1] for state in out.hidden_states[:3]), final]
        heads = [
            own.lm_head.weight
            @ (scale * (own.model.layers[layer].self_attn.o_proj.weight[:, part] @ z["z", layer][0, -1, part]))
            for layer in range(3)
            for part in (slice(WIDTH * head, WIDTH * (head + 1)) for head in range(4))
        ]
        blocks = [own.lm_head.weight @ (scale * (stream[layer + 1] - stream[layer])) for layer in range(3)]
        lens = [(own.lm_head.weight @ own.model.norm(state)).log_softmax(-1) for state in stream[1:]]
        parts.append((torch.stack(heads), torch.stack(blocks), torch.stack(lens)))
    heads, blocks, lens = (torch.stack(each).numpy() for each in zip(*parts, strict=True))
    choose, judge = range(0, len(known), 2), range(1, len(known), 2)
    for at, row in enumerate(found.heads.itertuples()):
        for name, ids in (("topic", TOPICS), ("answer", ANSWERS)):
            scores = []
            for place in choose:
                own_one, others = known[place], [known[other] for other in choose if other != place]
                scores.append(heads[place, at, ids[own_one]] - np.mean([heads[place, at, ids[n]] for n in others]))
            assert getattr(row, name) == pytest.approx(np.mean(scores), abs=1e-3)
    for row in found.layers.itertuples():
        rows = []
        for place in judge:
            all_logits = blocks[place, row.layer]
            right = all_logits[ANSWERS[known[place]]]
            rivals = np.mean([all_logits[ANSWERS[n]] for n in known if n != known[place]])
            chance = lens[place, row.layer, ANSWERS[known[place]]]
            rows.append((right - all_logits.mean(), rivals - all_logits.mean(), right - rivals, chance))
        expected = np.mean(rows, 0)
        assert (row.answer, row.rivals, row.total, row.lens) == pytest.approx(tuple(expected), abs=2e-3)


def test_exchanged_topics_and_a_model_without_either_show_nothing() -> None:
    asked = facts()
    wrong = [replace(fact, topic=asked[(n + 3) % COUNT].topic) for n, fact in enumerate(asked)]
    found = trace_recall(as_bridge(planted(), tokenizer=byte_tokenizer()), wrong)
    assert not found.heads["is_topic"].any() and found.pruned.empty
    nothing = trace_recall(as_bridge(planted(topic=0.0, held=0.0), tokenizer=byte_tokenizer()), asked)
    assert not nothing.heads["is_topic"].any() and nothing.meta["suppressor"] is None
    assert nothing.verdict[1] == (
        "0 of 12 heads write the topic at the last token, beyond topics exchanged between prompts."
    )
    assert nothing.verdict[-1] == "Late layers (layer 2): none takes from the right answer on the facts that choose."


def test_an_exchange_leaves_nobody_with_its_own() -> None:
    draw = np.random.default_rng(0)
    for n in (2, 3, 9):
        order = _derangement(draw, n)
        assert sorted(order.tolist()) == [*range(n)] and not (order == torch.arange(n)).any()
    logits = torch.rand(5, 3, 5, dtype=torch.float64)
    mean = torch.stack([exchanged(logits, order) for order in (torch.arange(5).roll(k) for k in range(1, 5))]).mean(0)
    torch.testing.assert_close(mean, -over_rivals(logits) / 4)  # over all exchanges


def test_what_cannot_be_asked() -> None:
    model = as_bridge(planted(), tokenizer=byte_tokenizer())
    asked = facts()
    for given, words, sentence in (
        (asked[:9], {}, "at least 10 facts"),
        ([*asked, replace(asked[0], prompt=[5, 6])], {}, "fact 14 begins with the token of another"),
        ([replace(fact, answer=60 + n) for n, fact in enumerate(asked)], {}, "knows . of 14 facts"),
        (asked, {"top": 0}, "top must be at least 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            trace_recall(model, given, **words)  # type: ignore[arg-type]
    built_in = capitals()
    assert len({fact.topic for fact in built_in}) == len({fact.answer for fact in built_in}) == 32
