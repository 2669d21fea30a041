"""Write the language model's files: checkpoints of the series and the tokenizer, as Hugging Face reads them."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from sinklens.errors import ResultError
from sinklens.lab.folders import write_model as write_hugging_face
from sinklens.lab.language.bpe import wrap


def write_model(out: Path, model: LlamaForCausalLM, tokenizer_json: str) -> None:
    """Write a directory that `sinklens.load` and transformers take, weights in half precision.

    The weights are stored as fp16 and config.json names fp32, so that they are computed with in fp32: a CPU
    has no fast fp16, and squares of massive activations leave its range. The tied output embedding is
    not stored.

    Raises:
        ResultError: if the directory cannot be written.
    """
    write_hugging_face(out, model, half_weights(model), wrap(tokenizer_json))


def half_weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Return the weights rounded to fp16, each once."""
    return {
        name: weight.detach().cpu().half().contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }


def round_to_half(model: torch.nn.Module) -> None:
    """Round the weights in place to what the files keep."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())


def read_weights(folder: Path, model: LlamaForCausalLM) -> None:
    """Load a directory's weights into a model of the same shape.

    Raises:
        ResultError: if they are missing or damaged.
    """
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
        # the tied head is not stored
        model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    except Exception as error:
        raise ResultError(f"The weights {path} are missing or damaged; start anew with --restart.") from error
