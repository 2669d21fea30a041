"""A cache whose dropped keys are merged into the key most like them: D2O's loop."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinklens.policies import compiled
from sinklens.policies.view import View

STATE = ("live", "key", "unit", "sum", "merged", "gain", "free", "owner", "weight", "mean")


@dataclass(frozen=True)
class MergingCache:
    """Slots per head, each a weighted mean of the tokens that were merged into it.

    A token is scored as its slot, plus the logarithm of its weight there: that is ``weight`` of the token and ``gain``
    of its slot.

    Args:
        sinks: First tokens that stay.
        heavy: Heavy hitters.
        recent: Most recent tokens.
        pace: Weight of the newest likeness in its moving average.
    """

    sinks: int
    heavy: int
    recent: int
    pace: float

    def scores(self, view: View) -> Float[Tensor, "head q_pos k_pos"]:
        """Scores of all tokens for each row, ``-inf`` where one was lost. Cost: O(slots d_head + tokens) a row."""
        cache = self._cache(view)
        found = torch.full_like(view.scores, -math.inf)
        query, first = view.query, int(view.keys[0])
        if compiled.takes(view.scores):
            tensors = (view.scores, query.contiguous(), view.all_keys, view.rows)
            cap, sizes = float(view.soft_cap or 0), (self.sinks, self.heavy, self.recent)
            state = [cache[name].numpy() for name in STATE]
            cache["count"] = compiled.merging_cache(
                *(x.numpy() for x in tensors), first, cap, sizes, self.pace, *state, cache["count"], found.numpy()
            )
            return found
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
        """Slots (live position, key, unit key, sum, merged), and of every token its slot."""
        heads, size, length = len(view.heads), self.heavy + self.recent + 1, int(view.keys[-1]) + 1
        cache = view.state
        if "live" not in cache:
            empty = view.scores.new_zeros(heads, size)
            cache |= {"live": torch.full_like(empty, -1, dtype=torch.long), "sum": empty, "merged": empty > 0}
            key = view.key.new_zeros(heads, size, view.key.shape[-1])
            cache |= {"key": key, "unit": key.clone(), "gain": empty.clone(), "count": 0}
            cache |= {"free": cache["live"][:, 0] * 0, "owner": cache["live"][:, :0], "weight": empty[:, :0]}
            cache["mean"] = empty.new_full((heads,), torch.nan)
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
        before = cache["mean"]
        cache["mean"] = torch.where(before.isnan(), best, self.pace * best + (1 - self.pace) * before)
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
