"""Sizes, buffers and launches of the Triton kernels."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.attention.kernel import AttentionCall
from sinklens.attention.score_form import ScoreForm

SAFE = (64, 64, 4)
"""Rows and keys of a tile and warps that fit every supported GPU."""

SMALL = (32, 32, 4)
"""The same where a row of queries and keys takes more than 512 bytes (fp32 heads wider than 128)."""

TILES = (SAFE, (128, 64, 4), (128, 64, 8), (128, 128, 8), (64, 128, 4))
"""What is tried once for each kind of call on a GPU; see :func:`_best`."""

WORTH_TUNING = 4096
"""Keys from which on tile sizes are tried."""


@dataclass
class Sums:
    """What one pass found; every tensor in fp32.

    Attributes:
        form: Which keys every query sees.
        weight: 1 for real queries that see a key, ``[batch q_pos]``.
        lse: Log-sum-exp of each row over real keys.
        kept: Share of the real keys in each row, 1 without a learned sink.
        rows: ``entropy``, ``distance``, ``top_weight``, ``row_sum`` by ``[batch head q_pos]``.
        top_key: Strongest key of each query.
        sets: Mass on key sets, ``[set batch head q_pos]``.
        mass: Received mass, ``[batch head k_pos]``.
        columns: Weighted sums of scores by key.
        pooled: Display maps, -1 where nothing is visible.
    """

    form: ScoreForm
    weight: Tensor
    lse: Tensor
    kept: Tensor
    rows: dict[str, Float[Tensor, "batch head q_pos"]]
    top_key: Int[Tensor, "batch head q_pos"]
    sets: Tensor
    mass: Float[Tensor, "batch head k_pos"]
    columns: Float[Tensor, "batch head k_pos"]
    pooled: Tensor


def launch(
    call: AttentionCall,
    form: ScoreForm,
    *,
    lse: Tensor,
    total: Tensor,
    weight: Tensor,
    column: Tensor,
    members: Tensor | None,
    sequences: tuple[int, ...],
    of_rows: bool,
    of_keys: bool,
    margin: bool,
    repeatable: bool,
) -> Sums:
    """Run the kernels on one call.

    Args:
        call: Queries and keys.
        form: What shapes the scores.
        lse: Log-sum-exp over real keys, ``[batch head q_pos]``.
        total: The same with a learned sink.
        weight: 1 for queries that count, ``[batch q_pos]``.
        column: Weight of each query in the sums of scores by key.
        members: Key sets, ``[set batch k_pos]``.
        sequences: Sequences whose maps are pooled.
        of_rows: Whether statistics of queries are wanted.
        of_keys: Whether received mass is wanted.
        margin: Whether sums of scores are wanted.
        repeatable: Sums by key in a pass of their own, whose bits repeat.
    """
    work = _Launch(call, form, (lse, total, weight, column), members, sequences)
    atomics = of_keys and not repeatable
    tile = work.tile(of_rows, margin)
    if of_rows or atomics or margin or sequences:
        work.rows(tile, of_rows=of_rows, of_keys=atomics, margin=margin)
    if of_keys and repeatable:
        work.keys(tile, margin=margin)
    kept = torch.exp(lse - total).nan_to_num(0.0)
    return Sums(
        form, weight, lse, kept, work.of_rows, work.top_key, work.sets, work.mass, work.columns, work.pooled
    )  # fmt: skip


class _Launch:
    """One call's buffers and the arguments that all kernels share."""

    def __init__(
        self,
        call: AttentionCall,
        form: ScoreForm,
        vectors: tuple[Tensor, Tensor, Tensor, Tensor],
        members: Tensor | None,
        sequences: tuple[int, ...],
    ) -> None:
        shape, change = form.shape, form.change
        self.form, self.vectors, self.shape = form, vectors, shape
        self.query, self.key = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.query, call.key))
        self.group = shape.heads // self.key.shape[1]
        self.stacked = min(self.group & -self.group, 8)  # query heads of one KV head in a tile: a power of two
        size = shape.batch, shape.heads
        self.of_rows = {
            name: shape.zeros(*size, shape.q_pos) for name in ("entropy", "distance", "top_weight", "row_sum")
        }
        self.top_key = torch.zeros(*size, shape.q_pos, dtype=torch.int32, device=shape.device)
        n_sets = 0 if members is None else len(members)
        self.n_sets = n_sets
        self.sets = shape.zeros(n_sets, *size, shape.q_pos)
        self.mass, self.columns = shape.zeros(*size, shape.k_pos), shape.zeros(*size, shape.k_pos)
        self.cells = -(-shape.q_pos // shape.cell), shape.k_padded // shape.cell
        self.pooled = shape.zeros(len(sequences), shape.heads, *self.cells) - 1
        slot = [sequences.index(b) if b in sequences else -1 for b in range(shape.batch)]
        self.slot = torch.tensor(slot, dtype=torch.int32, device=shape.device) if sequences else self.top_key
        nothing = self.mass  # never read
        self.members = nothing if members is None else members
        self.keys_real = nothing if form.keys is None else form.keys.to(torch.int8).contiguous()
        self.shift = nothing if change.shift is None else change.shift.float().contiguous()
        limited = change.limits is not None and change.spared is not None
        self.limits = change.limits.to(torch.int32) if limited and change.limits is not None else nothing
        self.spared = change.spared.to(torch.int8).contiguous() if limited and change.spared is not None else nothing
        self.cell = shape.cell if sequences else 0
        # full precision for fp32 inputs, where a GPU would round to 10 bits by itself
        precision = "ieee" if call.query.dtype == torch.float32 else "tf32"
        self.numbers = (call.scaling, call.soft_cap or 1.0, form.window)
        self.kinds: dict[str, Any] = {
            "GROUP": self.group,
            "HT": self.stacked,
            "D": call.query.shape[-1],
            "BD": max(16, 1 << (call.query.shape[-1] - 1).bit_length()),
            "CAUSAL": form.causal,
            "HAS_WINDOW": form.window > 0,
            "HAS_CAP": call.soft_cap is not None,
            "HAS_KEYS": form.keys is not None,
            "HAS_SHIFT": change.shift is not None,
            "SPARE_SELF": change.spare_self,
            "HAS_LIMITS": limited,
            "PREC": precision,
        }

    def rows(self, tile: tuple[int, int, int], *, of_rows: bool, of_keys: bool, margin: bool) -> None:
        """The pass by blocks of queries."""
        from sinklens.attention.triton_kernel import stats_of_lse

        shape, (n_rows, n_keys, warps) = self.shape, tile
        by_head = max(16 // self.stacked, n_rows // self.stacked)
        grid = (-(-shape.q_pos // by_head), shape.batch * shape.heads // self.stacked)
        rows = (self.of_rows[name] for name in ("entropy", "distance", "top_weight"))
        with _on(shape.device):
            stats_of_lse[grid](
                self.query, self.key, *self.vectors, self.members, self.keys_real, self.shift, self.limits,
                self.spared, self.slot, *rows, self.top_key, self.sets, self.of_rows["row_sum"], self.mass,
                self.columns, self.pooled, *self.query.stride()[:3], *self.key.stride()[:3], shape.batch,
                shape.heads, shape.q_pos, shape.k_pos, *self.numbers, *self.cells,
                BQ=by_head, BN=n_keys, CELL=self.cell, CQ=min(self.cell, by_head), CN=min(self.cell, n_keys),
                PLAIN=self.form.keys is None and self.shift is self.mass and self.limits is self.mass, SETS=self.n_sets,
                SP=1 << max(0, (self.n_sets - 1).bit_length()), ROWS=of_rows, KEYS=of_keys, MARGIN=margin,
                num_warps=warps, **self.kinds,
            )  # fmt: skip

    def keys(self, tile: tuple[int, int, int], *, margin: bool) -> None:
        """The pass by blocks of keys."""
        from sinklens.attention.triton_kernel import stats_of_keys

        shape, (n_rows, n_keys, warps) = self.shape, tile
        by_head = max(16 // self.stacked, n_rows // self.stacked)
        grid = (-(-shape.k_pos // n_keys), shape.batch * shape.heads // self.stacked)
        with _on(shape.device):
            stats_of_keys[grid](
                self.query, self.key, *self.vectors, self.keys_real, self.shift, self.limits, self.spared, self.mass,
                self.columns, *self.query.stride()[:3], *self.key.stride()[:3], shape.heads, shape.q_pos, shape.k_pos,
                *self.numbers, BQ=by_head, BN=n_keys, MARGIN=margin, num_warps=warps, **self.kinds,
            )  # fmt: skip

    def tile(self, of_rows: bool, margin: bool) -> tuple[int, int, int]:
        """Rows, keys and warps of a tile."""
        if self.kinds["BD"] * self.query.element_size() > 512:
            return SMALL
        if self.shape.k_pos < WORTH_TUNING or torch.version.cuda is None:
            return SAFE
        kind = tuple(sorted((name, value) for name, value in self.kinds.items() if name != "SPARE_SELF"))
        key = kind, self.query.dtype, torch.cuda.get_device_name(self.shape.device), of_rows, margin, bool(self.cell)
        if key not in _best():
            _best()[key] = self._try(of_rows, margin)
        return _best()[key]

    def _try(self, of_rows: bool, margin: bool) -> tuple[int, int, int]:
        """The quickest tile on this call; its sums are wiped afterwards."""
        seconds: dict[tuple[int, int, int], float] = {}
        for tile in TILES:
            try:
                self.rows(tile, of_rows=of_rows, of_keys=True, margin=margin)  # compiled here
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                self.rows(tile, of_rows=of_rows, of_keys=True, margin=margin)
                end.record()
                end.synchronize()
                seconds[tile] = begin.elapsed_time(end)
            except Exception as error:  # a tile that this GPU has no room for fails in Triton's own ways
                if tile == SAFE:
                    raise
                seconds.pop(tile, None)
                del error
        for sums in (self.mass, self.columns):
            sums.zero_()
        self.pooled.fill_(-1)
        return min(seconds, key=lambda tile: seconds[tile])


@cache
def _best() -> dict[Any, tuple[int, int, int]]:
    """Quickest tile by kind of call, for this process."""
    return {}


def _on(device: torch.device) -> Any:
    """Kernels start on the device of their tensors, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.no_grad()
