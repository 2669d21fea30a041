"""Claims about attention sinks: where they are, what they look like, what they depend on."""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from published.claim import NotTestableError, at_least, at_most, claim
from published.observed import LAST, observe
from published.subject import EPS, Subject
from sinklens.evidence import paired_interval
from sinklens.evidence.bootstrap import Interval
from sinklens.interventions import MaskKeys

GU = "Gu et al. 2025, arXiv 2410.10781"
BARBERO = "Barbero et al. 2025, arXiv 2504.02732"
QIU = "Qiu et al. 2025, arXiv 2505.06708"
ACT = "Yu et al. 2024 (ACT), arXiv 2406.15765"
SHARE = "share of heads with importance above 0.3 for position 0, T=64"
LATER_HEADS = 0.05
"""A later token counts as a sink of a text when at least this share of heads gives it an importance above 0.3."""


def uniform_rate(subject: Subject) -> Interval:
    """What uniform attention under the model's own masks scores."""
    return paired_interval((subject.natural.uniform[..., 0] > EPS).mean(0))


@claim(
    "sink-at-first-token",
    GU,
    says="Attention sinks on the first token exist in every auto-regressive language model.",
    reported="LLaMA2-7B 92.47 %, LLaMA3-8B 99.02 %, Mistral-7B 97.49 %, GPT2-XL 77.00 % of heads [T, table]",
    figures={"rate": SHARE, "uniform": "null: the same under uniform attention"},
    tests=(at_least("rate", 0.5, 0.1),),
    call="scan(model).sinks: sink_rate at position 0",
)
def sink_at_first_token(subject: Subject) -> dict[str, Interval]:
    """Sink rate of natural texts."""
    return {"rate": paired_interval(subject.natural.sink_rate(EPS)), "uniform": uniform_rate(subject)}


@claim(
    "sink-on-random-tokens",
    GU,
    says="Texts of random tokens have the sink too.",
    reported="random / natural: LLaMA2-7B 90.13 / 92.47 %, GPT2-XL 70.29 / 77.00 %, Mistral-7B 75.21 / 97.49 % [T]",
    figures={"ratio": "rate on random tokens / rate on natural texts", "natural": SHARE, "uniform": "null"},
    tests=(at_least("ratio", 0.7, 0.2),),
    call="scan(model, tokens=random ids)",
)
def sink_on_random_tokens(subject: Subject) -> dict[str, Interval]:
    """The texts' first token where it is a BOS, then tokens drawn from the vocabulary."""
    texts = subject.texts
    kept = 1 if subject.opened else 0
    rows = subject.random_rows(len(texts), texts.ids.shape[1] - kept)
    drawn = observe(subject.model, subject.with_first(texts, rows, at=kept))
    natural = subject.natural.sink_rate(EPS)
    if natural.mean() < 0.05:
        raise NotTestableError("It has no sink on natural texts.")
    ratio = paired_interval(drawn.sink_rate(EPS) / natural.mean())
    return {"ratio": ratio, "natural": paired_interval(natural), "uniform": uniform_rate(subject)}


def repeated(subject: Subject) -> Any:
    """One token repeated to the texts' length, another one in every text, no BOS."""

    def make() -> Any:
        tokens = subject.random_rows(min(len(subject.texts), 16), 1, seed=1)
        return observe(subject.model, subject.ids(tokens.expand(-1, subject.texts.ids.shape[1])))

    return subject.once("repeated", make)


@claim(
    "no-sink-on-repeated-token",
    GU,
    says="With rotary positions a text that repeats one token has no sink.",
    reported="0.00 % in Mistral-7B, LLaMA2-7B, LLaMA2-13B and LLaMA3-8B; GPT2-XL (learned positions) 62.28 % [T]",
    figures={"rate": SHARE + ", one token repeated", "natural": "control: natural texts"},
    tests=(at_most("rate", 0.05, 0.3),),
    call="scan(model, tokens=one token repeated, no BOS)",
)
def no_sink_on_repeated_token(subject: Subject) -> dict[str, Interval]:
    """Sink rate where all tokens are one."""
    rate = repeated(subject).sink_rate(EPS)
    return {"rate": paired_interval(rate), "natural": paired_interval(subject.natural.sink_rate(EPS))}


@claim(
    "repeated-tokens-share-one-state",
    GU,
    says="Then all hidden states are the same at every position, so no key can stand out (propositions 1 to 4).",
    reported="equal exactly, by induction over layers [T, appendix C.1]",
    figures={
        "difference": "smallest cosine between the states at position 0 and at any other, over all layers",
        "natural": "control: the same on natural texts",
    },
    tests=(at_least("difference", 0.999, 0.9),),
    call="capture(model, batch, [your consumer with needs = ('hidden',)])",
)
def repeated_tokens_share_one_state(subject: Subject) -> dict[str, Interval]:
    """Cosines of the residual states with position 0's."""
    found = {"difference": repeated(subject), "natural": subject.natural}
    return {name: paired_interval(seen.cosine.min((0, 2))) for name, seen in found.items()}


@claim(
    "no-sink-before-training",
    GU,
    says="Sinks emerge with training; an untrained model has none.",
    reported="60M model: emergence between 1k and 2k steps [T]",
    figures={"rate": SHARE + ", randomly initialised twin", "trained": "control: the trained model"},
    tests=(at_most("rate", 0.01, 0.3),),
    call="transformers AutoModelForCausalLM.from_config(config), eager attention",
)
def no_sink_before_training(subject: Subject) -> dict[str, Interval]:
    """A twin with the same config and random weights, in plain transformers."""
    torch.manual_seed(0)
    twin = AutoModelForCausalLM.from_config(subject.model.original_model.config, attn_implementation="eager").eval()
    rates = []
    with torch.no_grad():
        for ids in subject.texts.ids[: min(10, len(subject.texts))]:
            maps = torch.stack(twin(ids[None], output_attentions=True).attentions)[:, 0]
            rates.append(float((maps[..., 0].mean(-1) > EPS).double().mean()))
    return {"rate": paired_interval(rates), "trained": paired_interval(subject.natural.sink_rate(EPS))}


@claim(
    "sink-without-bos",
    GU,
    says="The sink is at the first position, whatever stands there: a BOS is not needed.",
    reported="own 60M model without any BOS 18.18 %; a fixed token at position 1, 2 or 3 draws it there (74.11, 69.03, "
    "69.64 %) [T]",
    figures={"rate": SHARE + ", texts without BOS", "opened": "as the tokenizer opens texts", "uniform": "null"},
    tests=(at_least("rate", 0.18, 0.05),),
    call='scan(model, bos="no")',
)
def sink_without_bos(subject: Subject) -> dict[str, Interval]:
    """Sink rate without BOS."""
    rates = {"rate": subject.bare, "opened": subject.natural}
    return {name: paired_interval(seen.sink_rate(EPS)) for name, seen in rates.items()} | {
        "uniform": uniform_rate(subject)
    }


def _need_sinks(subject: Subject) -> np.ndarray:
    heads: np.ndarray = subject.sink_heads
    if not heads.any():
        raise NotTestableError("No head sinks on position 0 in half of the texts.")
    return heads


@torch.no_grad()
def _keys_and_angles(subject: Subject) -> dict[str, np.ndarray]:
    """By text: norm of key 0 over the others', and cosines of queries with key 0 and with the others, in sink heads."""
    heads, model = _need_sinks(subject), subject.model
    if "blocks.0.attn.hook_rot_k" not in model.hook_dict:
        raise NotTestableError("Its queries and keys are not rotated, and this reads rotated ones.")
    found: dict[str, list[float]] = {"norm": [], "first": [], "others": []}
    for ids in subject.few_texts.ids:
        got: dict[tuple[str, int], torch.Tensor] = {}
        hooks = [
            (f"blocks.{layer}.attn.hook_rot_{kind}", lambda x, hook, at=(kind, layer), got=got: got.__setitem__(at, x))
            for layer in np.flatnonzero(heads.any(1))
            for kind in "qk"
        ]
        model.run_with_hooks(ids[None], fwd_hooks=hooks)
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in found}
        for layer in np.flatnonzero(heads.any(1)):
            q, k = (_head_first(got[kind, layer], len(ids)) for kind in "qk")
            k = k.repeat_interleave(len(q) // len(k), 0)
            norms = k.norm(dim=-1)
            cosines = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
            seen = torch.ones_like(cosines[0]).tril().bool()
            seen[:, 0] = seen[:8] = False  # early queries see hardly anything but position 0
            for head in np.flatnonzero(heads[layer]):
                parts["norm"].append(norms[head, 0] / norms[head, 1:].mean())
                parts["first"].append(cosines[head, 8:, 0].mean())
                parts["others"].append(cosines[head][seen].mean())
        for name, values in parts.items():
            found[name].append(float(torch.stack(values).mean()))
    return {name: np.array(values) for name, values in found.items()}


def _head_first(states: torch.Tensor, length: int) -> torch.Tensor:
    """``[head pos d_head]`` of one sequence, whichever way the hook orders them."""
    one = states[0]
    return one.transpose(0, 1) if one.shape[0] == length and one.shape[1] != length else one


@claim(
    "sink-key-is-small",
    GU,
    says="The key of the sink has a small norm.",
    reported="smaller than the other keys' (figure) [T, section 3.1]",
    figures={"ratio": "|k_0| over the mean of the other keys, mean over sink heads"},
    tests=(at_most("ratio", 0.9, 1.0),),
    call="model.run_with_hooks(..., hook_rot_k)",
)
def sink_key_is_small(subject: Subject) -> dict[str, Interval]:
    """Norms of keys."""
    return {"ratio": paired_interval(subject.once("keys", lambda: _keys_and_angles(subject))["norm"])}


@claim(
    "sink-key-lies-along-queries",
    GU,
    says="It is the angle that makes the sink: queries point along the first key.",
    reported="cos(q, k_1) far above the others' (figure) [T, section 3.1]",
    figures={
        "difference": "cos(q, k_0) less the mean cos with other keys, mean over sink heads",
        "others": "control: mean cos with other keys",
    },
    tests=(at_least("difference", 0.2, 0.0),),
    call="model.run_with_hooks(..., hook_rot_q, hook_rot_k)",
)
def sink_key_lies_along_queries(subject: Subject) -> dict[str, Interval]:
    """Angles between queries and keys after the rotation."""
    found = subject.once("keys", lambda: _keys_and_angles(subject))
    return {
        "difference": paired_interval(found["first"] - found["others"]),
        "others": paired_interval(found["others"]),
    }


@claim(
    "value-drain",
    "Guo et al. 2024, arXiv 2410.13835",
    says="The value state of the sink is drained: heads that rest on it write next to nothing.",
    reported="one layer trained 100k steps: |W_O v| of the BOS 0.47, at the start 5.20 [pt, shipped files]",
    figures={
        "ratio": "|W_O v| of position 0 over the other tokens' mean, mean over sink heads",
        "fifth": "control: the same of position 5",
    },
    tests=(at_most("ratio", 0.5, 1.0),),
    call="scan(model).value_drains",
)
def value_drain(subject: Subject) -> dict[str, Interval]:
    """Norms of what tokens have to hand on, in sink heads."""
    norms, heads = subject.natural.value_norm, _need_sinks(subject)

    def ratio(position: int) -> Interval:
        others = np.delete(norms, [0, position], axis=-1).mean(-1)
        return paired_interval((norms[..., position] / others).swapaxes(1, 2)[heads].mean(0))

    return {"ratio": ratio(0), "fifth": ratio(5)}


@claim(
    "residual-peak",
    GU,
    says="The first token's hidden state grows far longer than the others'.",
    reported="LLaMA2-7B about 1000 against 200, Pythia-1B 1800 against 400 [T, read off plots, +-20 %]",
    figures={
        "ratio": "largest |h_0| over the other tokens' mean, over layers",
        "fifth": "control: the same of position 5",
    },
    tests=(at_least("ratio", 4.5, 2.0),),
    call="scan(model).residual_norms",
)
def residual_peak(subject: Subject) -> dict[str, Interval]:
    """Residual norms."""
    norm = subject.natural.norm
    found = {}
    for name, position in (("ratio", 0), ("fifth", 5)):
        others = np.delete(norm, [0, position], axis=-1).mean(-1)
        found[name] = paired_interval((norm[..., position] / others).max(0))
    return found


@claim(
    "fewer-strong-sinks-in-small-models",
    BARBERO,
    says="Sinks grow with model size: at eps 0.8 fewer heads sink than in Llama 3.1 8B.",
    reported="8B 45.97 %, 70B 73.49 %, 405B 78.29 % of heads at eps 0.8, T=64 [T]",
    figures={"rate": "share of heads with importance above 0.8", "at_03": "the same at 0.3, for comparison"},
    tests=(at_most("rate", 0.4597, 0.7349),),
    call="scan(model).eps_sweep (here: eps=0.8)",
)
def fewer_strong_sinks(subject: Subject) -> dict[str, Interval]:
    """Sink rate at 0.8."""
    return {
        "rate": paired_interval(subject.natural.sink_rate(0.8)),
        "at_03": paired_interval(subject.natural.sink_rate(EPS)),
    }


@claim(
    "mean-attention-to-first-token",
    QIU,
    says="Without output gates about half of all attention goes to the first token.",
    reported="15B-A2B without gates: F-Attn 0.467, with gates 0.048 [T]; their length is not stated",
    figures={"mass": "mean attention to position 0, all heads and queries, T=64", "uniform": "null"},
    tests=(at_least("mass", 0.3, 0.1),),
    call="scan(model).heads: importance_first",
)
def mean_attention_to_first_token(subject: Subject) -> dict[str, Interval]:
    """Mean importance of position 0."""
    seen = subject.natural
    return {
        "mass": paired_interval(seen.importance[..., 0].mean((0, 2))),
        "uniform": paired_interval(seen.uniform[..., 0].mean(0)),
    }


@claim(
    "surplus-finds-another-token",
    "Xiao et al. 2024 (StreamingLLM), arXiv 2309.17453",
    says="Softmax has surplus attention to dump on initial tokens: hide the first and another one takes it.",
    reported="stated, no figure [T]",
    figures={
        "moved": "largest sink rate of any later token with position 0 hidden, over that of position 0 before",
        "before": "control: the same token's rate before, over that of position 0",
    },
    tests=(at_least("moved", 0.5, 0.1),),
    call="scan(model, intervention=MaskKeys(0)).sinks",
)
def surplus_finds_another_token(subject: Subject) -> dict[str, Interval]:
    """Sink rates by position with and without the first key."""
    _need_sinks(subject)
    few = subject.few_texts
    before = (subject.natural.importance[:, : len(few)] > EPS).mean((0, 2))
    hidden = (observe(subject.model, few, MaskKeys(0)).importance > EPS).mean((0, 2))
    place = 1 + int(hidden[:, 1:-LAST].mean(0).argmax())
    level = before[:, 0].mean()
    return {
        "moved": paired_interval(hidden[:, place] / level),
        "before": paired_interval(before[:, place] / level),
    }


def later_sinks(subject: Subject) -> np.ndarray:
    """Which later tokens are sinks of their text, ``[text key]``; the first and the last ones never are."""
    shares = (subject.natural.importance > EPS).mean((0, 2))
    found: np.ndarray = shares >= LATER_HEADS
    found[:, 0] = False
    found[:, -LAST:] = False
    return found


@claim(
    "sinks-at-later-tokens",
    ACT,
    says="Sinks occur at later tokens too, not only at the first.",
    reported="stated in the abstract; no share given [abstract]",
    figures={
        "texts": "share of texts in which a later token is a sink (importance above 0.3) of at least 5 % of all heads",
        "uniform": "null: the same under uniform attention",
    },
    tests=(at_least("texts", 0.1, 0.01),),
    call="scan(model).sinks: positions above 0",
)
def sinks_at_later_tokens(subject: Subject) -> dict[str, Interval]:
    """Texts with a later sink."""
    flat = subject.natural.uniform > EPS
    return {
        "texts": paired_interval(later_sinks(subject).any(1).astype(float)),
        "uniform": paired_interval(flat[..., 1:-LAST].any((0, 2)).astype(float)),
    }
