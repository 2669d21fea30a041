"""One token repeated without a BOS: rotary models cannot tell positions apart and have no sink (Gu et al., check 4)."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sinklens.capture import LayerRecord, capture
from sinklens.detectors.sinks import SinkDetector
from sinklens.models.builtin import builtin_models
from sinklens.models.load import load
from sinklens.models.tokens import TokenBatch, tokenize
from tests.families import VOCAB

LENGTH = 64
TOKENS = (5, 11, 23, 40)


class _Deviation:
    """Largest ``|h_t - h_0| / |h_0|`` of any layer and position."""

    needs = ("hidden",)

    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, record: LayerRecord) -> None:
        assert record.hidden is not None
        first = record.hidden[:, :1].double()
        apart = (record.hidden.double() - first).norm(dim=-1) / first.norm(dim=-1)
        self.largest = max(self.largest, float(apart.max()))


def measure(model: TransformerBridge, batch: TokenBatch) -> tuple[float, float]:
    """Deviation of the hidden states, and the highest sink rate of any head at position 0."""
    deviation, sinks = _Deviation(), SinkDetector()
    capture(model, batch, [deviation, sinks])
    table = sinks.tables()["sinks"]
    return deviation.largest, float(table.loc[table["position"] == 0, "sink_rate"].max())


def repeated(model: TransformerBridge) -> TokenBatch:
    return tokenize(model, torch.tensor(TOKENS)[:, None].repeat(1, LENGTH))


def untrained(hf: PreTrainedModel) -> TransformerBridge:
    tokenizer = load("bb-1l").tokenizer  # any will do for tokens given as ids
    return TransformerBridge.boot_transformers("untrained", hf_model=hf.eval(), tokenizer=tokenizer, device="cpu")


def llama(layers: int = 2, width: int = 64) -> TransformerBridge:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    return untrained(LlamaForCausalLM(config))


def gpt2() -> TransformerBridge:
    torch.manual_seed(0)
    return untrained(GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=128)))


@pytest.mark.parametrize(("layers", "width"), [(2, 64), (4, 192)])
def test_an_untrained_rotary_model_has_equal_states_and_no_sink(layers: int, width: int) -> None:
    model = llama(layers, width)
    deviation, rate = measure(model, repeated(model))
    assert deviation <= 1e-5 and rate == 0


def test_learned_positions_break_the_equality() -> None:
    model = gpt2()
    deviation, _ = measure(model, repeated(model))
    assert deviation > 1e-2


def test_equal_states_are_averaged_evenly_without_positions() -> None:
    # proposition 1 of the paper: without positional encoding row t is 1 / (t + 1)
    model = llama()

    model.original_model.model.rotary_emb.inv_freq.zero_()
    _, cache = model.run_with_cache(repeated(model).ids)
    expected = torch.tril(torch.ones(LENGTH, LENGTH)) / torch.arange(1, LENGTH + 1)[:, None]
    for layer in range(2):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(pattern, expected.expand_as(pattern), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(builtin_models()))
def test_built_in_models(name: str) -> None:
    model = load(name, dtype="float32")
    deviation, rate = measure(model, repeated(model))
    if model.cfg.positional_embedding_type == "rotary":
        assert deviation <= 1e-5 and rate == 0
    else:
        assert deviation > 1e-2


def test_a_bos_makes_the_difference_again() -> None:
    model = llama()
    ids = torch.tensor(TOKENS)[:, None].repeat(1, LENGTH)
    ids[:, 0] = 0
    deviation, _ = measure(model, tokenize(model, ids))
    assert deviation > 1e-2
