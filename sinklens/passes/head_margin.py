"""The margin of a sink before the softmax and its parts, each kind of which adds up to it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float

SIDES = ("key", "query")


@dataclass
class HeadMargin:
    """One head's margin on some sequences and its parts; every kind of part adds up to the margin.

    Attributes:
        margin: ``mean_t (s_t,k - mean_{j != k} s_tj)`` of the sink's key k, by sequence; over queries that see k and
            another key. In logits, before a soft cap.
        channels: By side, ``[sequence d_model]``: the share of each residual channel of the keys (with whole queries),
            or of the queries (with whole keys).
        bias: By side, ``[sequence]``: what biases of projection and norms add.
        bands: ``[sequence band]``, one for each pair of rotated dims; the last one is all dims that do not turn.
        wavelengths: Of the bands, in tokens; infinite for the last.
        components: By side and by who wrote to the residual stream, ``[sequence]``; with ``bias`` they add up.
        common_scale: The margin if the norm divided the sink's state as it divides the median of the other tokens'.
        masses: Mean attention to the sink of the head as it is (``""``), and with the key shares of some channels gone.
        pairs: ``[sequence part part]``, query parts by key parts: each named channel, all others, biases.
    """

    margin: Float[np.ndarray, " sequence"]
    channels: dict[str, Float[np.ndarray, "sequence d_model"]]
    bias: dict[str, Float[np.ndarray, " sequence"]]
    bands: Float[np.ndarray, "sequence band"]
    wavelengths: Float[np.ndarray, " band"]
    common_scale: Float[np.ndarray, " sequence"]
    components: dict[str, dict[str, Float[np.ndarray, " sequence"]]] = field(default_factory=dict)
    masses: dict[str, Float[np.ndarray, " sequence"]] = field(default_factory=dict)
    pairs: Float[np.ndarray, "sequence part part"] | None = None

    def joined(self, other: "HeadMargin") -> "HeadMargin":
        """Both, one sequence after the other."""
        return self._each(lambda one, more: np.concatenate([one, more]), other)

    def ordered(self, place: np.ndarray) -> "HeadMargin":
        """The same with its sequences in another order."""
        return self._each(lambda one: one[place])

    def _each(self, change: Callable[..., np.ndarray], *others: "HeadMargin") -> "HeadMargin":
        """What holds a number for each sequence, changed."""

        def walk(first: Any, *more: Any) -> Any:
            if isinstance(first, dict):
                return {key: walk(first[key], *(each[key] for each in more)) for key in first}
            return None if first is None else change(first, *more)

        names = [each.name for each in fields(self) if each.name != "wavelengths"]
        changed = {name: walk(*(getattr(each, name) for each in (self, *others))) for name in names}
        return HeadMargin(wavelengths=self.wavelengths, **changed)

    @property
    def gap(self) -> float:
        """Largest difference between the margin and the sum of any kind of part."""
        sums = [self.bands.sum(1)] + ([] if self.pairs is None else [self.pairs.sum((1, 2))])
        for side in SIDES:
            sums.append(self.channels[side].sum(1) + self.bias[side])
            if self.components:
                sums.append(np.sum([*self.components[side].values()], axis=0) + self.bias[side])
        return float(max(np.abs(each - self.margin).max() for each in sums))
