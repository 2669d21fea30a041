"""Masks that are built a block of query rows at a time instead of as one T x T tensor.

transformers asks the mask function that belongs to the active attention implementation for a mask once per
forward pass and mask type. :func:`lazy_mask` answers with ``None`` for a plain causal (or single-query) call
and with a :class:`LazyMask` otherwise, which remembers the arguments and evaluates them per block of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from sinklens.errors import InputError


@dataclass(frozen=True)
class MaskForm:
    """A causal mask in closed form, counted within the keys of the call.

    Attributes:
        window: Keys that a query sees at most, its own included; 0 for all up to its own.
        keys: Which keys are real, ``[batch k_pos]``; ``None`` for all.
        alike: Whether that is the same for all sequences.
    """

    window: int
    keys: Bool[Tensor, "batch k_pos"] | None
    alike: bool


@dataclass(frozen=True)
class LazyMask:
    """Arguments of one transformers mask; :meth:`rows` evaluates them for some query rows.

    Memory is O(rows x k_pos) for each call of :meth:`rows`; nothing is kept.

    Attributes:
        arguments: What the mask function was called with.
        causal_only: Every query sees all keys up to its own position and the last query the last key: several new
            tokens after a filled cache.
    """

    arguments: dict[str, Any]
    causal_only: bool = False

    @cached_property
    def form(self) -> MaskForm | None:
        """What the mask says, where it is causal attention with or without a window and padding; else ``None``.

        Read from the functions that it is made of, never from its values: a GPU is not waited for, except once for
        padded batches.
        """
        arguments = self.arguments
        window = _window(arguments["mask_function"])
        first, k_pos = arguments.get("kv_offset", 0), arguments["kv_length"]
        if window is None or arguments.get("q_offset", 0) + arguments["q_length"] != first + k_pos:
            return None
        padding = arguments.get("attention_mask")
        if padding is None:
            return MaskForm(window, None, True)
        if padding.ndim != 2 or padding.shape[1] < first + k_pos:
            return None
        keys = padding[:, first : first + k_pos].to(device=arguments["device"], dtype=torch.bool)
        real, alike = torch.stack([keys.all(), (keys == keys[:1]).all()]).tolist()
        return MaskForm(window, None if real else keys, alike)

    def rows(self, start: int, stop: int) -> Bool[Tensor, "batch q_pos k_pos"]:
        """Which keys the query rows ``start..stop-1`` of this call may see.

        Args:
            start: First query row, counted within this forward call (the cache offset is added here).
            stop: One past the last query row.

        Returns:
            True where the key takes part in the softmax.
        """
        arguments = dict(self.arguments)
        offset = arguments.pop("q_offset", 0)
        arguments.update(q_length=stop - start, q_offset=offset + start)
        arguments.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        mask = sdpa_mask(**arguments)
        if mask is None:  # a transformers version that skips anyway would lose the mask silently
            raise RuntimeError("transformers skipped a mask that was asked for")
        return mask[:, 0]


def lazy_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> LazyMask | None:
    """Mask function of the engine, with the signature that transformers expects.

    Returns:
        ``None`` when every key up to the query's own position is visible (full causal attention without
        padding, or one query that sees the whole cache), which is what the kernel assumes without a mask.
    """
    padded = attention_mask is not None and not bool(attention_mask.all())
    window_matters = local_size is not None and kv_length >= local_size
    bidirectional = kwargs.get("allow_is_bidirectional_skip", False)
    plain = mask_function is causal_mask_function or (local_size is not None and not window_matters)
    skippable = kwargs.get("allow_is_causal_skip", True) and not kwargs.get("use_vmap", False)
    if plain and skippable and not bidirectional and not padded and (q_length == 1 or q_length == kv_length):
        return None
    arguments = dict(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=int(q_offset),
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        device=kwargs.get("device", "cpu"),
        use_vmap=kwargs.get("use_vmap", False),
    )
    filled = kv_offset == 0 and arguments["q_offset"] + q_length == kv_length
    return LazyMask(arguments, plain and skippable and not bidirectional and not padded and filled)


def _window(function: Any) -> int | None:
    """The window of a mask function made of transformers' own parts, 0 without one; ``None`` for all others."""
    windows, causal = [0], False
    for part in _parts(function):
        if part is causal_mask_function:
            causal = True
            continue
        window = _closure(part).get("sliding_window") if _made_by(part, "sliding_window_overlay") else None
        if not isinstance(window, int) or window < 1:
            return None
        windows.append(window)
    return min(windows[1:] or windows) if causal else None


def _parts(function: Any) -> Iterator[Any]:
    if _made_by(function, "and_masks"):
        for part in _closure(function).get("mask_functions", (None,)):
            yield from _parts(part)
    else:
        yield function


def _made_by(function: Any, maker: str) -> bool:
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    return name.startswith(f"transformers.masking_utils.{maker}.<locals>.")


def _closure(function: Any) -> dict[str, Any]:
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return dict(zip(function.__code__.co_freevars, cells, strict=True))


def real_rows(real: Tensor | None, batch: int, q_pos: int, device: torch.device) -> Bool[Tensor, "batch q_pos"] | None:
    """Which query rows of a call are real tokens: the last ``q_pos`` positions, those before are cached.

    Raises:
        InputError: ``real`` is not ``[batch pos]`` for these sequences, or has fewer positions than queries.
    """
    if real is None:
        return None
    if real.ndim != 2 or real.shape[0] != batch or real.shape[1] < q_pos:
        raise InputError(
            f"real must be [batch pos] like the tokens, {batch} x {q_pos} of them here, got {tuple(real.shape)}."
        )
    return real[:, -q_pos:].to(device=device, dtype=torch.bool)
