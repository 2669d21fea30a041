"""What a run will need, said before it starts."""

import inspect
from dataclasses import dataclass, replace

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import plan_for
from sinklens.attention.kernel import BYTES_ON_CPU, ROWS_ON_CPU
from sinklens.models.parts import parameters_of

GIB = 1 << 30

TOKENS = {"cpu": 1 << 14, "cuda": 1 << 16}
"""Most tokens of an automatic batch: more make nothing quicker."""


@dataclass(frozen=True)
class Sizes:
    """What memory depends on; of a model, or made up.

    Attributes:
        d_model: Width of the residual stream.
        d_mlp: Width of the MLP.
        heads: Query heads.
        kv_heads: Key-value heads.
        d_head: Width of a head.
        d_vocab: Logits of a token.
        weights: Bytes of the parameters.
        item: Bytes of a number in the model's precision.
        all_logits: Whether the architecture computes logits of every token, asked for or not.
        path: How attention is measured, see :class:`~sinklens.attention.plan.AttentionPlan`.
        kernel: What computes it on the fast path.
        on_gpu: Whether blocks are those of a GPU.
    """

    d_model: int
    d_mlp: int
    heads: int
    kv_heads: int
    d_head: int
    d_vocab: int
    weights: int
    item: int
    all_logits: bool
    path: str
    kernel: str
    on_gpu: bool


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated memory of a run, in bytes beyond the weights.

    Attributes:
        batch_size: Sequences per forward pass.
        length: Longest sequence.
        weights: Bytes of the parameters, already held.
        activations: Hidden states and MLP of one layer, what the kernel copies, and logits where all are computed.
        statistics: Accumulators of one layer.
        pattern: A whole layer's T x T pattern and scores; 0 on the fast path.
        free: Bytes that are free where the model lies; ``None`` where that is not known.
        asked: The batch size that was asked for and did not fit.
        where: The GPU, or empty.
    """

    batch_size: int
    length: int
    weights: int
    activations: int
    statistics: int
    pattern: int
    free: int | None = None
    asked: int | None = None
    where: str = ""

    @property
    def extra(self) -> int:
        """Everything beyond the weights."""
        return self.activations + self.statistics + self.pattern

    def __str__(self) -> str:
        parts = f"weights {_size(self.weights)}, activations {_size(self.activations)}, "
        parts += f"statistics {_size(self.statistics)}"
        parts += f", T x T pattern of one layer {_size(self.pattern)}" if self.pattern else ", no T x T tensor"
        said = (
            f"Memory: about {_size(self.extra)} beyond the weights for {self.batch_size} x {self.length} "
            f"tokens per pass ({parts})"
        )
        if self.free is not None and self.where:
            said += f"; {_size(self.free)} of {self.where} are free"
            if self.asked is not None:
                said += f", so batches of {self.asked} are split into {self.batch_size}"
            elif self.extra > self.free:
                said += ", which may not be enough: shorter texts need less"
        return said + "."


def plan_memory(model: TransformerBridge, n_sequences: int, length: int, batch_size: int | None = None) -> MemoryPlan:
    """Estimate a run's memory and choose a batch size if none is given.

    The automatic batch holds at most 32 sequences and 16,384 tokens (65,536 on a GPU), and less when that would need
    more than half of the free memory (2 GiB on a machine that does not tell). On a GPU a given batch that would need
    more than nine tenths of it is split.
    """
    sizes, free = sizes_of(model), free_memory(model)
    device = next(model.parameters()).device
    place = str(device) if device.type == "cuda" else ""
    if batch_size is not None:
        chosen = asked = estimate(sizes, batch_size, length)
        while sizes.on_gpu and chosen.batch_size > 1 and chosen.extra > 0.9 * free:
            chosen = estimate(sizes, chosen.batch_size // 2, length)
        return replace(chosen, free=free, where=place, asked=batch_size if chosen is not asked else None)
    most = TOKENS["cuda" if sizes.on_gpu else "cpu"]
    chosen = estimate(sizes, 1, length)
    for size in (1 << power for power in range(1, 6)):
        candidate = estimate(sizes, size, length)
        if size * length <= most and candidate.extra <= free // 2 and size < 2 * n_sequences:
            chosen = candidate
    if chosen.batch_size > n_sequences:
        chosen = estimate(sizes, n_sequences, length)
    return replace(chosen, free=free, where=place)


def sizes_of(model: TransformerBridge) -> Sizes:
    """The sizes of a model."""
    cfg, plan = model.cfg, plan_for(model, nonfinite=True)
    forward = inspect.signature(type(model.original_model).forward).parameters
    return Sizes(
        d_model=cfg.d_model,
        d_mlp=getattr(cfg, "d_mlp", None) or 4 * cfg.d_model,
        heads=cfg.n_heads,
        kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab,
        weights=sum(p.numel() * p.element_size() for p in parameters_of(model.original_model)),
        item=next(model.parameters()).element_size(),
        all_logits="logits_to_keep" not in forward,
        path=plan.path,
        kernel=plan.kernel,
        on_gpu=next(model.parameters()).device.type == "cuda",
    )


def estimate(sizes: Sizes, batch: int, length: int) -> MemoryPlan:
    """What a pass of ``batch`` sequences of ``length`` tokens needs: arithmetic, nothing is looked up.

    The largest of a layer: its MLP, or attention with what its kernel holds beside queries, keys and values.
    """
    tokens = batch * length
    stream = tokens * 6 * sizes.d_model * sizes.item + tokens * sizes.d_model * 4
    mlp = tokens * 3 * sizes.d_mlp * sizes.item
    projected = tokens * (2 * sizes.heads + 2 * sizes.kv_heads) * sizes.d_head * sizes.item
    logits = tokens * sizes.d_vocab * sizes.item if sizes.all_logits else sizes.d_vocab * batch * sizes.item
    statistics = tokens * sizes.heads * 4 * 12
    if sizes.kernel == "extra pass":
        # margins in closed form: some numbers in fp64 for the query heads of one KV head
        kernel = 5 * 8 * length * sizes.d_head * (sizes.heads // sizes.kv_heads)
    else:
        # queries, keys and values in fp32, and blocks of scores and weights
        rows, least = (512, 1 << 28) if sizes.on_gpu else (ROWS_ON_CPU, BYTES_ON_CPU)
        copies = tokens if sizes.on_gpu else 0  # a CPU's units hold some heads of some sequences
        kernel = 4 * copies * (sizes.heads + 2 * sizes.kv_heads) * sizes.d_head + 2 * max(4 * rows * length, least)
    pattern = 5 * 4 * batch * sizes.heads * length * length if sizes.path == "fallback" else 0
    return MemoryPlan(
        batch, length, sizes.weights, stream + max(mlp, projected + kernel) + logits, statistics, pattern
    )  # fmt: skip


def free_memory(model: TransformerBridge) -> int:
    """Bytes free where the model lies: of the fullest of its GPUs, or of the machine (4 GiB if it does not tell)."""
    devices = {parameter.device for parameter in parameters_of(model, model.original_model)}
    gpus = [device for device in devices if device.type == "cuda"]
    if gpus:
        return min(int(torch.cuda.mem_get_info(device)[0]) for device in gpus)
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
