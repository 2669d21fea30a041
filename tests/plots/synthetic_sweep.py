"""A small made-up sweep: planted strong heads, missing heads, cumulative and random sets, groups with controls."""

from typing import Any

import numpy as np
import pandas as pd

NAN = float("nan")
N_LAYERS, N_HEADS, N_SEQUENCES = 6, 4, 8
WITHOUT_ATTENTION = 3
NOT_ABLATED = (4, 3)
STRONG = {(1, 0): 2.5, (2, 1): 0.9, (2, 2): -0.4}
"""Rise of the loss by head; every other head changes it by about 0.002."""

DRAWS = 12
SIZES = (1, 2, 4, 8)
WITHOUT_DRAWS = 8
ZERO, MEAN = "AblateHeads(zero)", "AblateHeads(<mean>)"
METRICS = ("delta_loss", "kl", "top1_agreement", "delta_logit_diff")


def heads() -> list[tuple[int, int]]:
    everything = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    return [key for key in everything if key[0] != WITHOUT_ATTENTION and key != NOT_ABLATED]


def _sequences(rng: np.random.Generator, rise: float, noise: float, row: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for sequence in range(N_SEQUENCES):
        clean = 2.3 + 0.1 * np.sin(sequence)
        delta = rise + noise * rng.normal()
        logit = NAN if sequence == 0 else -1.5 * delta
        out.append(
            row
            | {
                "sequence": sequence,
                "n_tokens": 100 + sequence,
                "clean_loss": clean,
                "loss": clean + delta,
                "delta_loss": delta,
                "kl": abs(delta) * 0.8 + 0.001,
                "top1_agreement": float(np.exp(-abs(delta))),
                "clean_logit_diff": 3.0,
                "logit_diff": 3.0 + logit,
                "delta_logit_diff": logit,
            }
        )
    return out


def synthetic_effects(seed: int = 0) -> pd.DataFrame:
    """One row per intervention x variant x sequence."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []

    def add(label: str, variant: str, kind: str, of: list[tuple[int, int]], **more: Any) -> None:
        rise = sum(STRONG.get(head, 0.002 * rng.normal()) for head in of) * (1 if label == ZERO else 0.3)
        names = ",".join(f"L{layer}H{head}" for layer, head in of)
        row = {"intervention": label, "variant": variant, "kind": kind, "k": len(of), "draw": pd.NA, "heads": names}
        single = {"layer": of[0][0], "head": of[0][1]} if kind == "head" else {"layer": pd.NA, "head": pd.NA}
        rows.extend(_sequences(rng, rise, 0.004 * len(of) ** 0.5, row | single | more))

    for label in (ZERO, MEAN):
        for head in heads():
            add(label, f"L{head[0]}H{head[1]}", "head", [head])
    ranking = sorted(heads(), key=lambda head: -STRONG.get(head, 0.0))
    rest = [head for head in heads() if head not in STRONG]
    for k in SIZES:
        add(ZERO, f"top-{k}", "top", ranking[:k])
        for draw in range(0 if k == WITHOUT_DRAWS else DRAWS):
            chosen = [rest[i] for i in rng.choice(len(rest), k, replace=False)]
            add(ZERO, f"random-{k}/{draw}", "random", chosen, draw=draw)
    add(ZERO, "sink heads", "group", [(1, 0), (2, 1)])
    add(MEAN, "sink heads", "group", [(1, 0), (2, 1)])
    add(MEAN, "quiet & <rest>", "group", rest[:3])
    return pd.DataFrame(rows).astype({"draw": "Int64", "layer": "Int64", "head": "Int64"})


def synthetic_summary(effects: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per intervention x variant, with intervals of two standard errors in place of a bootstrap."""
    table = synthetic_effects() if effects is None else effects
    same = ["intervention", "variant", "kind", "k", "draw", "heads", "layer", "head"]
    rows = []
    for _, group in table.groupby(["intervention", "variant"], sort=False):
        row = {name: group[name].iloc[0] for name in same} | {"n_sequences": len(group)}
        for metric in METRICS:
            values = group[metric].dropna()
            mean, error = values.mean(), 2 * values.std() / len(values) ** 0.5
            row |= {metric: mean, f"{metric}_low": mean - error, f"{metric}_high": mean + error}
        row |= {"control_mean": NAN, "control_sd": NAN, "control_n": pd.NA, "control_rank": pd.NA}
        controls = table[(table["kind"] == "random") & (table["k"] == row["k"])].groupby("variant")["delta_loss"].mean()
        if row["kind"] in ("top", "group") and len(controls):
            rank = 1 + int((controls > row["delta_loss"]).sum())
            row |= {"control_mean": controls.mean(), "control_sd": controls.std()}
            row |= {"control_n": len(controls), "control_rank": rank}
        rows.append(row)
    types = dict.fromkeys(("draw", "layer", "head", "control_n", "control_rank"), "Int64")
    return pd.DataFrame(rows).astype(types)
