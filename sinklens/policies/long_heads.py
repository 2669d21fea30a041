"""LongHeads: each head reads its first, its last and its best chunks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.policies.blocks import key_blocks, spread_blocks
from sinklens.policies.choose import top_keys
from sinklens.policies.renumber import Renumbering, unrotated
from sinklens.policies.rotary import turned
from sinklens.policies.view import View


@dataclass(frozen=True)
class LongHeads(Renumbering):
    """Keeps the first chunk, the query's own and the one before, and the chunks that fit the query best.

    A chunk is judged by its mean key. With ``renumber=True`` as published: by the product of the un-rotated query with
    a key read out of the chunk, whose tokens attend to each other (later ones too), and the mean of what they get asks
    the chunk's keys, rotated from 0 on, once more; and the kept keys are numbered anew.

    Args:
        chunk: Tokens in a chunk.
        chunks: Chunks that a row reads, first and last ones included.
    """

    chunk: int = 256
    chunks: int = 16

    name: ClassVar[str] = "long_heads"
    scope: ClassVar = "causal"
    positive: ClassVar = ("chunk",)
    source: ClassVar[str] = "Lu et al. 2024, arXiv 2402.10685; LuLuLuyi/LongHeads"

    def choice(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Whole chunks."""
        score, seen, own = key_blocks(view, self.chunk, "mean")
        always = own | torch.nn.functional.pad(own[:, 1:], (0, 1))
        always[:, 0] = True
        if self.renumber:
            fit = unrotated(view.query, view.rows, view) @ self._chunk_keys(view).mT
            score = torch.nn.functional.pad(fit, (0, score.shape[-1] - fit.shape[-1]))  # the own one is always read
        return spread_blocks(top_keys(score, self.chunks - 3, seen & ~always) | always, view, self.chunk)

    def _chunk_keys(self, view: View) -> Float[Tensor, "head chunk d_head"]:
        """What stands for each chunk that is complete; the queries of the last one wait in the state."""
        empty = view.query[:, :0]
        found: Tensor = view.state.get("chunks", empty)
        queries = torch.cat((view.state.get("queries", empty), view.query[:, view.rows >= 0]), 1)
        while queries.shape[1] >= self.chunk:
            begin = found.shape[1] * self.chunk
            columns = (view.keys >= begin) & (view.keys < begin + self.chunk)
            key, value = view.key[:, columns], view.value[:, columns]
            mean = ((queries[:, : self.chunk] @ key.mT).softmax(-1) @ value).mean(1, keepdim=True)
            local = turned(key, torch.full((self.chunk,), -float(begin), device=key.device), view.frequencies)
            found = torch.cat((found, (mean @ local.mT * view.scaling).softmax(-1) @ local), 1)
            queries = queries[:, self.chunk :]
        view.state.update(chunks=found, queries=queries)
        return found

    @classmethod
    def sized(cls, keys: int, length: int) -> "LongHeads":
        """Chunks of an eighth of the budget."""
        return cls(max(1, keys // 8), 8)
