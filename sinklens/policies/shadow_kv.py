"""ShadowKV: chunks of the prompt by landmark, with outlier chunks always at hand."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.policies.base import Policy
from sinklens.policies.choose import top_keys
from sinklens.policies.view import View


@dataclass(frozen=True)
class ShadowKV(Policy):
    """Lets rows after the prompt read its outlier chunks, its last chunks, and the chunks whose mean key fits best.

    A chunk's landmark is its mean key; outliers are the chunks with a key that is least like its landmark (cosine).
    Chosen by the largest softmax of ``q . landmark`` over the query heads of a KV head, one set for all of them. Rows
    of the prompt read everything; score only rows after it. Low-rank keys, the other half of the method, are
    :class:`LowRankKeys`.

    Args:
        budget: Keys of the prompt chosen by landmark.
        chunk: Keys in a chunk.
        outliers: Outlier chunks.
        last: Last chunks of the prompt that stay, with what is left over.
    """

    budget: int = 2048
    chunk: int = 8
    outliers: int = 48
    last: int = 4

    name: ClassVar[str] = "shadow_kv"
    scope: ClassVar = "prompt"
    group: ClassVar = "kv_group"
    positive: ClassVar = ("chunk",)
    source: ClassVar[str] = "Sun et al. 2024, arXiv 2410.21465; bytedance/ShadowKV"

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Everything for the prompt's rows; chunks afterwards."""
        prompt, after = view.prompt or 0, view.rows >= (view.prompt or 0)
        count = max(0, prompt // self.chunk - self.last)
        kept = (~after)[:, None] | (view.keys >= count * self.chunk)
        if not bool(after.any()) or not count:
            return kept.expand_as(view.scores)
        start = int((view.keys < 0).sum())
        keys = view.by_group(view.key[:, start : start + count * self.chunk])[:, 0].unflatten(1, (count, self.chunk))
        landmark = keys.mean(2)
        likeness = torch.cosine_similarity(keys, landmark[:, :, None], dim=-1).amin(-1)
        outlier = top_keys(-likeness, self.outliers, torch.ones_like(likeness, dtype=torch.bool))
        query = view.by_group(view.query)
        fit = torch.softmax(torch.einsum("gmqd,gcd->gmqc", query, landmark), -1).amax(1)
        chosen = top_keys(fit, self.budget // self.chunk, ~outlier[:, None].expand_as(fit)) | outlier[:, None]
        number = view.keys.clamp(min=0) // self.chunk
        inside = (view.keys >= 0) & (number < count)
        by_chunk: Tensor = view.to_heads(chosen)[..., number.clamp(max=count - 1)] & inside
        return kept | by_chunk

    @classmethod
    def sized(cls, keys: int, length: int) -> "ShadowKV":
        """An eighth for outliers, an eighth for the last chunks, the rest by landmark."""
        chunk = max(1, min(8, keys // 16))
        eighth = max(1, keys // 8 // chunk)
        return cls(max(chunk, keys - 2 * eighth * chunk), chunk, eighth, eighth)
