"""Sets of heads patched both ways, and differences as shares of what tells two prompts apart."""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.evidence.bootstrap import paired_interval
from sinklens.interventions.heads import Head
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.path_patching.passes import Changes, Recorded, run

Answers = Callable[[Recorded], Float[Tensor, " batch"]]
"""The logit difference of each prompt of a pass."""


class Scale:
    """Changes of logit differences as shares of what tells the prompts apart, with intervals over prompts.

    Args:
        start: Logit differences of clean prompts.
        end: Of corrupted ones.
        seed: Of intervals.
    """

    def __init__(self, start: Float[Tensor, " prompt"], end: Float[Tensor, " prompt"], seed: int) -> None:
        self.total, self.seed = float((end - start).double().mean()), seed

    def share(self, change: Float[Tensor, " prompt"]) -> tuple[float, float, float]:
        """Value and interval; NaN where nothing tells them apart."""
        if abs(self.total) < 1e-6:
            return math.nan, math.nan, math.nan
        found = paired_interval((change.double() / self.total).tolist(), seed=self.seed)
        return found.value, found.low, found.high


def patch_sets(
    model: TransformerBridge,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    before: Recorded,
    after: Recorded,
    sets: Sequence[Sequence[Head]],
    answers: Answers,
    progress: Progress = SILENT,
) -> tuple[Float[Tensor, "head_set batch"], Float[Tensor, "head_set batch"]]:
    """What each set's change between prompts moves: its share of :class:`Scale` is necessity and sufficiency.

    Args:
        model: The bridge.
        clean: Clean prompts.
        corrupted: Corrupted ones.
        before: Their clean pass.
        after: Their corrupted pass.
        sets: Sets of heads.
        answers: Of a pass.
        progress: Told in forward passes.

    Returns:
        ``LD(clean, outputs of the set from corrupted) - LD(clean)``, and
        ``LD(corrupted) - LD(corrupted, outputs of the set from clean)``.

    Cost: two forward passes a set.
    """
    start, end = answers(before), answers(after)
    lost, kept = start.new_empty(len(sets), len(start)), start.new_empty(len(sets), len(start))
    for number, some in enumerate(sets):
        lost[number] = answers(run(model, clean, Changes(z={h: after.z[h[0]][:, h[1]] for h in some}))) - start
        kept[number] = end - answers(run(model, corrupted, Changes(z={h: before.z[h[0]][:, h[1]] for h in some})))
        progress.advance(2)
    return lost, kept
