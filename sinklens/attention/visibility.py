"""What the query rows of a block may see, and how the rest is kept out of scores and pattern."""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention.block import AttentionShape
from sinklens.attention.masks import LazyMask, MaskForm


def hidden_below(*dtypes: torch.dtype) -> float:
    """Score at or below which an additive mask has hidden the key.

    Masks add the minimum of the model's dtype, sometimes before the division by sqrt(d_head). In half
    precision that minimum is only -65504, and it may have gone on in fp32, so every dtype involved is asked
    for.
    """
    return -3e4 if torch.float16 in dtypes else -1e37


def visible_keys(
    mask: LazyMask | Tensor | None,
    causal: bool,
    dtype: torch.dtype,
    shape: AttentionShape,
    sequences: slice,
    rows: slice,
) -> Iterator[tuple[slice, Bool[Tensor, "q_pos k_pos"] | None, slice]]:
    """For some query rows: sequences of equal visibility, their mask, and the keys that any of the rows can see.

    Args:
        mask: The mask of the call.
        causal: What no mask means.
        dtype: Of the queries.
        shape: Sizes of the call.
        sequences: Sequences of the batch.
        rows: Query rows.

    Yields:
        Sequences, what they see (``None`` = plain causal) and the keys that this covers.
    """
    if mask is None and causal and shape.q_pos > 1:
        stop = rows.stop + shape.offset
        yield sequences, None, slice(0, -(-stop // shape.cell) * shape.cell)
        return
    form = mask.form if isinstance(mask, LazyMask) else None
    if form is not None:
        yield from _in_closed_form(form, shape, sequences, rows)
        return
    if mask is None:
        every = torch.arange(shape.k_padded, device=shape.device) < shape.k_pos
        yield sequences, every.expand(rows.stop - rows.start, -1), slice(0, shape.k_padded)
        return
    if isinstance(mask, LazyMask):
        masks = mask.rows(rows.start, rows.stop)[sequences]
    else:
        masks = mask_rows(mask, shape, sequences, rows)
        masks = masks if masks.dtype == torch.bool else masks > hidden_below(masks.dtype, dtype)
    masks = torch.nn.functional.pad(masks, (0, shape.k_padded - masks.shape[-1]))
    equal = len(masks) == 1 or bool((masks == masks[:1]).all())
    for index, own in enumerate([sequences] if equal else cut(sequences, 1)):
        visible = masks[index]
        # keys that no row of the block sees (before a window, after the diagonal) are not even multiplied
        first, last = _ends(visible)
        if last < first:  # a block of padding alone still has to write its rows
            yield own, visible[:, : shape.cell], slice(0, shape.cell)
            continue
        keys = slice(first // shape.cell * shape.cell, (last // shape.cell + 1) * shape.cell)
        yield own, visible[:, keys], keys


def _in_closed_form(
    form: MaskForm, shape: AttentionShape, sequences: slice, rows: slice
) -> Iterator[tuple[slice, Bool[Tensor, "q_pos k_pos"] | None, slice]]:
    """:func:`visible_keys` by arithmetic: nothing is read back from a GPU."""
    own, stop = rows.start + shape.offset, rows.stop + shape.offset
    start = max(0, own - form.window + 1) if form.window else 0
    keys = slice(start // shape.cell * shape.cell, -(-stop // shape.cell) * shape.cell)
    if form.keys is None and not form.window:
        yield sequences, None, keys
        return
    columns = torch.arange(keys.start, keys.stop, device=shape.device)
    positions = torch.arange(own, stop, device=shape.device)[:, None]
    visible = columns <= positions
    if form.window:
        visible &= positions - columns < form.window
    if form.keys is None:
        yield sequences, visible, keys
        return
    real = torch.nn.functional.pad(form.keys, (0, shape.k_padded - shape.k_pos))[:, keys]
    for each in [sequences] if form.alike else cut(sequences, 1):
        yield each, visible & real[each.start], keys


def _ends(visible: Bool[Tensor, "q_pos k_pos"]) -> tuple[int, int]:
    """First and last key that any row sees; the last before the first where none does. One wait for a GPU."""
    seen = visible.any(0)
    positions = torch.arange(len(seen), device=seen.device)
    ends = [positions.masked_fill(~seen, len(seen)).amin(), positions.masked_fill(~seen, -1).amax()]
    first, last = torch.stack(ends).tolist()
    return first, last


def cut(of: slice, size: int) -> list[slice]:
    """Neighbouring parts of ``of``, at most ``size`` long."""
    return [slice(start, min(start + size, of.stop)) for start in range(of.start, of.stop, size)]


def mask_rows(mask: Tensor, shape: AttentionShape, sequence: int | slice, rows: slice) -> Tensor:
    """Rows of a tensor mask, ``[*sequence q_pos k_pos]``; what lies beyond ``k_pos`` (an unfilled cache) is cut off."""
    return mask.expand(shape.batch, 1, shape.q_pos, -1)[sequence, 0, rows, : shape.k_pos]


class Hidden:
    """What a row block may not see; arithmetic with the mask takes an eighth of the time of ``masked_fill_``.

    For a plain causal block only its diagonal tile, from column ``own`` on, has hidden keys.
    """

    def __init__(self, visible: Tensor | None, n_rows: int, n_keys: int, own: int, device: torch.device) -> None:
        self.own = own if visible is None else None
        if visible is None:
            self.endless = _above_diagonal(n_rows, n_keys - own, device)
        else:
            self.kept = -visible.to(torch.int32)  # all bits, or none
            self.endless = torch.zeros(visible.shape, device=device).masked_fill(~visible, -math.inf)

    def clear(self, x: Float[Tensor, "*head q_pos k_pos"]) -> None:
        """Write 0 at the hidden keys, also over infinities and NaN."""
        if self.own is not None:
            x[..., self.own :].tril_()
        else:
            x.view(torch.int32).bitwise_and_(self.kept)

    def lower(self, x: Float[Tensor, "*head q_pos k_pos"]) -> None:
        """Write ``-inf`` at the hidden keys, which hold 0."""
        x[..., self.own or 0 :].add_(self.endless)


@lru_cache(maxsize=64)
def _above_diagonal(rows: int, keys: int, device: torch.device) -> Float[Tensor, "q_pos k_pos"]:
    """``-inf`` at keys after each row's own, within the tile that starts at the first row's own position."""
    return torch.full((rows, keys), -math.inf, device=device).triu(1)
