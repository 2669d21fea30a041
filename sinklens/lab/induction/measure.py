"""What a trained induction model does: figures on fresh sequences, measured apart from the engine."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from sinklens.lab.gate import Gate, missed
from sinklens.lab.induction.masked import MASKINGS, Head, masked, mean_outputs
from sinklens.lab.induction.patterns import patterns, retrieval, stripes
from sinklens.lab.induction.settings import LAYERS, InductionSettings
from sinklens.lab.streams import stream
from sinklens.lab.tasks import DistinctNeedle, RepeatedSpans
from sinklens.lab.tasks.distinct_needle import FoundNeedles
from sinklens.lab.tasks.word_task import after_repeat

LENGTHS = (67, 128, 256, 512)
"""Tokens of the needles that are asked for, BOS and answer included; 67 is 48 words of haystack around 8 values."""
PATTERN_LENGTHS = (67, 256)
BLOCK, RAZOR_BLOCK, RAZOR_REPEATS = 30, 16, 4
RETRIEVAL_HEAD, INDUCTION_HEAD = 0.1, 0.5


def measure(
    model: LlamaForCausalLM, settings: InductionSettings, *, batch: int = 128, seed: int = 0
) -> dict[str, float]:
    """Measure a model on sequences drawn from streams no training uses; losses in nats per token.

    Needles of T tokens in all, for each of `LENGTHS` that the settings allow:
        exact_match.T67: share of the needles of which every value is predicted, the answer being forced (which is what
            greedy decoding would answer).
        answer_loss.T67: mean loss of the values.
        L0H0.retrieval.T67: retrieval score, see :func:`retrieval`; at 67 and 256 tokens.
    BOS and two blocks of 30 different words:
        repeat_loss, new_loss: mean loss in the second block, and elsewhere (best possible: 0, and log of the words).
        L0H0.previous_token, .duplicate_token, .induction, .bos_mass, .idle_bos_mass: see :func:`stripes`.
    BOS and four blocks of 16 words:
        L0H0.echo, L0H0.razor_induction: RazorAttention's two scores.
    Heads masked, in needles of 67 tokens and in the two blocks; `how` is uniform, zero or mean (mean output over the
    needles):
        L0H0.exact_match.how, L0H0.repeat_loss_rise.how: one head.
        top2_exact_match.how: the two heads with the highest retrieval score; and so on, to as many as a layer has.
        all_retrieval_exact_match.how: every head with a score of at least 0.1. NaN if there is none.
        layer0_exact_match.how: all heads of layer 0.
    Of these:
        induction_heads: number of heads whose induction stripe is at least 0.5.
        retrieval_heads: number of heads with a retrieval score (67 tokens) of at least 0.1.
        induction_heads_retrieval_min, layer0_retrieval_max: lowest and highest retrieval score (67 tokens) of the
            induction heads, and of layer 0.
        layer1_induction_min, layer0_induction_max, layer1_razor_min, layer0_razor_max: induction stripe, and Razor's.
        layer0_previous_max, layer1_previous_max: highest previous-token stripe of a layer.

    Args:
        model: the trained model; it is left as it was.
        settings: of its training.
        batch: sequences at 128 tokens and below; half as many above.
        seed: of the sequences.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            figures = _needle_figures(model, settings, batch, seed)
            two, blocks = _blocks(settings, BLOCK, 2, batch, seed)
            figures |= two.losses(model) | _stripe_figures(model, blocks)
            razor = _stripe_figures(model, _blocks(settings, RAZOR_BLOCK, RAZOR_REPEATS, batch, seed)[1])
            for name, value in razor.items():
                label, figure = name.split(".")
                if figure in ("duplicate_token", "induction"):
                    figures[f"{label}.{'echo' if figure == 'duplicate_token' else 'razor_induction'}"] = value
            figures |= _masked_figures(model, settings, figures, two, batch, seed)
    finally:
        model.train(was_training)
    return figures | _extremes(figures, settings)


class _Blocks:
    """Sequences of blocks, whose losses are measured again and again."""

    def __init__(self, ids: Int[Tensor, "batch pos"]) -> None:
        self.ids, self.repeated = ids, after_repeat(ids)[:, :-1]

    def losses(self, model: LlamaForCausalLM) -> dict[str, float]:
        logits = model(input_ids=self.ids[:, :-1], use_cache=False).logits.double()
        loss = cross_entropy(logits.transpose(1, 2), self.ids[:, 1:], reduction="none")
        return {"repeat_loss": loss[self.repeated].mean().item(), "new_loss": loss[~self.repeated].mean().item()}


def _draw(settings: InductionSettings, length: int, batch: int, seed: int) -> FoundNeedles:
    task = DistinctNeedle(settings.n_words, settings.value_len, length)
    return task.draw(batch, generator=stream(seed, "measure", "needle", length))


def _blocks(
    settings: InductionSettings, block: int, repeats: int, batch: int, seed: int
) -> tuple[_Blocks, Int[Tensor, "batch pos"]]:
    task = RepeatedSpans(settings.n_words, (repeats, repeats), 0.0, 1 + block * repeats)
    ids = task.sample(batch, generator=stream(seed, "measure", "blocks", block, repeats))
    return _Blocks(ids), ids


def _needle_figures(model: LlamaForCausalLM, settings: InductionSettings, batch: int, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for length in _lengths(settings):
        needles = _draw(settings, length, batch if length <= 128 else max(1, batch // 2), seed)
        ids = needles.ids
        if length in PATTERN_LENGTHS:
            logits, attention = patterns(model, ids[:, :-1])
            found = retrieval(logits, attention, needles, settings.value_len)
            for layer, row in enumerate(found.scores.tolist()):
                figures |= {f"L{layer}H{head}.retrieval.T{length}": score for head, score in enumerate(row)}
        else:
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        figures |= _answers(logits, ids, settings.value_len, f"T{length}")
    return figures


def _answers(logits: Tensor, ids: Int[Tensor, "batch pos"], value_len: int, name: str) -> dict[str, float]:
    said, answer = logits[:, -value_len:].double(), ids[:, -value_len:]
    exact = (said.argmax(-1) == answer).all(-1).double().mean().item()
    loss = cross_entropy(said.flatten(0, 1), answer.flatten()).item()
    return {f"exact_match.{name}": exact, f"answer_loss.{name}": loss}


def _stripe_figures(model: LlamaForCausalLM, ids: Int[Tensor, "batch pos"]) -> dict[str, float]:
    return {
        f"L{layer}H{head}.{name}": value
        for layer, pattern in enumerate(patterns(model, ids).attention)
        for name, row in stripes(pattern, ids).items()
        for head, value in enumerate(row.tolist())
    }


def _masked_figures(
    model: LlamaForCausalLM,
    settings: InductionSettings,
    figures: dict[str, float],
    blocks: _Blocks,
    batch: int,
    seed: int,
) -> dict[str, float]:
    length = _lengths(settings)[0]
    ids = _draw(settings, length, batch, seed).ids
    means = mean_outputs(model, ids[:, :-1])
    scores = {head: figures[f"L{head[0]}H{head[1]}.retrieval.T{length}"] for head in means}
    ranked = sorted(means, key=lambda head: -scores[head] if scores[head] == scores[head] else 0.0)
    found: dict[str, float] = {}

    def exact(heads: Sequence[Head], how: str) -> float:
        with masked(model, heads, how, means):  # type: ignore[arg-type]  # one of MASKINGS
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return _answers(logits, ids, settings.value_len, "all")["exact_match.all"]

    for how in MASKINGS:
        for head in means:
            label = f"L{head[0]}H{head[1]}"
            found[f"{label}.exact_match.{how}"] = exact([head], how)
            with masked(model, [head], how, means):
                loss = blocks.losses(model)["repeat_loss"]
            found[f"{label}.repeat_loss_rise.{how}"] = loss - figures["repeat_loss"]
        for count in range(2, settings.heads + 1):
            found[f"top{count}_exact_match.{how}"] = exact(ranked[:count], how)
        strong = [head for head in ranked if scores[head] >= RETRIEVAL_HEAD]
        found[f"all_retrieval_exact_match.{how}"] = exact(strong, how) if strong else math.nan
        found[f"layer0_exact_match.{how}"] = exact([head for head in means if head[0] == 0], how)
    return found


def _extremes(figures: dict[str, float], settings: InductionSettings) -> dict[str, float]:
    length = _lengths(settings)[0]

    def row(layer: int, figure: str) -> list[float]:
        return [figures[f"L{layer}H{head}.{figure}"] for head in range(settings.heads)]

    score, last = f"retrieval.T{length}", LAYERS - 1
    every = [pair for layer in range(LAYERS) for pair in zip(row(layer, "induction"), row(layer, score), strict=True)]
    inductive = [retrieved for stripe, retrieved in every if stripe >= INDUCTION_HEAD]
    return {
        "induction_heads": float(len(inductive)),
        "retrieval_heads": float(sum(retrieved >= RETRIEVAL_HEAD for _, retrieved in every)),
        "induction_heads_retrieval_min": min(inductive, default=math.nan),
        "layer0_retrieval_max": max(row(0, score)),
        "layer1_induction_min": min(row(last, "induction")),
        "layer0_induction_max": max(row(0, "induction")),
        "layer1_razor_min": min(row(last, "razor_induction")),
        "layer0_razor_max": max(row(0, "razor_induction")),
        "echo_max": max(*row(0, "echo"), *row(last, "echo")),
        "layer0_previous_max": max(row(0, "previous_token")),
        "layer1_previous_max": max(row(last, "previous_token")),
    }


def _lengths(settings: InductionSettings) -> list[int]:
    fitting = [length for length in LENGTHS if length <= min(settings.longest, settings.needle.longest)]
    return fitting or [settings.longest]


def gates(measured: Mapping[str, float]) -> list[Gate]:
    """Hold the figures of `measure` against what retrieval, induction and masking should be in such a model.

    Every induction head is a retrieval head and no head of layer 0 is; the previous token is attended to in layer 0 and
    the token after the earlier copy in layer 1; without its retrieval heads the model answers nothing.

    Source: the checks of Wu et al.'s retrieval heads (arXiv 2404.15574), RazorAttention's probe (arXiv 2407.15891) and
    the standard stripes on repeated tokens.
    """
    return [
        Gate.of(measured, "exact_match.T67", ">=", 0.9),
        Gate.of(measured, "exact_match.T128", ">=", 0.9),
        Gate.of(measured, "exact_match.T256", ">=", 0.9),
        Gate.of(measured, "induction_heads", ">=", 1),
        Gate.of(measured, "induction_heads_retrieval_min", ">", 0.8),
        Gate.of(measured, "layer0_retrieval_max", "<", 0.05),
        Gate.of(measured, "layer1_induction_min", ">=", 0.7),
        Gate.of(measured, "layer0_induction_max", "<", 0.05),
        Gate.of(measured, "layer0_previous_max", ">=", 0.4),
        Gate.of(measured, "layer1_previous_max", "<", 0.1),
        Gate.of(measured, "layer1_razor_min", ">", 0.7),
        Gate.of(measured, "layer0_razor_max", "<", 0.05),
        *(Gate.of(measured, f"all_retrieval_exact_match.{how}", "<", 0.05) for how in MASKINGS),
    ]


def check_gates(measured: Mapping[str, float]) -> list[str]:
    """Return one sentence for each bound that is missed; an empty list means that all hold.

    Example:
        >>> check_gates({})[0]
        'exact_match.T67 is nan, expected >= 0.9'
    """
    return missed(gates(measured))
