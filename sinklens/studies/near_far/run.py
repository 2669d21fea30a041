"""What it costs when heads see near keys alone, or far ones alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.arguments import checked
from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions import Intervention, SlidingWindow
from sinklens.interventions.heads import Head, Heads, check_heads, head_name, parse_head
from sinklens.interventions.hidden_keys import HiddenKeys
from sinklens.interventions.positions import Positions
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.head_sets import head_set_losses
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.near_far.result import COST_COLUMNS, NearFar


@dataclass(frozen=True)
class FarKeys(Intervention):
    """Hides what :class:`~sinklens.interventions.SlidingWindow` shows: keys with ``i - j < window``, but not the first.

    Args:
        window: Keys up to and including the query's own position.
        sinks: First tokens that stay visible, at least one: a row must see something.
        heads: ``"all"``, or the heads that are restricted.
    """

    window: int
    sinks: int = 1
    heads: Heads = "all"

    def edits(self, positions: Positions) -> Sequence[Any]:
        """One edit of scores."""

        def hidden(block: Block) -> Bool[Tensor, "q_pos k_pos"]:
            keys = positions.keys(block)
            return (positions.rows(block)[:, None] - keys < self.window) & (keys >= self.sinks)

        return [HiddenKeys(hidden, self.heads)]


@checked
@usual_torch()
@torch.no_grad()
def near_far_costs(
    model: AnyModel,
    heads: Sequence[object],
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    window: int = 16,
    sinks: int = 1,
    controls: int = 10,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> NearFar:
    """Rise of the loss when some heads see only near keys, and when they see only far ones, beside random heads.

    ::

        found = near_far_costs("induction-2l", ["L0H0"], window=4)
        found.costs, found.verdict

    A head that works near loses nothing by the first and much by the second. Both ways the first ``sinks`` keys stay
    visible, so that nothing is the cost of a lost sink.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        heads: Restricted together.
        texts: Plain text; default: the built-in corpus that fits the model.
        tokens: The same as tokens.
        window: Near are the keys with ``i - j < window``, the query's own included.
        sinks: First keys that are always seen, at least 1.
        controls: Random sets of as many heads of the same layers.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence, longer than ``window``.
        max_sequences: Draw at most this many.
        batch_size: Sequences in one forward pass.
        seed: Of sequences, random sets and intervals.
        progress: Told in batches.

    Raises:
        InputError: No head or one that does not exist, a window or sinks below 1, or no sequence longer than both.

    Cost: two passes a set, from its first layer on.
    """
    model = as_bridge(model)
    tested = tuple(parse_head(head) for head in heads)
    check_heads(model, tested)
    if not tested or min(window, sinks) < 1 or controls < 0:
        raise InputError(
            f"Expected heads, window and sinks from 1 and controls from 0; got {len(tested)} heads, {window}, {sinks} "
            f"and {controls}."
        )
    batch, source = choose_sequences(model, texts, tokens, bos, max_tokens, True, seed, None, max_sequences)
    if int(batch.lengths.max()) <= window + sinks:
        raise InputError(
            f"No sequence has a far key: the longest has {int(batch.lengths.max())} tokens, window and sinks are "
            f"{window} and {sinks}; give longer texts or a shorter window."
        )
    drawn = random_head_sets(all_heads(model), tested, draws=controls, seed=seed).sets if controls else ()
    sets: list[tuple[str, int, tuple[Head, ...]]] = [("tested", -1, tested)]
    sets += [("random", draw, each) for draw, each in enumerate(drawn)]
    ways: dict[str, Intervention] = {"near": SlidingWindow(window, sinks), "far": FarKeys(window, sinks)}
    clean = torch.full((len(batch),), math.nan, dtype=torch.float64)
    changed = {way: torch.full((len(sets), len(batch)), math.nan, dtype=torch.float64) for way in ways}
    parts = [*equal_lengths(batch, batch_size)]
    progress.begin("Restricting heads", len(ways) * len(parts))
    for rows in parts:
        for way, intervention in ways.items():
            before, after = head_set_losses(model, batch.rows(rows), intervention, [each[-1] for each in sets])
            clean[rows] = before.double().nanmean(-1).cpu()
            changed[way][:, rows] = after.double().nanmean(-1).cpu()
            progress.advance()
    found = []
    for way, losses in changed.items():
        for (kind, draw, some), loss in zip(sets, losses, strict=True):
            cost = paired_interval((loss - clean).numpy(), seed=seed)
            names = ", ".join(map(head_name, some))
            found.append((kind, draw, names, way, float(loss.nanmean()), cost.value, cost.low, cost.high))
    settings = {"heads": [head_name(head) for head in tested], "window": window, "sinks": sinks, "controls": controls}
    warnings = [batch.unused.sentence(len(batch))] if batch.unused else []
    meta = header(model, batch, source, settings=settings | {"seed": seed}, warnings=warnings)
    return NearFar(meta, {"costs": pd.DataFrame(found, columns=[*COST_COLUMNS])})
