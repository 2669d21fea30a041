"""Generated tables of heads: ties, NaN, single rows, gaps between layers, learned sinks, drains known and unknown."""

import math
import random
from typing import Any

import pandas as pd

from tests.studies.census.verdict.evidence import Settings, Tables

NAN = math.nan


def tables_of_heads(rng: random.Random) -> tuple[Tables, Settings]:
    """Tables ``heads``, ``tokens`` and ``layers`` that a scan could have made."""
    eps = rng.choice([0.3, 0.3, 0.2, 0.5])
    n_layers = rng.choice([1, 2, 5, 12])
    attended = [layer for layer in range(n_layers) if rng.random() < rng.choice([1.0, 0.6])]
    lone = rng.random() < 0.05
    positions = rng.choice([[0], [0], [0, 1], [0, 3, 7, 9]])
    tied, sinking, broken = rng.random() < 0.4, rng.random(), rng.choice([0.0, 0.0, 0.0, 0.3, 1.0])
    learned, gated, drains = rng.random() < 0.3, rng.random() < 0.3, rng.choice(["none", "all", "v", "some", "nan"])
    rows: list[dict[str, Any]] = []
    for layer in attended[:1] if lone else attended:
        barren = rng.random() < 0.3  # a layer without sinks
        for head in range(1 if lone else rng.choice([1, 3, 9])):
            rows.append(_head(rng, layer, head, positions, tied, 0.0 if barren else sinking, broken, eps))
            rows[-1]["missing_mass"] = _draw(rng, tied) if learned and rng.random() < 0.8 else rng.choice([0.0, NAN])
            rows[-1]["gate"] = _draw(rng, tied) if gated and rng.random() < 0.8 else NAN
            if drains != "none":
                lost = drains == "nan" or (drains == "some" and rng.random() < 0.3)
                rows[-1]["drain"] = NAN if lost else rng.choice([0.05, 0.5, _draw(rng, tied) * 2 + 0.01])
                rows[-1]["drain_wo"] = (
                    NAN if lost or drains == "v" else rng.choice([0.07, 0.5, _draw(rng, tied) + 0.01])
                )
    columns = ["layer", "head", "sink_position", "importance", "sink_rate", "null", "ratio", "is_sink"]
    columns += ["importance_first", "null_first", "missing_mass", "gate"]
    _add_windows(rng, rows, eps)
    rng.shuffle(rows)
    heads = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    layers = pd.DataFrame({"layer": range(-1, n_layers)})
    layers["norm_after_attention"] = pd.array([None, *[rng.random() < 0.3] * n_layers], dtype="boolean")
    settings = {"eps": eps, "sink_head_rate": 0.5, "sink_head_ratio": 2.0}
    return {"heads": heads, "tokens": _tokens(rng), "layers": layers}, settings


def _head(
    rng: random.Random,
    layer: int,
    head: int,
    positions: list[int],
    tied: bool,
    sinking: float,
    broken: float,
    eps: float,
) -> dict[str, Any]:
    null = rng.choice([0.074, 0.02])
    importance = _draw(rng, tied)
    rate = rng.choice([0.5, 1.0, 1.0, rng.random()]) if rng.random() < sinking else rng.choice([0.0, 0.2, 0.49])
    row: dict[str, Any] = {
        "layer": layer,
        "head": head,
        "sink_position": rng.choice(positions),
        "importance": importance,
        "sink_rate": rate,
        "null": null,
        "ratio": importance / null,
        "importance_first": importance * rng.choice([1.0, 0.5]),
        "null_first": null,
    }
    if rng.random() < broken:
        row |= dict.fromkeys(("importance", "sink_rate", "ratio", "importance_first"), NAN)
    row["is_sink"] = row["sink_rate"] >= 0.5 and row["ratio"] >= 2
    return row


def _add_windows(rng: random.Random, rows: list[dict[str, Any]], eps: float) -> None:
    """What a scan adds: ceilings by layer, and the figures per query that sees the key."""
    windowed = rng.random() < 0.5
    ceilings = {row["layer"]: rng.choice([1.0, eps, 0.02, 0.5, 0.9]) if windowed else 1.0 for row in rows}
    for row in rows:
        row["ceiling_first"] = ceilings[row["layer"]]
        row["sink_rate_visible"] = rng.choice([0.0, 1.0]) if row["ceiling_first"] < 1 else row["sink_rate"]
        row["ratio_visible"] = rng.choice([1.9, 2.0, 9.0]) if row["ceiling_first"] < 1 else row["ratio"]
        row["is_sink_visible"] = row["sink_rate_visible"] >= 0.5 and row["ratio_visible"] >= 2


def _draw(rng: random.Random, tied: bool) -> float:
    return rng.choice([0.25, 0.5, 0.75]) if tied else rng.uniform(0.001, 0.999)


def _tokens(rng: random.Random) -> pd.DataFrame:
    rows = []
    shared, bos = rng.random() < 0.6, rng.random() < 0.5
    for sequence in range(rng.choice([1, 3])):
        for position in range(10):
            token = "<s>" if shared and position == 0 else rng.choice(["a", "b'", '"c"', "\n", "("])
            rows.append((sequence, position, token, bos and position == 0))
    return pd.DataFrame(rows, columns=["sequence", "position", "token", "is_bos"])
