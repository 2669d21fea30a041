"""Token types: counts, rates and nulls against loops; a later token that is a sink; nothing known stays unknown."""

import math
import random
from statistics import median
from typing import Any

import pandas as pd
import pytest

from sinklens.detectors.token_types import COLUMNS, sink_heads_needed, token_class, token_types

HEADS = 40


def tokens_of(seed: int, sequences: int = 6) -> pd.DataFrame:
    rng = random.Random(seed)
    rows = []
    for sequence in range(sequences):
        for position in range(rng.choice([1, 3, 20])):
            token = "<s>" if position == 0 and sequence % 2 else rng.choice([" the", ".", " a", "\n", " 7", "x_y"])
            rows.append(
                {
                    "sequence": sequence,
                    "position": position,
                    "token": token,
                    "is_special": token == "<s>",
                    "n_sink_heads": rng.choice([0.0, 1.0, 2.0, 30.0, math.nan]),
                    "is_massive_absolute": rng.random() < 0.2,
                    "is_massive_ratio": rng.random() < 0.05,
                    "n_drained_heads": float(rng.randrange(HEADS)),
                }
            )
    return pd.DataFrame(rows)


def naive(tokens: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, float]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    seen: set[tuple[int, str]] = set()
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in tokens.to_dict("records")]
    for row in rows:
        here = (row["sequence"], row["token"])
        row["occurrence"] = "start" if row["position"] == 0 else "later" if here in seen else "first"
        seen.add(here)
        row["judged"] = not math.isnan(row["n_sink_heads"])
        row["sink"] = row["judged"] and row["n_sink_heads"] >= 2  # 5 % of 40
        groups.setdefault(("token", row["token"], row["occurrence"]), []).append(row)
        kind = token_class(row["token"], row["is_special"])
        groups.setdefault(("class", kind, row["occurrence"]), []).append(row)
    found = {}
    for key, members in groups.items():
        alike = [row for row in rows if (row["occurrence"] == "start") == (key[2] == "start")]
        judged = [row for row in members if row["judged"]]
        sinks = sum(row["sink"] for row in members)
        all_sinks = sum(row["sink"] for row in alike)
        values = {
            "n_tokens": len(members),
            "token_share": len(members) / len(alike),
            "n_sequences": len({row["sequence"] for row in members}),
            "n_judged": len(judged),
            "n_sinks": sinks if judged else math.nan,
            "sink_rate": sinks / len(judged) if judged else math.nan,
            "sink_share": sinks / all_sinks if all_sinks else math.nan,
            "sink_heads_median": median(row["n_sink_heads"] for row in judged) if judged else math.nan,
            "drained_heads_median": median(row["n_drained_heads"] for row in members),
        }
        for name in ("absolute", "ratio"):
            count, every = (sum(row[f"is_massive_{name}"] for row in those) for those in (members, alike))
            values |= {f"n_massive_{name}": count, f"massive_{name}_rate": count / len(members)}
            values[f"massive_{name}_share"] = count / every if every else math.nan
        found[key] = values
    return found


@pytest.mark.parametrize("seed", range(8))
def test_groups_equal_loops(seed: int) -> None:
    tokens = tokens_of(seed)
    expected = naive(tokens)
    found = token_types(tokens.sample(frac=1, random_state=seed), HEADS)  # rows in any order
    assert tuple(found.columns) == COLUMNS
    rows = {(row["by"], row["name"], row["occurrence"]): row for row in found.to_dict("records")}
    for key, values in expected.items():
        dull = key[0] == "token" and values["n_tokens"] == 1 and not values["n_massive_absolute"]
        if dull and not values["n_massive_ratio"] and not values["n_sinks"] > 0:
            assert key not in rows
            continue
        for column, value in values.items():
            assert rows[key][column] == pytest.approx(value, nan_ok=True), (key, column)
    assert len(rows) <= len(expected)


def test_a_later_token_that_is_a_sink_comes_first() -> None:
    tokens = tokens_of(3, sequences=12)
    first = (tokens["token"] == " the") & ~tokens.duplicated(["sequence", "token"]) & (tokens["position"] > 0)
    tokens["n_sink_heads"] = first.astype(float) * 22
    found = token_types(tokens, HEADS)
    top = found[found["by"] == "token"].iloc[0]
    assert (top["name"], top["occurrence"]) == (" the", "first")
    assert top["sink_share"] == top["sink_rate"] == 1 and top["sink_heads_median"] == 22
    assert top["token_share"] < 0.2


def test_without_attention_nothing_is_known_about_sinks() -> None:
    tokens = tokens_of(0).assign(n_sink_heads=math.nan)
    found = token_types(tokens, 0)
    assert found[["n_sinks", "sink_rate", "sink_share", "sink_heads_median"]].isna().all(axis=None)
    assert token_types(tokens.iloc[:0], HEADS).empty
    without = token_types(tokens.drop(columns="n_drained_heads"), HEADS)
    assert without["drained_heads_median"].isna().all()


@pytest.mark.parametrize(
    ("text", "special", "expected"),
    [
        (" the", False, "word"),
        ("'s", False, "word"),
        ("Été", False, "word"),
        (" 1995", False, "number"),
        ("½", False, "number"),
        (".", False, "delimiter"),
        (' "', False, "delimiter"),
        ("。", False, "delimiter"),
        ("\n\n", False, "whitespace"),
        ("", False, "whitespace"),
        ("a1", False, "other"),
        ("<bos>", True, "special"),
        ("<|endoftext|>", True, "special"),
        ("<|im_start|>", True, "chat marker"),
        ("<start_of_turn>", True, "chat marker"),
        ("<|eot_id|>", True, "chat marker"),
        ("[INST]", True, "chat marker"),
    ],
)
def test_classes(text: str, special: bool, expected: str) -> None:
    assert token_class(text, special) == expected


def test_five_per_cent_of_the_heads_and_at_least_one() -> None:
    assert [sink_heads_needed(n) for n in (1, 20, 21, 72, 270)] == [1, 1, 2, 4, 14]
