"""Whether inserted tokens take over the sink."""

import math
from dataclasses import dataclass

import pandas as pd

from sinklens.detectors.sink_ranking import EPS
from sinklens.evidence.bootstrap import paired_interval
from sinklens.results.result import Result
from sinklens.wording import several

FORMAT = "sinklens-injection"
RUN_COLUMNS = (
    "sequence", "place", "count", "kind", "draw", "index", "inserted", "first", "sink_inserted", "sink_first",
    "value_inserted", "value_first", "massive_inserted", "massive_first", "is_massive_inserted", "is_massive_first",
    "n_sink_heads", "loss", "change",
)  # fmt: skip
HEAD_COLUMNS = (
    "place", "count", "layer", "head", "name", "first_clean", "inserted_token", "first_token", "inserted_random",
    "first_random",
)  # fmt: skip


@dataclass(frozen=True)
class Injection(
    Result,
    format=FORMAT,
    title="Inserted tokens as sinks",
    newest=1,
    needs=("runs", "heads"),
    header=("settings",),
):
    """What tokens put into texts draw to themselves, beside as many random ordinary tokens at the same place.

    Attributes:
        meta: Model, tokens, settings.
        tables: ``runs`` and ``heads``.
    """

    @property
    def runs(self) -> pd.DataFrame:
        """One row per sequence, place, count and kind (``clean``: nothing inserted, ``token``, ``random``) and draw.

        Columns: sequence, place, count, kind, draw, index (original token before which they stand); attention of the
        later original tokens to all inserted ones and to the first original one, mean over heads (inserted, first) and
        over the heads whose attention to the first one exceeds 0.3 with nothing inserted (sink_inserted, sink_first;
        n_sink_heads); ``|v|`` over the median of the other original tokens (value_inserted, value_first); largest
        residual entry over the median of layer and sequence (massive_inserted, massive_first), and whether it meets
        both criteria of massive activations (is_massive_*); loss of the later original tokens in nats, and its change
        from clean. NaN or missing where there is nothing to measure: no token stands after the end.
        """
        return self.tables["runs"]

    @property
    def heads(self) -> pd.DataFrame:
        """One row per place, count and head, means over sequences (and draws).

        Columns: place, count, layer, head, name, first_clean (attention to the first token with nothing inserted), and
        to the inserted and the first tokens with the token and with random ones (inserted_token, first_token,
        inserted_random, first_random).
        """
        return self.tables["heads"]

    def summary(self) -> pd.DataFrame:
        """One row per place, count and measure: token, random, clean, and token less random with its interval."""
        return summarize(self.runs)

    @property
    def verdict(self) -> list[str]:
        """For each place and count, whether the inserted tokens become the sink."""
        return injection_words(self.runs, self.heads, self.meta["settings"]["token"])


MEASURES = (
    "inserted", "first", "sink_inserted", "sink_first", "value_inserted", "massive_inserted", "change",
)  # fmt: skip


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """See :meth:`Injection.summary`; random draws are averaged within a sequence before they are compared."""
    rows = []
    for (place, count), some in runs[runs["kind"] != "clean"].groupby(["place", "count"], sort=False):
        clean = runs[(runs["place"] == place) & (runs["kind"] == "clean")]
        for measure in MEASURES:
            wide = some.pivot_table(index="sequence", columns="kind", values=measure, dropna=False).reindex(
                columns=["token", "random"]
            )
            gap = paired_interval((wide["token"] - wide["random"]).to_numpy(float))
            means = [float(wide[kind].mean()) for kind in ("token", "random")]
            rows.append((place, count, measure, *means, float(clean[measure].mean()), gap.value, gap.low, gap.high))
    columns = ["place", "count", "measure", "token", "random", "clean", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def taken_over(heads: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Heads that rested on the first token and now look more at the inserted ones (``kind``: token, random)."""
    return heads[(heads["first_clean"] > EPS) & (heads[f"inserted_{kind}"] > heads[f"first_{kind}"])]


def injection_words(runs: pd.DataFrame, heads: pd.DataFrame, token: str) -> list[str]:
    """A sentence for each place and count."""
    out = []
    table = summarize(runs)
    for place, count in dict.fromkeys(zip(heads["place"], heads["count"], strict=True)):
        part = table[(table["place"] == place) & (table["count"] == count)].set_index("measure")
        some = heads[(heads["place"] == place) & (heads["count"] == count)]
        change = _compared(part.loc["change"], 3, " nats")
        begin = f"{count} x {token} at {place}"
        if math.isnan(part.loc["inserted", "token"]):
            out.append(f"{begin}: no token stands behind; the loss of those before changes by {change}.")
            continue
        sinks = int((some["first_clean"] > EPS).sum())
        text = f"{begin}: later tokens give it {_compared(part.loc['inserted'], 2)} of their attention. "
        if sinks:
            taken = [len(taken_over(some, kind)) for kind in ("token", "random")]
            text += (
                f"It takes over {taken[0]} of {several(sinks, 'head')} that rested on the first token (random "
                f"{taken[1]}). "
            )
        else:
            text += "No head rests on the first token without it. "
        new = [int((some[f"inserted_{kind}"] > EPS).sum()) for kind in ("token", "random")]
        text += (
            f"{new[0]} of {several(len(some), 'head')} {'rests' if new[0] == 1 else 'rest'} on it (random {new[1]}). "
        )
        flags = runs[(runs["place"] == place) & (runs["count"] == count)].dropna(subset=["is_massive_inserted"])
        shares = [
            f"{flags[flags['kind'] == kind]['is_massive_inserted'].astype(bool).mean():.2f}"
            for kind in ("token", "random")
            if len(flags)
        ]
        if shares:
            text += f"Massive in {shares[0]} of the texts (random {shares[1]}); "
        values = _compared(part.loc["value_inserted"], 2)
        out.append(f"{text}values {values} of the usual size; the loss of later tokens changes by {change}.")
    return out


def _compared(row: pd.Series, digits: int, unit: str = "") -> str:
    numbers = [float(row[name]) for name in ("token", "random", "difference", "low", "high")]
    token, rest, gap, low, high = (f"{each:z.{digits}f}" for each in numbers)
    interval = "" if math.isnan(numbers[3]) else f" [{low}, {high}]"
    return f"{token}{unit} (random {rest}, difference {gap}{interval})"
