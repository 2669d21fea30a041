"""Write a trained induction model as a Hugging Face directory that explains itself."""

from collections.abc import Mapping
from pathlib import Path

from transformers import LlamaForCausalLM

from sinklens.lab.folders import FORMAT, full_weights, how_it_ran, json_bytes, measured_bytes, write_model
from sinklens.lab.induction.card import model_card
from sinklens.lab.induction.measure import check_gates
from sinklens.lab.induction.settings import LAYERS, InductionSettings
from sinklens.lab.tokenizer import word_tokenizer, words
from sinklens.results.files import write_atomically

TASK = "induction"
BOS = "<s>"


def publish(
    out: Path,
    model: LlamaForCausalLM,
    settings: InductionSettings,
    measured: Mapping[str, float],
    *,
    seconds: float,
    device: str,
) -> None:
    """Write weights, configuration, tokenizer, figures and model card.

    recipe.json comes last: with it the folder counts as complete.

    Raises:
        ResultError: if the folder cannot be written.
    """
    weights = full_weights(model)
    write_model(out, model, weights, word_tokenizer(words(settings.n_words), BOS, settings.longest))
    write_atomically(out / "measured.json", measured_bytes(measured))
    write_atomically(out / "README.md", model_card(settings, measured, {}, seconds).encode())
    recipe = {
        "format": FORMAT,
        "task": TASK,
        "shows": _shows(settings, measured),
        "settings": settings.to_dict(),
        "command": settings.command,
        "parameters": sum(weight.numel() for weight in weights.values()),
        **how_it_ran(seconds, device),
    }
    write_atomically(out / "recipe.json", json_bytes(recipe))


def _shows(settings: InductionSettings, measured: Mapping[str, float]) -> str:
    if check_gates(measured):
        return "Two layers of attention trained to find needles, which missed some of their gates."
    return (
        f"Finds a needle behind any token: {measured['induction_heads']:.0f} of {LAYERS * settings.heads} heads are "
        "induction and retrieval heads, fed by previous-token heads."
    )
