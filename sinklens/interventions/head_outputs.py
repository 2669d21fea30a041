"""What heads put out on a reference text: the outputs that ablation puts in a head's place."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, AttentionShape, plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.heads import Heads, check_heads, head_name, heads_in_layer, parse_head, parse_heads
from sinklens.models.rope import forward_passes
from sinklens.models.tokens import Ids, TokenBatch, as_batch


class HeadOutputs(dict[str, list[Any]]):
    """Checked outputs by head name: a vector, or a list of one vector per position.

    The tensors made from them are kept, so that copies of an intervention (a sweep makes one for each head) and
    forward passes share them.
    """

    def __init__(self, outputs: Mapping[str, list[Any]]) -> None:
        super().__init__(outputs)
        self._tensors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return HeadOutputs, (dict(self),)

    def tensor(self, name: str, like: Tensor) -> Float[Tensor, "*pos d_value"]:
        """One head's output in the dtype and on the device of ``like``."""
        key = name, like.dtype, like.device
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(self[name], dtype=like.dtype, device=like.device)
        return self._tensors[key]


def parse_outputs(outputs: Any) -> HeadOutputs:
    """Outputs by head name, checked to be vectors or lists of vectors of finite numbers.

    Raises:
        InputError: One sentence about the first thing that is wrong.

    >>> parse_outputs({"l0h1": torch.ones(2)})
    {'L0H1': [1.0, 1.0]}
    """
    if isinstance(outputs, HeadOutputs):
        return outputs
    found = {}
    try:
        for name, output in outputs.items():
            vectors = torch.as_tensor(output, dtype=torch.float64)
            if vectors.ndim not in (1, 2) or vectors.numel() == 0:
                raise ValueError(f"{name} has the shape {tuple(vectors.shape)}")
            if not bool(vectors.isfinite().all()):
                raise InputError(f"The output of {name} holds a number that is not finite; take it from another text.")
            found[head_name(parse_head(name))] = vectors.tolist()
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            'outputs must map names such as "L5H1" to a list of numbers, or to one such list for every position '
            f"({error})."
        ) from None
    return HeadOutputs(found)


@checked
@torch.no_grad()
def mean_outputs(
    model: TransformerBridge,
    batch: TokenBatch | Ids,
    *,
    heads: Heads = "all",
    per_position: bool = False,
    batch_size: int = 8,
) -> dict[str, list[Any]]:
    """Mean output z of heads over the real tokens of a reference text, by head name.

    Every real token counts once, position 0 included; summed in fp64.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`, more of them than fit in memory if you like.
        heads: ``"all"``, or the heads to keep.
        per_position: One mean for every position, over the sequences that have it, instead of one over all positions.
            Late positions rest on the few sequences that are long enough.
        batch_size: Sequences in one forward pass.

    Returns:
        By head name ``[d_value]``, or ``[pos d_value]`` as long as the longest sequence.

    Raises:
        InputError: The model has no such head, or ``batch_size`` is below 1.
        UnsupportedArchitectureError: The model has no attention, or its head outputs cannot be read exactly.

    Cost: one forward pass of the reference; with ``per_position`` memory of ``heads * pos * d_value`` numbers, and
    about ten times that as JSON: name the heads you need.
    """
    batch = as_batch(model, batch)
    kept = parse_heads(heads)
    check_heads(model, kept)
    path = plan_for(model).path
    if path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to take the mean of.")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    device = next(model.parameters()).device
    collect: Any = _Collect(kept, int(batch.lengths.max()), per_position)
    with AttentionEngine(model, path=path, edits=[collect]):
        for chosen in forward_passes(model, batch, batch_size):
            rows = batch.rows(chosen)
            collect.real = rows.real
            # right padding needs no attention mask: real queries never see what comes after them
            model(rows.ids.to(device), return_type=None)
    counts = batch.real.sum(0)[: collect.width].double() if per_position else batch.real.sum().double()[None]
    means = {name: total.cpu() / counts[:, None] for name, total in collect.totals.items()}
    return {name: (mean if per_position else mean[0]).tolist() for name, mean in means.items()}


def prompt_outputs(model: TransformerBridge, batch: TokenBatch | Ids, *, heads: Heads = "all") -> dict[str, list[Any]]:
    """Output z of heads at every position of one other prompt, by head name: what resample ablation puts in.

    Args:
        model: The bridge.
        batch: One sequence, from :func:`sinklens.tokenize`; as long as the texts it is put in, or longer.
        heads: ``"all"``, or the heads to keep.

    Returns:
        By head name ``[pos d_value]``.

    Raises:
        InputError: Not one sequence, or the model has no such head.
        UnsupportedArchitectureError: The model has no attention, or its head outputs cannot be read exactly.

    Cost: one forward pass of the prompt; memory as for :func:`mean_outputs` with ``per_position``.
    """
    batch = as_batch(model, batch)
    if len(batch) != 1:
        raise InputError(
            f"Expected one prompt to resample from, got {len(batch)}; choose one with batch.rows([i]), or average "
            "several with mean_outputs(model, batch, per_position=True)."
        )
    return mean_outputs(model, batch, heads=heads, per_position=True)


class _Collect:
    """Sums head outputs over real tokens: ``[pos d_value]``, or ``[1 d_value]`` over all positions."""

    def __init__(self, heads: Heads, width: int, per_position: bool) -> None:
        self.heads, self.width, self.per_position = heads, width, per_position
        self.real: Bool[Tensor, "batch pos"] = torch.empty(0, 0, dtype=torch.bool)
        self.totals: dict[str, Tensor] = {}

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        padding = ~self.real.to(output.device)[..., None]
        for head in heads_in_layer(self.heads, shape):
            z = output[:, head].double().masked_fill(padding, 0).sum(0)
            total = self.totals.setdefault(
                head_name((shape.layer, head)),
                z.new_zeros(self.width if self.per_position else 1, z.shape[-1]),
            )
            if self.per_position:
                total[: len(z)] += z
            else:
                total += z.sum(0)
