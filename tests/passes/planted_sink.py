"""A small random Llama whose first head rests on one token, because of one channel of its embedding."""

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM

from sinklens.models.as_bridge import as_bridge
from tests.families import byte_tokenizer

SINK, CHANNEL, STEADY, HEAD = 5, 7, 9, (1, 0)
"""The token, its channel, a channel that is alike at all tokens, and the head."""


def planted_sink(strength: float = 12.0, value: float = 1.0) -> TransformerBridge:
    """Two layers of four heads; layer 1's head 0 prefers token SINK by about ``strength`` logits.

    Args:
        strength: 0 plants nothing.
        value: What the channel of the sink's value is worth, in the usual size of a value's weights.
    """
    config = LlamaConfig(
        vocab_size=261, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    layer = model.model.layers[HEAD[0]].self_attn
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.normal_(0, 1, generator=torch.Generator().manual_seed(1))
        embedding[:, [CHANNEL, STEADY]] = torch.tensor([0.0, 3.0])
        if strength:
            embedding[SINK] *= 0.1
            embedding[SINK, CHANNEL] = 40.0
            turning = 3  # the slowest pair of rotated dims: of dims 0 to 7, numbers 3 and 7 turn together
            layer.q_proj.weight[turning, STEADY] = 1.0
            layer.k_proj.weight[turning, CHANNEL] = strength * 8**0.5 / (32**0.5 * 2.6)
            layer.v_proj.weight[:8, CHANNEL] = value * 0.5 / 32**0.5 * torch.tensor([1.0, -1.0] * 4)
    return as_bridge(model, tokenizer=byte_tokenizer())


def sink_ids(batch: int = 3, pos: int = 24, seed: int = 0) -> torch.Tensor:
    """Random tokens after SINK."""
    ids = torch.randint(6, 261, (batch, pos), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = SINK
    return ids


def planted_super_weight() -> TransformerBridge:
    """The same without the sink: at token SINK neuron 3 of block 0 is large, and one weight writes it to channel 11."""
    model = planted_sink()
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        for part in (mlp.gate, mlp.__getattr__("in")):
            part.original_component.weight[3] = 0
            part.original_component.weight[3, CHANNEL] = 3.0
        mlp.out.original_component.weight[11, 3] = 10.0
    return model
