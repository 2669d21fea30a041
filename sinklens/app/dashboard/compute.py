"""What the dashboard computes: a census of a text, the same under an intervention, and pieces of attention maps."""

import contextlib
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.app.dashboard.state import State
from sinklens.attention import PooledMap, StatisticFactory
from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.statistics import Statistic
from sinklens.capture import LayerRecord, capture
from sinklens.errors import InputError, SinkLensError
from sinklens.evidence.controls import all_heads, compare_with_controls, random_head_sets
from sinklens.interventions import AblateHeads, Intervention, ScaleKeys, mean_outputs
from sinklens.interventions.heads import check_heads, parse_heads
from sinklens.models.architecture import context_length
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize
from sinklens.results.progress import Progress
from sinklens.studies.census.joins import Example
from sinklens.studies.census.result import AttentionMap, Census
from sinklens.studies.census.run import scan
from sinklens.studies.effects.run import measure_effects

MAX_CHARACTERS: Final = 100_000
MAX_TOKENS: Final = 4096
MAX_TOTAL: Final = 16_384
"""Tokens of all sequences together when the tokens of a shown result are run again."""

_CONTROLS: Final = 5
_MOST_LOGITS: Final = 100_000_000


def token_limit(model: TransformerBridge) -> int:
    """Longest text in tokens: the model's context, at most 4,096."""
    return min(context_length(model) or MAX_TOKENS, MAX_TOKENS)


def text_tokens(model: TransformerBridge, text: str, bos: BosChoice) -> tuple[TokenBatch | None, str]:
    """Tokens of a typed text and what to call it; ``None`` for an empty text, which stands for a built-in sample.

    Raises:
        InputError: The text is longer than the limit; nothing is cut silently.
    """
    if not text.strip():
        return None, ""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The text has {len(text):,} characters; the dashboard takes up to {MAX_CHARACTERS:,}.")
    limit = token_limit(model)
    batch = tokenize(model, [text], bos=bos, max_tokens=context_length(model))
    length = int(batch.lengths.max()) + batch.dropped
    if length > limit:
        raise InputError(f"The text has {length:,} tokens; the dashboard takes up to {limit:,} with this model.")
    shown = " ".join(text.split())
    return batch, f"the text {shown[:40] + '…' if len(shown) > 40 else shown!r}"


def live_census(
    model: TransformerBridge,
    progress: Progress,
    *,
    tokens: TokenBatch | Sequence[Sequence[int]] | None,
    bos: BosChoice = "auto",
    source: str = "",
    eps: float = 0.3,
    intervention: Intervention | None = None,
) -> Census:
    """A census with the attention maps of all heads; stops between layers when it is cancelled.

    Args:
        model: The bridge.
        progress: Told of every layer.
        tokens: Sequences; ``None`` for one of the built-in corpus.
        bos: For the built-in corpus.
        source: What to call the tokens.
        eps: Threshold of the sink rate.
        intervention: Measured under it.
    """
    every = 2 * int(model.cfg.n_layers) * int(model.cfg.n_heads)  # a census keeps half of the places for sink heads
    return scan(
        model,
        tokens=tokens,
        bos=bos,
        max_sequences=1 if tokens is None else None,
        maps=every,
        eps=eps,
        source=source or None,
        intervention=intervention,
        progress=progress,
    )


def chosen_intervention(state: State, model: TransformerBridge, batch: TokenBatch) -> Intervention | None:
    """The intervention that the controls describe, checked against the model; ``None`` for none.

    Raises:
        InputError: Heads or keys that cannot be read or that the model or text does not have.
    """
    if state.method == "none":
        return None
    if state.method == "scale":
        heads = parse_heads(state.heads.strip() or "all")
        check_heads(model, heads)
        keys = parse_numbers(state.keys)
        length = int(batch.lengths.max())
        if max(keys) >= length:
            raise InputError(
                f"Key {max(keys)} does not exist: the longest sequence has the positions 0 to {length - 1}."
            )
        return ScaleKeys(keys=keys, gamma=state.gamma, heads=heads)
    if not state.heads.strip():
        raise InputError("Name the heads to ablate, such as L0H1 or L0H1,L2H3, or choose one in the grid.")
    heads = parse_heads(state.heads.strip())
    check_heads(model, heads)
    if state.how == "mean":
        return AblateHeads(heads, "mean", outputs=mean_outputs(model, batch, heads=heads))
    return AblateHeads(heads, "uniform" if state.how == "uniform" else "zero")


def parse_numbers(text: str) -> tuple[int, ...]:
    """Key positions from text with commas and ranges.

    Raises:
        InputError: It is something else.

    >>> parse_numbers("0, 5, 10-12")
    (0, 5, 10, 11, 12)
    """
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) - int(first) > 100_000:
            raise InputError(f"Keys are written as positions from 0, such as 0 or 0,5,10-12; got {text[:40]!r}.")
        found |= set(range(int(first), int(last or first) + 1))
    if not found:
        raise InputError("Name at least one key position, such as 0.")
    return tuple(sorted(found))


def effect_notes(
    model: TransformerBridge, batch: TokenBatch, intervention: Intervention, progress: Progress
) -> tuple[str, ...]:
    """What the intervention does to the model's predictions on these tokens, beside equal-budget random controls.

    Controls of heads are random sets of as many other heads of the same layers, those of keys as many other positions
    with the same factor; five of each where that many exist.
    """
    if int(batch.lengths.max()) * int(model.cfg.d_vocab) > _MOST_LOGITS:
        return ("Its effect on the loss was not measured: the logits of this text would need too much memory.",)
    controls, kind = _controls(model, batch, intervention)
    tested = {"tested": intervention} | {f"control {i}": each for i, each in enumerate(controls)}
    progress.step("Measuring its effect and that of random controls")
    effects = measure_effects(model, tested, batch, progress=progress)
    rows = {str(row["intervention"]): row for row in effects.summary().to_dict("records")}
    went = tuple(
        each.replace("Under tested", "Sink", 1) for each in effects.verdict if each.startswith("Under tested:")
    )
    own = rows.pop("tested")
    text = (
        f"Loss on these tokens {own['clean_loss']:.3f} → {own['loss']:.3f} nats per token "
        f"({own['delta_loss']:+.3f}); KL {own['kl']:.3g} nats; same first choice at {own['top1_agreement']:.0%} of "
        "positions."
    )
    random_deltas = [float(row["delta_loss"]) for row in rows.values()]
    if not random_deltas:
        return text, *went, f"No control: there are not enough other {kind} for a random set of equal size."
    among = compare_with_controls(float(own["delta_loss"]), random_deltas)
    spread = "" if np.isnan(among.sd) else f" ± {among.sd:.3f}"
    return (
        text,
        *went,
        f"Controls, {among.n} random sets of as many other {kind}: {among.mean:+.3f}{spread} nats; the change ranks "
        f"{among.rank:g} of {among.n + 1}.",
    )


def _controls(
    model: TransformerBridge, batch: TokenBatch, intervention: Intervention
) -> tuple[list[Intervention], str]:
    if isinstance(intervention, AblateHeads) and not isinstance(intervention.heads, str):
        drawn = random_head_sets(all_heads(model), intervention.heads, draws=_CONTROLS).sets
        outputs = mean_outputs(model, batch) if intervention.how == "mean" else None
        return [AblateHeads(tuple(heads), intervention.how, outputs=outputs) for heads in drawn], "heads"
    if isinstance(intervention, ScaleKeys):
        others = sorted(set(range(int(batch.lengths.min()))) - set(intervention.keys))
        draw, size = random.Random(0), len(intervention.keys)
        sets = {tuple(sorted(draw.sample(others, size))) for _ in range(_CONTROLS)} if len(others) >= size else set()
        return [ScaleKeys(keys, intervention.gamma, intervention.heads) for keys in sorted(sets)], "positions"
    return [], "heads"


def sequence_maps(
    model: TransformerBridge, row: TokenBatch, intervention: Intervention | None, progress: Progress
) -> dict[tuple[int, int], AttentionMap]:
    """Maps of all heads on one sequence, pooled to at most 128 cells a side."""
    example = Example()

    def statistics(rows: TokenBatch, start: int) -> list[StatisticFactory]:
        from sinklens.attention import ReceivedMass

        return [ReceivedMass, partial(PooledMap, sequences=(0,))]

    capture(model, row, [example], statistics=statistics, intervention=intervention, progress=progress)
    length, tokens = int(row.lengths[0]), list(row.tokens[0])
    return {
        (layer, head): AttentionMap(layer, head, values, example.cell, length, tokens, "")
        for (layer, head), values in example.maps.items()
    }


def exact_window(
    model: TransformerBridge,
    row: TokenBatch,
    head: tuple[int, int],
    region: tuple[int, int, int, int],
    intervention: Intervention | None,
    progress: Progress,
) -> np.ndarray:
    """Exact attention weights of one head for some queries and keys, ``[q_pos k_pos]`` with NaN at hidden keys."""
    found: list[torch.Tensor] = []

    class Keep:
        def update(self, record: LayerRecord) -> None:
            if record.layer == head[0] and "window" in record.attention:
                found.append(record.attention["window"])
                raise _Enough

    factory = partial(MapWindow, layer=head[0], head=head[1], region=region)
    with contextlib.suppress(_Enough):
        capture(
            model,
            row,
            [Keep()],
            statistics=lambda rows, start: [factory],
            intervention=intervention,
            progress=progress,
        )
    if not found:
        raise InputError(f"Layer {head[0]} has no softmax attention: there are no rows to show.")
    return found[0].numpy()


class _Enough(SinkLensError):
    """Later layers are not needed."""


class MapWindow(Statistic):
    """Attention weights of chosen queries on chosen keys of one head, of the first sequence.

    Unlike :class:`~sinklens.attention.maps.FullMap` it keeps only the rectangle, so that it works at any length.

    Args:
        shape: Of the layer's call.
        layer: The one that is kept; others keep nothing.
        head: Query head.
        region: First query, end of queries, first key, end of keys.
    """

    _sums = ("values", "seen")

    def __init__(self, shape: AttentionShape, *, layer: int, head: int, region: tuple[int, int, int, int]) -> None:
        super().__init__(shape)
        self.wanted = shape.layer == layer and head < shape.heads
        self.head = head
        q0, q1, k0, k1 = region
        self.queries = range(min(q0, shape.q_pos), min(q1, shape.q_pos))
        self.keys = range(min(k0, shape.k_pos), min(k1, shape.k_pos))
        size = (len(self.queries), len(self.keys)) if self.wanted else (0, 0)
        self.values, self.seen = shape.zeros(*size), shape.zeros(*size)

    def update(self, block: Block) -> None:
        """Copy what of the block lies in the rectangle."""
        if not self.wanted or block.sequence != 0 or not block.heads.start <= self.head < block.heads.stop:
            return
        q0, q1 = max(block.rows.start, self.queries.start), min(block.rows.stop, self.queries.stop)
        k0, k1 = max(block.keys.start, self.keys.start), min(block.keys.stop, self.keys.stop)
        if q0 >= q1 or k0 >= k1:
            return
        here = (_moved(q0, q1, self.queries.start), _moved(k0, k1, self.keys.start))
        there = (_moved(q0, q1, block.rows.start), _moved(k0, k1, block.keys.start))
        self.values[here] = block.pattern[self.head - block.heads.start][there]
        self.seen[here] = block.visible_keys[there].float()

    def compute(self) -> dict[str, Tensor]:
        """``window [q_pos k_pos]``, NaN where the mask hides the key; nothing for other layers."""
        return {"window": self.values.masked_fill(self.seen == 0, math.nan)} if self.wanted else {}


def _moved(first: int, end: int, by: int) -> slice:
    return slice(first - by, end - by)
