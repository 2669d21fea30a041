"""Layer records made by hand from whole attention patterns, as the capture would make them from a model.

A :class:`Text` is one sequence with everything that can be known about it; :func:`collate` pads some of them
into the records of one pass. Attention statistics come from the slow oracle. Padding positions hold NaN
everywhere, because records promise nothing about them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinklens.capture.record import LayerRecord, ValueNorms
from sinklens.capture.residual import residual_norms
from sinklens.models.tokens import TokenBatch
from tests import oracle

HEADS, KV_HEADS, D_MODEL = 4, 2, 6
WINDOWS = (None, 4)
"""Two layers: full attention, then a sliding window."""
BOS_ID = 0
NAN = math.nan


@dataclass(frozen=True)
class Text:
    """One sequence.

    Attributes:
        ids: Token ids; 0 is the BOS and the only special token.
        patterns: ``[head q_pos k_pos]`` of each layer.
        windows: Sliding window of each layer.
        values: ``|v|`` of each layer, ``[kv_head pos]``.
        outputs: ``|W_O v|`` of each layer, ``[head pos]``.
        hidden: Residual stream before the first block and after each, ``[pos d_model]``.
        statistics: What the capture would report for each layer, without a batch axis; gates are random.
    """

    ids: Tensor
    patterns: tuple[Tensor, ...]
    windows: tuple[int | None, ...]
    values: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    statistics: tuple[dict[str, Tensor], ...]

    def __len__(self) -> int:
        return len(self.ids)


def visible(length: int, window: int | None = None) -> Tensor:
    """Which keys each query sees, ``[q_pos k_pos]``."""
    return oracle.visible_keys(torch.ones(1, length), window)[0]


def random_pattern(
    length: int,
    generator: torch.Generator,
    window: int | None = None,
    missing: bool = False,
    heads: int = HEADS,
) -> Tensor:
    """Uneven causal attention ``[head q_pos k_pos]``; ``missing``: a learned sink takes part of every row."""
    scores = 3 * torch.randn(heads, length, length, generator=generator, dtype=torch.float64)
    scores = scores.masked_fill(~visible(length, window), -math.inf)
    if missing:
        scores = torch.cat([scores, torch.ones(heads, length, 1)], -1)
    return scores.softmax(-1)[..., :length]


def statistics(pattern: Tensor, ids: Tensor, window: int | None = None) -> dict[str, Tensor]:
    """What the engine computes from one sequence's pattern, without a batch axis."""
    p, seen = pattern[None].double(), visible(len(ids), window)[None]
    bos = (ids == BOS_ID)[None]
    key, weight = oracle.top_key(p, seen)
    found = {
        "mass": oracle.received_mass(p, seen),
        "queries": oracle.visible_queries(seen),
        "null_mass": oracle.null_mass(seen),
        "entropy": oracle.entropy(p, seen),
        "entropy_null": seen.sum(-1).double().log(),
        "distance": oracle.distance(p, seen),
        "top_key": key,
        "top_weight": weight,
        "missing_mass": oracle.missing_mass(p, seen),
        "delta_logit": oracle.margins(p, seen),
        "mass_bos": oracle.mass_on(p, seen, bos),
        "mass_special": oracle.mass_on(p, seen, bos),
    }
    return {name: value[0] for name, value in found.items()}


def make_text(
    patterns: Sequence[Tensor],
    *,
    windows: Sequence[int | None] | None = None,
    bos: bool = True,
    generator: torch.Generator | None = None,
) -> Text:
    """A text with these patterns and random values and hidden states."""
    generator = generator or torch.Generator().manual_seed(0)
    layers, length = len(patterns), patterns[0].shape[-1]
    windows = tuple(windows or [None] * layers)
    ids = torch.randint(1, 9, (length,), generator=generator)
    if bos:
        ids[0] = BOS_ID

    def positive(*shape: int) -> Tensor:
        return 0.1 + torch.rand(shape, generator=generator)

    return Text(
        ids,
        tuple(patterns),
        windows,
        tuple(positive(KV_HEADS, length) for _ in patterns),
        tuple(positive(HEADS, length) for _ in patterns),
        tuple(torch.randn(length, D_MODEL, generator=generator) * 10**layer for layer in range(layers + 1)),
        tuple(
            statistics(p, ids, window) | {"gate": torch.rand(p.shape[:2], generator=generator)}
            for p, window in zip(patterns, windows, strict=True)
        ),
    )


def random_texts(
    lengths: Sequence[int], seed: int = 0, *, without_bos: Sequence[int] = (), missing: bool = False
) -> list[Text]:
    """Texts of two layers with random attention, one of them windowed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        make_text(
            [random_pattern(length, generator, window, missing) for window in WINDOWS],
            windows=WINDOWS,
            bos=index not in without_bos,
            generator=generator,
        )
        for index, length in enumerate(lengths)
    ]


def token_batch(texts: Sequence[Text]) -> TokenBatch:
    width = max(len(text) for text in texts)
    ids = torch.stack([pad(text.ids, (0, width - len(text)), value=BOS_ID) for text in texts])
    real = torch.arange(width)[None] < torch.tensor([len(text) for text in texts])[:, None]
    special = (ids == BOS_ID) & real
    names = tuple(tuple(f"t{token}" for token in text.ids.tolist()) for text in texts)
    return TokenBatch(ids, real, special, names, BOS_ID, "caller", "")


def collate(texts: Sequence[Text], first_sequence: int = 0, top_k: int = 3) -> list[LayerRecord]:
    """The records of one pass over these texts, the embedding output first."""
    batch = token_batch(texts)
    width = batch.ids.shape[1]

    def stack(rows: Sequence[Tensor]) -> Tensor:
        filler = -1 if not rows[0].is_floating_point() else NAN
        return torch.stack([pad(row, (0, width - row.shape[-1]), value=filler) for row in rows])

    records = []
    for layer in range(-1, len(texts[0].patterns)):
        hidden = stack([text.hidden[layer + 1].T for text in texts]).transpose(1, 2)
        residual = residual_norms(hidden, batch.real, top_k)
        if layer < 0:
            records.append(LayerRecord(layer, batch, first_sequence, "none", residual=residual, hidden=hidden))
            continue
        names = [name for name in texts[0].statistics[layer] if name[:5] != "mass_" or bool(batch.bos.any())]
        attention = {name: stack([text.statistics[layer][name] for text in texts]) for name in names}
        values = ValueNorms(
            stack([text.values[layer] for text in texts]), stack([text.outputs[layer] for text in texts])
        )
        written = stack([text.outputs[layer].flip(-1) for text in texts])  # any positive numbers do
        record = LayerRecord(layer, batch, first_sequence, "fast", attention, values, residual, hidden, written)
        records.append(record)
    return records


def passes(texts: Sequence[Text], sizes: Sequence[int]) -> list[list[LayerRecord]]:
    """The records of consecutive passes of these sizes."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [collate(texts[start : start + size], start) for start, size in zip(starts, sizes, strict=True)]
