"""Make a trained language model's folder complete: weights, figures, model card, recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from sinklens.errors import ResultError
from sinklens.lab.folders import FORMAT, how_it_ran, json_bytes, measured_bytes
from sinklens.lab.folders import write_model as write_hugging_face
from sinklens.lab.language.card import model_card
from sinklens.lab.language.figures import domains_of
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.language.tokens import wrap
from sinklens.results.files import write_atomically


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


TASK = "language-model"


def publish(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer_json: str,
    settings: LanguageSettings,
    measured: Mapping[str, float],
    series: Sequence[Mapping[str, float]],
    *,
    command: str,
    sources: str,
    data: Mapping[str, Mapping[str, Any]],
    seconds: float,
    device: str,
) -> None:
    """Write everything; recipe.json comes last: with it the folder counts as complete.

    Args:
        out: the folder.
        model: the trained model, its weights already rounded to half precision.
        tokenizer_json: the tokenizer.
        settings: of the training.
        measured: what `final_figures` returned.
        series: one row of the curve per kept checkpoint.
        command: the command line that repeats the training.
        sources: what the texts are and their licences, in Markdown; may be empty.
        data: per domain the files, characters and digest.
        seconds: that the steps took.
        device: on which they ran.

    Raises:
        ResultError: if a file cannot be written.
    """
    write_model(out, model, tokenizer_json)
    write_atomically(out / "measured.json", measured_bytes(measured))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(settings, measured, series, parameters, command, sources, data, seconds, device)
    write_atomically(out / "README.md", card.encode())
    recipe = {
        "format": FORMAT,
        "task": TASK,
        "shows": shows(settings, measured),
        "settings": settings.to_dict(),
        "command": command,
        "data": {name: dict(facts) for name, facts in data.items()},
        "tokens": settings.tokens(settings.steps),
        "checkpoints": [f"checkpoints/step-{step:06d}" for step in settings.kept],
        "parameters": parameters,
        **how_it_ran(seconds, device),
        "tokenizers": tokenizers.__version__,
    }
    write_atomically(out / "recipe.json", json_bytes(recipe))


def shows(settings: LanguageSettings, measured: Mapping[str, float]) -> str:
    """Say in one sentence what the model is good for."""
    domains = domains_of(measured)
    named = [name for name in domains if f"{name}.T64.sink_heads" in measured]
    about = f"A Llama language model of {' and '.join(domains)}"
    best = max(named, key=lambda name: measured[f"{name}.T64.sink_heads"], default=None)
    if best is None or not measured[f"{best}.T64.sink_heads"]:
        return f"{about}, in which no head rests on <s>."
    heads, ratio = measured[f"{best}.T64.sink_heads"], measured[f"{best}.T64.max_over_median"]
    return (
        f"{about}: {heads:.0f} of {settings.layers * settings.heads} heads rest on <s> in {best} (a sink), "
        f"residual peak of {ratio:.0f} times the median."
    )
