"""Write a trained Bigram-Backcopy model as a Hugging Face directory that explains itself."""

import math
from pathlib import Path

from transformers import OPTForCausalLM

from sinklens.lab.architecture import deviations
from sinklens.lab.bigram_backcopy import BOS
from sinklens.lab.folders import FORMAT, full_weights, how_it_ran, json_bytes, measured_bytes, paragraph, write_model
from sinklens.lab.gates import check_gates, gates
from sinklens.lab.report import FIGURES
from sinklens.lab.settings import BackcopySettings
from sinklens.lab.tokenizer import character_tokenizer
from sinklens.results.files import write_atomically

TASK = "bigram-backcopy"


def publish(
    out: Path,
    model: OPTForCausalLM,
    settings: BackcopySettings,
    measured: dict[str, float],
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
    write_model(out, model, weights, character_tokenizer(settings.task.characters, BOS, settings.seq_len))
    write_atomically(out / "measured.json", measured_bytes(measured))
    write_atomically(out / "README.md", _card(settings, measured, seconds).encode())
    recipe = {
        "format": FORMAT,
        "task": TASK,
        "shows": _shows(settings, measured),
        "settings": settings.to_dict(),
        "command": settings.command,
        "deviations": deviations(settings),
        "parameters": sum(weight.numel() for weight in weights.values()),
        **how_it_ran(seconds, device),
    }
    write_atomically(out / "recipe.json", json_bytes(recipe))


def _show(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _shows(settings: BackcopySettings, measured: dict[str, float]) -> str:
    if check_gates(measured, settings.layers):
        return "A Bigram-Backcopy model that missed some of its gates."
    if settings.layers == 1:
        return "One head that copies at trigger characters and rests on <s> elsewhere: a sink, value drained."
    return "A residual peak at <s>, and a head that copies at trigger characters and rests on <s> elsewhere."


def _card(settings: BackcopySettings, measured: dict[str, float], seconds: float) -> str:
    layers = f"{settings.layers} layer" + ("s" if settings.layers > 1 else "")
    gate_rows = "\n".join(
        f"| {row.quantity} | {row.value:.4g} | {row.bound} | {'yes' if row.passed else 'NO'} |"
        for row in gates(measured, settings.layers)
    )
    triggers = ", ".join(repr(settings.task.characters[i]) for i in settings.task.trigger_ids)
    differences = "\n".join(f"- {line}" for line in deviations(settings))
    heads = " | ".join(f"L{number}H0" for number in range(settings.layers))
    table = "\n".join(
        f"| {title} | " + " | ".join(_show(measured[f"L{n}.{name}"]) for n in range(settings.layers)) + " |"
        for name, title in FIGURES.items()
    )
    about = f"""
        A transformer of {layers} with one head each (width {settings.d_model}, context
        {settings.seq_len}, 66 tokens), trained by sinklens on the Bigram-Backcopy task of Guo et al.,
        "Active-Dormant Attention Heads" (arXiv 2410.13835). A small model in which attention sinks,
        value-state drains and active-dormant heads can be seen and switched off; it writes no English."""
    task = f"""
        Sequences begin with `<s>`. Most characters are followed by what follows them in Shakespeare;
        after a trigger ({triggers}) the character before the trigger comes back. Attention is needed at
        triggers only, and rests on `<s>` elsewhere. A character outside the 65 of the training text is
        refused by the tokenizer."""
    figures = f"""
        256 fresh sequences of {settings.seq_len} tokens; losses in nats per token. `measured.json` has
        all figures with more digits, `sinklens.lab.gates` defines them. Backcopy loss
        {measured["backcopy_loss"]:.4f} (best possible 0). Bigram loss {measured["bigram_loss"]:.4f},
        which is {measured["bigram_excess"]:.4f} above the true distribution's on the same sequences; the
        latter's expectation is {measured["oracle_bigram_loss"]:.4f}."""
    training = f"""
        took {seconds:.0f} s (`recipe.json`). One run with one seed; which layer of a deeper model holds
        the sink depends on the seed. Deviations from the paper:"""
    return f"""---
license: mit
library_name: transformers
tags: [attention-sink, interpretability, toy-model]
---
# Bigram-Backcopy, {layers}

{paragraph(about)}

{paragraph(task)}

## Figures

{paragraph(figures)}

| | {heads} |
|---|{"---|" * settings.layers}
{table}

| gate | measured | bound | holds |
|---|---|---|---|
{gate_rows}

## Training

    {settings.command}

{paragraph(training)}

{differences}

## Data and licence

The task uses only the counts of character pairs in tiny Shakespeare (public domain). Weights: MIT.
"""
