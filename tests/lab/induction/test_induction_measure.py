"""The plain measurements give known answers on constructed patterns, and agree with Hugging Face and the engine."""

import math

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaForCausalLM

from sinklens.interventions import AblateHeads
from sinklens.lab.folders import full_weights, write_model
from sinklens.lab.gate import Gate
from sinklens.lab.induction.masked import MASKINGS, Head, Masking, masked, mean_outputs
from sinklens.lab.induction.measure import check_gates, gates, measure
from sinklens.lab.induction.patterns import patterns, retrieval, stripes
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.induction.training import build_model
from sinklens.lab.tasks import DistinctNeedle, RepeatedSpans
from sinklens.lab.tasks.distinct_needle import FoundNeedles
from sinklens.lab.tokenizer import word_tokenizer, words
from sinklens.models.load import load
from tests.lab.induction.tiny import SETTINGS


def blocks(block: int, repeats: int, batch: int = 2) -> torch.Tensor:
    task = RepeatedSpans(512, (repeats, repeats), 0.0, 1 + block * repeats)
    return task.sample(batch, generator=torch.Generator().manual_seed(0))


def one_hot(keys: torch.Tensor, batch: int) -> torch.Tensor:
    """A pattern of one head in which query `i` attends to key `keys[i]` alone."""
    return torch.nn.functional.one_hot(keys, len(keys)).float().expand(batch, 1, -1, -1)


@pytest.fixture(scope="module")
def random_model() -> LlamaForCausalLM:
    """Grouped queries, and weights large enough that attention is far from uniform."""
    model = build_model(InductionSettings(heads=4, kv_heads=2, d_model=32, n_words=80, longest=67, short_longest=64))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name and ".mlp." not in name:
                parameter.normal_(std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def bridge(random_model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    folder = tmp_path_factory.mktemp("random")
    write_model(folder, random_model, full_weights(random_model), word_tokenizer(words(80), "<s>", 67))
    return load(folder, device="cpu")


@pytest.fixture
def ids() -> torch.Tensor:
    return DistinctNeedle(80, 3, 40).sample(3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "back", "expected"),
    [
        ("induction", 15, {"induction": 1.0, "duplicate_token": 0.0}),
        ("duplicate", 16, {"induction": 0.0, "duplicate_token": 1.0}),
        ("previous", 1, {"induction": 0.0, "duplicate_token": 0.0, "previous_token": 1.0}),
        ("later copies count too", 31, {"induction": 32 / 48, "duplicate_token": 0.0}),
    ],
)
def test_perfect_heads_score_one(name: str, back: int, expected: dict[str, float]) -> None:
    ids = blocks(16, 4)
    keys = (torch.arange(65) - back).clamp(min=0)
    found = stripes(one_hot(keys, 2), ids)
    for score, value in expected.items():
        assert found[score].item() == pytest.approx(value), name


@pytest.mark.parametrize(("block", "repeats"), [(30, 2), (16, 4)])
def test_uniform_attention_scores_its_closed_form(block: int, repeats: int) -> None:
    length = 1 + block * repeats
    ids, rows = blocks(block, repeats), torch.arange(1.0, length + 1)
    uniform = (torch.ones(length, length).tril() / rows[:, None]).expand(2, 3, -1, -1)
    found = stripes(uniform, ids)
    # of query i (BOS is 0) the earlier copies are (i - 1) // block of i + 1 keys
    copies = sum((i - 1) // block / (i + 1) for i in range(1 + block, length)) / (length - 1 - block)
    reached = sum(1 / (i + 1) for i in range(1, length)) / (length - 1)
    idle = sum(1 / (i + 1) for i in range(1, 1 + block)) / block
    expected = {"induction": copies, "duplicate_token": copies, "previous_token": reached, "bos_mass": reached}
    for name, value in (expected | {"idle_bos_mass": idle}).items():
        assert found[name].tolist() == pytest.approx([value] * 3, abs=1e-6)
    if (block, repeats) == (30, 2):
        assert [round(v, 3) for v in (copies, reached, idle)] == [0.022, 0.062, 0.101]
    else:
        assert round(copies, 3) == 0.047


def test_retrieval_counts_values_that_are_attended_to_and_said() -> None:
    # BOS, three words (a value among them), key 5 and values 6 7, two words, the key again and its values
    ids = torch.tensor([[9, 6, 1, 2, 5, 6, 7, 3, 4, 5, 6, 7]])
    needles = FoundNeedles(ids, torch.tensor([5]))
    length, said = ids.shape[1] - 1, torch.zeros(1, 11, 10)

    def score(keys: list[int], words: list[int]) -> tuple[list[list[float]], bool]:
        logits = said.clone()
        for place, word in zip((9, 10), words, strict=True):
            logits[0, place, word] = 1.0
        pattern = torch.zeros(1, 2, length, length)
        pattern[..., 0] = 0.1
        for place, key in zip((9, 10), keys, strict=True):
            pattern[0, 0, place, key] = 0.9
        found = retrieval(logits, [pattern], needles, 2)
        return found.scores.tolist(), bool(found.kept)

    assert score([5, 6], [6, 7]) == ([[1.0, 0.0]], True)
    assert score([5, 2], [6, 7]) == ([[0.5, 0.0]], True)
    # the same word elsewhere is not the needle
    assert score([1, 6], [6, 7]) == ([[0.5, 0.0]], True)
    # the key is no value
    assert score([4, 6], [6, 7]) == ([[0.5, 0.0]], True)
    assert score([6, 5], [6, 7])[0] == [[0.0, 0.0]]
    scores, kept = score([5, 6], [6, 3])
    assert not kept and all(math.isnan(value) for value in scores[0])


def test_patterns_are_those_of_hugging_face_and_leave_nothing_behind(
    random_model: LlamaForCausalLM, ids: torch.Tensor
) -> None:
    hooks = [dict(module._forward_hooks) for module in random_model.modules()]
    found = patterns(random_model, ids)
    assert random_model.config._attn_implementation != "eager"
    assert hooks == [dict(module._forward_hooks) for module in random_model.modules()]
    with torch.no_grad():
        torch.testing.assert_close(found.logits, random_model(ids).logits)
    for pattern in found.attention:
        assert pattern.shape == (3, 4, 40, 40)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 4, 40))
        assert not pattern.triu(1).any() and pattern.max(-1).values.mean() > 0.3
    # scores computed by hand in layer 0, where the input is the embedding
    layer = random_model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(random_model.model.embed_tokens(ids))
        query, key = (
            getattr(layer.self_attn, name)(hidden).unflatten(-1, (-1, 8)).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        half = 4
        angle = torch.arange(40.0)[:, None] / 10_000 ** (torch.arange(half) / half)
        cos, sin = angle.cos().tile(2), angle.sin().tile(2)
        query, key = (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin for x in (query, key))
        scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / 8**0.5
        expected = scores.masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
    torch.testing.assert_close(found.attention[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", MASKINGS)
@pytest.mark.parametrize("heads", [[(0, 1)], [(0, 0), (1, 2), (1, 3)]])
def test_masking_is_what_the_engine_does(
    random_model: LlamaForCausalLM, ids: torch.Tensor, bridge: TransformerBridge, how: Masking, heads: list[Head]
) -> None:
    means = mean_outputs(random_model, ids)
    with torch.no_grad():
        before = random_model(ids).logits
        with masked(random_model, heads, how, means):
            plain = random_model(ids).logits
        assert torch.equal(random_model(ids).logits, before) and not torch.allclose(plain, before, atol=1e-3)
        outputs = (
            {f"L{layer}H{head}": mean.tolist() for (layer, head), mean in means.items()} if how == "mean" else None
        )
        with AblateHeads(heads, how=how, outputs=outputs)(bridge):
            engine = bridge(ids)
    torch.testing.assert_close(plain, engine, atol=1e-4, rtol=1e-4)


def test_an_untrained_model_fails_and_is_left_as_it_was() -> None:
    model = build_model(SETTINGS)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train()
    measured = measure(model, SETTINGS, batch=4)
    assert model.training and all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert measured["exact_match.T67"] == 0.0 == measured["induction_heads"]
    assert measured["new_loss"] == pytest.approx(math.log(65), abs=0.1)
    assert math.isnan(measured["all_retrieval_exact_match.zero"])
    assert math.isnan(measured["L1H0.retrieval.T67"]) and measured["L1H0.induction"] == pytest.approx(0.023, abs=0.01)
    missed = check_gates(measured)
    assert "exact_match.T67 is 0, expected >= 0.9" in missed and len(missed) >= 10
    assert measure(model, SETTINGS, batch=4) == pytest.approx(measured, nan_ok=True)


def test_what_was_not_measured_fails_its_gate() -> None:
    assert len(check_gates({})) == len(gates({})) == 15
    assert Gate.of({"a": 0.5}, "a", "<", 0.5).passed is False and Gate.of({"a": 0.5}, "a", "<=", 0.5).passed is True
    assert Gate.of({"a": 0.5}, "a", ">", 0.5).passed is False and Gate.of({"a": 0.5}, "a", ">=", 0.5).passed is True
    assert Gate.of({"a": math.nan}, "a", "<=", 1).passed is False
