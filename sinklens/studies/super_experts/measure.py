"""What every expert of a mixture puts out at most, and how many tokens it gets."""

import re
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import ReceivedMass, plan_for
from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.zero_weights import Weight
from sinklens.models.tokens import TokenBatch
from sinklens.passes.batches import equal_lengths

SHARED = -1
"""Number of a layer's shared expert, which every token goes through."""


def expert_modules(model: TransformerBridge) -> dict[int, tuple[str, Any]]:
    """By layer, name and module of its experts: one that holds all of them in tensors ``[expert ...]``.

    Raises:
        UnsupportedArchitectureError: There are none, or not in one tensor a layer.
    """
    found: dict[int, tuple[str, Any]] = {}
    original: Any = model.original_model
    for name, module in original.named_modules():
        weight = getattr(module, "down_proj", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 3:
            place = re.search(r"\.(\d+)\.", name.replace("_original_component.", ""))
            if place is not None:
                found[int(place[1])] = (name.replace("_original_component.", ""), module)
    if not found:
        raise UnsupportedArchitectureError(
            f"{model.cfg.architecture} has no experts in one tensor a layer, so there are no super experts to find."
        )
    return found


def down_weight(model: TransformerBridge, layer: int, expert: int) -> Weight:
    """The weight that makes an expert add nothing when it is zero, for :class:`~sinklens.interventions.ZeroWeights`."""
    return f"{expert_modules(model)[layer][0]}.down_proj", (expert,)


class ExpertWatch:
    """A context in which every expert's largest output is noted, before the router's weight.

    Each expert is asked by itself, through the module's own code with all weight on it, for the tokens that the router
    sends there: whatever its gate and biases are, it is the expert's own output.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.modules = expert_modules(model)
        self.largest = {layer: torch.zeros(_count(module)) for layer, (_, module) in self.modules.items()}
        self.tokens = {
            layer: torch.zeros(_count(module), dtype=torch.long) for layer, (_, module) in self.modules.items()
        }
        self.shared: dict[int, float] = {}
        self._handles: list[Any] = []
        original: Any = model.original_model
        self._shared_modules = {
            name.replace("_original_component.", ""): module
            for name, module in original.named_modules()
            if re.search(r"shared_experts?\.(_original_component\.)?down_proj$", name)
        }

    def __enter__(self) -> "ExpertWatch":
        for layer, (_, module) in self.modules.items():
            self._handles.append(module.register_forward_pre_hook(self._watch(layer, module), with_kwargs=True))
        for name, module in self._shared_modules.items():
            place = re.search(r"\.(\d+)\.", name)
            if place is not None:
                self._handles.append(module.register_forward_hook(self._watch_shared(int(place[1]))))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, layer: int, module: Any) -> Any:
        def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, index, weights = [*args, *kwargs.values()][:3]
            flat = hidden.reshape(-1, hidden.shape[-1])
            for expert in index.unique().tolist():
                if not 0 <= expert < len(self.largest[layer]):
                    continue
                mine = (index.reshape(-1, index.shape[-1]) == expert).any(-1)
                states = flat[mine]
                alone = torch.full((len(states), 1), expert, dtype=index.dtype, device=index.device)
                ones = torch.ones(len(states), 1, dtype=weights.dtype, device=weights.device)
                out: Tensor = module.forward(states, alone, ones)
                self.largest[layer][expert] = max(float(self.largest[layer][expert]), float(out.abs().max()))
                self.tokens[layer][expert] += len(states)

        return look

    def _watch_shared(self, layer: int) -> Any:
        def look(_: Any, args: Any, out: Tensor) -> None:
            self.shared[layer] = max(self.shared.get(layer, 0.0), float(out.abs().max()))

        return look

    def table(self) -> pd.DataFrame:
        """One row per expert: layer, expert (-1: shared), a, n_tokens."""
        rows: list[tuple[int, int, float, int | None]] = []
        for layer, largest in sorted(self.largest.items()):
            if layer in self.shared:
                rows.append((layer, SHARED, self.shared[layer], None))
            rows += [
                (layer, expert, float(a), int(n))
                for expert, (a, n) in enumerate(zip(largest, self.tokens[layer], strict=True))
            ]
        found = pd.DataFrame(rows, columns=["layer", "expert", "a", "n_tokens"])
        return found.astype({"n_tokens": "Int64"})


class Peaks:
    """A consumer that keeps each layer's largest magnitude and each head's attention to position 0."""

    needs = ("hidden",)

    def __init__(self) -> None:
        self.largest: dict[int, float] = {}
        self.ratios: dict[int, float] = {}
        self.mass: dict[int, list[Tensor]] = {}

    def statistics(self, batch: TokenBatch) -> list[Any]:
        """Attention received."""
        return [ReceivedMass]

    def update(self, record: LayerRecord) -> None:
        """Take one layer of some sequences."""
        if record.residual is not None:
            top = float(record.residual.token_max[record.real].max())
            self.largest[record.layer] = max(self.largest.get(record.layer, 0.0), top)
            each = record.residual.token_max.masked_fill(~record.real.to(record.residual.token_max.device), 0).amax(-1)
            ratio = float((each.cpu() / record.residual.median.cpu()).max())
            self.ratios[record.layer] = max(self.ratios.get(record.layer, 0.0), ratio)
        if "mass" in record.attention:
            alpha = record.attention["mass"][..., 0] / record.attention["queries"][:, None, 0]
            self.mass.setdefault(record.layer, []).append(alpha)

    @property
    def received(self) -> dict[int, Tensor]:
        """Mean attention to position 0 by head, for each layer with attention."""
        return {layer: torch.cat(parts).mean(0) for layer, parts in self.mass.items()}


def watch_experts(model: TransformerBridge, batch: TokenBatch, batch_size: int) -> tuple[pd.DataFrame, Peaks]:
    """Every expert's largest output, and the peaks and sinks of the same pass.

    Cost: a forward pass whose experts run twice.
    """
    peaks = Peaks()
    plan_for(model)  # on first use it runs a text of its own, whose tokens must not be counted
    with ExpertWatch(model) as watch:
        for indices in equal_lengths(batch, batch_size):  # padding would be routed and counted
            capture(model, batch.rows(indices), [peaks], batch_size=batch_size, top_k=1)
    return watch.table(), peaks


def _count(module: Any) -> int:
    return int(module.down_proj.shape[0])
