"""Attention patterns in full and what heads attend to in them, in the plainest code.

Apart from the engine, so that they can check it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sinklens.lab.tasks.distinct_needle import FoundNeedles


class Patterns(NamedTuple):
    """One forward pass with everything that heads attended to.

    Attributes:
        logits: ``[batch pos d_vocab]``.
        attention: per layer the pattern after the softmax, ``[batch head q_pos k_pos]``.
    """

    logits: Float[Tensor, "batch pos d_vocab"]
    attention: list[Float[Tensor, "batch head q_pos k_pos"]]


def patterns(model: LlamaForCausalLM, ids: Int[Tensor, "batch pos"]) -> Patterns:
    """Run sequences without padding through eager attention; the model is left as it was.

    Cost: T x T numbers per head and layer are kept.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: tuple[Tensor, Tensor]) -> None:
        kept.append(output[1])

    before = model.config._attn_implementation
    handles = [layer.self_attn.register_forward_hook(keep) for layer in model.model.layers]
    try:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    return Patterns(logits, kept)


def stripes(
    pattern: Float[Tensor, "batch head q_pos k_pos"], ids: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, " head"]]:
    """Return each head's mean attention to five kinds of keys, over sequences `BOS block block ..` of different words.

    With ``A`` the pattern and the queries ``i`` of the second block on, those whose token stands at earlier ``j``:

    - ``duplicate_token``: sum of ``A[i, j]`` over these ``j`` (with more than two blocks: the echo score of
      RazorAttention);
    - ``induction``: sum of ``A[i, j + 1]`` (Razor's induction score);
    - ``previous_token``: ``A[i, i - 1]`` over all queries ``i >= 1``;
    - ``bos_mass``: ``A[i, 0]`` over all queries ``i >= 1``;
    - ``idle_bos_mass``: the same over the first block, where nothing can be copied.

    Uniform causal attention over BOS and two blocks of 30 gives 0.062 (previous token, BOS), 0.022 (duplicate,
    induction) and 0.101 (BOS, first block).
    """
    batch, length = ids.shape
    earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
    same = (ids[:, :, None] == ids[:, None, :]) & earlier
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    repeated = same.any(-1)
    rows = pattern.double()

    def over(mask: Tensor, queries: Tensor) -> Tensor:
        mass = (rows * mask[:, None]).sum(-1)
        return (mass * queries[:, None]).sum((0, 2)) / queries.sum()

    later = torch.ones(batch, length, dtype=torch.bool)
    later[:, 0] = False
    first = torch.zeros(batch, length, length, dtype=torch.bool)
    first[:, :, 0] = True
    previous = torch.eye(length, dtype=torch.bool)[None].roll(-1, dims=2).tril(-1).expand(batch, -1, -1)
    return {
        "previous_token": over(previous, later),
        "duplicate_token": over(same, repeated),
        "induction": over(after, repeated),
        "bos_mass": over(first, later),
        "idle_bos_mass": over(first, later & ~repeated),
    }


class Retrieval(NamedTuple):
    """Scores and how the needles were answered.

    Attributes:
        scores: per layer, mean over the kept needles, ``[layer head]``; NaN if none was kept.
        correct: which values were answered, ``[batch value]``.
        kept: needles with more than half of the values answered.
    """

    scores: Float[Tensor, "layer head"]
    correct: Bool[Tensor, "batch value"]
    kept: Bool[Tensor, " batch"]


def retrieval(
    logits: Float[Tensor, "batch pos d_vocab"],
    attention: list[Float[Tensor, "batch head q_pos k_pos"]],
    needles: FoundNeedles,
    value_len: int,
) -> Retrieval:
    """Score heads as Wu et al. do, with the answer forced and not generated.

    A head copies a value when the key it attends to most, from the position that predicts the value, lies among the
    needle's values and holds the token that is predicted there. Its score is the share of the answer's steps at which
    it copies, averaged over the needles with more than half of the values right (the others say nothing).

    Args:
        logits: of the sequences without their last token.
        attention: of the same pass.
        needles: the whole sequences.
        value_len: values of a needle, at the end of each sequence.

    Source: Wu et al. (arXiv 2404.15574), released code's form, which counts steps; with values that all differ, it
    equals the paper's form, which counts tokens.
    """
    ids, start = needles
    answer: Int[Tensor, "batch value"] = ids[:, -value_len:]
    said = logits[:, -value_len:].argmax(-1)
    kept = (said == answer).double().mean(-1) > 0.5
    scores = []
    for pattern in attention:
        top = pattern[:, :, -value_len:].argmax(-1)  # batch head value
        inside = (top >= start[:, None, None]) & (top < start[:, None, None] + value_len)
        attended = ids[:, None].expand(-1, top.shape[1], -1).gather(2, top)
        copied = inside & (attended == said[:, None])
        scores.append(copied[kept].double().mean((0, 2)))
    return Retrieval(torch.stack(scores), said == answer, kept)
