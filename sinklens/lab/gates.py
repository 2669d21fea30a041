"""Does a trained Bigram-Backcopy model show the extreme-token phenomena? Measured apart from the engine.

Plain torch hooks on the Hugging Face model, so that these figures can check the rest of sinklens.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import OPTForCausalLM

from sinklens.errors import InputError
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.gate import Gate, missed
from sinklens.lab.running import zeroed
from sinklens.lab.streams import stream

GU_LENGTH, GU_EPSILON = 64, 0.3


def measure(
    model: OPTForCausalLM,
    task: BigramBackcopy,
    *,
    initial: OPTForCausalLM | None = None,
    batch: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """Measure a trained model on fresh sequences of the task's length, drawn from a stream no training uses.

    Query `i` is bigram or backcopy by whether token `x_i` is a trigger; its loss is for `x_{i+1}`, in nats.
    BOS, at position 0, counts as a bigram query in the losses. `A` is the attention pattern after the
    softmax, `s` the scaled scores before it, `v` the values, `W_O` the output projection, `h` the residual
    stream after a layer.

    Per model:
        backcopy_loss, bigram_loss: mean losses.
        oracle_bigram_loss: the lowest possible expected bigram loss, exact.
        bigram_excess: bigram_loss minus what the true distribution scores on the same sequences.
        trigger_share: share of triggers among the queries.
    Per layer, with the prefix `L0.` and so on:
        attn_bos_nontrigger: mean of `A[i, 0]` over queries `i >= 1` that are no triggers (row 0 is 1 by
            causality).
        attn_bos_trigger: the same over triggers.
        delta_logit: mean over non-trigger queries `i >= 2` of `s[i, 0] - mean(s[i, j] for 1 <= j < i)`.
        value_bos, value_others, drain_ratio: norm of `W_O v` at BOS, its mean over the other positions, their
            ratio.
        no_attention_backcopy, no_attention_bigram, no_attention_bigram_change: losses with this layer's
            attention output set to zero, and the rise of the bigram loss.
        no_mlp_backcopy, no_mlp_bigram: losses with this layer's MLP output set to zero.
        alpha_0: mean over all queries of the first 64 tokens, `i = 0` included, of `A[i, 0]` (Gu's importance
            of the first token). NaN for shorter sequences.
        sink_rate: share of the sequences whose alpha_0 exceeds 0.3.
        resid_bos, resid_others: norm of `h` at BOS, and its mean over the other positions.
        resid_bos_growth, resid_others_growth: these over their values in the `initial` model; NaN without
            one.

    Source: Guo et al. (arXiv 2410.13835) and their released code; Gu et al. (arXiv 2410.10781) for alpha_0
    and sink_rate.

    Args:
        model: the trained model, on any device; it is left as it was.
        task: the data it was trained on, with BOS.
        initial: the same model before training.
        batch: number of sequences.
        seed: of the sequences.

    Raises:
        InputError: if the task has no BOS, or the model has several heads or another vocabulary.
    """
    if not task.bos:
        raise InputError("The gates are defined for the task with BOS; give BigramBackcopy(bos=True).")
    if model.config.num_attention_heads != 1 or model.config.vocab_size != task.d_vocab:
        raise InputError(
            f"A model with 1 head and {task.d_vocab} tokens was expected, "
            f"not {model.config.num_attention_heads} heads and {model.config.vocab_size} tokens."
        )
    ids = task.sample(batch, task.seq_len + 1, stream(seed, "measure")).to(model.device)
    queries = ids[:, :-1]
    trigger = task.trigger_mask(queries)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            backcopy, bigram = _losses(model, ids, trigger)
            measured = {
                "backcopy_loss": backcopy,
                "bigram_loss": bigram,
                "oracle_bigram_loss": task.oracle_bigram_loss(task.seq_len),
                "bigram_excess": bigram - task.surprisal(ids)[~trigger].mean().item(),
                "trigger_share": trigger.double().mean().item(),
            }
            before = None if initial is None else _residuals(initial, queries.to(initial.device))
            after = _residuals(model, queries)
            for number, attention in enumerate(_attention(model, queries)):
                layer = model.model.decoder.layers[number]
                figures = _attention_figures(*attention, trigger)
                with zeroed(layer.self_attn.out_proj):
                    figures["no_attention_backcopy"], figures["no_attention_bigram"] = _losses(model, ids, trigger)
                figures["no_attention_bigram_change"] = figures["no_attention_bigram"] - bigram
                with zeroed(layer.fc2):
                    figures["no_mlp_backcopy"], figures["no_mlp_bigram"] = _losses(model, ids, trigger)
                figures["resid_bos"], figures["resid_others"] = after[number]
                start = (math.nan, math.nan) if before is None else before[number]
                figures["resid_bos_growth"] = figures["resid_bos"] / start[0]
                figures["resid_others_growth"] = figures["resid_others"] / start[1]
                measured |= {f"L{number}.{name}": value for name, value in figures.items()}
    finally:
        model.train(was_training)
    return measured


def gates(measured: dict[str, float], n_layers: int) -> list[Gate]:
    """Hold the figures of `measure` against what a well trained model shows.

    With one layer, every bound of the small model in the method's check A. With more, one layer, whichever it
    is, must be a sink (attention, drain and delta-logit together), and the residual norm of BOS after layer 0
    must have grown by 1.7: the layer that holds the sink differs between seeds.
    """
    if n_layers == 1:
        return [
            Gate.of(measured, "backcopy_loss", "<=", 0.05),
            Gate.of(measured, "L0.attn_bos_nontrigger", ">=", 0.6),
            Gate.of(measured, "L0.attn_bos_trigger", "<=", 0.02),
            Gate.of(measured, "L0.drain_ratio", "<=", 0.4),
            Gate.of(measured, "L0.delta_logit", ">=", 5.0),
            Gate.of(measured, "L0.no_attention_backcopy", ">=", 5.0),
            Gate.of(measured, "L0.no_attention_bigram_change", "<=", 0.03),
            Gate.of(measured, "L0.no_mlp_bigram", ">=", 3.0),
        ]
    candidates = [
        [
            Gate.of(measured, f"L{number}.attn_bos_nontrigger", ">=", 0.6),
            Gate.of(measured, f"L{number}.drain_ratio", "<=", 0.4),
            Gate.of(measured, f"L{number}.delta_logit", ">=", 5.0),
        ]
        for number in range(n_layers)
    ]
    best = max(candidates, key=lambda rows: (sum(row.passed for row in rows), rows[0].value))
    return [*best, Gate.of(measured, "L0.resid_bos_growth", ">=", 1.7)]


def check_gates(measured: dict[str, float], n_layers: int) -> list[str]:
    """Return one sentence for each bound that is missed; an empty list means that all hold.

    Example:
        >>> check_gates(
        ...     {
        ...         "L0.attn_bos_nontrigger": 0.1,
        ...         "L0.drain_ratio": 0.2,
        ...         "L0.delta_logit": 9.0,
        ...         "L1.attn_bos_nontrigger": 0.9,
        ...         "L1.drain_ratio": 0.2,
        ...         "L1.delta_logit": 9.0,
        ...         "L0.resid_bos_growth": 1.1,
        ...     },
        ...     n_layers=2,
        ... )
        ['L0.resid_bos_growth is 1.1, expected >= 1.7']
    """
    return missed(gates(measured, n_layers))


def _losses(
    model: OPTForCausalLM, ids: Int[Tensor, "batch pos_plus_1"], trigger: Bool[Tensor, "batch pos"]
) -> tuple[float, float]:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(trigger)
    return losses[trigger].double().mean().item(), losses[~trigger].double().mean().item()


def _attention(
    model: OPTForCausalLM, queries: Int[Tensor, "batch pos"]
) -> Iterator[
    tuple[Float[Tensor, "batch q_pos k_pos"], Float[Tensor, "batch q_pos k_pos"], Float[Tensor, "batch pos"]]
]:
    """Yield for each layer the pattern, the scores before the softmax and the norms of `W_O v`."""
    attentions = [layer.self_attn for layer in model.model.decoder.layers]
    names = ("q_proj", "k_proj", "v_proj")
    with _outputs([getattr(attention, name) for attention in attentions for name in names]) as outputs:
        model(input_ids=queries, use_cache=False)
    hidden = torch.ones(queries.shape[1], queries.shape[1], dtype=torch.bool, device=queries.device).triu(1)
    for number, attention in enumerate(attentions):
        query, key, value = outputs[3 * number : 3 * number + 3]
        scores = (query * attention.scaling) @ key.transpose(-1, -2)
        pattern = scores.masked_fill(hidden, -math.inf).softmax(-1)
        yield pattern, scores, linear(value, attention.out_proj.weight).norm(dim=-1)


def _attention_figures(
    pattern: Float[Tensor, "batch q_pos k_pos"],
    scores: Float[Tensor, "batch q_pos k_pos"],
    values: Float[Tensor, "batch pos"],
    trigger: Bool[Tensor, "batch pos"],
) -> dict[str, float]:
    to_bos, length = pattern[:, :, 0].double(), pattern.shape[1]
    idle = ~trigger[:, 1:]
    # Sum over keys 1 <= j < i, for every query i >= 2.
    others = scores.double().tril(-1)[:, 2:, 1:].sum(-1) / torch.arange(1, length - 1, device=scores.device)
    delta = scores[:, 2:, 0].double() - others
    alpha = to_bos[:, :GU_LENGTH].mean(1)
    at_bos, at_others = values[:, 0].double().mean().item(), values[:, 1:].double().mean().item()
    return {
        "attn_bos_nontrigger": to_bos[:, 1:][idle].mean().item(),
        "attn_bos_trigger": to_bos[:, 1:][~idle].mean().item(),
        "delta_logit": delta[~trigger[:, 2:]].mean().item(),
        "value_bos": at_bos,
        "value_others": at_others,
        "drain_ratio": at_bos / at_others if at_others > 0 else math.nan,
        "alpha_0": alpha.mean().item() if length >= GU_LENGTH else math.nan,
        "sink_rate": (alpha > GU_EPSILON).double().mean().item() if length >= GU_LENGTH else math.nan,
    }


def _residuals(model: OPTForCausalLM, queries: Int[Tensor, "batch pos"]) -> list[tuple[float, float]]:
    """Return for each layer the norm of its output at BOS, and the mean norm at the other positions."""
    with _outputs(list(model.model.decoder.layers)) as outputs:
        model(input_ids=queries, use_cache=False)
    norms = [output.double().norm(dim=-1) for output in outputs]
    return [(norm[:, 0].mean().item(), norm[:, 1:].mean().item()) for norm in norms]


@contextmanager
def _outputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what the modules return in one forward pass, in the order of the list."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(place: int, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[place] = output[0] if isinstance(output, tuple) else output

    handles = [
        module.register_forward_hook(lambda _module, _args, output, place=place: keep(place, output))
        for place, module in enumerate(modules)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
