"""D2O: heavy hitters, and what is dropped is merged into the key most like it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.view import View


@dataclass(frozen=True)
class D2O(Policy):
    """Keeps first, heavy and recent keys as H2O does, and merges a dropped one into its nearest survivor.

    After a step the key with the least attention so far goes, among those neither first nor recent. Let u be its
    largest cosine to a survivor's key. If u reaches a moving average of all u so far (weight ``pace`` on the newest),
    survivor c takes it in: ``k_c <- (e k_c + e^u k) / (e + e^u)``, values too; else it is lost. So a slot is a weighted
    mean of tokens, and each of its tokens gets its score plus the logarithm of its weight. Deviations: the weights are
    the paper's (the release takes half of ``k_c + u k``, which shrinks keys); one budget for all layers.

    Args:
        heavy: Heavy hitters.
        recent: Most recent tokens, the query's own included.
        sinks: First tokens that stay.
        pace: Weight of the newest u in the moving average.
        dense_first: First layers that read everything; the last layer does too, where this is above 0.
    """

    heavy: int = 32
    recent: int = 32
    sinks: int = 4
    pace: float = 0.5
    dense_first: int = 2

    name: ClassVar[str] = "d2o"
    scope: ClassVar = "causal"
    evicts: ClassVar[bool] = True
    source: ClassVar[str] = "Wan et al. 2024, arXiv 2406.13035; AIoT-MLSys-Lab/D2O"

    def change_scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Every token at its slot's score and the logarithm of its weight there; lost ones at ``-inf``."""
        if view.layer < self.dense_first or (self.dense_first and view.layer == view.n_layers - 1):
            return view.scores
        cache = self._cache(view)
        found = torch.full_like(view.scores, -math.inf)
        query, first = view.query, int(view.keys[0])
        start = max(first, 0)
        for row, position in enumerate(view.rows.tolist()):
            if position < 0:  # padding before the text
                continue
            self._add(cache, view.key[:, position - first], position)
            at = (cache["live"] - first).clamp(0, len(view.keys) - 1)
            products = view.capped((cache["key"] @ query[:, row, :, None])[..., 0])
            slots = torch.where(cache["merged"], products, view.scores[:, row].gather(1, at))
            slots = slots.masked_fill(cache["live"] < 0, -math.inf)
            cache["sum"] += torch.softmax(slots, -1)
            by_slot = torch.nn.functional.pad(slots + cache["gain"], (0, 1), value=-math.inf)  # the last: lost
            so_far = slice(start, position + 1)
            scores = by_slot.gather(1, cache["owner"][:, so_far]) + cache["weight"][:, so_far]
            found[:, row, start - first : position + 1 - first] = scores
            self._drop(cache, position)
        return found

    def _cache(self, view: View) -> dict[str, Any]:
        """Slots (live position, key, unit key, sum, merged), and of every token its slot.

        The logarithm of a token's weight is ``weight`` of the token and ``gain`` of its slot.
        """
        heads, size, length = len(view.heads), self.heavy + self.recent + 1, int(view.keys[-1]) + 1
        cache = view.state
        if "live" not in cache:
            empty = view.scores.new_zeros(heads, size)
            cache |= {"live": torch.full_like(empty, -1, dtype=torch.long), "sum": empty, "merged": empty > 0}
            key = view.key.new_zeros(heads, size, view.key.shape[-1])
            cache |= {"key": key, "unit": key.clone(), "gain": empty.clone(), "count": 0, "mean": None}
            cache |= {"free": cache["live"][:, 0] * 0, "owner": cache["live"][:, :0], "weight": empty[:, :0]}
        missing = length - cache["owner"].shape[1]
        if missing > 0:
            cache["owner"] = torch.nn.functional.pad(cache["owner"], (0, missing), value=size)
            cache["weight"] = torch.nn.functional.pad(cache["weight"], (0, missing))
        return cache

    def _add(self, cache: dict[str, Any], key: Tensor, position: int) -> None:
        at = torch.arange(len(key), device=key.device), cache["free"]
        cache["live"][at], cache["key"][at], cache["sum"][at], cache["merged"][at] = position, key, 0.0, False
        cache["unit"][at], cache["gain"][at] = torch.nn.functional.normalize(key, dim=-1), 0.0
        cache["owner"][:, position] = cache["free"]
        cache["count"] += 1

    def _drop(self, cache: dict[str, Any], position: int) -> None:
        """Make room for the next token."""
        live, size = cache["live"], self.heavy + self.recent
        if cache["count"] <= size:
            cache["free"] = torch.full_like(cache["free"], cache["count"])
            return
        safe = (live > position - self.recent) | ((live < self.sinks) & (self.sinks <= self.heavy))
        out = cache["sum"].masked_fill(safe, math.inf).argmin(-1)
        cache["free"], each = out, torch.arange(len(out), device=out.device)
        gone = cache["key"][each, out]
        like = (cache["unit"] @ cache["unit"][each, out, :, None])[..., 0]
        like[each, out] = -math.inf
        best, into = like.max(-1)
        cache["mean"] = best if cache["mean"] is None else self.pace * best + (1 - self.pace) * cache["mean"]
        merges = best >= cache["mean"]
        share = best.exp() / (best.exp() + math.e)
        old, owner = cache["key"][each, into], cache["owner"][:, : position + 1]
        mixed = (1 - share)[:, None] * old + share[:, None] * gone
        mixed = torch.where(merges[:, None], mixed, old)
        cache["key"][each, into], cache["unit"][each, into] = mixed, torch.nn.functional.normalize(mixed, dim=-1)
        cache["merged"][each, into] |= merges
        moves = owner == out[:, None]
        cache["gain"][each, into] += torch.where(merges, (1 - share).log(), 0.0)
        change = cache["gain"][each, out] + share.log() - cache["gain"][each, into]
        cache["weight"][:, : position + 1] += moves * change[:, None]
        owner.copy_(torch.where(moves, torch.where(merges, into, size + 1)[:, None], owner))

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """What stands in a slot."""
        return view.visible

    def entries(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "head q_pos"]:
        """Slots."""
        most = self.heavy + self.recent + 1 if "live" in view.state else len(view.keys)
        return (view.rows + 1).clamp(0, most).expand(len(view.heads), -1).float()

    def cached(self, view: View, kept: Bool[Tensor, "head q_pos k_pos"]) -> Float[Tensor, "kv_head q_pos"]:
        """Slots of all query heads of the KV head, which merge each for themselves; one cache where nothing merges."""
        found: Tensor = self.entries(view, kept).unflatten(0, (view.kv_heads, -1)).sum(1)
        return found if "live" in view.state else super().cached(view, kept)

    @classmethod
    def sized(cls, keys: int, length: int) -> "D2O":
        """Half and half, with room for the query itself, in every layer."""
        half = max(1, (keys - 1) // 2)
        return cls(half, max(1, keys - 1 - half), min(4, half // 2), dense_first=0)
