"""Everything that is measured on a trained language model, by name, as measured.json keeps it."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

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


def unigram_loss(train: Int[Tensor, " train"], held_out: Int[Tensor, "rows pos_plus_1"], vocab: int) -> float:
    """Mean surprisal of the held-out targets under their frequencies in the training stream, in nats per token.

    `p(w) = (c(w) + 1) / (N + V)`: add-one, so that a token never seen costs something finite. Targets are
    `held_out[:, 1:]`, those of `mean_loss` on the same sequences.

    Example:
        >>> round(unigram_loss(torch.tensor([1, 1, 2]), torch.tensor([[0, 1]]), vocab=3), 4)  # (2 + 1) / (3 + 3)
        0.6931
    """
    return float(-_unigram(train, vocab)[held_out[:, 1:].long()].log().mean())


def bigram_loss(train: Int[Tensor, " train"], held_out: Int[Tensor, "rows pos_plus_1"], vocab: int) -> float:
    """Mean surprisal of the held-out targets under an interpolated Kneser-Ney bigram model, in nats per token.

    With `c(v, w)` the pairs of the training stream, `D = n1 / (n1 + 2 n2)` the discount (`n1`, `n2`: pairs seen
    once and twice) and `N(v *)`, `N(* w)` the numbers of different successors and predecessors::

        p(w | v) = max(c(v, w) - D, 0) / c(v) + D N(v *) / c(v) * q(w)
        q(w)     = (N(* w) + 1) / (N(* *) + V)

    (`D` is 0.5 if no pair occurs once) and `q(w)` alone after a token that was never seen. The first target of
    each sequence follows the BOS, which says nothing about it, so it is scored by `unigram_loss`'s frequencies.

    Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999); their
    single discount. The add-one in q is ours, so that any token has a probability.

    Args:
        train: the training stream, at least two tokens.
        held_out: sequences that begin with the BOS.
        vocab: number of tokens.

    Cost: sorting the training stream.
    """
    train, held_out = train.long(), held_out.long()
    pairs, counts = (train[:-1] * vocab + train[1:]).unique(return_counts=True)
    before, after = pairs // vocab, pairs % vocab
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    total = torch.zeros(vocab, dtype=torch.float64).index_add_(0, before, counts.double())
    successors, predecessors = before.bincount(minlength=vocab), after.bincount(minlength=vocab)
    lower = (predecessors.double() + 1) / (len(pairs) + vocab)

    v, w = held_out[:, 1:-1].flatten(), held_out[:, 2:].flatten()
    wanted = v * vocab + w
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    count = torch.where(pairs[place] == wanted, counts[place], 0).double()
    seen = total[v].clamp(min=1)
    mixed = (count - discount).clamp(min=0) / seen + discount * successors[v] / seen * lower[w]
    probability = torch.where(total[v] > 0, mixed, lower[w])
    first = _unigram(train, vocab)[held_out[:, 1]]
    return float(-torch.cat([probability, first]).log().mean())


def _unigram(train: Int[Tensor, " train"], vocab: int) -> Float[Tensor, " vocab"]:
    return (train.long().bincount(minlength=vocab).double() + 1) / (len(train) + vocab)
