"""EditValues: what attention carries away from some keys, taken out or made ordinary."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, AttentionShape, Statistic, plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.base import Intervention
from sinklens.interventions.positions import Positions, parse_keys
from sinklens.models.architecture import attention_layers
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.wording import several

TO = ("zero", "mean", "donor")


@dataclass(frozen=True)
class EditValues(Intervention):
    """Replaces the value states of some keys, by default those of a sink: ``v_k <- 0`` or ``v_k <- mean``.

    The pattern stays what it was in the layer in hand; only what the weight on these keys brings along changes, by
    ``A[i, k] (v'_k - v_k)`` in row i. Later layers see another residual stream, so their patterns may change.

    - ``"zero"``: the key carries nothing, as a perfectly drained sink does: a weight on it is weight thrown away.
    - ``"mean"``: it carries the mean value of ordinary tokens, from :func:`mean_values`: the drain is undone, and
      whatever text-independent vector the sink handed out is gone.
    - ``"donor"``: it carries what another token did, of this text or of another, from :func:`donor_values`: a sink that
      says nothing of its text can be exchanged for that of any other.

    Values belong to KV heads, which under grouped-query attention several query heads share, so KV heads are what can
    be named: ``"L5KV1"`` is KV head 1 of layer 5 (query heads ``1 * group`` to ``2 * group - 1`` read it). An edit for
    a single query head of a group is a change of its output instead, see
    :class:`~sinklens.interventions.AblateHeads`.

    With a KV cache: on the fast path the cache keeps the model's own values and they are edited anew at every step.
    On a model that is only edited through its hooks the values are edited as they enter the cache, so text that was
    cached outside of ``with`` keeps its own values, and a cache filled inside keeps the edited ones.

    Args:
        keys: Key positions (one, or several), in every sequence.
        to: ``"zero"``, ``"mean"`` or ``"donor"``.
        kv_heads: ``"all"``, or KV heads such as ``["L5KV1", "L6KV0"]``.
        means: For ``"mean"`` and ``"donor"``: value vector by KV head, from :func:`mean_values` or
            :func:`donor_values`; must hold every edited head.

    Source: value-state drains of Guo et al. (2024), arXiv 2410.13835; the implicit attention bias
    ``sum_{k in sinks} A[i, k] v_k`` of Sun et al. (2024), arXiv 2402.17762, section 4. Neither releases this edit.
    """

    keys: tuple[int, ...]
    to: Literal["zero", "mean", "donor"] = "zero"
    kv_heads: tuple[str, ...] | str = "all"
    means: Mapping[str, Sequence[float]] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        if self.to not in TO:
            raise InputError(f'to must be "zero", "mean" or "donor", got {self.to!r}.')
        if (self.to == "zero") == (self.means is not None):
            raise InputError(
                'to="mean" needs means=mean_values(model, batch), to="donor" means=donor_values(model, prompt), and '
                'to="zero" takes no means.'
            )
        object.__setattr__(self, "keys", parse_keys(self.keys))
        object.__setattr__(self, "kv_heads", parse_kv_heads(self.kv_heads))
        if self.means is not None:
            object.__setattr__(self, "means", _parse_means(self.means))

    def check(self, model: TransformerBridge) -> None:
        """The named layers have attention and, for ``"mean"``, means; how many KV heads they have shows as they run."""
        layers = attention_layers(model)
        for name in [kv_head_name(layer, 0) for layer in layers] if isinstance(self.kv_heads, str) else self.kv_heads:
            layer = parse_kv_head(name)[0]
            if layer >= len(model.blocks):
                last = len(model.blocks) - 1
                raise InputError(f"{name} does not exist in this model, which has the layers L0 to L{last}.")
            if layer not in layers:
                raise InputError(f"{name} does not exist in this model: layer {layer} has no softmax attention.")
            if self.means is not None and name not in self.means:
                raise InputError(f"means has no value of {name}; take it from mean_values(model, batch).")

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of value states."""
        return [_Replace(self, positions)]


class _Replace:
    def __init__(self, method: EditValues, positions: Positions) -> None:
        self.method, self.positions = method, positions

    def edit_values(self, shape: AttentionShape, value: Float[Tensor, "batch kv_head k_pos d_value"]) -> None:
        heads = self._heads(shape.layer, value.shape[1])
        if not heads:
            return
        keys = self.positions.key_positions(shape)
        chosen = torch.isin(keys, torch.tensor(self.method.keys, device=keys.device))
        if bool(chosen.any()):
            for head in heads:
                value[:, head][chosen] = self._replacement(shape.layer, head, value)

    def _heads(self, layer: int, count: int) -> list[int]:
        """Which KV heads of the layer in hand are meant."""
        if isinstance(self.method.kv_heads, str):
            return list(range(count))
        heads = [head for at, head in map(parse_kv_head, self.method.kv_heads) if at == layer]
        if heads and heads[-1] >= count:
            raise InputError(
                f"{kv_head_name(layer, heads[-1])} does not exist in this model: layer {layer} has "
                f"{several(count, 'KV head')}, KV0 to KV{count - 1}."
            )
        return heads

    def _replacement(self, layer: int, head: int, value: Tensor) -> Tensor:
        if self.method.means is None:
            return value.new_zeros(())
        name = kv_head_name(layer, head)
        if name not in self.method.means:
            raise InputError(f"means has no value of {name}; take it from mean_values(model, batch).")
        mean = value.new_tensor(self.method.means[name])
        if mean.shape != value.shape[-1:]:
            raise InputError(f"The mean of {name} has {len(mean)} numbers, its values have {value.shape[-1]}.")
        return mean


def donor_values(model: TransformerBridge, prompt: TokenBatch | Ids, *, position: int = 0) -> dict[str, list[float]]:
    """Value state of every KV head at one token of a prompt, by KV head name: what :class:`EditValues` can put in.

    Args:
        model: The bridge.
        prompt: One sequence from :func:`sinklens.tokenize`.
        position: Whose values.

    Raises:
        InputError: Not one sequence, or one that is too short.
        UnsupportedArchitectureError: The model has no attention.

    Cost: one forward pass of the prompt.
    """
    batch = as_batch(model, prompt)
    if len(batch) != 1 or not 0 <= position < int(batch.lengths[0]):
        raise InputError(
            f"Expected one prompt with a token at position {position}, got {len(batch)} of "
            f"{batch.lengths.tolist()} tokens."
        )
    only = torch.zeros_like(batch.real)
    only[0, position] = True
    return mean_values(model, batch, tokens=only)


@checked
@torch.no_grad()
def mean_values(
    model: TransformerBridge, batch: TokenBatch | Ids, *, tokens: Bool[Tensor, "batch pos"] | None = None
) -> dict[str, list[float]]:
    """Mean value state of every KV head over the ordinary tokens of a reference text, by KV head name.

    Ordinary are all real tokens but position 0 and special tokens: those are where sinks live, and their drained
    values would pull the mean towards what it is meant to replace. Sinks elsewhere (delimiters) are averaged in;
    leave them out with ``tokens``. Every token counts once; summed in fp64.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`; passed through together.
        tokens: Which tokens to average instead; padding is left out in any case.

    Raises:
        InputError: No token is left to average, or ``tokens`` has another shape than the batch.
        UnsupportedArchitectureError: The model has no attention.

    Cost: one forward pass.
    """
    batch = as_batch(model, batch)
    path = plan_for(model).path
    if path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention, so no values to average.")
    if tokens is None:
        tokens = ~batch.special
        tokens[:, 0] = False
    elif tokens.shape != batch.real.shape:
        raise InputError(f"tokens must say for {tuple(batch.real.shape)} positions, got {tuple(tokens.shape)}.")
    chosen = tokens & batch.real.to(tokens.device)
    if not bool(chosen.any()):
        raise InputError("No token is left to average; give a longer reference text.")
    means: dict[str, list[float]] = {}

    def collect(layer: int, value: Float[Tensor, "batch kv_head k_pos d_value"], statistics: list[Statistic]) -> None:
        by_token = value.transpose(1, 2)[chosen.to(value.device)]  # [token kv_head d_value]
        for head, mean in enumerate(by_token.double().mean(0).tolist()):
            means[kv_head_name(layer, head)] = mean

    with AttentionEngine(model, path=path, on_layer=collect):
        device = next(model.parameters()).device
        # right padding needs no attention mask: real queries never see what comes after them
        model(batch.ids.to(device), return_type=None)
    return means


def parse_kv_head(name: object) -> tuple[int, int]:
    """Layer and KV head of a name such as ``"L5KV1"``.

    Raises:
        InputError: Anything else.

    >>> parse_kv_head("L5KV1")
    (5, 1)
    """
    match = re.fullmatch(r"[Ll](\d+)[Kk][Vv](\d+)", name.strip(), re.ASCII) if isinstance(name, str) else None
    if match is None:
        raise InputError(f'A KV head is written like "L5KV1", layer and KV head counted from 0; got {name!r}.')
    return int(match[1]), int(match[2])


def kv_head_name(layer: int, head: int) -> str:
    """The name that :func:`parse_kv_head` reads.

    >>> kv_head_name(5, 1)
    'L5KV1'
    """
    return f"L{layer}KV{head}"


def parse_kv_heads(kv_heads: object) -> tuple[str, ...] | str:
    """``"all"``, or names in order and each once, from a list of them or a text with commas.

    Raises:
        InputError: No KV head at all, or a name that :func:`parse_kv_head` does not take.

    >>> parse_kv_heads("L1KV0, L0KV3"), parse_kv_heads("all")
    (('L0KV3', 'L1KV0'), 'all')
    """
    if isinstance(kv_heads, str):
        if kv_heads == "all":
            return "all"
        kv_heads = kv_heads.split(",")
    if not isinstance(kv_heads, Iterable):
        raise InputError(f'kv_heads must be "all" or a list such as ["L5KV1"], got {kv_heads!r}.')
    found = sorted({parse_kv_head(name) for name in kv_heads})
    if not found:
        raise InputError('kv_heads is empty; name at least one KV head, or "all".')
    return tuple(kv_head_name(*head) for head in found)


def _parse_means(means: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    try:
        found = {kv_head_name(*parse_kv_head(name)): [float(x) for x in mean] for name, mean in means.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f'means must map names such as "L5KV1" to lists of numbers ({error}).') from None
    for name, mean in found.items():
        if not all(math.isfinite(x) for x in mean):
            raise InputError(f"The mean of {name} holds a number that is not finite; take it from another text.")
    return found
