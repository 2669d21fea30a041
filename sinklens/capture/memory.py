"""What a run will need, said before it starts."""

from dataclasses import dataclass

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import plan_for
from sinklens.attention.kernel import BYTES_ON_CPU, ROWS_ON_CPU

GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated memory of a run, in bytes beyond the weights.

    Attributes:
        batch_size: Sequences per forward pass.
        length: Longest sequence.
        weights: Bytes of the parameters, already held.
        activations: Hidden states and MLP of one layer, and the block workspace.
        statistics: Accumulators of one layer.
        pattern: A whole layer's T x T pattern and scores; 0 on the fast path.
    """

    batch_size: int
    length: int
    weights: int
    activations: int
    statistics: int
    pattern: int

    @property
    def extra(self) -> int:
        """Everything beyond the weights."""
        return self.activations + self.statistics + self.pattern

    def __str__(self) -> str:
        parts = f"weights {_size(self.weights)}, activations {_size(self.activations)}, "
        parts += f"statistics {_size(self.statistics)}"
        parts += f", T x T pattern of one layer {_size(self.pattern)}" if self.pattern else ", no T x T tensor"
        return (
            f"Memory: about {_size(self.extra)} beyond the weights for {self.batch_size} x {self.length} "
            f"tokens per pass ({parts})."
        )


def plan_memory(model: TransformerBridge, n_sequences: int, length: int, batch_size: int | None = None) -> MemoryPlan:
    """Estimate a run's memory and choose a batch size if none is given.

    The automatic batch holds at most 32 sequences and 16,384 tokens, and less when that would need more than
    half of the free memory (2 GiB on a machine that does not tell).
    """
    sizes = [1 << power for power in range(6)] if batch_size is None else [batch_size]
    sizes = [size for size in sizes if size == 1 or batch_size is not None or size * length <= 16384]
    budget = free_memory(model) // 2
    path = plan_for(model, nonfinite=True).path
    weights = sum(p.numel() * p.element_size() for p in model.original_model.parameters())
    chosen = _estimate(model, path, weights, sizes[0], length)
    for size in sizes[1:]:
        candidate = _estimate(model, path, weights, size, length)
        if candidate.extra <= budget and size < 2 * n_sequences:
            chosen = candidate
    if batch_size is None and chosen.batch_size > n_sequences:
        chosen = _estimate(model, path, weights, n_sequences, length)
    return chosen


def _estimate(model: TransformerBridge, path: str, weights: int, batch: int, length: int) -> MemoryPlan:
    cfg = model.cfg
    item = next(model.parameters()).element_size()
    tokens = batch * length
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    activations = tokens * (6 * cfg.d_model + 3 * d_mlp) * item + tokens * cfg.d_model * 4
    on_gpu = next(model.parameters()).device.type == "cuda"
    block_rows = 512 if on_gpu else ROWS_ON_CPU
    activations += 2 * max(4 * block_rows * length, 1 << 28 if on_gpu else BYTES_ON_CPU)
    statistics = tokens * cfg.n_heads * 4 * 12
    pattern = 0
    if path == "fallback":
        pattern = 5 * 4 * batch * cfg.n_heads * length * length
    return MemoryPlan(batch, length, weights, activations, statistics, pattern)


def free_memory(model: TransformerBridge) -> int:
    """Bytes free where the model lies: of its GPU, or of the machine (4 GiB on one that does not tell)."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * GIB


def _size(count: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"
