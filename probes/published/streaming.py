"""Claims of StreamingLLM: windows with and without sinks."""

import numpy as np
import torch

from published.claim import NotTestableError, at_least, at_most, claim
from published.subject import Subject
from sinklens.evidence import paired_interval
from sinklens.evidence.bootstrap import Interval, statistic_interval
from sinklens.interventions import SlidingWindow

XIAO = "Xiao et al. 2024 (StreamingLLM), arXiv 2309.17453"
SINKS = 4


def _window(subject: Subject) -> int:
    return int(subject.long_texts.ids.shape[1]) // 4


def _rises(subject: Subject) -> dict[str, np.ndarray]:
    """Rise of the loss by window, by text, over the second half of the text."""
    texts, window = subject.long_texts, _window(subject)
    if texts.ids.shape[1] < 64:
        raise NotTestableError("Its texts are shorter than 64 tokens.")
    changes = {f"{sinks}+{window}": SlidingWindow(window, sinks=sinks) for sinks in (0, 1, SINKS)}
    changes["control"] = SlidingWindow(window + SINKS)
    for quarter in (1, 2, 8):
        changes[f"cache {quarter}"] = SlidingWindow(window * quarter // 4, sinks=SINKS)

    def make() -> dict[str, np.ndarray]:
        return subject.rises(changes, texts, start=texts.ids.shape[1] // 2)

    found: dict[str, np.ndarray] = subject.once("windows", make)
    return found


def _rise(subject: Subject, sinks: int) -> np.ndarray:
    return _rises(subject)[f"{sinks}+{_window(subject)}"]


@claim(
    "window-without-sinks-collapses",
    XIAO,
    says="Attention to a window alone collapses as soon as the first tokens leave it.",
    reported="perplexity with / without 4 sinks: Llama-2-13B 5.40 / 5158; Falcon-7B 12.12 / 17.90 (+0.39 nats); "
    "Pythia-12B 12.09 / 21.62 (+0.58 nats) [T, tables 1 and 2]",
    figures={
        "rise": "loss of a window without sinks less that with 4, nats a token; window of a quarter of the text, "
        "read in its second half",
        "control": "control: the same with the window 4 longer and no sinks",
    },
    tests=(at_least("rise", 0.3, 0.05),),
    call='measure_effects(model, {"0+w": SlidingWindow(w), "4+w": SlidingWindow(w, sinks=4)}, batch)',
)
def window_collapses(subject: Subject) -> dict[str, Interval]:
    """Without sinks against with them."""
    kept = _rise(subject, SINKS)
    return {
        "rise": paired_interval(_rise(subject, 0) - kept),
        "control": paired_interval(_rises(subject)["control"] - kept),
    }


@claim(
    "four-sinks-recover",
    XIAO,
    says="Keeping the first four tokens recovers almost all of it.",
    reported="Llama-2-13B 5158.07 -> 5.40 with 4 + 1020 tokens [T, table 1]",
    figures={
        "rescued": "share of the window's damage that 4 sinks undo, against full attention",
        "longer": "control: share that 4 more recent tokens undo",
    },
    tests=(at_least("rescued", 0.8, 0.3),),
    call="as window-without-sinks-collapses",
)
def four_sinks_recover(subject: Subject) -> dict[str, Interval]:
    """Ratio of mean damages."""
    bare = _rise(subject, 0)
    if bare.mean() < 0.05:
        raise NotTestableError("The window alone costs less than 0.05 nats: there is nothing to recover.")
    others = {"rescued": _rise(subject, SINKS), "longer": _rises(subject)["control"]}
    return {
        name: statistic_interval(np.stack([bare, each]), lambda means: 1 - means[1] / means[0])
        for name, each in others.items()
    }


@claim(
    "one-sink-is-not-enough",
    XIAO,
    says="Models trained without a dedicated sink token need several initial tokens, not one.",
    reported="1 / 4 sinks: Llama-2-7B 11.88 / 9.59 (0.21 nats); but Falcon-7B 12.12 / 12.12, MPT-7B 14.99 / 14.99 "
    "[T, table 2]",
    figures={"gap": "loss with 1 sink less that with 4, nats a token"},
    tests=(at_least("gap", 0.05, 0.02),),
    call="as window-without-sinks-collapses",
)
def one_is_not_enough(subject: Subject) -> dict[str, Interval]:
    """One against four."""
    return {"gap": paired_interval(_rise(subject, 1) - _rise(subject, SINKS))}


@claim(
    "position-not-meaning",
    XIAO,
    says="It is the position that counts, not what stands there: four line breaks serve as well.",
    reported="Llama-2-13B: 5.40 with its own first four tokens, 5.60 with line breaks (+0.04 nats) [T, table 1]",
    figures={
        "rise": "loss with 4 sinks that are line breaks less that with the text's own, nats a token",
        "bare": "control: the window without sinks less that with the text's own",
    },
    tests=(at_most("rise", 0.1, 0.3),),
    call="the batch with line breaks at positions 0 to 3 under SlidingWindow(w, sinks=4)",
)
def position_not_meaning(subject: Subject) -> dict[str, Interval]:
    """Line breaks in place of the first four tokens."""
    tokenizer = subject.model.tokenizer
    breaks = [] if tokenizer is None else tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    if not breaks:
        raise NotTestableError("Its vocabulary has no line break.")
    texts, window = subject.long_texts, _window(subject)
    rows = torch.tensor(breaks).expand(len(texts), SINKS)
    start = texts.ids.shape[1] // 2
    kept = {"own": texts, "breaks": subject.with_first(texts, rows)}
    losses = {}
    with SlidingWindow(window, sinks=SINKS)(subject.model):
        for name, batch in kept.items():
            losses[name] = np.nanmean(subject.losses(batch)[:, start:], 1)
    return {
        "rise": paired_interval(losses["breaks"] - losses["own"]),
        "bare": paired_interval(_rise(subject, 0) - _rise(subject, SINKS)),
    }


@claim(
    "bigger-cache-is-not-always-better",
    XIAO,
    says="A bigger cache does not always lower perplexity.",
    reported="Falcon-7B with 4 sinks and 252 / 508 / 1020 / 2044 recent: 13.61, 12.84, 12.34, 12.84 [T, table 6]",
    figures={
        "worst": "largest change of the loss when the cache doubles (a sixteenth to a half of the text), nats a token",
    },
    tests=(at_least("worst", 0.005, 0.0),),
    call="SlidingWindow(w, sinks=4) for four w",
)
def bigger_cache(subject: Subject) -> dict[str, Interval]:
    """The step that helps least, by the means over texts."""
    found = _rises(subject)
    columns = np.stack([found["cache 1"], found["cache 2"], _rise(subject, SINKS), found["cache 8"]])
    return {"worst": statistic_interval(columns, lambda means: np.diff(means, axis=0).max(0))}


@claim(
    "half-of-attention-on-the-first-token",
    XIAO,
    says="In all but the two bottom layers the last token gives more than half of its attention to the first.",
    reported="Llama-2-7B: above 50 % except in the bottom 2 layers, 4096th query, 256 texts [T]",
    figures={
        "upper": "attention of the last token to position 0, layers from 2 on, heads and layers averaged",
        "bottom": "control: the two bottom layers",
        "layers": "share of the upper layers with more than half",
    },
    tests=(at_least("upper", 0.5, 0.2), at_least("layers", 0.9, 0.5)),
    call="model.original_model(ids, output_attentions=True) or SinkDetector on last rows",
)
@torch.no_grad()
def half_on_the_first(subject: Subject) -> dict[str, Interval]:
    """The last row of every head's map."""
    rows = []
    for ids in subject.long_texts.ids:
        got: dict[int, torch.Tensor] = {}
        hooks = [
            (f"blocks.{layer}.attn.hook_pattern", lambda x, hook, at=layer, to=got: to.__setitem__(at, x[0, :, -1, 0]))
            for layer in range(len(subject.model.blocks))
        ]
        subject.model.run_with_hooks(ids[None], fwd_hooks=hooks)
        rows.append([float(got[layer].mean()) for layer in sorted(got)])
    mass = np.array(rows)
    if mass.shape[1] < 3:
        raise NotTestableError("It has fewer than three layers.")
    return {
        "upper": paired_interval(mass[:, 2:].mean(1)),
        "bottom": paired_interval(mass[:, :2].mean(1)),
        "layers": paired_interval((mass[:, 2:] > 0.5).mean(1)),
    }
