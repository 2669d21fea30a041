"""The transformer of the Bigram-Backcopy study, as a Hugging Face OPT with the paper's initialisation."""

import torch
from transformers import OPTConfig, OPTForCausalLM

from sinklens.lab.settings import BackcopySettings


def deviations(settings: BackcopySettings) -> list[str]:
    """Say in words where the model and its training differ from the paper's."""
    paper: dict[str, tuple[float, float]] = {
        "width": (settings.d_model, 256),
        "sequence length": (settings.seq_len, 256),
        "batch": (settings.batch, 512),
        "learning rate": (settings.lr, 3e-4),
    }
    changed = [f"{name} {own:g} instead of {theirs:g}" for name, (own, theirs) in paper.items() if own != theirs]
    steps = f"{settings.steps} steps instead of 10,000 or more"
    return [
        "The architecture is Hugging Face's OPT, whose position embedding begins with two unused rows.",
        "LayerNorms have scale and shift (torch's default); no other module has a bias.",
        f"Small enough for one CPU core: {', '.join([*changed, steps])}.",
    ]


def build_model(settings: BackcopySettings) -> OPTForCausalLM:
    """Build the untrained model; its weights follow from `settings.seed` alone.

    Pre-LayerNorm, one head per layer, learned positions, ReLU MLP of width `4 * d_model`, no biases in the
    linear layers, a final LayerNorm and an untied head. Every module is initialised with its own torch
    default (embeddings N(0, 1), linear layers uniform in `+-1/sqrt(d_in)`), which is what the paper uses;
    Hugging Face's own scheme (N(0, 0.02)) starts from a far smaller residual stream. Torch's global random
    state is left as it was.

    Source: Guo et al. (arXiv 2410.13835), appendix on the Bigram-Backcopy experiments and the released code.
    """
    config = OPTConfig(
        vocab_size=settings.task.d_vocab,
        hidden_size=settings.d_model,
        num_hidden_layers=settings.layers,
        num_attention_heads=1,
        ffn_dim=4 * settings.d_model,
        max_position_embeddings=settings.seq_len,
        activation_function="relu",
        do_layer_norm_before=True,
        enable_bias=False,
        tie_word_embeddings=False,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        # OPT's default would freeze the embedding of token 1, which here is the space.
        pad_token_id=None,
        bos_token_id=settings.task.bos_id,
        eos_token_id=None,
        architectures=["OPTForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = OPTForCausalLM(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.LayerNorm):
                module.reset_parameters()
    return model
