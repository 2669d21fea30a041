"""Claims about massive activations: where they live, and what happens without them."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch

from published.claim import NotTestableError, at_least, at_most, claim
from published.observed import Observed, observe
from published.subject import Subject
from sinklens.errors import InputError
from sinklens.evidence import paired_interval
from sinklens.evidence.bootstrap import Interval
from sinklens.interventions import Intervention, SetActivations, massive_entries, mean_activations
from sinklens.interventions.entries import MassiveRule
from sinklens.interventions.massive_entries import control_rules
from sinklens.models import TokenBatch

SUN = "Sun et al. 2024, arXiv 2402.17762"
OWEN = "Owen et al. 2025, arXiv 2503.22329"
SPIKE = "Sun et al. 2026, arXiv 2603.05498"
SUPER = "Yu et al. 2024 (super weight), arXiv 2411.07191"
QIU = "Qiu et al. 2025, arXiv 2505.06708"
STRICT = "|h| > 100, > 1,000 x the text's median and > 10 x its channel's over the tokens"
MASSIVE = "as in massive-activations-exist"

EVERY = (
    "rise of the loss, nats a token; all set after every layer at which they live: |h| > 100, > 300 x the text's "
    "median and > 5 x their channel's"
)


def _one(value: float) -> Interval:
    """A number that belongs to the model and not to texts."""
    return Interval(value, math.nan, math.nan, 1, "none", "one number for the model")


def _need_massive(subject: Subject, seen: Observed | None = None) -> Observed:
    seen = subject.natural if seen is None else seen
    if not seen.entries:
        raise NotTestableError(f"No entry has {STRICT}.")
    return seen


@claim(
    "massive-activations-exist",
    SUN,
    says="A few entries of the residual stream are larger than 100 and than 1,000 times the median.",
    reported="LLaMA2-7B: in 50 of 50 texts; OLMo-2-7B: in none [logs, Owen et al.]",
    figures={"texts": f"share of texts with an entry of {STRICT}", "ratio": "largest |h| / median, over layers"},
    tests=(at_least("texts", 0.9, 0.1), at_least("ratio", 1000, 100)),
    call="scan(model).massive",
)
def massive_activations_exist(subject: Subject) -> dict[str, Interval]:
    """Texts that have one, and how far they stand out."""
    seen = subject.natural
    ratio = (seen.top.max(-1) / seen.median)[1:].max(0)
    return {
        "texts": paired_interval([float(bool(own)) for own in seen.by_text(seen.entries)]),
        "ratio": paired_interval(ratio),
    }


@claim(
    "largest-activation",
    QIU,
    says="Without output gates the largest activation is in the thousands.",
    reported="15B-A2B: 1053 without gates, 94 with them [T]",
    figures={"largest": "largest |h| after any layer", "median": "control: median |h| there"},
    tests=(at_least("largest", 500, 100),),
    call="scan(model).massive",
)
def largest_activation(subject: Subject) -> dict[str, Interval]:
    """Largest magnitude."""
    seen = subject.natural
    top = seen.top[1:].max(-1)
    where = top.argmax(0)
    return {
        "largest": paired_interval(top.max(0)),
        "median": paired_interval(seen.median[1:][where, np.arange(len(where))]),
    }


@claim(
    "few-massive-entries",
    SUN,
    says="They are at most four in a layer.",
    reported="at most 4 scalars [T]; LLaMA2-7B two channels, Llama-3.2-1B four [logs]",
    figures={"entries": f"largest number of massive entries ({MASSIVE}) in one layer of a text"},
    tests=(at_most("entries", 4, 20),),
    call="scan(model).massive",
)
def few_massive_entries(subject: Subject) -> dict[str, Interval]:
    """Entries of the fullest layer."""
    seen = _need_massive(subject)
    fullest = [max(Counter(row[0] for row in own).values(), default=0) for own in seen.by_text(seen.entries)]
    return {"entries": paired_interval(np.array(fullest, dtype=float))}


@claim(
    "fixed-channels",
    SUN,
    says="They sit in the same channels in every text, each with its own sign.",
    reported="LLaMA2-7B: channels 2533 and 1415 in 50 of 50 texts [logs]",
    figures={
        "share": "share of massive entries in the model's two most frequent channels",
        "sign": "share of them with the channel's usual sign",
        "chance": "null: two channels of d_model",
    },
    tests=(at_least("share", 0.9, 0.5), at_least("sign", 0.99, 0.8)),
    call="scan(model).massive: channel, value",
)
def fixed_channels(subject: Subject) -> dict[str, Interval]:
    """How concentrated the entries are."""
    seen = _need_massive(subject)
    usual = {channel: 0.0 for channel, _ in Counter(row[3] for row in seen.entries).most_common(2)}
    for row in seen.entries:
        if row[3] in usual:
            usual[row[3]] += math.copysign(1, row[4])
    shares, signs = [], []
    for own in seen.by_text(seen.entries):
        inside = [row for row in own if row[2] in usual]
        shares.append(len(inside) / len(own) if own else math.nan)
        agree = [row[3] * usual[row[2]] > 0 for row in inside]
        signs.append(float(np.mean(agree)) if agree else math.nan)
    return {
        "share": paired_interval(shares),
        "sign": paired_interval(signs),
        "chance": _one(2 / int(subject.model.cfg.d_model)),
    }


@claim(
    "first-token-and-delimiters",
    SUN,
    says="They sit at the first token and at delimiters (the first full stop or line break).",
    reported='LLaMA2-7B: position 0 and the first "." or "\\n" [logs]',
    figures={
        "share": "share of massive tokens (a layer and token with a massive entry) that are position 0 or have no "
        "letter or digit",
        "away": "of those away from position 0: share without letter or digit",
        "null": "null: share of all tokens away from position 0 without letter or digit",
    },
    tests=(at_least("share", 0.9, 0.5), at_least("away", 0.8, 0.3)),
    call="scan(model).massive joined with .tokens",
)
def first_token_and_delimiters(subject: Subject) -> dict[str, Interval]:
    """Which tokens carry them."""
    seen, tokens = _need_massive(subject), subject.texts.tokens
    shares, away, null = [], [], []
    for text, own in enumerate(seen.by_text(seen.entries)):
        places = sorted({(layer, position) for layer, position, _, _ in own})
        kinds = [position == 0 or _delimiter(tokens[text][position]) for _, position in places]
        later = [_delimiter(tokens[text][position]) for _, position in places if position]
        shares.append(float(np.mean(kinds)) if kinds else math.nan)
        away.append(float(np.mean(later)) if later else math.nan)
        null.append(float(np.mean([_delimiter(token) for token in tokens[text][1:]])))
    found = {"share": paired_interval(shares), "away": paired_interval(away), "null": paired_interval(null)}
    if found["away"].n == 0:  # none sits elsewhere: then there is nothing to say about delimiters
        found["away"] = Interval(math.nan, math.nan, math.nan, 0, "none", "all at position 0")
    return found


def _delimiter(token: str) -> bool:
    return re.search(r"\w", token) is None


@claim(
    "from-early-to-late-layers",
    SUN,
    says="They appear within the first layers, stay, and are gone after the last.",
    reported="LLaMA2-7B: after layers 1 to 29 of 32 [logs]",
    figures={
        "onset": "first layer with a massive entry / number of layers",
        "held": "share of the layers between the first and the last such layer that have one",
        "end": "share of texts with one after the last layer",
    },
    tests=(at_most("onset", 0.15, 0.5), at_least("held", 0.9, 0.5), at_most("end", 0.1, 0.9)),
    call="scan(model).massive_episodes",
)
def from_early_to_late_layers(subject: Subject) -> dict[str, Interval]:
    """Span of the layers that have one."""
    seen, n_layers = _need_massive(subject), len(subject.model.blocks)
    onset, held, end = [], [], []
    for own in seen.by_text(seen.entries):
        layers = sorted({row[0] for row in own})
        if layers:
            onset.append(max(layers[0], 0) / n_layers)
            held.append(len(layers) / (layers[-1] - layers[0] + 1))
        end.append(float(n_layers - 1 in layers))
    return {"onset": paired_interval(onset), "held": paired_interval(held), "end": paired_interval(end)}


def _rises(subject: Subject) -> dict[str, np.ndarray]:
    """What setting the massive activations to zero, to their mean, and equal-count controls cost, by text."""

    def make() -> dict[str, np.ndarray]:
        few = subject.few_texts
        try:
            found = massive_entries(subject.model, few)
            changes = {
                "zero": found.intervention("zero"),
                "mean": found.intervention("mean", mean_activations(subject.model, few, found.rules)),
                "control": _stand_ins(subject, few, found.rules),
            }
        except InputError as error:
            raise NotTestableError(str(error)) from error
        return subject.rises(changes, few)

    found: dict[str, np.ndarray] = subject.once("rises", make)
    return found


def _stand_ins(subject: Subject, batch: TokenBatch, rules: Sequence[MassiveRule]) -> Intervention:
    """For every rule as many entries of median size at the same tokens to zero."""
    parts: list[Intervention] = [SetActivations(rule, "zero") for rule in control_rules(subject.model, batch, rules)]
    return reduce(add, parts)


@claim(
    "zeroing-destroys",
    SUN,
    says="Setting the massive activations to zero destroys the model; as many entries of median size do nothing.",
    reported="LLaMA2-7B, WikiText perplexity 5.12 -> 8115, +7.4 nats [logs, Owen et al.]",
    figures={"zero": EVERY, "control": "control: as many entries of median size at the same tokens to zero"},
    tests=(at_least("zero", 1.0, 0.05), at_most("control", 0.02, 0.5)),
    call='measure_effects(model, {"zero": massive_entries(model, batch).intervention("zero")}, batch)',
)
def zeroing_destroys(subject: Subject) -> dict[str, Interval]:
    """Zero beside the control."""
    return {name: paired_interval(_rises(subject)[name]) for name in ("zero", "control")}


@claim(
    "mean-is-harmless",
    SUN,
    says="Setting them to their mean changes nothing: they say nothing about the text.",
    reported="LLaMA2-7B, WikiText perplexity 5.12 -> 5.13, +0.002 nats [logs, Owen et al.]",
    figures={"mean": "rise of the loss, nats a token, with each at its mean", "zero": "control: set to zero"},
    tests=(at_most("mean", 0.05, 1.0),),
    call='massive_entries(model, batch).intervention("mean", mean_activations(model, batch, found.rules))',
)
def mean_is_harmless(subject: Subject) -> dict[str, Interval]:
    """Mean beside zero."""
    return {name: paired_interval(_rises(subject)[name]) for name in ("mean", "zero")}


@claim(
    "zeroing-is-harmless",
    OWEN,
    says="Not all massive activations matter: in some models setting them to zero costs nothing (against Sun et al.).",
    reported="GPT-2 30.22 -> 30.21; Gemma-3-1B 9.79 -> 10.21 (+0.04 nats); Gemma-3-4B 6.88 -> 172 [logs]",
    figures={"zero": EVERY, "control": "control: as many entries of median size at the same tokens to zero"},
    tests=(at_most("zero", 0.1, 1.0),),
    call="as zeroing-destroys",
)
def zeroing_is_harmless(subject: Subject) -> dict[str, Interval]:
    """The same figure, the opposite claim."""
    return zeroing_destroys(subject)


@claim(
    "gone-without-bos",
    OWEN,
    says="Whether there is a BOS decides whether there are massive activations: Gemma models have none without it.",
    reported="Gemma-7B: none without BOS, layers 0 to 27 with it [logs]",
    figures={
        "bare": f"share of texts without BOS that have a massive entry ({MASSIVE})",
        "opened": "the same as the tokenizer opens texts",
    },
    tests=(at_most("bare", 0.1, 0.9), at_least("opened", 0.9, 0.1)),
    call='scan(model, bos="no").massive',
)
def gone_without_bos(subject: Subject) -> dict[str, Interval]:
    """With and without BOS."""
    if not subject.opened:
        raise NotTestableError("Its tokenizer adds no BOS.")
    _need_massive(subject)
    return {
        name: paired_interval([float(bool(own)) for own in seen.by_text(seen.entries)])
        for name, seen in (("bare", subject.bare), ("opened", subject.natural))
    }


@claim(
    "one-block-writes-one-block-clears",
    SPIKE,
    says="One step-up layer writes the spike and one step-down layer takes it away.",
    reported="Llama2-7B: step-up after a few layers, step-down at half-layer 62 of 64 [T]",
    figures={
        "up": "largest rise of max |h_0| by one layer / its peak",
        "down": "largest fall by one layer / its peak",
    },
    tests=(at_least("up", 0.5, 0.25), at_least("down", 0.5, 0.25)),
    call="scan(model).layers; plots.lifecycle",
)
def one_block_writes(subject: Subject) -> dict[str, Interval]:
    """Steps of the largest entry at position 0."""
    curve = _need_massive(subject).top[..., 0]
    steps = np.diff(curve, axis=0)
    return {
        "up": paired_interval(steps.max(0) / curve.max(0)),
        "down": paired_interval(-steps.min(0) / curve.max(0)),
    }


@claim(
    "any-first-token-spikes",
    SPIKE,
    says="Nearly every vocabulary item spikes when it stands first.",
    reported="more than 98 % of the vocabulary [T]",
    figures={
        "first": f"share of random tokens that have a massive entry ({MASSIVE}) at position 0",
        "later": "control: the same tokens at position 8",
    },
    tests=(at_least("first", 0.9, 0.5),),
    call="capture(model, batch, [MassiveActivationDetector()])",
)
def any_first_token_spikes(subject: Subject) -> dict[str, Interval]:
    """Random tokens put first, and put eighth."""
    count = subject.sizes.first_tokens
    drawn = subject.random_rows(count, 1, seed=3)
    source = subject.bare_texts.ids[:, :16]
    rows = source.repeat(-(-count // len(source)), 1)[:count]
    found = {}
    for name, place in (("first", 0), ("later", 8)):
        placed = subject.with_first(subject.ids(rows), drawn, at=place)
        seen = observe(subject.model, placed)
        own = seen.by_text(seen.entries)
        found[name] = paired_interval([float(any(row[1] == place for row in entries)) for entries in own])
    return found


@contextmanager
def _zeroed(weight: torch.Tensor, row: int, column: int) -> Iterator[None]:
    """One number of a weight set to 0 for a while."""
    kept = float(weight.data[row, column])
    weight.data[row, column] = 0
    try:
        yield
    finally:
        weight.data[row, column] = kept


@claim(
    "super-weight",
    SUPER,
    says="One number in an early down-projection makes the massive activation; setting it to zero ruins the model.",
    reported="Llama-7B, WikiText perplexity 5.67 -> 1211, +5.4 nats [T]",
    figures={
        "rise": "rise of the loss with that weight at zero, nats a token",
        "control": "control: the largest other weight of the matrix at zero",
    },
    tests=(at_least("rise", 1.0, 0.05),),
    call="W_down[channel, argmax |W_down[channel] * a_0|] of the layer that writes the largest entry, set to 0",
)
@torch.no_grad()
def super_weight(subject: Subject) -> dict[str, Interval]:
    """The weight that adds most to the largest new entry at position 0."""
    curve = _need_massive(subject).top[..., 0].mean(1)
    block = int(np.diff(curve).argmax())
    own = [row for row in subject.natural.entries if row[0] >= block and row[2] == 0]
    if not own:
        raise NotTestableError("No massive entry at position 0 after the layer with the largest step.")
    channel = Counter(row[3] for row in own if row[0] == own[0][0]).most_common(1)[0][0]
    mlp: Any = subject.model.blocks[block].mlp
    few, weight = subject.few_texts, mlp.out.weight
    got: list[torch.Tensor] = []
    hook = (f"blocks.{block}.mlp.out.hook_in", lambda x, hook: got.append(x[0, 0]))
    subject.model.run_with_hooks(few.ids[:1], fwd_hooks=[hook])
    if weight.shape[0] != subject.model.cfg.d_model:
        raise NotTestableError("Its down-projection is stored in another layout.")
    column = int((weight[channel] * got[0]).abs().argmax())
    others = weight.abs().clone()
    others[channel, column] = 0
    other = divmod(int(others.argmax()), weight.shape[1])
    clean, found = np.nanmean(subject.losses(few), 1), {}
    for name, (row, at) in (("rise", (channel, column)), ("control", other)):
        with _zeroed(weight, row, at):
            found[name] = paired_interval(np.nanmean(subject.losses(few), 1) - clean)
    return found
