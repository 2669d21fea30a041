"""Heads that argue for the prompt's or the memory's answer: planted ones, plain transformers as oracle, none at all."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from sinklens import open as open_result
from sinklens.errors import InputError
from sinklens.models.as_bridge import as_bridge
from sinklens.studies import ConflictHeads, find_conflict_heads
from sinklens.studies.conflict_heads.result import conflict_words
from sinklens.studies.conflict_heads.run import ConflictPrompt, capital_prompts
from tests.families import byte_tokenizer
from tests.studies.test_factual_recall import facts
from tests.studies.test_factual_recall import planted as recall_model
from tests.studies.test_path_patching import WIDTH, Naive, plain

CONTEXT, MEMORY, THIRD = 10, 11, 12


def planted(strength: float = 1.0) -> LlamaForCausalLM:
    """Layer 2's head 0 writes for MEMORY against CONTEXT, its head 3 the other way; the last norm is linear."""
    model = plain()
    last = model.model.layers[2]
    with torch.no_grad():
        model.model.norm.variance_epsilon = 1e10
        model.model.norm.weight.fill_(1e5)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[:, 9] = 1.0  # at every token
        last.self_attn.v_proj.weight.zero_()
        last.self_attn.v_proj.weight[[0, WIDTH], 9] = 1.0
        gap = model.lm_head.weight[MEMORY] - model.lm_head.weight[CONTEXT]
        last.self_attn.o_proj.weight[:, 0] = strength * gap
        last.self_attn.o_proj.weight[:, 3 * WIDTH] = -2 * strength * gap
    return model


def prompts(count: int = 6) -> list[ConflictPrompt]:
    """Each twice, so that heads are chosen and pruned on the same ones; of two lengths."""
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(20, 261, (6 + number % 2,), generator=draw).tolist() for number in range(count)]
    return [ConflictPrompt(text, CONTEXT, MEMORY, THIRD) for text in texts for _ in range(2)]


def test_planted_heads_take_their_sides_and_pruning_is_exact(tmp_path: Path) -> None:
    """With a linear last norm zeroing a head of the last layer changes the logits by its direct attribution."""
    found = find_conflict_heads(as_bridge(planted(), tokenizer=byte_tokenizer()), prompts(), top=1, controls=3)
    heads = found.heads.set_index("name")
    assert heads["side"].loc[["L2H0", "L2H3"]].tolist() == ["memory", "context"]
    assert (heads["side"].drop(["L2H0", "L2H3"]) == "").all()
    pruned = found.pruned.set_index(["way", "kind", "draw"]).sort_index()
    assert pruned.loc[("zero", "memory", -1), "change"] == pytest.approx(-heads.loc["L2H0", "conflict"], abs=1e-3)
    assert pruned.loc[("zero", "context", -1), "change"] == pytest.approx(-heads.loc["L2H3", "conflict"], abs=1e-3)
    assert pruned.loc[("zero", "random")]["change"].abs().max() < 1e-4
    assert abs(pruned.loc[("mean", "memory", -1), "change"]) < 0.2 * abs(heads.loc["L2H0", "conflict"])
    assert found.verdict[0] == (
        f"1 of 12 heads argues for the context's answer against the other, most of all L2H3 "
        f"({heads.loc['L2H3', 'conflict']:+.2f} logits)."
    )
    row = pruned.loc[("zero", "context", -1)]
    assert f"leads by {row['logit_diff']:.2f} instead of {found.meta['clean']['logit_diff']:.2f}" in found.verdict[2]
    assert "p = 0.25" in found.verdict[2]
    found.save(tmp_path / "conflict")
    opened = open_result(tmp_path / "conflict")
    assert isinstance(opened, ConflictHeads)
    assert opened.verdict == conflict_words(found.heads, found.pruned, found.meta["clean"])


@torch.no_grad()
def test_scores_equal_plain_transformers() -> None:
    """What a head adds to a logit, by its output, W_O, the last norm as it stands, and the unembedding."""
    model = plain()
    own = copy.deepcopy(model)
    found = find_conflict_heads(as_bridge(model, tokenizer=byte_tokenizer()), prompts(), top=1, controls=0)
    naive, expected = Naive(own), {}
    for prompt in prompts()[::2]:
        seen: list[torch.Tensor] = []
        handle = own.model.norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        z = naive.run(torch.tensor([prompt.prompt]))[1]
        handle.remove()
        final = seen[0][0, -1]
        scale = own.model.norm.weight / (final.square().mean() + own.model.norm.variance_epsilon).sqrt()
        for layer in range(3):
            for head in range(4):
                part = slice(WIDTH * head, WIDTH * (head + 1))
                write = own.model.layers[layer].self_attn.o_proj.weight[:, part] @ z["z", layer][0, -1, part]
                logits = own.lm_head.weight @ (scale * write)
                sides = [float(logits[CONTEXT] - logits[THIRD]), float(logits[MEMORY] - logits[THIRD])]
                expected.setdefault(f"L{layer}H{head}", []).append(sides)
    for row in found.heads.itertuples():
        context, memory = torch.tensor(expected[row.name]).mean(0).tolist()
        assert (row.context, row.memory) == pytest.approx((context, memory), abs=1e-3)
        assert row.conflict == pytest.approx(context - memory, abs=1e-3)


def test_no_head_takes_a_side_where_none_writes_and_wrong_input() -> None:
    model = as_bridge(planted(0.0), tokenizer=byte_tokenizer())
    found = find_conflict_heads(model, prompts())
    assert found.pruned.empty and found.verdict[0] == "0 of 12 heads argue for the context's answer against the other."
    for wrong in (
        {"prompts": prompts()[:3]},
        {"ways": ["uniform"]},
        {"top": 0},
        {"prompts": [ConflictPrompt([5, 6], 10, 10, 12)] * 4},
    ):
        with pytest.raises(InputError):
            find_conflict_heads(model, **{"prompts": prompts(), **wrong})  # type: ignore[arg-type]
    built_in = capital_prompts()
    assert len({each.memory for each in built_in}) == 16
    assert all(len({p.context, p.memory, p.unrelated}) == 3 and p.context in p.prompt for p in built_in)  # type: ignore[operator]


def carried() -> LlamaForCausalLM:
    """L1H0 writes each prompt's topic against its answer, L1H1 half of the opposite."""
    model = recall_model(noise=0.1)
    write = model.model.layers[1].self_attn.o_proj.weight
    with torch.no_grad():
        topic, answer = write[:, :WIDTH].clone(), write[:, WIDTH : 2 * WIDTH].clone()
        write[:, :WIDTH], write[:, WIDTH : 2 * WIDTH] = topic - answer, 0.5 * (answer - topic)
    return model


@torch.no_grad()
def test_patched_paths_find_planted_heads_and_equal_plain_transformers() -> None:
    asked = facts()
    say = [ConflictPrompt(f.prompt, f.topic, f.answer, asked[n - 5].topic) for n, f in enumerate(asked)]  # type: ignore[arg-type]
    say = [each for each in say for _ in range(2)]  # those that choose are those that are pruned on
    model = carried()
    naive = Naive(copy.deepcopy(model))
    found = find_conflict_heads(as_bridge(model, tokenizer=byte_tokenizer()), say, by="path", top=1, controls=0)
    heads = found.heads.set_index("name")
    assert heads.loc["L1H0", "side"] == "context" and heads.loc["L1H1", "side"] == "memory"
    assert "logits by its patched path)" in found.verdict[0] and found.meta["settings"]["by"] == "path"
    expected: dict[str, list[list[float]]] = {}
    for length in {len(each.prompt) for each in say}:
        some = [each for each in say[::2] if len(each.prompt) == length]
        for number, each in enumerate(some):
            base, before = naive.run(torch.tensor([each.prompt]))
            other = naive.run(torch.tensor([some[number - 1].prompt]))[1]
            for layer in range(3):
                for head in range(4):
                    part = slice(WIDTH * head, WIDTH * (head + 1))
                    z = {at: before["z", at].clone() for at in range(3)}
                    z[layer][..., part] = other["z", layer][..., part]
                    lost = (base - naive.run(torch.tensor([each.prompt]), z, mlp=before)[0])[0]  # type: ignore[arg-type]
                    sides = [float(lost[answer] - lost[each.unrelated]) for answer in (each.context, each.memory)]  # type: ignore[index]
                    expected.setdefault(f"L{layer}H{head}", []).append(sides)
    for row in found.heads.itertuples():
        context, memory = torch.tensor(expected[row.name]).mean(0).tolist()
        assert (row.context, row.memory) == pytest.approx((context, memory), abs=1e-3)


def test_a_head_that_writes_the_same_everywhere_has_no_path_to_patch() -> None:
    own = planted()
    with torch.no_grad():  # a linear norm, so that what the heads read is the same at every token
        own.model.layers[2].input_layernorm.variance_epsilon = 1e10
        own.model.layers[2].input_layernorm.weight.fill_(1e5)
    model = as_bridge(own, tokenizer=byte_tokenizer())
    assert (find_conflict_heads(model, prompts(), top=1, controls=0).heads["side"] != "").sum() == 2
    found = find_conflict_heads(model, prompts(), by="path")
    assert (found.heads["side"] == "").all() and found.heads["conflict"].abs().max() < 1e-4
    alone = [ConflictPrompt([*range(20, 25 + n)], CONTEXT, MEMORY, THIRD) for n in range(4)]
    with pytest.raises(InputError, match="no two prompts have the same"):
        find_conflict_heads(model, alone, by="path")
    with pytest.raises(InputError, match='by must be "direct" or "path"'):
        find_conflict_heads(model, prompts(), by="causal")  # type: ignore[arg-type]
