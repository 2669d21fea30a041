"""The lab's decoder with the weights of a Bigram-Backcopy model of Hugging Face."""

from transformers import OPTForCausalLM

from sinklens.lab.variants.decoder import Decoder, DecoderSettings


def twin(original: OPTForCausalLM) -> Decoder:
    config = original.config
    model = Decoder(
        DecoderSettings(
            d_vocab=config.vocab_size,
            context=config.max_position_embeddings,
            layers=config.num_hidden_layers,
            d_model=config.hidden_size,
        )
    )
    names = {
        "embed.weight": "model.decoder.embed_tokens.weight",
        "positions.weight": "model.decoder.embed_positions.weight",
        "norm": "model.decoder.final_layer_norm",
        "unembed.weight": "lm_head.weight",
        "attention_norm": "self_attn_layer_norm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    }
    theirs, ours = original.state_dict(), {}
    for name in model.state_dict():
        if name.startswith("blocks."):
            _, layer, part = name.split(".", 2)
            stem, kind = part.rsplit(".", 1)
            ours[name] = theirs[f"model.decoder.layers.{layer}.{names[stem]}.{kind}"]
        elif name.startswith("norm."):
            ours[name] = theirs[f"{names['norm']}.{name.split('.')[1]}"]
        else:
            ours[name] = theirs[names[name]]
    ours["positions.weight"] = ours["positions.weight"][2:]  # OPT's begins with two unused rows
    model.load_state_dict(ours)
    return model.eval()
