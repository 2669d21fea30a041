"""How heads differ between two domains or token classes, with intervals."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from sinklens.detectors.active_dormant import GROUP, HEAD
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.two_sample import difference_intervals


def contrasts(table: pd.DataFrame, by_sequence: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compare every head between two domains (same class) or two classes (same domain).

    Two classes of one domain are compared sequence by sequence (paired), two domains as independent groups.

    Args:
        table: Columns layer, head, domain, class, label; one row per head and group.
        by_sequence: The same with sequence, mass and delta.
        seed: Of the bootstrap.

    Returns:
        One row per head and pair: first minus second, with 95 % intervals, and ``active_dormant``: whether the labels
        are active and dormant and neither interval holds 0.
    """
    groups = list(dict.fromkeys(zip(table["domain"], table["class"], strict=True)))
    frames = [_contrast(table, by_sequence, one, other, seed) for one, other in _pairs(groups)]
    columns = [*HEAD, *GROUP, "other_domain", "other_class", "paired"]
    columns += [f"{name}_difference{end}" for name in ("mass", "delta") for end in ("", "_low", "_high")]
    if not frames:
        return pd.DataFrame(columns=[*columns, "active_dormant"])
    return pd.concat(frames, ignore_index=True)[[*columns, "active_dormant"]]


def _pairs(groups: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs that differ in domain or in class, not in both."""
    for one, other in combinations(groups, 2):
        if one[0] == other[0] or one[1] == other[1]:
            yield one, other


def _contrast(
    table: pd.DataFrame, by_sequence: pd.DataFrame, one: tuple[str, str], other: tuple[str, str], seed: int
) -> pd.DataFrame:
    """Differences of one pair of groups for all heads."""
    paired = one[0] == other[0]
    labels = [_of(table, group).set_index([*HEAD])["label"] for group in (one, other)]
    frame = pd.DataFrame(index=labels[0].index)
    frame["domain"], frame["class"], frame["other_domain"], frame["other_class"] = *one, *other
    frame["paired"] = paired
    excludes = np.ones(len(frame), dtype=bool)
    for measure in ("mass", "delta"):
        first, second = (
            _of(by_sequence, group).pivot(index="sequence", columns=[*HEAD], values=measure)[frame.index]
            for group in (one, other)
        )
        if paired:
            difference = (first - second).dropna().to_numpy()
            intervals = [paired_interval(column, seed=seed) for column in difference.T]
            found = tuple(np.array([getattr(each, end) for each in intervals]) for end in ("value", "low", "high"))
        else:
            found = tuple(difference_intervals(first.to_numpy(), second.to_numpy(), seed=seed))
        for end, column in zip(("", "_low", "_high"), found, strict=True):
            frame[f"{measure}_difference{end}"] = column
        excludes &= (found[1] > 0) | (found[2] < 0)
    opposite = [{a, b} == {"active", "dormant"} for a, b in zip(*labels, strict=True)]
    return frame.assign(active_dormant=np.array(opposite) & excludes).reset_index()


def _of(table: pd.DataFrame, group: tuple[str, str]) -> pd.DataFrame:
    return table[(table["domain"] == group[0]) & (table["class"] == group[1])]
