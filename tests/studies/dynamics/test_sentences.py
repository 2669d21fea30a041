"""Sentences about a series, rebuilt from generated tables in plain Python: gaps, one step, NaN, no sink, ties."""

import math
import random
from typing import Any

import pandas as pd

from sinklens.studies.dynamics.result import dynamics_sentences

NAN = math.nan
FIGURES = ("delta_logit", "drain_wo", "resid_ratio", "max_over_median")


def generated(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    draw = random.Random(seed)
    domains = draw.choice([["text"], ["all", "prose", "code"]])
    steps = sorted(draw.sample(range(0, 5000, 7), draw.choice([0, 1, 2, 5])))
    attention = draw.random() < 0.8
    rows = []
    for step in draw.sample(steps, len(steps)):
        for domain in domains:
            row: dict[str, Any] = {"step": step, "domain": domain, "n_heads": 9}
            known = attention and draw.random() < 0.9
            row["n_sink_heads"] = draw.choice([0, 0, 3]) if known else NAN
            for name in ("importance_first", "importance_first_max", "null_first"):
                row[name] = round(draw.random(), 1) if known else NAN
            for name in (*FIGURES, "loss"):
                row[name] = NAN if draw.random() < 0.2 else draw.choice([0.0, draw.gauss(0, 100)])
            width = draw.choice([NAN, 0.1])
            rows.append(row | {"loss_low": row["loss"] - width, "loss_high": row["loss"] + width})
    rows.sort(key=lambda row: domains.index(row["domain"]))
    missing = [
        {"name": "step-9", "measured": False, "reason": "torn."},
        {"name": "step-1", "measured": True, "reason": ""},
    ]
    return rows, missing[: draw.choice([1, 2])]


def expected(rows: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> list[list[str]]:
    """For each sentence the pieces that it must hold, in order."""
    out: list[list[str]] = []
    if rows:
        own = sorted((row for row in rows if row["domain"] == rows[0]["domain"]), key=lambda row: row["step"])
        known = [row for row in own if row["n_sink_heads"] == row["n_sink_heads"]]
        with_sink = [row for row in known if row["n_sink_heads"] > 0]
        if not known:
            out.append(["Attention sinks are not applicable"])
        elif not with_sink:
            best = max(row["importance_first_max"] for row in known)
            at = next(row["step"] for row in known if row["importance_first_max"] == best)
            many = "the one step measured" if len(known) == 1 else f"any of {len(known)} steps"
            out.append([f"No head has a sink at position 0 at {many}", f"{best:.2f} of its attention", f"step {at:,}."])
        else:
            earlier = [row for row in known if row["step"] < with_sink[0]["step"]]
            since = (
                f"The first head with a sink at position 0 appears between steps {earlier[-1]['step']:,} and "
                if earlier
                else "A head with a sink at position 0 is there from the first step on that was measured, "
            )
            last = known[-1]
            ends = [f"{row['importance_first']:.3f} at step {row['step']:,}" for row in known]
            out.append(
                [f"{since}{with_sink[0]['step']:,}; at step {last['step']:,} {last['n_sink_heads']:.0f} of 9 heads"]
            )
            out[-1] += [f"position 0: {ends[0]}", ends[-1], f"{last['null_first']:.3f} if attention were uniform."]
        for name in FIGURES:
            values = [(row[name], row["step"]) for row in own if row[name] == row[name]]
            if len(values) == 1:
                out.append([f" is {values[0][0]:.3g} at step {values[0][1]:,}."])
            elif values and len(values) == len(own):
                out.append([f" goes from {values[0][0]:.3g} to {values[-1][0]:.3g}."])
            elif values:
                first, last = ((f"{value:.3g}", f"{step:,}") for value, step in (values[0], values[-1]))
                out.append([f" goes from {first[0]} at step {first[1]} to {last[0]} at step {last[1]}."])
        for domain in dict.fromkeys(row["domain"] for row in rows if row["domain"] != "all"):
            losses = sorted((r["step"], r["loss"], r["loss_low"]) for r in rows if r["domain"] == domain)
            told = [
                f"{loss:.3g}" + ("" if low != low else f" [{loss - 0.1:.3g}, {loss + 0.1:.3g}]")
                for _, loss, low in losses
                if loss == loss
            ]
            if told:
                of = "" if domain == "text" else f" on {domain}"
                both = told[0] if len(told) == 1 else f"{told[0]} to {told[-1]}"
                out.append([f"Loss{of}: {both} nats per token."])
    else:
        out.append(["No checkpoint was measured."])
    return out + [[f"Missing: {row['name']}. {row['reason']}"] for row in checkpoints if not row["measured"]]


def refuted(sentences: list[str], rows: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> bool:
    pieces = expected(rows, checkpoints)
    if len(sentences) != len(pieces):
        return True
    return any(
        "nan" in sentence or any(piece not in sentence for piece in parts)
        for sentence, parts in zip(sentences, pieces, strict=True)
    )


def say(rows: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> list[str]:
    return dynamics_sentences(pd.DataFrame(rows), pd.DataFrame(checkpoints), 0.3)


def test_generated_series_bear_the_sentences_out() -> None:
    for seed in range(300):
        rows, checkpoints = generated(seed)
        assert not refuted(say(rows, checkpoints), rows, checkpoints), (seed, say(rows, checkpoints))


def test_mutated_sentences_are_refuted() -> None:
    tried = 0
    for seed in range(100):
        rows, checkpoints = generated(seed)
        said = say(rows, checkpoints)
        for old, new in ((" goes from ", " goes from 1"), ("between steps ", "between steps 1"), (" of 9", "0 of 9")):
            mutated = [sentence.replace(old, new, 1) for sentence in said]
            if mutated != said:
                tried += 1
                assert refuted(mutated, rows, checkpoints)
    assert tried > 80
