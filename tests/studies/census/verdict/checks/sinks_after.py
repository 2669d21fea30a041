"""Sentences on where the sink went."""

import random
import re
from collections.abc import Sequence

import pandas as pd

from sinklens.studies.effects.sink_columns import describe_sinks_after
from tests.studies.census.verdict.evidence import Evidence, Settings, Tables, Topic, counts, want


def generate(rng: random.Random) -> tuple[Tables, Settings]:
    rows = []
    for name in rng.sample(["no 0", "MaskKeys(keys=(0,), heads='all')", "x: y; z"], rng.choice([1, 2, 3])):
        n_heads, places = rng.choice([1, 270]), sorted(rng.sample(range(1, 40), rng.choice([0, 1, 6])))
        for position in [0, *places]:
            before, after = (rng.choice([0, 0, 1, rng.randint(0, 30)]) if n_heads > 1 else 0 for _ in range(2))
            rows.append((name, position, before, after, n_heads))
    names = ["intervention", "position", "n_sink_heads_before", "n_sink_heads", "n_heads"]
    return {"sinks_after": pd.DataFrame(rows, columns=names)}, {"eps": 0.3}


def check(said: dict[str, str], evidence: Evidence) -> None:
    rows = [row for row in evidence.tables["sinks_after"] if row["intervention"] == said["name"]]
    want(bool(rows), f"there is no intervention {said['name']!r}")
    counts(said["all"], int(rows[0]["n_heads"]), "heads")
    tops = []
    for group, column in (("before", "n_sink_heads_before"), ("after", "n_sink_heads")):
        by_position = {int(row["position"]): int(row[column]) for row in rows if row[column] > 0}
        counts(said[group], sum(by_position.values()), f"sink heads {group}")
        places(said[f"{group}_places"] or "", by_position)
        most = max(by_position.values(), default=0)
        tops.append({position for position, count in by_position.items() if count == most})
    before, after = tops
    if not before or not after:
        fate = {
            (False, False): "there was no sink",
            (False, True): "a sink has come up",
            (True, False): "no fixed position is a sink any more (of all later queries, those it hides the position "
            "from included)",
        }[bool(before), bool(after)]
        want(said["fate"] == fate, f"what became of it: {fate}")
    elif before & after:
        want(said["fate"].endswith(" still has the most") and numbers(said["fate"]) == before & after, "it stayed")
    else:
        old, _, new = said["fate"].partition(" to position ")
        want("moved from position" in old and (numbers(old), numbers(new)) == (before, after), "where it moved")


def numbers(text: str) -> set[int]:
    return {int(each) for each in re.findall(r"\d+", text)}


def places(said: str, by_position: dict[int, int]) -> None:
    """The first four by count, then by position; the others' sum."""
    named = [(int(position), int(count)) for position, count in re.findall(r"position (\d+): (\d+)", said)]
    for position, count in named:
        want(by_position.get(position) == count, f"position {position} has {by_position.get(position)}")
    want(len(named) == min(4, len(by_position)), f"{len(by_position)} positions")
    order = [(-count, position) for position, count in named]
    left = {position: count for position, count in by_position.items() if position not in dict(named)}
    want(order == sorted(order) and all((-c, p) > order[-1] for p, c in left.items()), "the order of positions")
    rest = re.search(r"others: (\d+)", said)
    want((rest is not None) == bool(left) and (rest is None or int(rest.group(1)) == sum(left.values())), "the others")


def complete(sentences: Sequence[str], evidence: Evidence) -> None:
    names = {row["intervention"] for row in evidence.tables.get("sinks_after", [])}
    want(len(names) == sum(each.startswith("Under ") for each in sentences), f"sentences for {names}")


_PLACES = r" \((?:position \d+: \d+(?:, )?)+(?:others: \d+)?\)"
TOPIC = Topic(
    describe=lambda tables, settings: describe_sinks_after(tables["sinks_after"]),
    generate=generate,
    checks={
        rf"Under (?P<name>.+): (?P<before>\d+) of (?P<all>\d+) heads? sink before(?P<before_places>{_PLACES})?, "
        rf"(?P<after>\d+) after(?P<after_places>{_PLACES})?; (?P<fate>[^;]+)\.": check,
    },
    complete=complete,
)
