"""Activations that are NaN or infinite: where they are, and that no number is taken from them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.capture.record import LayerRecord, ResidualNorms, ValueNorms
from sinklens.errors import InputError
from sinklens.wording import run_words, several

ADVICE = {
    torch.float16: "float16 ends at 65,504, which massive activations pass, so load the model with bfloat16 or float32 "
    "(--dtype bfloat16 or --dtype float32)"
}
FACTS = ("eps", "is_special", "is_bos")
"""Columns that were not measured: a threshold that tells rows apart, and what a token is."""
OTHER_ADVICE = "look for damaged weights, or an intervention that makes them so"


class Place(NamedTuple):
    """The first token of a layer where the residual stream is NaN or infinite."""

    sequence: int
    position: int
    token: str
    dtype: torch.dtype


class NonFinite:
    """What of a pass is NaN or infinite; :func:`~sinklens.capture.capture` notes it here instead of stopping.

    Attributes:
        layers: The first place in every layer whose residual stream is affected; -1 is the embedding.
        heads: Heads whose attention or values are NaN or infinite at some real token.
        sequences: Sequences with such tokens.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Place] = {}
        self.heads: set[tuple[int, int]] = set()
        self.sequences: set[int] = set()
        self.dtype: torch.dtype | None = None

    def __bool__(self) -> bool:
        return bool(self.layers or self.heads)

    def take(self, record: LayerRecord, dtype: torch.dtype) -> LayerRecord:
        """Note what of a record is NaN or infinite at real tokens.

        Args:
            record: One layer.
            dtype: Of its residual stream.

        Returns:
            The record with neutral numbers in these places (no attention, norms of 1, no large entry), so that whoever
            counts need not look for them; :meth:`mask` then takes the results out.
        """
        attention, values, residual = record.attention, record.values, record.residual
        if values is not None:
            heads = self._see_heads(attention.get("mass"), values, record, dtype)
            if bool(heads.any()):
                attention = {name: _filled(each, heads) for name, each in attention.items()}
                values = ValueNorms(_ones(values.value), None if values.output is None else _ones(values.output))
                record = replace(record, attention=attention, values=values)
        if residual is not None:
            rows = self._see_residual(residual, record, dtype)
            if bool(rows.any()):
                record = replace(record, residual=_neutral(residual, rows, record.real))
        if record.layer in self.layers or any(layer == record.layer for layer, _ in self.heads):
            record = replace(
                record,
                hidden=None if record.hidden is None else _ones(record.hidden),
                outputs=None if record.outputs is None else _ones(record.outputs),
                z=None if record.z is None else _ones(record.z),
                keys=None if record.keys is None else _ones(record.keys),
                halves=None if record.halves is None else {name: _ones(each) for name, each in record.halves.items()},
            )
        return record

    def _see_residual(self, residual: ResidualNorms, record: LayerRecord, dtype: torch.dtype) -> Bool[Tensor, " batch"]:
        bad = ~torch.isfinite(residual.norm.cpu()) & record.real
        if bool(bad.any()):
            row, position = bad.nonzero()[0].tolist()
            token = record.batch.tokens[row][position]
            self.layers.setdefault(record.layer, Place(record.first_sequence + row, position, token, dtype))
            self._sequences(bad.any(1), record, dtype)
        return bad.any(1)

    def _see_heads(
        self, mass: Tensor | None, values: ValueNorms, record: LayerRecord, dtype: torch.dtype
    ) -> Bool[Tensor, "batch head"]:
        output, value = values.output, values.value.cpu()
        n_heads = next((each.shape[1] for each in (mass, output) if each is not None), value.shape[1])
        bad = _bad(value, record.real).repeat_interleave(n_heads // value.shape[1], 1)
        if mass is not None:
            bad = bad | _bad(mass.cpu(), record.real)
        if bool(bad.any()):
            self.heads |= {(record.layer, head) for head in bad.any(0).nonzero().flatten().tolist()}
            self._sequences(bad.any(1), record, dtype)
        return bad

    def _sequences(self, bad: Bool[Tensor, " batch"], record: LayerRecord, dtype: torch.dtype) -> None:
        self.sequences |= {record.first_sequence + row for row in bad.nonzero().flatten().tolist()}
        self.dtype = self.dtype or dtype

    def refuse(self) -> None:
        """Stop where a caller has no use for numbers of a part of the model.

        Raises:
            InputError: One sentence that names layer, sequence and token.
        """
        if self.layers:
            layer, place = next(iter(self.layers.items()))
            where = "in the embedding" if layer < 0 else f"after layer {layer}"
            raise InputError(
                f"Activations are NaN or infinite {where}, first in sequence {place.sequence} at position "
                f"{place.position} ({place.token!r}), and nothing can be said of such a run: "
                f"{ADVICE.get(place.dtype, OTHER_ADVICE)}."
            )

    def mask(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """The tables without numbers of affected heads, layers and sequences: NaN, and False for decisions."""
        return {name: self._mask(frame) if self else frame for name, frame in tables.items()}

    def _mask(self, frame: pd.DataFrame) -> pd.DataFrame:
        if {"layer", "head"} <= {*frame.columns}:
            pairs = zip(frame["layer"], frame["head"], strict=True)
            bad = pd.Series([pair in self.heads for pair in pairs], index=frame.index, dtype=bool)
        elif "layer" in frame:
            bad = frame["layer"].isin([*self.layers])
        elif "sequence" in frame:
            bad = frame["sequence"].isin([*self.sequences])
        else:
            return frame
        if not bad.any():
            return frame
        frame = frame.copy()
        for name, column in frame.items():
            if name in FACTS:
                continue
            if pd.api.types.is_float_dtype(column.dtype):
                frame[name] = column.mask(bad, math.nan)
            elif column.dtype == bool:
                frame[name] = column & ~bad
        return frame

    def sentence(self, n_heads: int) -> str:
        """Where it is, how many heads have no numbers for it, and what to do.

        Args:
            n_heads: Attention heads that were measured.
        """
        named = f" ({str(self.dtype).removeprefix('torch.')})"
        where = []
        if -1 in self.layers:
            where.append("in the embedding")
        blocks = sorted(layer for layer in self.layers if layer >= 0)
        if blocks:
            where.append(f"after {'layer' if len(blocks) == 1 else 'layers'} {', '.join(run_words(blocks, 2))}")
        within = sorted({layer for layer, _ in self.heads})
        if within:
            where.append(
                f"in the attention of layer{'' if len(within) == 1 else 's'} {', '.join(run_words(within, 2))}"
            )
        first = ""
        if self.layers:
            place = self.layers[min(self.layers)]
            first = f", first in sequence {place.sequence} at position {place.position} ({place.token!r})"
        advice = OTHER_ADVICE if self.dtype is None else ADVICE.get(self.dtype, OTHER_ADVICE)
        return (
            f"Activations are NaN or infinite {' and '.join(where)}{named}{first}, in "
            f"{several(len(self.sequences), 'sequence')}: {len(self.heads)} of {several(n_heads, 'head')} have no "
            f"numbers (NaN in the tables): {advice}."
        )


def _bad(per_token: Float[Tensor, "batch head pos"], real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch head"]:
    return (~torch.isfinite(per_token) & real[:, None]).any(-1)


def _ones(values: Tensor) -> Tensor:
    return values.nan_to_num(1.0, 1.0, 1.0) if values.is_floating_point() else values


def _filled(statistic: Tensor, heads: Bool[Tensor, "batch head"]) -> Tensor:
    """A statistic with 0 where it is NaN or infinite in affected heads, or in affected sequences if it has no heads."""
    if not statistic.is_floating_point() or not statistic.ndim or statistic.shape[0] != heads.shape[0]:
        return statistic
    by_head = statistic.ndim > 1 and statistic.shape[1] == heads.shape[1]
    affected = (heads if by_head else heads.any(1)).to(statistic.device)
    affected = affected.reshape(*affected.shape, *(1 for _ in range(statistic.ndim - affected.ndim)))
    return statistic.masked_fill(affected & ~torch.isfinite(statistic), 0.0)


def _neutral(residual: ResidualNorms, rows: Bool[Tensor, " batch"], real: Bool[Tensor, "batch pos"]) -> ResidualNorms:
    rows, real = rows.to(residual.norm.device), real.to(residual.norm.device)
    tokens = rows[:, None] & real
    return ResidualNorms(
        residual.norm.masked_fill(tokens, 1.0),
        residual.token_max.masked_fill(tokens, 1.0),
        residual.median.masked_fill(rows, 1.0),
        residual.top_value.masked_fill(rows[:, None], math.nan),
        residual.top_position.masked_fill(rows[:, None], -1),
        residual.top_channel.masked_fill(rows[:, None], -1),
    )
