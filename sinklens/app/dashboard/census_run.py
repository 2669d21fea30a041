"""A census in the dashboard: heads, tokens, attention maps, as means over its texts or of one text by itself."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.app.dashboard.figures.by_position import Positions, by_position
from sinklens.app.dashboard.run import Fact, Run, Score
from sinklens.app.dashboard.stored import Tables
from sinklens.app.drawings import drawings
from sinklens.detectors.sink_ranking import by_importance
from sinklens.errors import InputError, ResultError
from sinklens.plots.sink_heatmap import HeadValue, sink_heatmap
from sinklens.plots.style import empty_figure, head_label, number, visible_text
from sinklens.studies.census.by_sequence import OneSequence, SequenceNumbers
from sinklens.studies.census.result import AttentionMap, Census, not_kept

LABELS: Final = {
    "sink_rate": "Sink rate, strongest key",
    "importance": "Importance, strongest key",
    "ratio": "Importance / uniform null",
    "null": "Causal-uniform null",
    "sink_rate_first": "Sink rate, position 0",
    "importance_first": "Importance, position 0",
    "drain": "Value drain |v|",
    "drain_wo": "Value drain |W_O v|",
    "entropy": "Entropy",
    "distance": "Distance",
    "bos_mass": "Attention on BOS",
    "special_mass": "Attention on special tokens",
    "missing_mass": "Missing mass",
    "delta_logit": "Logit margin, strongest key",
}
_METRICS: Final = {"drain": "value_drain", "drain_wo": "value_drain", "importance": "sink_score", "null": "sink_score"}
_METRICS_ALSO: Final = dict.fromkeys(("sink_rate", "ratio", "sink_rate_first", "importance_first"), "sink_score")
PAGE: Final = 4096
"""Tokens of a sequence sent to the page at once."""

Arrays = Callable[[], Mapping[str, np.ndarray]]


@dataclass
class CensusRun(Run):
    """A census, saved or computed here; its numbers per head are means over its texts.

    Attributes:
        maps: Attention maps by sequence, layer and head; those that a census keeps are of sequence 0.
        windows: Exact pieces of maps by sequence, layer, head and region ``(q0, q1, k0, k1)``.
        arrays: Reads the arrays of the census.
    """

    maps: dict[tuple[int, int, int], AttentionMap] = field(default_factory=dict, repr=False)
    windows: dict[tuple[int, int, int, tuple[int, int, int, int]], np.ndarray] = field(default_factory=dict, repr=False)
    arrays: Arrays = field(default=dict, repr=False)

    has_tokens = True
    beside_height = 350

    @property
    def of(self) -> str:
        """The mean over how many texts."""
        count = len(self.lengths)
        return "one text" if count == 1 else f"mean over {count} texts"

    def at(self, sequence: int | None) -> "CensusRun":
        """The same numbers of one text; of a census of a single text they are its own.

        Raises:
            ResultError: They were not kept.
            InputError: There is no such text.
        """
        if sequence is None or (len(self.lengths) == 1 and sequence == 0):
            return self
        if sequence not in self._texts:
            self.tokens(sequence)  # refuses one that there is not
            numbers = self.text(sequence)
            if numbers is None:
                raise ResultError(not_kept(sequence, self.numbers.kept, len(self.lengths)))
            while len(self._texts) > _MOST_TEXTS:
                self._texts.pop(next(iter(self._texts)))
            self._texts[sequence] = TextRun.of_census(self, sequence, numbers)
        return self._texts[sequence]

    @cached_property
    def _texts(self) -> dict[int, "TextRun"]:
        return {}

    @cached_property
    def numbers(self) -> SequenceNumbers:
        """Every head's numbers on each text."""
        return SequenceNumbers(self.arrays(), self.lengths)

    def text(self, sequence: int) -> OneSequence | None:
        """What every head did on one text; ``None`` where it was not kept."""
        found = self.numbers.of(sequence)
        return self._only_text() if found is None and len(self.lengths) == 1 and sequence == 0 else found

    def heads(self) -> pd.DataFrame:
        """One row per head."""
        return self.tables.frame("heads") if "heads" in self.tables.names else pd.DataFrame()

    def _find_scores(self) -> tuple[Score, ...]:
        heads, metrics = self.heads(), dict(self.meta.get("metrics") or {})
        order = [*LABELS, *(name for name in get_args(HeadValue) if name not in LABELS)]
        if self.is_one_text:  # a rate is 0 or 1 there
            order.insert(0, order.pop(order.index("importance")))
        found = []
        for column in order:
            if column in heads and heads[column].notna().any():
                metric = metrics.get(({**_METRICS, **_METRICS_ALSO}).get(column, column))
                text = ""
                if isinstance(metric, Mapping):
                    text = f"{metric['definition']} (v{metric['version']}; {metric['source']})"
                found.append(Score(column, LABELS.get(column, column), text))
        return tuple(found)

    @property
    def is_one_text(self) -> bool:
        """Whether the numbers per head are those of a single text."""
        return len(self.lengths) == 1

    def strongest(self) -> tuple[int, int] | None:
        """The strongest sink head, or without any the head with the most attention on one key."""
        heads = self.heads()
        if heads.empty or not heads["importance"].notna().any():
            return None
        sinks = heads[heads["is_sink"].astype(bool)] if "is_sink" in heads else heads
        first = by_importance(heads if sinks.empty else sinks).iloc[0]
        return int(first["layer"]), int(first["head"])

    def strongest_key(self, layer: int, head: int) -> int | None:
        """The key that a head gives the most attention; ``None`` for a head without numbers."""
        row = _row(self.heads(), layer, head)
        return None if row is None or math.isnan(float(row["importance"])) else int(row["sink_position"])

    def _score_column(self, score: str) -> tuple[pd.DataFrame, str]:
        return self.heads(), score

    def _draw_grid(self, score: str) -> go.Figure:
        heads = self.heads()
        hover: Any = "all" if len(heads) <= _MOST_HOVERS else "value"  # the panel of the head has the others
        return sink_heatmap(heads, value=score, n_layers=self.model.get("n_layers"), hover=hover)  # type: ignore[arg-type]

    def table_for_grid(self) -> pd.DataFrame:
        """The table of heads."""
        return self.heads()

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sequence."""
        return [len(rows) for rows in self._sequences]

    def tokens(self, sequence: int) -> pd.DataFrame:
        """Rows of the table of tokens of one sequence, in order.

        Raises:
            InputError: There is no such sequence.
        """
        rows = self._sequences
        if not 0 <= sequence < len(rows):
            raise InputError(f"This census has the sequences 0 to {len(rows) - 1}, not {sequence}.")
        return rows[sequence]

    def token_strings(self, sequence: int) -> list[str]:
        """Its tokens."""
        return [str(token) for token in self.tokens(sequence)["token"]]

    def map(self, sequence: int, layer: int, head: int) -> AttentionMap | None:
        """The attention map of a head, if it was kept or computed."""
        return self.maps.get((sequence, layer, head))

    @property
    def eps(self) -> Any:
        """Threshold of a sink."""
        return dict(self.meta.get("settings") or {}).get("eps", "?")

    def facts(self, layer: int, head: int) -> list[Fact]:
        """A head's numbers, each beside its null."""
        whole = CensusRun.heads(self)
        if whole.empty:
            return []
        row = _row(self.heads(), layer, head)
        if row is None or math.isnan(float(row["importance"])):
            if _row(whole, layer, head) is None:
                return [Fact("attention", "not applicable", "this layer has no softmax attention")]
            return [Fact("attention", "n/a", "NaN or infinite in this head, so it has no numbers")]

        def value(name: str) -> str:
            return number(float(row[name])) if name in row and row[name] is not None else "n/a"

        position = int(row["sink_position"])
        out = [Fact("strongest key", str(position), self._token_at(position))]
        sink = ("sink", "yes" if row.get("sink_rate") == 1 else "no", f"importance above eps {self.eps}")
        rate = ("sink rate", value("sink_rate"), f"share of texts with an importance above eps {self.eps}")
        lines = [
            ("importance", "importance", f"uniform null {value('null')}, {value('ratio')} times"),
            ("importance of position 0", "importance_first", f"uniform null {value('null_first')}"),
            ("entropy", "entropy", f"nats; uniform {value('entropy_null')}" if "entropy_null" in row else "nats"),
            ("distance", "distance", "tokens, mean over queries"),
            ("attention on BOS", "bos_mass", ""),
            ("missing mass", "missing_mass", "1 - row sum: a learned sink or an edit"),
            ("gate", "gate", "mean of the output gate"),
            ("value drain", "drain", f"|v| of the strongest key / others (KV head {row.get('kv_head', '?')})"),
            ("value drain after W_O", "drain_wo", "|W_O v| of the strongest key / others"),
            ("logit margin", "delta_logit", "strongest key above the others"),
        ]
        facts = [
            Fact(what, value(name), beside) for what, name, beside in lines if name in row and row[name] == row[name]
        ]
        return [*out, *facts[:1], Fact(*(sink if self.is_one_text else rate)), *facts[1:]]

    def positions(self, layer: int, head: int) -> Positions:
        """Attention received and value norms of a head by position."""
        if self.is_one_text and (own := self.numbers.of(0)) is not None:  # quicker than the rows of a long table
            return _positions(own, layer, head, self.of, self.token_strings(0))
        received = self._at(layer, head, "sinks", ("importance", "null"))
        values = self._at(layer, head, "value_drains", ("value_norm", "output_norm"))
        return Positions(received, values, self.of, self.token_strings(0) if self.is_one_text else [])

    def beside(self, head: str) -> str:
        """The head by position."""
        return f"{head} by position"

    def head_figure(self, layer: int, head: int, token: int | None, other: Run | None = None) -> go.Figure:
        """Attention received and value norms by position, of another census with dashes beside it."""
        runs = [self, *([other] if isinstance(other, CensusRun) else [])]
        shown = [run.positions(layer, head) for run in runs]
        if not any(each.received or each.values for each in shown):
            return empty_figure(head_label(layer, head), "Not measured: this scan kept nothing by position.")
        return by_position(layer, head, shown, token=token)

    def massive(self, sequence: int, position: int) -> pd.DataFrame:
        """The largest entries of the residual stream at one token that are among the largest of their layer."""
        if "massive" not in self.tables.names:
            return pd.DataFrame()
        table = self.tables.frame("massive")
        return table[(table["sequence"] == sequence) & (table["position"] == position)].sort_values("layer")

    def norms(self, sequence: int) -> np.ndarray | None:
        """Residual norms of one text ``[pos 1+layer]``, the embedding first; ``None`` where they were not kept."""
        numbers = self.text(sequence)
        if numbers is not None and numbers.resid_norm is not None:
            return np.asarray(numbers.resid_norm, dtype=float)
        if sequence != 0 or "profile" not in self.tables.names:
            return None
        grid = self.tables.frame("profile").pivot(index="position", columns="layer", values="resid_norm")
        return grid.sort_index(axis=0).sort_index(axis=1).to_numpy(float)

    def _at(self, layer: int, head: int, table: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows = self.tables.head(table, layer, head)
        return {name: rows[name] for name in columns if name in rows}

    def _token_at(self, position: int) -> str:
        tokens = {rows["token"].iloc[position] for rows in self._sequences if position < len(rows)}
        return f"token {visible_text(str(tokens.pop()))}" if len(tokens) == 1 else "different tokens by text"

    @cached_property
    def _sequences(self) -> list[pd.DataFrame]:
        if "tokens" not in self.tables.names:
            raise ResultError("This census keeps no table of tokens; scan again.")
        table = self.tables.frame("tokens").sort_values(["sequence", "position"], kind="stable")
        return [rows for _, rows in table.groupby("sequence", sort=True)]

    def _only_text(self) -> OneSequence | None:
        """The numbers of the only text, from the tables, whose means they are."""
        sinks, drains = self.tables.cube("sinks"), self.tables.cube("value_drains")
        if "importance" not in sinks:
            return None
        axes = {name: np.moveaxis(values, -1, 0) for name, values in (sinks | drains).items()}
        first, heads = axes["importance"], self.heads()
        layers = max(int(self.model.get("n_layers") or 0), first.shape[1])

        def wide(values: np.ndarray | None) -> Any:
            return None if values is None else _padded(values, layers)

        null = wide(axes.get("null"))
        by_head = {}
        for name in ("entropy", "distance"):
            if name in heads:
                by_head[name] = np.full((layers, first.shape[2]), np.nan)
                by_head[name][heads["layer"].to_numpy(int), heads["head"].to_numpy(int)] = heads[name].to_numpy(float)
        return OneSequence(
            importance=wide(first),
            null=np.full((*first.shape[:1], layers), np.nan) if null is None else null[:, :, 0],
            value_norm=wide(axes.get("value_norm")),
            output_norm=wide(axes.get("output_norm")),
            resid_norm=None,
            top_key=None,
            top_weight=None,
            entropy=by_head.get("entropy"),
            distance=by_head.get("distance"),
        )


def _row(heads: pd.DataFrame, layer: int, head: int) -> dict[Any, Any] | None:
    """The row of a head; ``None`` where its layer has no softmax attention."""
    rows = heads[(heads["layer"] == layer) & (heads["head"] == head)].to_dict("records") if len(heads) else []
    return rows[0] if rows else None


_MOST_TEXTS: Final = 16
_MOST_HOVERS: Final = 600


@dataclass
class TextRun(CensusRun):
    """One text of a census by itself: the same panels, with this text's numbers.

    Attributes:
        sequence: Which one.
        one: Its numbers.
    """

    sequence: int = field(kw_only=True)
    one: OneSequence = field(kw_only=True, repr=False)

    @classmethod
    def of_census(cls, whole: CensusRun, sequence: int, numbers: OneSequence) -> "TextRun":
        """A view of the census, which shares everything with it."""
        shared = {
            name: getattr(whole, name) for name in ("name", "label", "kind", "meta", "tables", "notes", "drawings")
        }
        found = cls(
            **shared, maps=whole.maps, windows=whole.windows, arrays=whole.arrays, sequence=sequence, one=numbers
        )
        found.__dict__["_sequences"] = whole._sequences
        return found

    @property
    def of(self) -> str:
        """Which text of how many."""
        return f"text {self.sequence} of {len(self.lengths)}"

    @property
    def is_one_text(self) -> bool:
        """Always."""
        return True

    @cached_property
    def _own(self) -> pd.DataFrame:
        rows = self.tokens(self.sequence)
        special, bos = (rows[name].to_numpy(bool) if name in rows else None for name in ("is_special", "is_bos"))
        return self.one.heads(dict(self.meta.get("settings") or {}), special, bos)

    def heads(self) -> pd.DataFrame:
        """One row per head, of this text."""
        return self._own

    def positions(self, layer: int, head: int) -> Positions:
        """Attention received and value norms of a head by position, on this text."""
        return _positions(self.one, layer, head, self.of, self.token_strings(self.sequence))

    def _token_at(self, position: int) -> str:
        return f"token {visible_text(str(self.tokens(self.sequence)['token'].iloc[position]))}"


def _positions(one: OneSequence, layer: int, head: int, of: str, tokens: list[str]) -> Positions:
    """What a head does by position on one text."""
    received: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    if layer < one.importance.shape[1] and head < one.importance.shape[2]:
        received = {"importance": one.importance[:, layer, head], "null": one.null[:, layer]}
        if one.value_norm is not None:
            group = max(1, one.importance.shape[2] // one.value_norm.shape[2])
            values["value_norm"] = one.value_norm[:, layer, head // group]
        if one.output_norm is not None:
            values["output_norm"] = one.output_norm[:, layer, head]
    plain = [{name: np.asarray(each) for name, each in some.items()} for some in (received, values)]
    return Positions(plain[0], plain[1], of, tokens)


def _padded(values: np.ndarray, layers: int) -> np.ndarray:
    """Layers without attention at the end that a table does not have."""
    missing = layers - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan) if missing > 0 else values


def census_run(
    name: str, label: str, meta: Mapping[str, Any], tables: Tables, maps: Mapping[str, AttentionMap], arrays: Arrays
) -> Run:
    """A census from its parts."""
    kept = {(0, each.layer, each.head): each for each in maps.values()}
    return CensusRun(
        name, label, Census.format, meta, tables, drawings=drawings(Census.format), maps=kept, arrays=arrays
    )
