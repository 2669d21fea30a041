"""Documents read once, and several questions behind them: their KV cache is used again."""

import copy
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, Statistic, plan_for
from sinklens.interventions import Intervention
from sinklens.studies.document_ranking.prompts import RowsMass, RowSums, attention_from

Sums = tuple[dict[str, Tensor], dict[str, Tensor]]


@torch.no_grad()
def attention_after(
    model: TransformerBridge,
    prefix: Sequence[int],
    endings: Sequence[tuple[Sequence[int], dict[str, slice]]],
    heads: Collection[tuple[int, int]] | None,
    intervention: Intervention | None,
) -> list[Sums]:
    """What :func:`attention_from` gives for the same beginning with several endings, which is read once.

    Equal to whole passes within rounding. Under an intervention, which may depend on where a prompt ends, and where a
    cache cannot be followed exactly, whole passes are made.

    Args:
        model: The bridge.
        prefix: Ids that all prompts begin with.
        endings: The ids behind them, and sets of rows, counted in the whole prompt and all of them in the ending.
        heads: Which to sum over; None: all.
        intervention: A change of the model.

    Returns:
        For each ending the sums of all layers and of the last one.

    Cost: a forward pass of the prefix and one of each ending alone.
    """
    if intervention is not None or plan_for(model).path != "fast":
        return [attention_from(model, [*prefix, *ids], sets, heads, intervention) for ids, sets in endings]
    original: Any = model.original_model
    device, start = next(model.parameters()).device, len(prefix)
    model(torch.zeros(1, 1, dtype=torch.long, device=device))  # a bridge's first pass sets up hooks of its own
    cache = original(torch.tensor([[*prefix]], device=device), use_cache=True).past_key_values
    found = []
    for number, (ids, sets) in enumerate(endings):
        sums = RowSums(sets, heads)
        own = {name: slice(rows.start - start, rows.stop - start) for name, rows in sets.items()}
        total = start + len(ids)

        def add(
            layer: int, value: Tensor, statistics: list[Statistic], sums: RowSums = sums, total: int = total
        ) -> None:
            masses = {name.removeprefix("rows_"): each[0] for name, each in statistics[0].compute().items()}
            # a sliding cache dropped its oldest keys: what is there are the last ones
            wide = {name: torch.nn.functional.pad(each, (total - each.shape[-1], 0)) for name, each in masses.items()}
            sums.add(layer, wide)

        mine = cache if number == len(endings) - 1 else copy.deepcopy(cache)  # a pass makes its cache longer
        with AttentionEngine(model, statistics=[partial(RowsMass, sets=own)], on_layer=add):
            original(torch.tensor([[*ids]], device=device), past_key_values=mine, use_cache=True)
        found.append((sums.total, sums.final))
    return found
