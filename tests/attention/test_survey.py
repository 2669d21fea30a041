"""Edits that look at a whole layer before they change its first block."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionEngine, AttentionShape, Block
from tests.families import boot, random_ids

POS = 140  # two blocks of rows, and hidden extra columns


class Looking:
    """Divides the pattern by the largest column sum of the whole layer, which no block knows."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}
        self.blocks: list[tuple[str, int, int, int]] = []

    def survey(self, shape: AttentionShape) -> "Looking | None":
        self.seen[shape.layer] = torch.zeros(shape.batch, shape.heads, shape.k_padded)
        return self if shape.layer == 1 else None

    def see(self, block: Block) -> None:
        self.blocks.append(("see", block.sequence, block.heads.start, block.rows.start))
        self.seen[1][block.sequence, block.heads, block.keys] += block.pattern.sum(1)

    def edit_pattern(self, block: Block) -> None:
        if block.shape.layer == 1:
            self.blocks.append(("edit", block.sequence, block.heads.start, block.rows.start))
            block.pattern /= self.seen[1][block.sequence, block.heads].amax(-1)[:, None, None]


class Double:
    def edit_pattern(self, block: Block) -> None:
        block.pattern *= 2


class HideFirst:
    def edit_scores(self, block: Block) -> None:
        if block.keys.start == 0:
            block.scores[:, 1 if block.rows.start == 0 else 0 :, 0] = -torch.inf


@pytest.mark.parametrize("path", ["fast", "fallback"])
def test_all_blocks_are_seen_before_the_first_is_edited(path: str, zoo: Path) -> None:
    bridge, ids = boot("mistral", zoo), random_ids(pos=POS)
    looking, after = Looking(), Looking()
    edits: list[Any] = [Double(), looking, HideFirst(), after]
    with AttentionEngine(bridge, path=path, edits=edits):
        bridge(ids)
    sees, changes = ([block for block in looking.blocks if block[0] == kind] for kind in ("see", "edit"))
    assert [b[1:] for b in sees] == [b[1:] for b in dict.fromkeys(changes)]
    assert looking.blocks[: len(sees)] == sees
    # rows were doubled by the edit before; key 0 was hidden by the edit of scores after it, but for row 0
    torch.testing.assert_close(looking.seen[1].sum(-1), torch.full((2, 4), 2.0 * POS))
    torch.testing.assert_close(looking.seen[1][..., 0], torch.full((2, 4), 2.0))
    # the second one sees what the first made of them
    largest = looking.seen[1].amax(-1)
    torch.testing.assert_close(after.seen[1].sum(-1), 2.0 * POS / largest)
