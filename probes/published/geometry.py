"""Claims about what sinks do to representations: compression, directions, mixing, and what the BOS is good for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from published.claim import NotTestableError, at_least, at_most, claim
from published.observed import observe
from published.sinks import BARBERO, later_sinks
from published.subject import EPS, Subject
from sinklens.evidence import paired_interval
from sinklens.evidence.bootstrap import Interval

QUEIPO = "Queipo-de-Llano et al. 2026, arXiv 2510.06477"
WONG = "Wong et al. 2025, arXiv 2512.22213"
ANAND = "Anand et al. 2026, arXiv 2510.22603"


@claim(
    "secondary-sinks",
    WONG,
    says="In middle layers some tokens take the BOS's direction for a while and become sinks.",
    reported="Qwen3-4B-Base: three such tokens in one prompt, in layers 16 to 33 of 36, none in the others [code]",
    figures={
        "texts": "share of texts with a token labelled secondary: the paper's rule, read in every window of layers in "
        "which the BOS (or what stands first) is large, and some head must attend to the token"
    },
    tests=(at_least("texts", 0.05, 0.0),),
    call="scan(model).secondary_sinks: label",
)
def secondary_sinks(subject: Subject) -> dict[str, Interval]:
    """Texts that have one."""
    table = subject.natural.secondary
    own = set(table.loc[table["label"] == "secondary", "sequence"]) if len(table) else set()
    return {"texts": paired_interval([float(text in own) for text in range(subject.natural.n_texts)])}


@claim(
    "later-sinks-point-along-the-first",
    ANAND,
    says="Tokens that become sinks later in the text have hidden states along the BOS's.",
    reported="high cosine similarity (figure) [T]",
    figures={
        "cosine": "largest over layers of the cosine with position 0, mean over later sinks of a text",
        "others": "control: the same of all other later tokens",
    },
    tests=(at_least("cosine", 0.8, 0.5),),
    call="scan(model).decorrelation; later sinks as in sinks-at-later-tokens",
)
def later_sinks_point_along_the_first(subject: Subject) -> dict[str, Interval]:
    """Cosines of later sinks and of other tokens."""
    sinks = later_sinks(subject)
    if sinks.any(1).sum() < 5:
        raise NotTestableError("Fewer than 5 texts have a later sink.")
    highest = subject.natural.cosine[1:].max(0)
    plain = ~sinks
    plain[:, 0] = False
    return {
        "cosine": paired_interval(
            [highest[t][sinks[t]].mean() if sinks[t].any() else np.nan for t in range(len(sinks))]
        ),
        "others": paired_interval([highest[t][plain[t]].mean() for t in range(len(sinks))]),
    }


@claim(
    "compression-valley",
    QUEIPO,
    says="In middle layers the representation matrix is nearly of rank 1: its entropy falls to almost nothing.",
    reported="Llama3-8B: 0.02 bits = 0.014 nats [T]",
    figures={
        "entropy": "lowest matrix entropy after any layer, nats",
        "others": "control: lowest without row 0",
    },
    tests=(at_most("entropy", 0.1, 1.0),),
    call='scan(model, detectors=["compression"]).compression',
)
def compression_valley(subject: Subject) -> dict[str, Interval]:
    """Lowest entropies."""
    lowest = subject.natural.entropy[1:].min(0)
    return {"entropy": paired_interval(lowest[:, 0]), "others": paired_interval(lowest[:, 1])}


@claim(
    "first-token-makes-the-valley",
    QUEIPO,
    says="It is the first token's length that makes the valley; the other tokens' states are not compressed.",
    reported="from the inequality sigma_1^2 >= |x_0|^2 + ... [T, rederived]; no figure without row 0",
    figures={
        "lost": "1 - lowest / highest entropy over layers, without row 0",
        "with_first": "control: the same with row 0",
    },
    tests=(at_most("lost", 0.25, 0.75),),
    call='scan(model, detectors=["compression"]).compression: entropy_others',
)
def first_token_makes_the_valley(subject: Subject) -> dict[str, Interval]:
    """How deep the valley is without row 0."""
    entropy = subject.natural.entropy[1:]
    lost = 1 - entropy.min(0) / entropy.max(0)
    return {"lost": paired_interval(lost[:, 1]), "with_first": paired_interval(lost[:, 0])}


def _correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's over layers, by text."""
    with np.errstate(invalid="ignore"):
        return np.array([np.corrcoef(one[:, text], other[:, text])[0, 1] for text in range(one.shape[1])])


@claim(
    "bos-norm-and-entropy",
    QUEIPO,
    says="Where the first token's norm grows, entropy falls, and the other way round.",
    reported="r = -0.9 +- 0.18 over layers [T]",
    figures={"r": "Pearson over layers: change of |h_0| with change of the entropy"},
    tests=(at_most("r", -0.7, 0.0),),
    call="scan(model, detectors=[..., 'compression'])",
)
def bos_norm_and_entropy(subject: Subject) -> dict[str, Interval]:
    """Changes by layer, correlated."""
    seen = subject.natural
    return {
        "r": paired_interval(_correlations(np.diff(seen.norm[..., 0], axis=0), np.diff(seen.entropy[..., 0], axis=0)))
    }


@claim(
    "bos-norm-and-sinks",
    QUEIPO,
    says="Layers that follow a longer first state have more sinks.",
    reported="r = 0.58 +- 0.25 over layers [T]",
    figures={"r": "Pearson over layers: change of |h_0| by a layer with change of the sink rate in the next"},
    tests=(at_least("r", 0.33, 0.0),),
    call="scan(model).layers",
)
def bos_norm_and_sinks(subject: Subject) -> dict[str, Interval]:
    """Norm before a layer against the sink rate in it."""
    seen = subject.natural
    rate = seen.sinks(EPS).mean(2)  # [layer text]; the stream before layer l is residual layer l
    return {"r": paired_interval(_correlations(np.diff(seen.norm[:-1, :, 0], axis=0), np.diff(rate, axis=0)))}


@contextmanager
def _without_write(subject: Subject, block: int) -> Iterator[None]:
    """The MLP of a layer writes nothing at position 0."""

    def cut(written: torch.Tensor, hook: Any) -> torch.Tensor:
        written = written.clone()
        written[:, 0] = 0
        return written

    with subject.model.hooks(fwd_hooks=[(f"blocks.{block}.mlp.hook_out", cut)]):
        yield


@claim(
    "one-write-makes-sinks-and-valley",
    QUEIPO,
    says="Taking the early MLP's write to the first token away removes the valley and the sinks together.",
    reported="Llama3-8B, MLP of layer 0: entropy 0.02 -> 0.4 to 0.5 bits, sink rate 0.85 to 1 -> 0 [T]",
    figures={
        "rate": "sink rate without the write / with it; the MLP of the layer that lengthens |h_0| most",
        "entropy": "rise of the lowest entropy, nats",
        "control": "control: sink rate without the same layer's write at position 0, next layer's instead",
    },
    tests=(at_most("rate", 0.2, 0.8), at_least("entropy", 0.25, 0.05)),
    call='model.hooks(fwd_hooks=[("blocks.N.mlp.hook_out", ...)]) around capture',
)
def one_write_makes_both(subject: Subject) -> dict[str, Interval]:
    """The write of the layer with the largest growth, and of the next."""
    seen, few = subject.natural, subject.few_texts
    if not subject.sink_heads.any():
        raise NotTestableError("No head sinks on position 0 in half of the texts.")
    growth = np.diff(seen.norm[..., 0].mean(1))
    block = int(growth.argmax())
    other = block + 1 if block + 1 < len(growth) else block - 1
    count = len(few)
    cut = {}
    for name, at in (("cut", block), ("control", other)):
        with _without_write(subject, at):
            cut[name] = observe(subject.model, few)
    before = seen.sink_rate(EPS)[:count]
    lowest = {name: each.entropy[1:, :count, 0].min(0) for name, each in (("before", seen), ("after", cut["cut"]))}
    return {
        "rate": paired_interval(cut["cut"].sink_rate(EPS) / before.mean()),
        "entropy": paired_interval(lowest["after"] - lowest["before"]),
        "control": paired_interval(cut["control"].sink_rate(EPS) / before.mean()),
    }


@claim(
    "bos-is-needed-where-it-was-always-there",
    BARBERO,
    says="A model that always saw a BOS in training breaks without it.",
    reported="Gemma-7B without BOS: HellaSwag 80.61 -> 27.35, ARC-e 80.77 -> 28.49 [T]",
    figures={"rise": "rise of the loss of the same tokens without BOS, nats a token, from the third text token on"},
    tests=(at_least("rise", 1.0, 0.1),),
    call='measure the loss of tokenize(model, texts, bos="yes") and bos="no"',
)
def bos_is_needed(subject: Subject) -> dict[str, Interval]:
    """The same text tokens with and without the BOS before them."""
    if not subject.opened:
        raise NotTestableError("Its tokenizer adds no BOS.")
    few = subject.few_texts
    opened = np.nanmean(subject.losses(few)[:, 2:], 1)
    bare = np.nanmean(subject.losses(subject.ids(few.ids[:, 1:]))[:, 1:], 1)
    return {"rise": paired_interval(bare - opened)}


@claim(
    "sinks-slow-mixing",
    BARBERO,
    says="Sinks keep a change of one token from spreading over the later ones.",
    reported="Gemma 7B: perturbations spread less with the BOS than without (figure) [T]",
    figures={
        "ratio": "mean relative change of later tokens' last states after a change of token 10: with BOS / without",
    },
    tests=(at_most("ratio", 0.8, 1.0),),
    call="model.original_model(ids, output_hidden_states=True), twice",
)
@torch.no_grad()
def sinks_slow_mixing(subject: Subject) -> dict[str, Interval]:
    """One token replaced by a random one, with and without BOS."""
    if not subject.opened:
        raise NotTestableError("It has its sink with and without a BOS, so the two cannot be told apart.")
    few = subject.few_texts
    other = subject.random_rows(len(few), 1, seed=5)[:, 0]
    spread: dict[str, list[float]] = {"with": [], "without": []}
    for ids, token in zip(few.ids, other, strict=True):
        for name, skip in (("with", 0), ("without", 1)):
            own, at = ids[skip:], 11 - skip
            changed = own.clone()
            changed[at] = token
            one, two = (_last_states(subject, row)[at + 1 :] for row in (own, changed))
            spread[name].append(float(((two - one).norm(dim=-1) / one.norm(dim=-1)).mean()))
    return {"ratio": paired_interval(np.array(spread["with"]) / np.array(spread["without"]))}


def _last_states(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
    """Residual states after the last layer, before the final norm."""
    got: list[torch.Tensor] = []
    last = len(subject.model.blocks) - 1
    subject.model.run_with_hooks(ids[None], fwd_hooks=[(f"blocks.{last}.hook_out", lambda x, hook: got.append(x[0]))])
    return got[0]
