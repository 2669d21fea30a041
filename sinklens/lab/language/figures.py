"""Everything that is measured on a trained language model, by name, as measured.json keeps it."""

from collections.abc import Mapping, Sequence

from transformers import LlamaForCausalLM

from sinklens.lab.language.baselines import bigram_loss, unigram_loss
from sinklens.lab.language.measure import SinkFigures, mean_loss, sink_figures
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.language.tokens import Streams, cut

LENGTHS = (64, 256)
SEQUENCES = 100


def final_figures(
    model: LlamaForCausalLM,
    untrained: LlamaForCausalLM,
    streams: Sequence[Streams],
    settings: LanguageSettings,
) -> dict[str, float]:
    """Measure a model on the held-out part of every domain.

    Sequences do not overlap and begin with the BOS. Losses are over all targets of all sequences of
    `settings.longest` tokens, in nats per token; sinks are over up to 100 sequences of 64 and of 256 tokens,
    evenly spread over the held-out documents (fewer where there are not so many).

    Per domain, with its name and a dot before:
        loss, untrained_loss: of the model, and of the same model before training.
        unigram_loss, bigram_loss: of count models of the domain's training part, on the same targets.
        train_tokens, held_out_tokens: sizes of the two parts.
    Per domain and length T, with `prose.T64.` and so on before:
        sequences: how many.
        sink_heads: number of heads with a sink rate of at least 0.5.
        mean_rate: mean sink rate over all heads, Gu's figure for a model.
        untrained_sink_heads: sink_heads before training.
        no_bos_alpha_0: the strongest head's mean importance of the first token of the same sequences without
            their BOS; alpha_0 is the strongest head's with it.
        max_over_median, untrained_max_over_median: `SinkFigures.ratio`, the residual peak at BOS.
    Per layer, `prose.T64.L0.peak`: the peak of that layer.
    Per head, `prose.T64.L0H0.` and so on before:
        rate, alpha_0, drain: see `SinkFigures`.

    Cost: half a minute for the default model on one CPU thread.
    """
    measured: dict[str, float] = {}
    for stream in streams:
        ids = cut(stream.held_out, settings.longest)
        measured |= {
            f"{stream.name}.loss": mean_loss(model, ids),
            f"{stream.name}.untrained_loss": mean_loss(untrained, ids),
            f"{stream.name}.unigram_loss": unigram_loss(stream.train, ids, settings.vocab),
            f"{stream.name}.bigram_loss": bigram_loss(stream.train, ids, settings.vocab),
            f"{stream.name}.train_tokens": len(stream.train),
            f"{stream.name}.held_out_tokens": len(stream.held_out),
        }
        for length in LENGTHS:
            if len(stream.held_out) < length:
                continue
            rows = cut(stream.held_out, length, SEQUENCES)[:, :-1]
            before, after = sink_figures(untrained, rows), sink_figures(model, rows)
            bare = sink_figures(model, rows[:, 1:])
            figures = _by_head(after) | {
                "sequences": len(rows),
                "sink_heads": sink_heads(after),
                "mean_rate": float(after.rate.mean()),
                "untrained_sink_heads": sink_heads(before),
                "alpha_0": strongest(after),
                "no_bos_alpha_0": strongest(bare),
                "max_over_median": after.ratio,
                "untrained_max_over_median": before.ratio,
            }
            measured |= {f"{stream.name}.T{length}.{name}": value for name, value in figures.items()}
    return measured


def sink_heads(figures: SinkFigures) -> int:
    """Number of heads whose sink rate is at least 0.5."""
    return int((figures.rate >= 0.5).sum())


def strongest(figures: SinkFigures) -> float:
    """The highest mean alpha_0 of any head."""
    return float(figures.alpha.double().mean(0).max())


def domains_of(measured: Mapping[str, float]) -> list[str]:
    """The domains that the figures speak of, in their order."""
    return [name.removesuffix(".bigram_loss") for name in measured if name.endswith(".bigram_loss")]


def _by_head(figures: SinkFigures) -> dict[str, float]:
    alpha = figures.alpha.double().mean(0)
    layers, heads = alpha.shape
    group = heads // figures.drain.shape[1]
    return {f"L{layer}.peak": float(figures.peak[:, layer].double().mean()) for layer in range(layers)} | {
        f"L{layer}H{head}.{name}": float(value)
        for layer in range(layers)
        for head in range(heads)
        for name, value in (
            ("rate", figures.rate[layer, head]),
            ("alpha_0", alpha[layer, head]),
            ("drain", figures.drain[layer, head // group]),
        )
    }
