"""Forward passes with head outputs, MLPs and the inputs of receiving heads exchanged."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionCall, AttentionEngine, AttentionShape, plan_for
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.heads import Head
from sinklens.studies.path_patching.receiver import Receiver

_SIDES = {"q": "query", "k": "key", "v": "value"}


@dataclass
class Recorded:
    """What a pass did.

    Attributes:
        logits: Of the last position, ``[batch d_vocab]``.
        z: Head outputs by layer, ``[batch head pos d_value]``.
        mlp: What each MLP wrote.
        inputs: Queries, keys and values of the layers of receivers, after rotation, by ``(layer, side)``.
    """

    logits: Float[Tensor, "batch d_vocab"] = field(default_factory=lambda: torch.empty(0))
    z: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What a pass exchanges; everything else is computed.

    Attributes:
        z: Head outputs to put in, by head.
        frozen: A pass whose head outputs every head without an own entry in ``z`` is held at.
        mlp: A pass whose MLP outputs all MLPs are held at.
        inputs: A pass whose queries, keys or values the receivers get.
        receivers: Which ones.
    """

    z: Mapping[Head, Float[Tensor, "batch pos d_value"]] = field(default_factory=dict)
    frozen: Recorded | None = None
    mlp: Recorded | None = None
    inputs: Recorded | None = None
    receivers: tuple[Receiver, ...] = ()


class _Exchange:
    """Edit and observer of the engine in one."""

    def __init__(self, changes: Changes, record: Recorded, layers: set[int]) -> None:
        self.changes, self.record, self.layers = changes, record, layers

    def edit_call(self, call: AttentionCall) -> AttentionCall:
        changed: dict[str, Tensor] = {}
        for layer, head, side in self.changes.receivers:
            if layer == call.layer and self.changes.inputs is not None:
                name = _SIDES[side]
                tensor = changed.setdefault(name, getattr(call, name).clone())
                at = head * tensor.shape[1] // call.query.shape[1]  # the KV head that the query head reads
                tensor[:, at] = self.changes.inputs.inputs[layer, side][:, at]
        return replace(call, **changed) if changed else call  # type: ignore[arg-type]

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        if self.changes.frozen is not None:
            output.copy_(self.changes.frozen.z[shape.layer])
        for (layer, head), z in self.changes.z.items():
            if layer == shape.layer:
                output[:, head] = z

    def observe(self, call: AttentionCall) -> None:
        if call.layer in self.layers:
            for side, name in _SIDES.items():
                self.record.inputs[call.layer, side] = getattr(call, name).clone()

    def observe_output(self, shape: AttentionShape, output: Tensor) -> None:
        self.record.z[shape.layer] = output.clone()


@torch.no_grad()
def run(
    model: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    changes: Changes | None = None,
    *,
    watched: Iterable[int] = (),
) -> Recorded:
    """One forward pass under some exchanges.

    Args:
        model: The bridge.
        ids: Sequences of one length.
        changes: What to exchange.
        watched: Layers whose queries, keys and values are kept.

    Raises:
        UnsupportedArchitectureError: Queries and keys cannot be exchanged exactly.

    Cost: a forward pass with measured attention, and memory of all head outputs.
    """
    if plan_for(model).path != "fast":
        raise UnsupportedArchitectureError(
            f"The inputs of heads of {model.cfg.architecture} cannot be exchanged exactly, so paths are not patched."
        )
    changes = changes or Changes()
    record = Recorded()
    exchange: Any = _Exchange(changes, record, set(watched))
    points = [(f"blocks.{layer}.mlp.hook_out", partial(_mlp, changes, record, layer)) for layer in _mlps(model)]
    with ExitStack() as stack:
        stack.enter_context(AttentionEngine(model, edits=[exchange], observers=[exchange]))
        stack.enter_context(model.hooks(fwd_hooks=points))
        record.logits = model(ids.to(next(model.parameters()).device))[:, -1].float()
    return record


def _mlps(model: TransformerBridge) -> list[int]:
    return [layer for layer, block in enumerate(model.blocks) if "mlp" in block._modules]


def _mlp(changes: Changes, record: Recorded, layer: int, out: Tensor, hook: Any) -> Tensor | None:
    if changes.mlp is not None:
        return changes.mlp.mlp[layer]
    record.mlp[layer] = out.clone()
    return None
