"""Write a trained induction model as a Hugging Face directory that explains itself."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import LlamaForCausalLM

from sinklens.lab.folders import FORMAT, full_weights, how_it_ran, json_bytes, measured_bytes, paragraph, write_model
from sinklens.lab.induction.masked import MASKINGS
from sinklens.lab.induction.measure import LENGTHS, PATTERN_LENGTHS, check_gates, gates
from sinklens.lab.induction.settings import LAYERS, InductionSettings
from sinklens.lab.tokenizer import word_tokenizer, words
from sinklens.results.files import write_atomically
from sinklens.results.markdown import markdown_rows
from sinklens.results.pace import duration

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


def model_card(
    settings: InductionSettings,
    measured: Mapping[str, float],
    seeds: Mapping[int, Mapping[str, float]],
    seconds: float,
) -> str:
    """Write the card as Markdown.

    Args:
        settings: of the training.
        measured: what `measure` returned.
        seeds: figures of several models by seed, this one's included; empty if there is no other.
        seconds: that the steps took.
    """
    lengths = [length for length in LENGTHS if f"exact_match.T{length}" in measured]
    about = f"""
        Two layers of {settings.heads} attention heads (width {settings.d_model}, RoPE, context {settings.longest}),
        trained by sinklens to find needles in random tokens: a small model whose retrieval, induction and
        previous-token heads are known, to try head scores, masks and cache policies on. It is a Llama whose MLPs
        have width 1 and weights of exactly 0, so attention is all it has. It writes no English."""
    task = f"""
        The vocabulary is {settings.n_words} words, `a` `b` .. `z` `aa` `ab` .. `{words(settings.n_words)[-1]}` (ids
        0 to {settings.n_words - 1}), written with spaces between them, and `<s>` (id {settings.n_words}), which the
        tokenizer prepends. They mean nothing and are all alike: any of them may be a key. Another word is refused.
        Two kinds of sequences were trained on, half of each batch: **needles**, `<s>`, random words that all differ,
        then one of them again, which asks for the {settings.value_len} words that followed it; and **repeated
        spans**, `<s>`, up to a quarter of random words, then a block that comes 2 to 4 times. Once a word comes
        again, what follows is certain; everything else is random, and costs log {settings.n_words} =
        {math.log(settings.n_words):.3f} nats at best."""
    how = f"""
        Fresh sequences; `measured.json` has all figures, `sinklens.lab.induction.measure` defines them. Exact match:
        all {settings.value_len} values of a needle right, its place being random; T counts every token, `<s>` and
        answer included. 128 needles up to 128 tokens, 64 above."""
    heads = f"""
        Retrieval: score of Wu et al. (arXiv 2404.15574) at {lengths[0] if lengths else "-"} tokens; stripes on `<s>`
        and two blocks of 30 words (uniform attention gives 0.062 for the previous token, 0.022 for induction and the
        duplicate); echo and Razor's induction (arXiv 2407.15891) on four blocks of 16, where uniform attention gives
        0.047 for both: a head of layer 0 that is spread out and of no use scores near that. Idle on `<s>`: attention
        to `<s>` in the first block, where nothing can be copied."""
    masks = """
        Exact match at the shortest length and loss in the second of two blocks, with heads masked: uniform
        (attention to all earlier keys alike), zero, mean (the mean output over the needles)."""
    training = f"""
        took {duration(seconds)} (`recipe.json`). {settings.steps:,} steps of about {settings.tokens:,} tokens; all
        sequences of a step have one length, from {settings.shortest} to {settings.short_longest} tokens in the first
        {settings.short_share:.0%} of the steps and to {settings.longest} afterwards, its logarithm uniform. Loss
        where the next word is certain, plus {settings.new_weight:g} times the loss elsewhere. AdamW (0.9, 0.95),
        learning rate {settings.lr:g} (warm-up, constant, linear decay over the last fifth), weight decay
        {settings.weight_decay:g} on matrices, gradients clipped to 1, seed {settings.seed}."""
    return f"""---
license: mit
library_name: transformers
tags: [induction-heads, retrieval-heads, interpretability, toy-model]
---
# Induction in two layers

{paragraph(about)}

{paragraph(task)}

## Needles and spans

{paragraph(how)}

{_lengths(measured, lengths, seeds)}

Loss in a repeated block {measured["repeat_loss"]:.4f}, elsewhere {measured["new_loss"]:.3f} nats per token.

## Heads

{paragraph(heads)}

{_heads(measured, settings)}

## Masked heads

{paragraph(masks)}

{_masks(measured, settings)}

A retrieval score of 0 does not mean that a head is idle: layer 0 holds the previous-token heads that induction reads,
and a head without a stripe may be needed as well. Which heads of layer 0 can be spared depends on the seed.

## Gates

{_gates(measured, seeds)}

## Training

    {settings.command}

{paragraph(training)}

## Data and licence

The data are random numbers. Weights: MIT.
"""


def _number(value: float, digits: int = 3) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def _band(name: str, seeds: Mapping[int, Mapping[str, float]]) -> str:
    values = [figures.get(name, math.nan) for figures in seeds.values()]
    # min and max skip or keep a NaN by its place; one seed without the figure leaves no band
    return "n/a" if any(map(math.isnan, values)) else f"{min(values):.3g} .. {max(values):.3g}"


def _lengths(measured: Mapping[str, float], lengths: Sequence[int], seeds: Mapping[int, Mapping[str, float]]) -> str:
    title = [f"seeds {', '.join(map(str, seeds))}"] if seeds else []
    rows = []
    for length in lengths:
        name = f"exact_match.T{length}"
        row = [str(length), _number(measured[name]), *([_band(name, seeds)] if seeds else [])]
        rows.append([*row, f"{measured[f'answer_loss.T{length}']:.4f}"])
    return markdown_rows(["tokens", "exact match", *title, "loss of the values"], rows, right=True)


def _heads(measured: Mapping[str, float], settings: InductionSettings) -> str:
    retrievals = [f"retrieval.T{length}" for length in PATTERN_LENGTHS if f"L0H0.retrieval.T{length}" in measured]
    names = {name: f"retrieval, {name[11:]} tokens" for name in retrievals}
    names |= {
        "induction": "induction",
        "previous_token": "previous token",
        "duplicate_token": "duplicate",
        "razor_induction": "Razor's induction",
        "echo": "echo",
        "bos_mass": "on `<s>`",
        "idle_bos_mass": "idle on `<s>`",
    }
    rows = [
        [label, *(_number(measured[f"{label}.{name}"]) for name in names)]
        for label in (f"L{layer}H{head}" for layer in range(LAYERS) for head in range(settings.heads))
    ]
    return markdown_rows(["head", *names.values()], rows, right=True)


def _masks(measured: Mapping[str, float], settings: InductionSettings) -> str:
    def row(title: str, name: str) -> list[str]:
        rises = [measured.get(f"{name.removesuffix('.exact_match')}.repeat_loss_rise.{how}") for how in MASKINGS]
        cells = [_number(measured[f"{name}.{how}"], 2) for how in MASKINGS]
        return [title, *cells, *("" if rise is None else _number(rise) for rise in rises)]

    labels = [f"L{layer}H{head}" for layer in range(LAYERS) for head in range(settings.heads)]
    rows = [row(label, f"{label}.exact_match") for label in labels]
    for count in range(2, settings.heads + 1):
        rows.append(row(f"the {count} highest retrieval scores", f"top{count}_exact_match"))
    rows.append(row("every head with a score of 0.1 or more", "all_retrieval_exact_match"))
    rows.append(row("all heads of layer 0", "layer0_exact_match"))
    head = ["masked", *(f"exact match, {how}" for how in MASKINGS), *(f"rise of the loss, {how}" for how in MASKINGS)]
    return markdown_rows(head, rows, right=True)


def _gates(measured: Mapping[str, float], seeds: Mapping[int, Mapping[str, float]]) -> str:
    rows = []
    for row in gates(measured):
        cells = [row.quantity, f"{row.value:.4g}", row.bound, "yes" if row.passed else "NO"]
        rows.append([*cells, *([_band(row.quantity, seeds)] if seeds else [])])
    over = [f"seeds {', '.join(map(str, seeds))}"] if seeds else []
    return markdown_rows(["gate", "measured", "bound", "holds", *over], rows, right=True)
