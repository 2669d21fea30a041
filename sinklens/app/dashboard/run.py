"""A result as the dashboard sees it; what a kind of result adds lives in its own file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.app.dashboard.figures.score_grid import score_grid
from sinklens.app.dashboard.stored import Tables
from sinklens.app.drawings import Drawing
from sinklens.errors import SinkLensError
from sinklens.plots.style import empty_figure, number
from sinklens.results.result import known_kind

_MOST_ROWS: Final = 100_000
_MOST_GROUPS: Final = 24
_MOST_SCORES: Final = 240


@dataclass(frozen=True)
class Score:
    """One number per head that the grid can colour.

    Attributes:
        name: What the address calls it.
        label: What the list shows.
        definition: What it is, with its version and source where the result carries them.
    """

    name: str
    label: str
    definition: str = ""


@dataclass(frozen=True)
class Fact:
    """A line about a head: a number, and what it is to be compared with (a null, a control, an interval)."""

    what: str
    value: str
    beside: str = ""


@dataclass
class Run:
    """One result: its grid of scores, its facts about a head, its figures and tables.

    This class does for any result what can be done without knowing its kind: every table with one row per head gives
    scores, every table can be read. Kinds that are known are subclasses (see :mod:`sinklens.app.dashboard.kinds`).

    Attributes:
        name: What the address calls it.
        label: What lists show.
        kind: Its ``format``.
        meta: Its header.
        tables: Its tables.
        notes: Sentences to show above everything, such as the effect of an intervention that was tried.
        drawings: Figures of the whole result by title, made when asked for.
    """

    name: str
    label: str
    kind: str
    meta: Mapping[str, Any] = field(repr=False)
    tables: Tables = field(repr=False)
    notes: tuple[str, ...] = ()
    drawings: Mapping[str, Drawing] = field(default_factory=dict, repr=False)

    has_tokens = False
    """Whether the result keeps tokens and what every position received."""
    beside_height: ClassVar[int | None] = None
    """Pixels of the figure beside a head's numbers, ``None`` for its own."""

    def __post_init__(self) -> None:
        self._grids: dict[str, go.Figure] = {}
        self._scores: tuple[Score, ...] | None = None
        self._said: list[str] | None = None
        self._by: dict[str, list[str]] | None = None

    @property
    def model(self) -> dict[str, Any]:
        """Facts about the model, empty when the header has none."""
        facts = self.meta.get("model")
        return dict(facts) if isinstance(facts, Mapping) else {}

    @property
    def of(self) -> str:
        """On what its numbers per head were taken, for the head of a panel; empty where there is nothing to tell."""
        return ""

    def at(self, sequence: int | None) -> "Run":
        """This result with the numbers per head of one text by itself; ``None`` is the result as it is.

        Raises:
            ResultError: It does not keep them.
        """
        return self

    @cached_property
    def result(self) -> Any:
        """The result as its class sees it, over the same tables; ``None`` for a kind that nobody knows."""
        kind = known_kind(self.kind)
        if kind is None:
            return None
        # a census has a view of its own, which reads its arrays text by text
        needed = () if self.has_tokens else kind.needed_arrays(self.meta)
        tables: Any = self.tables
        return kind(dict(self.meta), tables, self.tables.arrays() if needed else {})

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences."""
        if self._said is None:
            self._said = self._say()
        return self._said

    def _say(self) -> list[str]:
        try:
            found = None if self.result is None else self.result.verdict
        except SinkLensError as error:  # of a damaged file
            found = [f"Its verdict cannot be written: {error}"]
        except (KeyError, TypeError, ValueError) as error:  # of a header or table that is not as it was saved
            found = [f"Its verdict cannot be written: {type(error).__name__} {error}."]
        found = found or self.meta.get("verdict")
        return [str(sentence) for sentence in found] if isinstance(found, Sequence | tuple) else []

    def draw(self, title: str) -> go.Figure:
        """A figure of the whole result; of a damaged file, what is wrong with it."""
        try:
            return self.drawings[title](self.result)
        except SinkLensError as error:
            return empty_figure("This cannot be shown", str(error))

    @property
    def provenance(self) -> list[str]:
        """What was measured: model, tokens, BOS, warnings."""
        model, lines = self.model, []
        if model:
            lines.append(
                f"{model.get('name')}: {model.get('architecture')}, {model.get('n_layers')} layers x "
                f"{model.get('n_heads')} heads, {model.get('dtype')}."
            )
        tokens = self.meta.get("tokens")
        if isinstance(tokens, Mapping):
            lines.append(
                f"{tokens.get('n_sequences')} sequences of {tokens.get('min_length')} to {tokens.get('max_length')} "
                f"tokens from {tokens.get('source')}. {dict(tokens.get('bos') or {}).get('statement', '')}"
            )
        if self.meta.get("created"):
            lines.append(f"Made {self.meta['created']} with sinklens {self.meta.get('sinklens_version')}.")
        return lines + [f"Warning: {warning}" for warning in self.meta.get("warnings") or []]

    @property
    def scores(self) -> tuple[Score, ...]:
        """What the grid can colour, the first one by default; empty for a result without heads."""
        if self._scores is None:
            self._scores = self._find_scores()
        return self._scores

    def grid(self, score: str) -> go.Figure:
        """The layer x head grid of a score; made once."""
        if score not in self._grids:
            self._grids[score] = self._draw_grid(score)
        return self._grids[score]

    def values(self, score: str) -> np.ndarray:
        """A score by layer and head, NaN where it does not apply."""
        frame, column = self._score_column(score)
        rows = int(self.model.get("n_layers") or frame["layer"].max() + 1)
        columns = int(self.model.get("n_heads") or frame["head"].max() + 1)
        out = np.full((max(rows, int(frame["layer"].max()) + 1), max(columns, int(frame["head"].max()) + 1)), np.nan)
        out[frame["layer"].to_numpy(int), frame["head"].to_numpy(int)] = frame[column].to_numpy(float, na_value=np.nan)
        return out

    def facts(self, layer: int, head: int) -> list[Fact]:
        """Everything known about a head, a line each."""
        out = []
        for name, by in self._head_tables().items():
            frame = self.tables.frame(name)
            for record in (
                frame[(frame["layer"] == layer) & (frame["head"] == head)].head(_MOST_GROUPS).to_dict("records")
            ):
                group = ", ".join(str(record[column]) for column in by)
                left = [key for key in record if key not in ("layer", "head", *by)]
                out += [Fact(f"{key} · {group}" if group else str(key), _shown(record[key])) for key in left]
        return out

    def strongest(self) -> tuple[int, int] | None:
        """The head that is shown first: the one with the largest number of the first score."""
        if not self.scores:
            return None
        values = np.abs(self.values(self.scores[0].name))
        if not np.isfinite(values).any():
            return None
        layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
        return int(layer), int(head)

    def beside(self, head: str) -> str:
        """Title of the figure beside a head's numbers: the result's main one where it has none of a single head."""
        return next(iter(self.drawings), f"{head} by position")

    def head_figure(self, layer: int, head: int, token: int | None, other: "Run | None" = None) -> go.Figure:
        """What the result says about a head in one figure, with that of another result beside it."""
        if self.drawings:
            return self.draw(next(iter(self.drawings)))
        return empty_figure("Nothing by position", "This result keeps no numbers by position or sequence.")

    def table_for_grid(self) -> pd.DataFrame:
        """The rows behind the grid, for saving."""
        names = list(self._head_tables())
        return self.tables.frame(names[0]) if names else pd.DataFrame()

    def _head_tables(self) -> dict[str, list[str]]:
        """Tables with rows per head, and the columns that tell the rows of one head apart (none when it has one)."""
        if self._by is not None:
            return self._by
        found = {}
        for name in self.tables.names:
            if 0 < self.tables.count(name) <= _MOST_ROWS and {"layer", "head"} <= set(self.tables.columns(name)):
                frame = self.tables.frame(name)
                by = group_columns(frame)
                if by is not None and frame[["layer", "head"]].notna().all(axis=None):
                    found[name] = by
        self._by = found
        return found

    def _find_scores(self) -> tuple[Score, ...]:
        """Numbers with a definition first, then other measurements, then counts."""
        found: list[tuple[int, Score]] = []
        metrics = self.meta.get("metrics")
        for name, by in self._head_tables().items():
            frame = self.tables.frame(name)
            groups = frame[by].drop_duplicates().astype(str).agg("/".join, axis=1).tolist() if by else [""]
            for column in frame.columns:
                if column in ("layer", "head", *by) or not pd.api.types.is_numeric_dtype(frame[column]):
                    continue
                metric = metrics.get(column) if isinstance(metrics, Mapping) else None
                text = str(metric.get("definition")) if isinstance(metric, Mapping) else ""
                text += f" ({metric['source']})" if isinstance(metric, Mapping) and metric.get("source") else ""
                rank = 0 if text else 1 if pd.api.types.is_float_dtype(frame[column]) else 2
                for group in groups:
                    label = f"{column} · {group} ({name})" if group else f"{column} ({name})"
                    found.append((rank, Score(f"{name}.{column}@{group}", label, text)))
        found.sort(key=lambda item: item[0])
        return tuple(score for _, score in found[:_MOST_SCORES])

    def _score_column(self, score: str) -> tuple[pd.DataFrame, str]:
        table, _, rest = score.partition(".")
        column, _, group = rest.rpartition("@")
        frame, by = self.tables.frame(table), self._head_tables()[table]
        if by:
            frame = frame[frame[by].astype(str).agg("/".join, axis=1) == group]
        return frame, column

    def _draw_grid(self, score: str) -> go.Figure:
        return score_grid(self.values(score), next(each.label for each in self.scores if each.name == score))


def group_columns(frame: pd.DataFrame) -> list[str] | None:
    """Columns that tell the rows of one head apart, such as a domain or a training step; ``None`` when nothing does.

    >>> rows = {"layer": [0, 0], "head": [0, 0], "domain": ["code", "prose"], "mass": [0.5, 0.5]}
    >>> group_columns(pd.DataFrame(rows)), group_columns(pd.DataFrame(rows).head(1))
    (['domain'], [])
    """
    if not frame.duplicated(["layer", "head"]).any():
        return []
    some = [
        str(column)
        for column in frame.columns
        if column not in ("layer", "head")
        and not pd.api.types.is_float_dtype(frame[column])
        and 1 < frame[column].nunique() <= _MOST_GROUPS
    ]
    for by in [[one] for one in some] + [[one, other] for i, one in enumerate(some) for other in some[i + 1 :]]:
        if not frame.duplicated(["layer", "head", *by]).any():
            return by
    return None


def _shown(value: Any) -> str:
    if value is None or value is pd.NA:
        return "n/a"
    return number(float(value)) if isinstance(value, float) else str(value)
