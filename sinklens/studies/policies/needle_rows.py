"""Needles under policies: does a rule keep the one place that the answer stands in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine
from sinklens.policies import Account, Policy, View
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.outcome import read_outcome
from sinklens.studies.policies.needle_summary import CLEAN

METRICS = {
    "needle_exact": "share of prompts whose answer tokens are all the likeliest, each after the right ones before it",
    "needle_rank": "1 + how many tokens are likelier than the answer's, mean over its tokens and prompts",
    "delta_needle_log_prob": "mean log p of the answer's tokens under the rule minus with full attention, in nats",
    "needle_mass": "share of the attention that answer rows would pay to the needle without the rule in this layer",
    "needle_kept": "what of it the rule leaves",
}


class _NeedleAccount(Account):
    """Also counts what the rows from a position on would pay to a span of keys, and what is left of it."""

    def __init__(self, spans: Sequence[tuple[int, int]], first_row: int) -> None:
        super().__init__()
        self.spans, self.first_row = spans, first_row
        self.sums = {each: [0.0, 0.0, 0.0] for each in range(len(spans))}  # before, kept, rows times heads

    def add(
        self,
        view: View,
        kept: Bool[Tensor, "head q_pos k_pos"],
        entries: Float[Tensor, "head q_pos"],
        cached: Float[Tensor, "kv_head q_pos"],
    ) -> None:
        """Take some rows."""
        super().add(view, kept, entries, cached)
        rows = view.rows >= self.first_row
        start, stop = self.spans[view.sequence]
        there = (view.keys >= start) & (view.keys < stop)
        paid = view.pattern[:, rows][..., there]
        sums = self.sums[view.sequence]
        sums[0] += float(paid.sum())
        sums[1] += float((paid * kept[:, rows][..., there]).sum())
        sums[2] += float(rows.sum()) * len(view.heads)


def needle_batches(needles: NeedleSet, size: int) -> Iterator[list[int]]:
    """Numbers of prompts that are as long as each other, with answers as long."""

    def lengths(number: int) -> tuple[int, int]:
        return len(needles.instances[number].ids), len(needles.instances[number].answer)

    for _, same in groupby(sorted(range(len(needles)), key=lengths), lengths):
        numbers = list(same)
        yield from (numbers[at : at + size] for at in range(0, len(numbers), size))


def read_needles(
    bridge: TransformerBridge, instances: Mapping[int, NeedleInstance], policies: Mapping[str, Policy], path: Any
) -> pd.DataFrame:
    """One row per prompt with full attention, and one under every policy; answers given token by token.

    A rule that is fixed at the prompt's end is fixed one token before it, so that the row of the answer's first token
    already reads what is left.

    Args:
        bridge: The model.
        instances: By number; all of one length and answer length.
        policies: By label.
        path: How the engine measures the model.
    """
    some = list(instances.values())
    ids = torch.tensor([each.fed for each in some]).to(next(bridge.parameters()).device)
    first = len(some[0].ids) - 1
    frames = []
    for label, policy in {CLEAN: None, **policies}.items():
        account = _NeedleAccount([each.needle for each in some], first)
        if policy is None:
            with AttentionEngine(bridge, path=path):
                logits = bridge(ids)[:, first:]
        else:
            with replace(policy, prompt=first).counted(account)(bridge):
                logits = bridge(ids)[:, first:]
        frames += [
            _row(label, number, each, logits[at], account, at, first)
            for at, (number, each) in enumerate(instances.items())
        ]
    return pd.DataFrame(frames)


def _row(
    label: str, number: int, instance: NeedleInstance, logits: Tensor, account: _NeedleAccount, at: int, first: int
) -> dict[str, Any]:
    outcome = read_outcome(logits, instance.answer)
    correct = outcome.correct(instance.answer)
    before, kept, rows = account.sums[at]
    return {
        "policy": label,
        "instance": number,
        "length": instance.length,
        "depth": instance.depth,
        "n_answer": len(instance.answer),
        "exact": bool(correct.all()),
        "correct": float(correct.double().mean()),
        "log_prob": float(outcome.log_prob.double().mean()),
        "rank": float(outcome.rank.double().mean()),
        "needle_mass": before / rows if rows else np.nan,
        "needle_kept": kept / rows if rows else np.nan,
    }
