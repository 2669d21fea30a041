"""One forward pass of the unchanged model that later passes go on from, in the middle of the network.

An ablation in layer l leaves all earlier layers as they were. So they are run once, and every ablated pass starts with
the residual stream that enters layer l; even layer l's own attention is shared, because head outputs that change from z
to z' change what the layer writes by ``(z' - z) W_O``.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionCall, AttentionEngine, AttentionShape
from sinklens.attention.kernel import attend, make_shape
from sinklens.capture.run import Consumer, capture
from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.tokens import TokenBatch


def parity(values: Tensor) -> float:
    """Largest difference, as a share of the largest entry, up to which two ways of computing ``values`` are equal."""
    return 1e-4 if values.dtype in (torch.float32, torch.float64) else 2e-2


@dataclass
class CleanPass:
    """What the unchanged model did on a batch, for the layers asked for.

    Attributes:
        ids: ``[batch pos]``.
        logits: ``[batch pos d_vocab]``.
        returned: What every layer returned, the residual stream (its first or only item) left out.
        entered: Residual stream that enters a layer.
        written: What a layer's attention module returned; what it adds to the residual stream comes first.
        z: Head outputs ``[batch head pos d_value]``.
        reweighted: Head outputs as attention gives them under edits of scores or pattern of all heads of this layer
            alone, by name of the edits and layer.
        own: Whether attention ran in sinklens' own kernel, else in torch's fused one. The two round differently, so
            passes that are compared with this one have to run in the same.
    """

    ids: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos d_vocab"] = field(default_factory=lambda: torch.empty(0))
    returned: dict[int, Any] = field(default_factory=dict)
    entered: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    written: dict[int, Any] = field(default_factory=dict)
    z: dict[int, Float[Tensor, "batch head pos d_value"]] = field(default_factory=dict)
    reweighted: dict[tuple[str, int], Float[Tensor, "batch head pos d_value"]] = field(default_factory=dict)
    own: bool = True

    @property
    def edited_layers(self) -> tuple[int, ...] | None:
        """What the engine has to be told as ``edited`` for a pass to run in the same kernel: every layer, or none."""
        return None if self.own else ()

    def edited(self, layer: int, edits: Sequence[Any], name: str = "") -> Float[Tensor, "batch head pos d_value"]:
        """Head outputs of a layer after edits of all its heads, and of no earlier layer; a tensor of its own.

        Args:
            layer: One of those that were kept.
            edits: What changes them.
            name: That under which :func:`run_clean` was told of them, where they change scores or pattern.
        """
        edited = (self.reweighted[name, layer] if reweights(edits) else self.z[layer]).clone()
        shape = make_shape(layer, edited.shape[:3], edited.shape[2], edited.device)
        for edit in edits:
            if hasattr(edit, "edit_output"):
                edit.edit_output(shape, edited)
        return edited

    def first_sequence(self) -> "CleanPass":
        """The same of the first sequence alone, as far as :func:`going_on` needs it."""
        entered = {layer: residual[:1] for layer, residual in self.entered.items()}
        return CleanPass(self.ids[:1], self.logits[:1], self.returned, entered, own=self.own)

    def constant_part(self, model: TransformerBridge, layer: int) -> Float[Tensor, " d_model"] | None:
        """What the layer's attention writes besides ``z W_O`` (its bias).

        ``None`` where that differs between tokens (a gate or norm follows z) or ``W_O`` cannot be read.
        """
        weights = output_weights(model, layer)
        if weights is None or layer not in self.z:
            return None
        written = _first(self.written[layer])
        rest = written - _project(self.z[layer], weights)
        constant: Tensor = rest.mean((0, 1))
        scale = 1e-6 + written.abs().max()
        if (rest - constant).abs().max() > parity(written) * scale:
            return None
        return constant * (constant.abs().max() > 1e-5 * scale)  # without a bias only rounding is left


def reweights(edits: Sequence[Any]) -> bool:
    """Whether some of the edits change scores or pattern, so that attention has to be computed under them."""
    return any(hasattr(edit, "edit_scores") or hasattr(edit, "edit_pattern") for edit in edits)


def run_clean(
    model: TransformerBridge,
    batch: TokenBatch,
    path: str,
    layers: Collection[int],
    edits: Mapping[str, Sequence[Any]] | None = None,
    consumers: Sequence[Consumer] = (),
    first_sequence: int = 0,
) -> CleanPass:
    """Run the unchanged model and keep what passes that go on from ``layers`` need.

    Args:
        model: The bridge.
        batch: Right-padded tokens.
        path: The engine's path for the model.
        layers: Layers from which later passes start.
        edits: By any names, what those passes will do to all heads of the layer they start from (fast path only).
        consumers: Look at this very pass, as :func:`~sinklens.capture.capture` hands it to them.
        first_sequence: Number of the first sequence in their records.

    Cost: one forward pass, and the attention of ``layers`` once more for each of ``edits`` that change scores or
    pattern; memory of three hidden states for each of ``layers``, and of one more for each of those edits.
    """
    weighted = {name: each for name, each in (edits or {}).items() if reweights(each)}
    kept = CleanPass(batch.ids.to(next(model.parameters()).device), own=bool(layers or consumers))

    def opened(model: TransformerBridge, *, observers: Sequence[Any] = (), **measured: Any) -> AttentionEngine:
        if path != "fast":
            return AttentionEngine(model, path=path, observers=observers, **measured)
        # edited and unedited outputs come from the same code, so that an edit without effect changes nothing at all
        watching = [*observers, _Keeping(kept, layers, weighted)]
        return AttentionEngine(model, edited=kept.edited_layers, observers=watching, compared=True, **measured)

    def take(_: TokenBatch, logits: Tensor) -> None:
        kept.logits = logits

    attentions = attention_layers(model)
    hooks = [(f"blocks.{layer}.hook_in", _entering(kept.entered, layer)) for layer in layers]
    with ExitStack() as stack:
        stack.enter_context(model.hooks(fwd_hooks=hooks))
        for layer, block in enumerate(model.blocks):
            # of the layers only the form of what they return is kept; the residual stream is kept where passes start
            stack.callback(block.register_forward_hook(_keep(kept.returned, layer, form_only=True)).remove)
            if layer in layers:
                stack.callback(attentions[layer].register_forward_hook(_keep(kept.written, layer)).remove)
        if consumers:
            looked: dict[str, Any] = {"batch_size": len(batch), "first_sequence": first_sequence}
            capture(model, batch, consumers, intervention=opened, logits=take, **looked)
        else:
            stack.enter_context(opened(model))
            take(batch, model(kept.ids))
    return kept


class _Keeping:
    """Observer that keeps head outputs of some layers, and what attention makes of them under edits."""

    def __init__(self, kept: CleanPass, layers: Collection[int], edits: Mapping[str, Sequence[Any]]) -> None:
        self.kept, self.layers, self.edits = kept, layers, edits

    def observe(self, call: AttentionCall) -> None:
        """Attend once more for each of the edits."""
        if call.layer in self.layers:
            for name, edits in self.edits.items():
                self.kept.reweighted[name, call.layer] = attend(call, (), edits)

    def observe_output(self, shape: AttentionShape, output: Tensor) -> None:
        """Keep the outputs."""
        if shape.layer in self.layers:
            self.kept.z[shape.layer] = output  # no copy: the engine makes a tensor for every call


@contextmanager
def going_on(model: TransformerBridge, clean: CleanPass, layer: int, copies: int) -> Iterator[None]:
    """Forward passes inside ``with`` start at ``layer`` with ``copies`` of the clean residual stream in a row.

    Embedding and norms around the stack run as always; the layers before ``layer`` hand on what they returned.
    """
    with ExitStack() as stack:
        for number in range(layer):
            residual = clean.entered[layer] if number == layer - 1 else None
            stack.enter_context(_replaced(model.blocks[number], _pass_on(clean.returned[number], residual, copies)))
        yield


@contextmanager
def writing(
    model: TransformerBridge,
    clean: CleanPass,
    layer: int,
    constant: Float[Tensor, " d_model"],
    chosen: Bool[Tensor, "copy head"],
    edited: Float[Tensor, "batch head pos d_value"],
) -> Iterator[None]:
    """The layer's attention writes what it would if ``chosen`` heads gave what ``edited`` holds, without being run."""
    weights = output_weights(model, layer)
    z, written = clean.z[layer], clean.written[layer]
    if weights is None:
        raise UnsupportedArchitectureError(f"W_O of layer {layer} cannot be read.")
    sums = []
    for heads in chosen.to(z.device):
        if 2 * int(heads.sum()) <= len(heads):
            sums.append(_first(written) + _project(edited[:, heads] - z[:, heads], weights[heads]))
        else:  # adding up anew: a norm that follows would blow up what is left by rounding where all heads are zero
            sums.append(constant + _project(torch.where(heads[:, None, None], edited, z), weights))
    with _replaced(attention_layers(model)[layer], lambda *args, **kwargs: _with_first(written, torch.cat(sums))):
        yield


def _project(z: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("bhpd,hdm->bpm", z, weights.to(z.dtype))


def _keep(store: dict[int, Any], layer: int, form_only: bool = False) -> Any:
    def hook(module: Any, arguments: Any, returned: Any) -> None:
        store[layer] = _with_first(returned, None) if form_only else returned

    return hook


def _entering(store: dict[int, Tensor], layer: int) -> Any:
    def hook(residual: Tensor, hook: Any) -> None:
        store[layer] = residual

    return hook


def _pass_on(returned: Any, residual: Tensor | None, copies: int) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if residual is not None:  # the last layer that is skipped; those before it hand their input on, unread
            return _with_first(returned, residual.repeat(copies, 1, 1))
        return _with_first(returned, args[0] if args else kwargs["hidden_states"])

    return forward


def _first(returned: Any) -> Tensor:
    tensor: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return tensor


def _with_first(returned: Any, tensor: Tensor | None) -> Any:
    return (tensor, *returned[1:]) if isinstance(returned, tuple) else tensor


@contextmanager
def _replaced(module: torch.nn.Module, forward: Any) -> Iterator[None]:
    """``module.forward`` replaced and put back; past nn.Module's own setattr, which a bridge hands on."""
    before = module.__dict__.get("forward")
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            object.__setattr__(module, "forward", before)
