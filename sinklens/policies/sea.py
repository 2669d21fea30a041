"""SEA: a small network guesses a coarse attention map, whose best cells are read."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.learned import Learned
from sinklens.policies.view import View


@dataclass(frozen=True)
class SEA(Learned):
    """Reads the keys in the best cells of a coarse map of its row, and itself.

    Linear attention with positive random features gives each row a context; a small network makes a map of ``width``
    cells of that and the row's value, which a kernel of width 3 smooths; the keys so far are spread over the cells, and
    as many best cells are read as hold ``k`` of them. The network is trained with the model: without ``weights`` it is
    random, and what it chooses means nothing.

    Args:
        k: Keys a row reads, besides itself.
        width: Cells of the map.
        features: Random features.
        hidden: Units of the network.
        weights: File of trained weights (projection, encode, decode, kernel by layer).
        seed: Of random ones.
    """

    k: int = 64
    width: int = 128
    features: int = 32
    hidden: int = 32

    name: ClassVar[str] = "sea"
    scope: ClassVar = "causal"
    positive: ClassVar = ("k", "width", "features", "hidden")
    source: ClassVar[str] = "Lee et al. 2024, arXiv 2310.01777; gmlwns2000/sea-attention (trained)"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Keys by cell."""
        count = (view.rows + 1).clamp(min=1)[:, None]
        cell = (view.keys.clamp(min=0) * self.width).div(count, rounding_mode="floor").clamp(max=self.width - 1)
        filled = count.clamp(max=self.width)
        guess = self._map(view)
        seen = ((view.keys >= 0) & (view.distance >= 0)).float()
        cells = torch.zeros(len(view.rows), self.width, device=guess.device).scatter_add_(-1, cell, seen) > 0
        order = guess.masked_fill(~cells, -torch.inf).argsort(-1, descending=True).argsort(-1)
        chosen = (order < (self.k * filled).div(count, rounding_mode="floor").clamp(min=1)) & cells
        found = chosen.gather(-1, cell.expand_as(view.scores))
        return found | (view.distance == 0) | (count <= self.k + 1)

    def _map(self, view: View) -> Tensor:
        """The coarse map of every row, ``[head q_pos cell]``."""
        d, d_value = view.key.shape[-1], view.value.shape[-1]
        shapes = {
            "projection": (d, self.features),
            "encode": (2 * d_value, self.hidden),
            "decode": (self.hidden, self.width),
            "kernel": (3,),
        }
        w = self.trained(view.layer, shapes, view.key)
        query, key = (positive_features(x * d**-0.25, w["projection"]) for x in (view.query * d**0.5, view.key))
        weights = (query @ key.mT).masked_fill(~view.visible, 0)
        context = weights @ view.value / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        own = view.value[:, (view.rows - view.keys[0]).clamp(min=0)]
        coarse = torch.relu(torch.cat((context, own), -1) @ w["encode"]) @ w["decode"]
        smooth: Tensor = torch.nn.functional.conv1d(coarse.flatten(0, 1)[:, None], w["kernel"][None, None], padding=1)
        return smooth.view_as(coarse)

    @classmethod
    def sized(cls, keys: int, length: int) -> "SEA":
        """The budget less the row itself."""
        return cls(max(1, keys - 1), max(8, min(128, length // 2)))


def positive_features(x: Tensor, projection: Tensor) -> Tensor:
    """Features whose products are ``exp(x . y)`` in expectation: ``exp(x w - |x|^2 / 2) / sqrt(m)`` (Performer).

    The columns of ``projection`` are taken as normal vectors of any length.
    """
    scaled = x @ (projection * projection.shape[0] ** 0.5) - x.square().sum(-1, keepdim=True) / 2
    found: Tensor = scaled.exp() / projection.shape[1] ** 0.5
    return found
