"""Unigram and bigram models of a domain: what a language model must beat."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
