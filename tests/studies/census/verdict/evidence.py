"""Tables as plain rows, the words of a sentence read back, and what a topic is. Nothing of the verdict's own code."""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

Row = dict[str, Any]
Tables = dict[str, pd.DataFrame]
Settings = dict[str, Any]

NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
HEADS = r"L\d+H\d+(?:, L\d+H\d+)*(?: and \d+ more)?"
LAYERS = r"layers? \d+(?:-\d+)?(?:(?:, | and )\d+(?:-\d+)?)*"


class Refuted(AssertionError):
    """A sentence that its own tables contradict."""


@dataclass
class Evidence:
    """What a sentence is held against."""

    tables: dict[str, list[Row]]
    settings: Settings

    @classmethod
    def of(cls, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> "Evidence":
        """Every table as a list of rows; missing values become NaN."""
        plain: dict[str, list[Row]] = {}
        for name, frame in tables.items():
            columns = [str(column) for column in frame.columns]
            values = [[math.nan if pd.isna(value) else value for value in frame[column]] for column in columns]
            plain[name] = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        return cls(plain, dict(settings))


Check = Callable[[dict[str, str], Evidence], None]


@dataclass(frozen=True)
class Topic:
    """One kind of verdict.

    Attributes:
        describe: Writes the sentences of this topic alone.
        generate: Random tables and settings for it, the awkward ones included.
        checks: Regular expression of a whole sentence (with named groups) -> what recomputes the groups.
        complete: Refutes a list of sentences that leaves out what the tables hold (all of the verdict is given).
    """

    describe: Callable[[Tables, Settings], list[str]]
    generate: Callable[[random.Random], tuple[Tables, Settings]]
    checks: dict[str, Check]
    complete: Callable[[Sequence[str], Evidence], None] = field(default=lambda sentences, evidence: None)


def refute(sentence: str, evidence: Evidence, topics: Mapping[str, Topic]) -> str | None:
    """Why the sentence is false, or None."""
    matches = [
        (check, match)
        for topic in topics.values()
        for pattern, check in topic.checks.items()
        if (match := re.fullmatch(pattern, sentence, re.DOTALL))
    ]
    if len(matches) != 1:
        return f"{len(matches)} checkers know this sentence: {sentence}"
    check, match = matches[0]
    try:
        check(match.groupdict(), evidence)
    except Refuted as reason:
        return f"{reason} in: {sentence}"
    return None


# ------------------------------------------------------------------ what checks are written with
def want(truth: bool, reason: str) -> None:
    """Refute with a reason."""
    if not truth:
        raise Refuted(reason)


def known(value: Any) -> bool:
    """A number that is not NaN."""
    return not (isinstance(value, float) and math.isnan(value))


def says(printed: str, value: float, what: str) -> None:
    """The printed number is the value, to the digits it shows (half a unit of the last one, and a rounding)."""
    mantissa, _, exponent = printed.partition("e")
    decimals = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - decimals)
    want(abs(float(printed) - value) <= 0.5 * unit * (1 + 1e-6) + 1e-12, f"{what} is {value!r}, not {printed}")


def counts(printed: str, value: int, what: str) -> None:
    """A printed count, exactly, with or without commas between thousands."""
    want(printed in (str(value), f"{value:,}"), f"{what} is {value}, not {printed}")


def name(row: Row) -> str:
    """L5H1."""
    return f"L{int(row['layer'])}H{int(row['head'])}"


def same_heads(printed: str, rows: Sequence[Row], what: str, most: int = 6) -> None:
    """A list of heads names these rows and no other, up to ``most`` of them by name."""
    named, more = heads_of(printed)
    want(len(named) == min(most, len(rows)) and more == len(rows) - len(named), f"{what}: {len(rows)} heads")
    want(set(named) <= {name(row) for row in rows}, f"{what}: {named}")


def heads_of(printed: str) -> tuple[list[str], int]:
    """Names in a list of heads, and how many more it announces."""
    rest = re.search(r" and (\d+) more$", printed)
    return re.findall(r"L\d+H\d+", printed), int(rest.group(1)) if rest else 0


def layers_of(printed: str) -> set[int]:
    """Layers in ``layers 0-9, 11 and 13``."""
    found: set[int] = set()
    for low, high in re.findall(r"(\d+)(?:-(\d+))?", printed):
        want(not high or int(high) > int(low) + 1, f"{low}-{high} is no run")
        found |= set(range(int(low), int(high or low) + 1))
    return found
