"""Heads of a span, and what emphasising it through them does."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.evidence.bootstrap import MIN_PAIRS, paired_interval
from sinklens.results.result import Result
from sinklens.wording import changed, several

FORMAT = "sinklens-span-heads"
HEAD_COLUMNS = ("name", "layer", "head", "dependence", "other", "excess", "low", "high", "outlier", "chosen")
STEERED_COLUMNS = ("task", "kind", "draw", "document", "log_prob", "clean", "change")


@dataclass(frozen=True)
class SpanHeads(
    Result,
    format=FORMAT,
    title="Heads that depend on a span",
    newest=1,
    needs=("heads", "steered"),
    header=("settings", "picked"),
):
    """Which heads depend on the document with the answer, and the answer while it is emphasised through them.

    Attributes:
        meta: Model, settings, how often the picked document is the right one.
        tables: ``heads`` and ``steered``.
    """

    @property
    def heads(self) -> pd.DataFrame:
        """One row per head, on the tasks that choose.

        Columns: name, layer, head; dependence on the right document (``|z(with) - z(without)|`` where the answer is
        predicted) and on a random other one, means; excess of the first with its interval (low, high); outlier (share
        of the tasks in which VHR's rule leaves the head out); chosen.
        """
        return self.tables["heads"]

    @property
    def steered(self) -> pd.DataFrame:
        """One row per judged task and steering: kind, draw, document, log_prob (nats a token), clean, change.

        Kinds: ``span heads`` (the right document in the chosen heads), ``random heads`` (as many of the same layers),
        ``all heads``, ``other document``, ``picked document`` and ``asked document`` (in the chosen heads); ``PAINT``
        and ``GIFT`` of the right document in all heads, each beside ``.., other document``; ``VHR`` beside
        ``VHR, other half``.
        """
        return self.tables["steered"]

    def summary(self) -> pd.DataFrame:
        """One row per kind: change of the answer's log-probability with its interval, n tasks."""
        return summarize(self.steered)

    @property
    def verdict(self) -> list[str]:
        """Which heads depend on the document, and whether steering through them beats random ones."""
        return span_words(self.heads, self.steered, self.meta["picked"])


def by_task(steered: pd.DataFrame) -> pd.DataFrame:
    """Change by task and kind, draws averaged."""
    return steered.pivot_table(index="task", columns="kind", values="change", sort=False)


def summarize(steered: pd.DataFrame) -> pd.DataFrame:
    """See :meth:`SpanHeads.summary`."""
    wide = by_task(steered)
    rows = []
    for kind in dict.fromkeys(steered["kind"]):
        moved = paired_interval(wide[kind].to_numpy(float))
        rows.append((kind, moved.value, moved.low, moved.high, moved.n))
    return pd.DataFrame(rows, columns=["kind", "change", "low", "high", "n"])


def span_words(heads: pd.DataFrame, steered: pd.DataFrame, picked: dict[str, Any]) -> list[str]:
    """The heads, and the steering."""
    best = heads.sort_values("excess", ascending=False, kind="stable").iloc[0]
    most = f"{best['name']} ({best['dependence']:.2f} beside {best['other']:.2f})"
    judged, more = int(heads["low"].notna().sum()), int((heads["low"] > 0).sum())
    beyond = "more on the right document than on a random other one"
    if judged == 0:
        out = [f"Which heads depend {beyond} is not judged: an interval needs {MIN_PAIRS} questions. Most: {most}."]
    elif more == 0:
        out = [f"None of {several(judged, 'head')} depends {beyond}. Most: {most}."]
    else:
        depend = "depends" if more == 1 else "depend"
        out = [f"{more} of {several(judged, 'head')} {depend} {beyond}, most of all {most}."]
    wide = by_task(steered)
    text = f"Emphasised in {several(int(heads['chosen'].sum()), 'head')} chosen on other tasks, the right document "
    text += f"changes the answer's log-probability by {_told(wide['span heads'])}"
    if "random heads" in wide:
        text += f"; in as many random heads of the same layers by {_told(wide['random heads'])} "
        text += f"(difference {_told(wide['span heads'] - wide['random heads'])})"
    out.append(f"{text}; in all heads by {_told(wide['all heads'])}.")
    out.append(
        f"A random other document in the same heads: {_told(wide['other document'])}; the one that the question's "
        f"attention puts first (right in {picked['right']} of {picked['of']}): {_told(wide['picked document'])}"
    )
    if "asked document" in wide:
        out[-1] += (
            f"; the one that the model names when asked (right in {picked['asked_right']} of {picked['of']}): "
            f"{_told(wide['asked document'])}"
        )
    out[-1] += "."
    ways = [f"{kind} {_told(wide[kind])} ({CONTROLS[kind]} {_told(wide[rest])})" for kind, rest in _beside(wide)]
    if ways:
        out.append(f"Other emphases of the right document: {'; '.join(ways)}.")
    return out


CONTROLS = {"PAINT": "another document", "GIFT": "another document", "VHR": "the other heads"}


def _beside(wide: pd.DataFrame) -> list[tuple[str, str]]:
    """Each other emphasis that was tried and its control."""
    rest = {kind: f"{kind}, other {'half' if kind == 'VHR' else 'document'}" for kind in CONTROLS}
    return [(kind, control) for kind, control in rest.items() if kind in wide and control in wide]


def _told(changes: pd.Series) -> str:
    moved = paired_interval(changes.to_numpy(float))
    return changed(moved.value, moved.low, moved.high)
