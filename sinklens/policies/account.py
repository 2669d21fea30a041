"""Account of what a policy kept: keys, their share of attention, and what a cache would hold."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.view import View

FIRST = 4
"""Tokens at the start of a text that count as its sinks here, as many as StreamingLLM keeps."""


class Account:
    """What a policy kept, row by row, in every layer and head.

    Every row gives, per head: ``kept`` (keys it may read), ``density`` (their share of the keys in sight), ``mass``
    (their share of the attention that the row would have paid without the rule, given what earlier layers already
    lost), ``first_mass`` and ``first_kept`` (the share of the first four tokens before, and what of it is kept); and
    per KV head ``held``: keys that a cache has to hold, which are all in sight where a dropped key may be read again.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, np.ndarray, dict[str, np.ndarray]]] = []

    def add(
        self,
        view: View,
        kept: Bool[Tensor, "head q_pos k_pos"],
        entries: Float[Tensor, "head q_pos"],
        cached: Float[Tensor, "kv_head q_pos"],
    ) -> None:
        """Take some rows of one layer.

        Args:
            view: The rows before the rule changed or dropped anything.
            kept: Keys that they still read themselves.
            entries: How many keys that is, with what stands in for dropped ones.
            cached: How many keys a cache holds for each KV head.
        """
        keys, rows = view.keys, view.rows
        pattern = view.pattern
        first = (keys >= 0) & (keys < FIRST)
        real = (rows >= 0).cpu().numpy()
        found = {
            "kept": entries,
            "density": entries / view.visible.sum(-1).clamp(min=1),
            "mass": (pattern * kept).sum(-1),
            "first_mass": pattern[..., first].sum(-1),
            "first_kept": (pattern * kept)[..., first].sum(-1),
            "held": cached,
        }
        arrays = {name: value.float().cpu().numpy()[:, real] for name, value in found.items()}
        self._rows.append((view.layer, view.sequence, rows.cpu().numpy()[real], arrays))

    def by_head(self, first_row: int = 0) -> pd.DataFrame:
        """Means over the rows from a position on: columns layer, head, kept, density, mass ..., rows."""
        return self._means(("kept", "density", "mass", "first_mass", "first_kept"), "head", first_row)

    def by_kv_head(self, first_row: int = 0) -> pd.DataFrame:
        """What a cache holds: columns layer, kv_head, held (mean keys a row), peak (most keys of any row), rows."""
        means = self._means(("held",), "kv_head", first_row)
        most: dict[tuple[int, int], float] = {}
        for layer, _, _, arrays in self._from(first_row):
            for head, row in enumerate(arrays["held"]):
                most[layer, head] = max(most.get((layer, head), 0.0), float(row.max(initial=0.0)))
        means.insert(
            3, "peak", [most[layer, head] for layer, head in zip(means["layer"], means["kv_head"], strict=True)]
        )
        return means

    def _means(self, names: tuple[str, ...], axis: str, first_row: int) -> pd.DataFrame:
        sums: dict[tuple[int, int], list[float]] = {}
        for layer, _, rows, arrays in self._from(first_row):
            for head in range(arrays[names[0]].shape[0]):
                held = sums.setdefault((layer, head), [0.0] * (len(names) + 1))
                for at, name in enumerate(names):
                    held[at] += float(arrays[name][head].sum(dtype=np.float64))
                held[-1] += len(rows)
        found = [
            {"layer": layer, axis: head}
            | {name: total / held[-1] for name, total in zip(names, held, strict=False)}
            | {"rows": int(held[-1])}
            for (layer, head), held in sorted(sums.items())
            if held[-1]
        ]
        return pd.DataFrame(found, columns=["layer", axis, *names, "rows"])

    def _from(self, first_row: int) -> Iterator[tuple[int, int, np.ndarray, dict[str, np.ndarray]]]:
        for layer, sequence, rows, arrays in self._rows:
            chosen = rows >= first_row
            if chosen.any():
                yield layer, sequence, rows[chosen], {name: array[:, chosen] for name, array in arrays.items()}
