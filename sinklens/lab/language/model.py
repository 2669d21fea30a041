"""The untrained language model."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinklens.lab.language.settings import CONTEXT, LanguageSettings
from sinklens.lab.language.tokens import BOS_ID


def build_model(settings: LanguageSettings) -> LlamaForCausalLM:
    """Build a Llama with tied embeddings; its weights follow from `settings.seed` alone.

    The initialisation is Hugging Face's, N(0, 0.02). Torch's global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=settings.vocab,
        hidden_size=settings.d_model,
        intermediate_size=settings.d_mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_base},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=None,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)
