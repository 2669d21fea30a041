"""OV copying scores of every head, from the weights alone."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.ov_copying import EIGEN, TOP1, eigen_copying, top1_copying
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.models.torch_state import usual_torch


@checked
@usual_torch()
@torch.no_grad()
def copying_scores(model: AnyModel, *, tokenizer: Any = None, n_tokens: int = 1000, seed: int = 0) -> HeadScores:
    """Measure how far each head's output-value circuit copies the token it attends to.

    The source is the token embedding alone: what earlier layers add to it is left out, and so are biases. Gains of the
    norms before the layer, after its attention (where there is one) and before the unembedding are folded in; a norm
    that subtracts the mean has that folded in too. Copying is not a role: previous-token heads can score high.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes.
        tokenizer: For a Hugging Face model.
        n_tokens: How many ordinary tokens, drawn without repetition, the top-1 share is taken over.
        seed: Of the draw.

    Returns:
        Columns ``layer, head, ov_eigen, ov_top1, ov_top1_null``; NaN for heads whose weights cannot be read.

    Raises:
        InputError: ``n_tokens`` below 1.
        UnsupportedArchitectureError: The model has no attention heads, or no embedding and unembedding to read.

    Cost: for each head products [d_value d_model] x [d_model vocab] and [n_tokens d_value] x [d_value vocab]:
    seconds for the built-in models, an hour on a CPU for 1,024 heads over a vocabulary of 150,000.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens must be at least 1, got {n_tokens}.")
    model = as_bridge(model, tokenizer=tokenizer)
    layers = attention_layers(model)
    inner: Any = model.original_model
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if not layers or embedding is None or head is None:
        raise UnsupportedArchitectureError(
            f"{model.cfg.architecture} has no attention heads between an embedding and an unembedding to score."
        )
    w_e, w_u = embedding.weight.float(), head.weight.float().T
    if w_e.shape[1] != w_u.shape[0]:
        raise UnsupportedArchitectureError(
            f"{model.cfg.architecture} embeds tokens in {w_e.shape[1]} dimensions and reads them from {w_u.shape[0]}; "
            "its circuits are not one product."
        )
    known = ordinary_ids(model)
    draw = torch.Generator().manual_seed(seed)
    tokens = known[torch.randperm(len(known), generator=draw)[:n_tokens]].sort().values
    read_out = _folded(getattr(model, "ln_final", None), w_u.T).T
    around = read_out @ w_e
    rows = []
    for layer in layers:
        block = model.blocks[layer]
        before, after = block._modules.get("ln1"), block._modules.get("ln1_post")
        source, target = _folded(before, w_e), _folded(after, read_out.T).T
        back = _folded(before, _folded(after, around.T).T)
        values, outputs = _value_weights(model, layer), output_weights(model, layer)
        for number in range(int(model.cfg.n_heads)):
            eigen = top1 = float("nan")
            if values is not None and outputs is not None:
                w_v, w_o = (weights[number].to(w_e) for weights in (values, outputs))
                eigen = eigen_copying(w_v, w_o, back)
                top1 = top1_copying(source, w_v, w_o, target, tokens)
            rows.append((layer, number, eigen, top1, 1 / w_u.shape[1]))
    frame = pd.DataFrame(rows, columns=["layer", "head", EIGEN.name, TOP1.name, f"{TOP1.name}_null"])
    unread = int(np.isnan(frame[EIGEN.name]).sum())
    notes = [f"{unread} heads have no weights that can be read, or write nothing."] if unread else []
    meta = {"settings": {"n_tokens": len(tokens), "seed": seed}, "source": "weights", "warnings": notes}
    return HeadScores(frame, {EIGEN.name: EIGEN, TOP1.name: TOP1}, meta)


def _value_weights(model: TransformerBridge, layer: int) -> Float[Tensor, "head d_model d_value"] | None:
    """``W_V`` of each query head, ``None`` when it cannot be read."""
    try:
        weights: Tensor = attention_layers(model)[layer].W_V
    except (AttributeError, NotImplementedError, ValueError, RuntimeError):
        return None
    heads = int(model.cfg.n_heads)
    if weights.ndim != 3 or heads % weights.shape[0]:
        return None
    return weights.repeat_interleave(heads // weights.shape[0], 0)


def _folded(norm: Any, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Rows as the linear part of a norm leaves them, up to a positive scale: centred if it centres, times its gain.

    The gain is read off the module's answers, because families store it differently (Gemma adds 1).
    """
    if norm is None:
        return rows
    width = rows.shape[1]
    module: Any = getattr(norm, "original_component", norm)
    half = torch.ones(1, 1, width).to(next(module.parameters(), rows))
    half[..., width // 2 :] = -1
    plus, minus, level = (module(x).to(rows) for x in (half, -half, half.abs()))
    gain: Tensor = ((plus - minus) / 2 * half.to(rows))[0, 0]
    level = level - (plus + minus) / 2
    centres = bool(level.abs().max() < 1e-3 * gain.abs().max())  # a mean subtracted leaves nothing of a constant
    if centres:
        rows = rows - rows.mean(1, keepdim=True)
    return rows * gain
