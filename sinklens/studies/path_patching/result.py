"""Effects of paths between heads, and of sets of heads."""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.evidence.controls import compare_with_controls
from sinklens.interventions.heads import parse_head
from sinklens.results.result import Result
from sinklens.wording import several

FORMAT = "sinklens-path-patching"


@dataclass(frozen=True)
class PatchedPaths(
    Result,
    format=FORMAT,
    title="Paths between heads",
    newest=1,
    needs=("paths", "sets"),
    header=("settings", "logit_diff"),
):
    """What each head hands to each receiver of what tells two prompts apart.

    Attributes:
        meta: Model, settings; ``logit_diff`` is the mean of both prompts.
        tables: ``paths`` and ``sets``.
    """

    @property
    def paths(self) -> pd.DataFrame:
        """One row per sender and receiver, the largest effects first.

        Columns: sender, layer, head (of the sender), receiver (``L5H1.k`` or ``logits``), effect with low and
        high (over prompts): 0 nothing, 1 all that tells the prompts apart.
        """
        return self.tables["paths"]

    @property
    def sets(self) -> pd.DataFrame:
        """One row per set of heads: kind (tested, random), draw, heads, necessity, sufficiency, each with low and high.

        Necessity: the set's outputs from the corrupted prompt in the clean one; sufficiency: those from the clean one
        in the corrupted one, as the share of the difference that is lost or restored.
        """
        return self.tables["sets"]

    @property
    def verdict(self) -> list[str]:
        """The strongest path to each receiver, and the tested set beside random ones."""
        return path_words(self.paths, self.sets)


def path_words(paths: pd.DataFrame, sets: pd.DataFrame) -> list[str]:
    """One sentence a receiver, then the sets."""
    out = []
    for receiver, some in paths.groupby("receiver", sort=False):
        known = some[some["effect"].notna()]
        if known.empty:
            out.append("Both prompts give the same answers, so no path has an effect to be told.")
            break
        order = known.assign(size=known["effect"].abs()).sort_values("size", ascending=False, kind="stable")
        top = order.iloc[0]
        if top["effect"] < 0:
            does = f"moves {receiver} the most, but against what tells the prompts apart"
        else:
            does = f"hands {receiver} the most of what tells the prompts apart"
        text = f"Of {several(len(order), 'sender')} {top['sender']} {does}: {top['effect']:z.2f}"
        if not math.isnan(top["low"]):
            text += f" [{top['low']:z.2f}, {top['high']:z.2f}]"
        if len(order) > 1:
            text += f"; next {order.iloc[1]['sender']} with {order.iloc[1]['effect']:z.2f}"
        out.append(f"{text}.")
    for row in sets[sets["kind"] == "tested"].itertuples():
        out.append(f"{row.heads}: {set_words(row, sets[sets['kind'] == 'random'])}.")
    return out


def set_words(row: Any, others: pd.DataFrame) -> str:
    """Necessity and sufficiency of a set, beside those of random sets.

    Args:
        row: With necessity, sufficiency, and low and high of each.
        others: The same of random sets.
    """
    parts = []
    for name in ("necessity", "sufficiency"):
        value = float(getattr(row, name))
        low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
        part = f"{name} {value:z.2f}" + ("" if math.isnan(low) else f" [{low:z.2f}, {high:z.2f}]")
        if len(others):
            beside = compare_with_controls(value, others[name])
            part += f" (as many random heads {beside.mean:z.2f}, p = {beside.p:.2g})"
        parts.append(part)
    return ", ".join(parts)


@dataclass(frozen=True)
class CircuitOverlap:
    """How many heads two circuits share.

    Attributes:
        shared: Heads in both, by name.
        share: Of the smaller circuit's heads.
        jaccard: Of the heads of either.
        expected: Heads that two random sets of these sizes share.
        p: Probability that they share as many or more (hypergeometric).
        expected_in_layers: Heads that two random sets share which take as many heads of each layer as these do; NaN
            without ``layer_heads``.
        p_in_layers: Probability that such sets share as many or more.
    """

    shared: tuple[str, ...]
    share: float
    jaccard: float
    expected: float
    p: float
    expected_in_layers: float = math.nan
    p_in_layers: float = math.nan


@checked
def circuit_overlap(
    first: Collection[str], second: Collection[str], *, n_heads: int, layer_heads: int | None = None
) -> CircuitOverlap:
    """Whether two tasks use the same heads, beside what chance shares.

    Args:
        first: Names of the heads of one circuit, such as the senders of the largest effects.
        second: Of the other.
        n_heads: Heads that both were chosen from.
        layer_heads: Heads of each layer among them. With it there is also the stricter null: circuits that merely lie
            in the same layers share heads by chance.

    Raises:
        InputError: An empty circuit, or more heads than there are.

    Source: Merullo, Eickhoff, Pavlick (ICLR 2024), arXiv 2310.08744, who report about 78 % shared heads between two
    tasks of GPT-2 Medium, without a null.

    >>> circuit_overlap(["L0H1", "L1H2", "L2H0"], ["L1H2", "L2H0", "L3H3"], n_heads=100)
    CircuitOverlap(shared=('L1H2', 'L2H0'), share=0.666..., jaccard=0.5, expected=0.09, p=0.0018..., ...)
    """
    a, b = set(first), set(second)
    if not a or not b or len(a | b) > n_heads:
        raise InputError(f"Expected two circuits of at most {several(n_heads, 'head')}, got {len(a)} and {len(b)}.")
    shared = a & b
    p = float(hypergeom.sf(len(shared) - 1, n_heads, len(a), len(b)))
    share, expected = len(shared) / min(len(a), len(b)), len(a) * len(b) / n_heads
    in_layers = (math.nan, math.nan) if layer_heads is None else _in_layers(a, b, layer_heads, len(shared))
    return CircuitOverlap(tuple(sorted(shared)), share, len(shared) / len(a | b), expected, p, *in_layers)


def _in_layers(a: Collection[str], b: Collection[str], size: int, n_shared: int) -> tuple[float, float]:
    """Heads shared by random sets with as many heads of each layer: how many, and how often as many or more."""
    first, second = (Counter(parse_head(name)[0] for name in some) for some in (a, b))
    if max((first | second).values()) > size:
        raise InputError(f"Expected at most {several(size, 'head')} of a layer, got {max((first | second).values())}.")
    chances = np.ones(1)
    for layer in first:
        counts = np.arange(min(first[layer], second[layer]) + 1)
        chances = np.convolve(chances, hypergeom.pmf(counts, size, first[layer], second[layer]))
    return float(chances @ np.arange(len(chances))), float(chances[n_shared:].sum())
