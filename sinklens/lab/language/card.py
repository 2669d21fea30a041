"""The model card of a trained language model."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinklens.lab.folders import paragraph
from sinklens.lab.language.figures import LENGTHS, SEQUENCES, domains_of
from sinklens.lab.language.settings import CONTEXT, LanguageSettings
from sinklens.results.markdown import markdown_rows
from sinklens.results.pace import duration

# Sink rates that differ by so much between two domains are named in the card.
DIFFERS = 0.5


def model_card(
    settings: LanguageSettings,
    measured: Mapping[str, float],
    series: Sequence[Mapping[str, float]],
    parameters: int,
    command: str,
    sources: str,
    data: Mapping[str, Mapping[str, Any]],
    seconds: float,
    device: str,
) -> str:
    """Write the card as Markdown; the arguments are those of `publish`."""
    domains = domains_of(measured)
    tokens = settings.tokens(settings.steps)
    about = f"""
        A Llama of {settings.layers} layers with {settings.heads} heads each (width {settings.d_model}, MLP
        {settings.d_mlp}, context {CONTEXT}, {parameters / 1e6:.2f} M parameters, tied embeddings, RoPE), trained by
        sinklens on {" and ".join(domains)} to show how an attention sink looks and how it emerges. Every training
        sequence began with `<s>`, which the tokenizer prepends (byte-level BPE, {settings.vocab:,} tokens). It
        knows the look of its texts and little else."""
    precision = """
        The weights are stored in half precision and computed with in fp32; all figures here are those of the
        rounded weights. `checkpoints/` holds the same model earlier in its training, `step-000000` being the
        untrained twin; each is a complete directory, `sinklens.load` takes its path."""
    losses = f"""
        Mean loss in nats per token on documents that were never trained on, in sequences of {settings.longest}
        tokens; beside it what counts of the same domain's training part reach on the same tokens: token
        frequencies (add-one), and an interpolated Kneser-Ney bigram model."""
    sinks = f"""
        Up to {SEQUENCES} held-out sequences per cell. alpha_0: mean attention of all queries, the first included, to
        `<s>`; sink rate: share of sequences with alpha_0 > 0.3 (Gu et al., arXiv 2410.10781; uniform causal attention
        gives 0.074 at 64 tokens and 0.024 at 256). A sink head has a rate of at least 0.5. max/median: largest
        residual entry at `<s>` over the median entry of the sequence, in the layer where it is highest (Sun et
        al., arXiv 2402.17762). Without `<s>`: the strongest head's mean attention to the first token of the
        same sequences with their `<s>` taken away."""
    heads = """
        Sink rate, with the mean alpha_0 after it; drain: norm of the value state at `<s>` over the mean of the
        others (first column's sequences)."""
    curve = """
        Figures of the kept checkpoints on 64 held-out sequences of 64 tokens per domain; `curve.csv` has a row
        every few steps."""
    training = f"""
        {settings.steps:,} steps, {tokens / 1e6:.1f} M tokens, {duration(seconds)} on one {device}
        (`recipe.json`). Each batch has as many sequences of each domain: {settings.batch} of {settings.seq_len}
        tokens{_long(settings)}. AdamW (0.9, 0.95), learning rate {settings.lr:g} (warm-up, constant, linear decay
        over the last fifth), weight decay {settings.weight_decay:g} on matrices, gradients clipped to 1, seed
        {settings.seed}.
        One run with one seed: which heads become sinks depends on it."""
    return f"""---
library_name: transformers
tags: [attention-sink, interpretability, toy-model]
---
# A small Llama with an attention sink

{paragraph(about)}

{paragraph(precision)}

## Held-out loss

{paragraph(losses)}

{_losses(measured, domains)}

## Sink census

{paragraph(sinks)}

{_sinks(measured, domains, settings)}

{paragraph(_in_words(measured, domains, settings))}

{paragraph(heads)}

{_heads(measured, domains, settings)}

## How it emerged

{paragraph(curve)}

{_series(series, domains)}

## Training

    {command}

{paragraph(training)}

{_data(data, measured)}
{chr(10) + sources.strip() + chr(10) if sources.strip() else ""}"""


def _long(settings: LanguageSettings) -> str:
    if settings.longest == settings.seq_len:
        return ""
    rows, length = settings.long_shape
    return f"; from step {settings.long_from:,} on, one batch in {settings.long_every} has {rows} of {length} instead"


def _losses(measured: Mapping[str, float], domains: Sequence[str]) -> str:
    names = ("loss", "bigram_loss", "unigram_loss", "untrained_loss")
    rows = [[name, *(f"{measured[f'{name}.{figure}']:.3f}" for figure in names)] for name in domains]
    return markdown_rows(["domain", "this model", "bigram", "unigram", "untrained"], rows, right=True)


def _cells(measured: Mapping[str, float], domains: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, length) for name in domains for length in LENGTHS if f"{name}.T{length}.alpha_0" in measured]


def _sinks(measured: Mapping[str, float], domains: Sequence[str], settings: LanguageSettings) -> str:
    total, rows = settings.layers * settings.heads, []
    for name, length in _cells(measured, domains):
        at = {figure: measured[f"{name}.T{length}.{figure}"] for figure in _SUMMARY}
        rows.append(
            [
                f"{name}, {length} tokens",
                f"{at['sink_heads']:.0f} of {total}",
                f"{at['mean_rate']:.3f}",
                f"{at['alpha_0']:.3f}",
                f"{at['no_bos_alpha_0']:.3f}",
                f"{at['max_over_median']:.0f}",
                f"{at['untrained_sink_heads']:.0f} of {total}, {at['untrained_max_over_median']:.0f}",
            ]
        )
    head = ["", "sink heads", "mean rate", "strongest alpha_0", "the same without `<s>`", "max/median"]
    return markdown_rows([*head, "untrained: sink heads, max/median"], rows, right=True)


def _in_words(measured: Mapping[str, float], domains: Sequence[str], settings: LanguageSettings) -> str:
    """Say by how much the sink weakens without its BOS, and which heads have it in one domain alone."""
    parts = []
    for name, length in _cells(measured, domains)[:: len(LENGTHS)]:
        with_bos, without = (measured[f"{name}.T{length}.{figure}"] for figure in ("alpha_0", "no_bos_alpha_0"))
        parts.append(
            f"Deleting `<s>` weakens the strongest head {with_bos / without:.1f} times ({name}, {length} tokens)."
        )
    labels = [f"L{layer}H{head}" for layer in range(settings.layers) for head in range(settings.heads)]
    for label in labels:
        rates = {name: measured.get(f"{name}.T{LENGTHS[0]}.{label}.rate", 0.0) for name in domains}
        high, low = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
        if rates[high] - rates[low] >= DIFFERS:
            parts.append(
                f"{label} rests on `<s>` far more often in {high} (rate {rates[high]:.2f}) than in {low} "
                f"({rates[low]:.2f}), at {LENGTHS[0]} tokens."
            )
    return " ".join(parts)


_SUMMARY = (
    "sink_heads", "mean_rate", "alpha_0", "no_bos_alpha_0", "max_over_median", "untrained_sink_heads",
    "untrained_max_over_median",
)  # fmt: skip


def _heads(measured: Mapping[str, float], domains: Sequence[str], settings: LanguageSettings) -> str:
    cells, rows = _cells(measured, domains), []
    for layer in range(settings.layers):
        for head in range(settings.heads):
            label = f"L{layer}H{head}"
            at = [f"{name}.T{length}.{label}" for name, length in cells]
            row = [f"{measured[f'{place}.rate']:.2f} ({measured[f'{place}.alpha_0']:.2f})" for place in at]
            rows.append([label, *row, *(f"{measured[f'{place}.drain']:.2f}" for place in at[:1])])
    head_row = ["head", *(f"{name}, {length}" for name, length in cells), *(["drain"] if cells else [])]
    return markdown_rows(head_row, rows, right=True)


def _series(series: Sequence[Mapping[str, float]], domains: Sequence[str]) -> str:
    head = ["step", "M tokens"]
    for name in domains:
        head += [f"{name}: loss", "sink heads", "strongest alpha_0", "max/median"]
    rows = []
    for row in series:
        cells = [f"{row['step']:.0f}", f"{row['tokens'] / 1e6:.2f}"]
        for name in domains:
            cells += [f"{row[f'{name}.loss']:.2f}", f"{row[f'{name}.heads']:.0f}"]
            cells += [f"{row[f'{name}.alpha_0']:.2f}", f"{row[f'{name}.max_over_median']:.0f}"]
        rows.append(cells)
    return markdown_rows(head, rows, right=True)


def _data(data: Mapping[str, Mapping[str, Any]], measured: Mapping[str, float]) -> str:
    rows = []
    for name, facts in data.items():
        sizes = [f"{facts['files']:,}", f"{facts['train_characters']:,}", f"{facts['held_out_characters']:,}"]
        sizes += [f"{measured[f'{name}.train_tokens']:,.0f}", f"{measured[f'{name}.held_out_tokens']:,.0f}"]
        rows.append([name, *sizes])
    head = ["domain", "files", "characters to train on", "held out", "tokens to train on", "held out"]
    return markdown_rows(head, rows, right=True)
