"""Attribution patching: the effect of editing every head at once, to first order, from one backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.mla_attention import MLAAttentionBridge

from sinklens.attention import AttentionEngine, plan_for
from sinklens.attention.kernel import AttentionCall, make_shape
from sinklens.attention.masks import LazyMask
from sinklens.attention.turns import turn
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.effects import Answers, predicted_rows
from sinklens.interventions import Intervention
from sinklens.interventions.heads import heads_in_layer
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.passes.clean_pass import CleanPass, reweights, run_clean

Metric = Literal["loss", "logit_diff"]


def attribute_heads(
    model: TransformerBridge,
    batch: TokenBatch | Ids,
    intervention: Intervention,
    *,
    answers: Answers | None = None,
    metric: Metric = "loss",
) -> Float[Tensor, "layer head batch"]:
    """First-order estimate of how editing one head alone would change a metric, for every head and sequence.

    ``sum_{t,d} (z'_{t,d} - z_{t,d}) dm/dz_{t,d}`` with the head's output z, what the intervention would make of it on
    the clean input z', and the metric m of the sequence. Good where the effect is small and the model nearly linear in
    it; a saturated softmax or a strong effect defeats it, so compare a sample of heads with
    :func:`~sinklens.passes.head_sets.run_head_sets`. KL to the clean model has no first-order change at all.

    Args:
        model: The bridge.
        batch: Sequences to measure on.
        intervention: Any that goes by heads, which are those to attribute an effect to, or a sum of such.
        answers: For ``metric="logit_diff"``.
        metric: ``"loss"`` (mean nats per predicted token) or ``"logit_diff"``.

    Returns:
        The estimated change; NaN for other heads, layers without attention and sequences without such a metric.

    Raises:
        InputError: The intervention cannot be restricted to heads or changes more than head outputs, or logit
            differences were asked for without answers.
        UnsupportedArchitectureError: The model has no attention, or its head outputs cannot be edited this way.

    Cost: one forward and one backward pass, and one forward pass more for interventions on scores or pattern; memory of
    all activations of a forward pass.

    Source: Nanda (2023), Attribution Patching; Syed et al. (2023), arXiv 2310.10348.
    """
    batch = as_batch(model, batch)
    touched = intervention.heads_touched()
    if touched is None:
        raise InputError(f"{type(intervention).__name__} has no heads to attribute an effect to; see AblateHeads.")
    if metric == "logit_diff" and answers is None:
        raise InputError('metric="logit_diff" needs answers; give Answers(position, correct, wrong).')
    if metric not in ("loss", "logit_diff"):
        raise InputError(f'metric must be "loss" or "logit_diff", got {metric!r}.')
    intervention.check(model)
    positions = Positions()
    edits = list(intervention.edits(positions))
    if not intervention.by_head_alone(edits):
        raise InputError(
            f"{type(intervention).__name__} changes more than head outputs; attribution patching cannot estimate it."
        )
    path = plan_for(model).path
    if path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to attribute effects to.")
    ids = batch.ids.to(next(model.parameters()).device)
    values = partial(_metric, batch=batch, answers=answers, metric=metric)
    z, gradients, measured = _differentiate(model, ids, path, values)
    estimate = torch.full((len(model.blocks), int(model.cfg.n_heads), len(batch)), torch.nan)
    with torch.no_grad(), intervention.around(model, positions):
        changed = _edited(model, batch, path, edits, z)
        for layer in z:
            change = changed[layer].double() - z[layer].double()
            by_head = (change * gradients[layer].double()).sum((2, 3)).T.float().cpu()
            heads = heads_in_layer(touched, make_shape(layer, z[layer].shape[:3], 1, ids.device))
            estimate[layer, heads] = by_head[heads]
        return estimate.masked_fill(measured.isnan().cpu(), torch.nan)


def _metric(
    logits: Float[Tensor, "batch pos d_vocab"], *, batch: TokenBatch, answers: Answers | None, metric: Metric
) -> Float[Tensor, " batch"]:
    """The metric of every sequence, with gradients; NaN where there is none."""
    if metric == "logit_diff" and answers is not None:
        rows = torch.arange(len(batch), device=logits.device)
        read = logits[rows, answers.position.clamp(min=0).to(logits.device)].float()
        chosen = read[rows, answers.correct.to(logits.device)] - read[rows, answers.wrong.to(logits.device)]
        return chosen.masked_fill((answers.position < 0).to(logits.device), torch.nan)
    counted = predicted_rows(batch)[:, :-1].to(logits.device)
    targets = batch.ids[:, 1:].to(logits.device)
    losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
    return (losses * counted).sum(1) / counted.sum(1)


Heads = dict[int, Float[Tensor, "batch head pos d_value"]]


def _differentiate(
    model: TransformerBridge, ids: Tensor, path: str, metric: Callable[[Tensor], Tensor]
) -> tuple[Heads, Heads, Float[Tensor, " batch"]]:
    """Head outputs, the metric's gradients with respect to them, and the metric."""
    try:
        engine = _Differentiable(model) if path == "fast" else None
        z, values = _forward(model, ids, engine, metric)
    except _NeedsEagerAttention:
        z, values = _forward(model, ids, None, metric)
    with torch.enable_grad():
        total = values.nan_to_num().sum()  # a sequence reaches its own metric alone
    gradients = torch.autograd.grad(total, list(z.values()))
    return {k: v.detach() for k, v in z.items()}, dict(zip(z, gradients, strict=True)), values.detach()


def _forward(
    model: TransformerBridge, ids: Tensor, engine: "_Differentiable | None", metric: Callable[[Tensor], Tensor]
) -> tuple[Heads, Tensor]:
    with torch.enable_grad():
        if engine is not None:
            with engine:
                return engine.z, metric(model(ids))
        z: Heads = {}

        def keep(output: Tensor, hook: Any, layer: int) -> Tensor:
            z[layer] = _watched(output.transpose(1, 2))
            return z[layer].transpose(1, 2)

        for attention in attention_layers(model).values():
            if getattr(model.cfg, "gated_q_proj", False) or isinstance(attention, MLAAttentionBridge):
                raise UnsupportedArchitectureError(
                    f"Head outputs of {model.cfg.architecture} can only be read on the fast path, which keeps no "
                    "gradients for it; sweep its heads exactly."
                )
        hooks = [(f"blocks.{layer}.attn.hook_z", partial(keep, layer=layer)) for layer in attention_layers(model)]
        with turn(model), model.hooks(fwd_hooks=hooks):
            values = metric(model(ids))
        return z, values


def _watched(z: Tensor) -> Tensor:
    """``z`` as part of a graph, also where no parameter asks for gradients."""
    return z if z.requires_grad else z.detach().requires_grad_()


class _NeedsEagerAttention(Exception):
    pass


class _Differentiable(AttentionEngine):
    """Torch's fused attention, which keeps gradients without keeping a pattern."""

    differentiable = True

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        self.z: Heads = {}

    def attend(self, call: AttentionCall) -> Tensor:
        """Head outputs of one layer, kept."""
        shaped = call.soft_cap is not None or call.bias is not None or call.sink_logits is not None
        if shaped or not (call.mask is None or isinstance(call.mask, LazyMask)) or not call.causal:
            raise _NeedsEagerAttention
        mask = None
        if call.mask is not None:
            mask = call.mask.rows(0, call.shape.q_pos)[:, None, :, : call.shape.k_pos]
        output = scaled_dot_product_attention(
            call.query,
            call.key,
            call.value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=call.scaling,
            enable_gqa=call.key.shape[1] != call.query.shape[1],
        )
        self.finish(call.layer, call.value, [])
        self.z[call.layer] = _watched(output)
        return self.z[call.layer]


def _edited(model: TransformerBridge, batch: TokenBatch, path: str, edits: Sequence[Any], z: Heads) -> Heads:
    """Head outputs as the edits would leave them, every layer alone on its clean input."""
    clean = CleanPass(batch.ids, z=z)
    if reweights(edits):
        if path != "fast":
            raise UnsupportedArchitectureError(
                f"Attention of {model.cfg.architecture} cannot be estimated under edits of scores or pattern; "
                "attribute AblateHeads zero, mean or resample, or sweep the heads exactly."
            )
        clean = run_clean(model, batch, path, set(z), {"": edits})
    return {layer: clean.edited(layer, edits) for layer in z}
