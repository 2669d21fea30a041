"""Scores of heads that come from one pass over some texts: measurements on the same texts share it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.capture.memory import plan_memory
from sinklens.capture.run import Opener
from sinklens.detectors.base import Detector
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.measure import Measurement, tables_of
from sinklens.models.tokens import TokenBatch
from sinklens.results.progress import SILENT, Progress


@dataclass(frozen=True)
class ScoringPass:
    """A measurement of heads that needs one pass, before it is run.

    Attributes:
        batch: The tokens.
        detectors: What looks at the pass.
        score: Makes scores of what they found.
    """

    batch: TokenBatch
    detectors: Sequence[Detector]
    score: Callable[[Measurement], HeadScores]


def run_passes(
    model: TransformerBridge,
    passes: Sequence[ScoringPass],
    *,
    batch_size: int | None = None,
    intervention: Opener | None = None,
    progress: Progress = SILENT,
) -> list[HeadScores]:
    """The scores of several measurements on the same tokens, from one forward pass over them.

    Args:
        model: The bridge.
        passes: The measurements; the first one's tokens are everybody's.
        batch_size: Sequences in a forward pass; default: what fits the memory.
        intervention: Measure the model under this change.
        progress: Told after every layer, in sequences times layers.
    """
    batch = passes[0].batch
    detectors = [detector for each in passes for detector in each.detectors]
    size = plan_memory(model, len(batch), batch.ids.shape[1]).batch_size if batch_size is None else batch_size
    capture(model, batch, detectors, batch_size=size, intervention=intervention, progress=progress)
    sequences = range(len(batch))
    return [
        each.score(Measurement(tuple(each.detectors), tables_of(each.detectors, keep=False), sequences))
        for each in passes
    ]
