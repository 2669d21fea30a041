"""Which heads an intervention touches: names such as ``L5H1``, checked against a model."""

import operator
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sinklens.errors import InputError
from sinklens.wording import several

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from sinklens.attention import AttentionShape, Block

Head = tuple[int, int]
"""Layer and head, both from 0."""

Heads = tuple[Head, ...] | str
"""Some heads, or ``"all"``."""


def parse_head(head: object) -> Head:
    """Layer and head of a name such as ``"L5H1"``, or of a pair.

    Raises:
        InputError: Neither of the two, or a number below 0.

    >>> parse_head("L5H1"), parse_head((0, 12))
    ((5, 1), (0, 12))
    """
    if isinstance(head, str):
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", head.strip(), re.ASCII)
        if match:
            return int(match[1]), int(match[2])
    elif isinstance(head, tuple | list) and len(head) == 2:
        layer, number = as_index(head[0]), as_index(head[1])
        if layer >= 0 and number >= 0:
            return layer, number
    raise InputError(f'A head is written like "L5H1" or (5, 1), layer and head counted from 0; got {head!r}.')


def head_name(head: Head) -> str:
    """The name that :func:`parse_head` reads.

    >>> head_name((5, 1))
    'L5H1'
    """
    return f"L{head[0]}H{head[1]}"


def parse_heads(heads: object) -> Heads:
    """``"all"``, or heads in order and each once, from a list of them or a text with commas.

    Raises:
        InputError: No head at all, or one that :func:`parse_head` does not take.

    >>> parse_heads("L1H0, L0H3"), parse_heads([(0, 1), "L0H1"]), parse_heads("all")
    (((0, 3), (1, 0)), ((0, 1),), 'all')
    """
    if isinstance(heads, str):
        if heads == "all":
            return "all"
        heads = heads.split(",")
    if not isinstance(heads, Iterable):
        raise InputError(f'heads must be "all" or a list such as ["L5H1", (5, 2)], got {heads!r}.')
    found = tuple(sorted({parse_head(head) for head in heads}))
    if not found:
        raise InputError('heads is empty; name at least one head, or "all".')
    return found


def check_heads(model: "TransformerBridge", heads: Heads) -> None:
    """Refuse heads that the model does not have.

    Raises:
        InputError: The layer does not exist, has no attention, or has fewer heads.
    """
    if isinstance(heads, str):
        return
    from sinklens.models.architecture import attention_layers

    layers, count = attention_layers(model), int(model.cfg.n_heads)
    for layer, head in heads:
        if layer >= len(model.blocks):
            problem = f"the model has {several(len(model.blocks), 'layer')}, L0 to L{len(model.blocks) - 1}"
        elif layer not in layers:
            problem = f"layer {layer} has no softmax attention"
        elif head >= count:
            problem = f"a layer has {several(count, 'head')}, H0 to H{count - 1}"
        else:
            continue
        raise InputError(f"{head_name((layer, head))} does not exist in this model: {problem}.")


def heads_in_layer(heads: Heads, shape: "AttentionShape") -> list[int]:
    """Which heads of the layer in hand are meant."""
    if isinstance(heads, str):
        return list(range(shape.heads))
    return [head for layer, head in heads if layer == shape.layer]


def heads_in_block(heads: Heads, block: "Block") -> slice | list[int]:
    """Index of those heads along a block's first axis; an empty list when it has none of them."""
    if isinstance(heads, str):
        return slice(None)
    first, stop = block.heads.start, block.heads.stop
    return [head - first for head in heads_in_layer(heads, block.shape) if first <= head < stop]


def as_index(number: Any) -> int:
    """``number`` as an integer from 0 (NumPy's and torch's too); -1 when it is none, a truth value, or negative.

    >>> as_index(3), as_index(-3), as_index(True), as_index(0.5)
    (3, -1, -1, -1)
    """
    try:
        return -1 if isinstance(number, bool) else max(operator.index(number), -1)
    except TypeError:
        return -1
