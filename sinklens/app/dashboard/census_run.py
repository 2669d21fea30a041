"""A census in the dashboard: heads, tokens, attention maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.app.dashboard.figures.by_position import by_position
from sinklens.app.dashboard.run import Fact, Run, Score
from sinklens.app.dashboard.stored import Tables
from sinklens.app.drawings import drawings
from sinklens.errors import InputError, ResultError
from sinklens.plots.sink_heatmap import HeadValue, sink_heatmap
from sinklens.plots.style import empty_figure, head_label, number, visible_text
from sinklens.studies.census.result import AttentionMap, Census

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


@dataclass
class CensusRun(Run):
    """A census, saved or computed here.

    Attributes:
        maps: Attention maps by sequence, layer and head; those that a census keeps are of sequence 0.
        windows: Exact pieces of maps by sequence, layer, head and region ``(q0, q1, k0, k1)``.
    """

    maps: dict[tuple[int, int, int], AttentionMap] = field(default_factory=dict, repr=False)
    windows: dict[tuple[int, int, int, tuple[int, int, int, int]], np.ndarray] = field(default_factory=dict, repr=False)

    has_tokens = True

    def _find_scores(self) -> tuple[Score, ...]:
        if "heads" not in self.tables.names:
            return ()
        heads, metrics = self.tables.frame("heads"), dict(self.meta.get("metrics") or {})
        found = []
        order = [*LABELS, *(name for name in get_args(HeadValue) if name not in LABELS)]
        for column in order:
            if column in heads and heads[column].notna().any():
                metric = metrics.get(({**_METRICS, **_METRICS_ALSO}).get(column, column))
                text = ""
                if isinstance(metric, Mapping):
                    text = f"{metric['definition']} (v{metric['version']}; {metric['source']})"
                found.append(Score(column, LABELS.get(column, column), text))
        return tuple(found)

    def _score_column(self, score: str) -> tuple[pd.DataFrame, str]:
        return self.tables.frame("heads"), score

    def _draw_grid(self, score: str) -> go.Figure:
        return sink_heatmap(self.tables.frame("heads"), value=score, n_layers=self.model.get("n_layers"))  # type: ignore[arg-type]

    def table_for_grid(self) -> pd.DataFrame:
        """The table of heads."""
        return self.tables.frame("heads") if "heads" in self.tables.names else pd.DataFrame()

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sequence."""
        return [len(rows) for rows in self._sequences()]

    def tokens(self, sequence: int) -> pd.DataFrame:
        """Rows of the table of tokens of one sequence, in order.

        Raises:
            InputError: There is no such sequence.
        """
        rows = self._sequences()
        if not 0 <= sequence < len(rows):
            raise InputError(f"This census has the sequences 0 to {len(rows) - 1}, not {sequence}.")
        return rows[sequence]

    def token_strings(self, sequence: int) -> list[str]:
        """Its tokens."""
        return [str(token) for token in self.tokens(sequence)["token"]]

    def map(self, sequence: int, layer: int, head: int) -> AttentionMap | None:
        """The attention map of a head, if it was kept or computed."""
        return self.maps.get((sequence, layer, head))

    def facts(self, layer: int, head: int) -> list[Fact]:
        """A head's numbers, each beside its null."""
        if "heads" not in self.tables.names:
            return []
        heads = self.tables.frame("heads")
        rows = heads[(heads["layer"] == layer) & (heads["head"] == head)].to_dict("records")
        if not rows:
            return [Fact("attention", "not applicable", "this layer has no softmax attention")]
        row: dict[Any, Any] = rows[0]

        def value(name: str) -> str:
            return number(float(row[name])) if name in row and row[name] is not None else "n/a"

        eps = dict(self.meta.get("settings") or {}).get("eps", "?")
        position = int(row["sink_position"])
        out = [Fact("strongest key", str(position), self._token_at(position))]
        lines = [
            ("importance", "importance", f"uniform null {value('null')}, {value('ratio')} times"),
            ("sink rate", "sink_rate", f"share of sequences above eps {eps}"),
            ("importance of position 0", "importance_first", f"uniform null {value('null_first')}"),
            ("entropy", "entropy", f"nats; uniform {value('entropy_null')}"),
            ("distance", "distance", "tokens, mean over queries"),
            ("attention on BOS", "bos_mass", ""),
            ("missing mass", "missing_mass", "1 - row sum: a learned sink or an edit"),
            ("gate", "gate", "mean of the output gate"),
            ("value drain", "drain", f"|v| of the strongest key / others (KV head {row.get('kv_head', '?')})"),
            ("value drain after W_O", "drain_wo", "|W_O v| of the strongest key / others"),
            ("logit margin", "delta_logit", "strongest key above the others"),
        ]
        return out + [
            Fact(what, value(name), beside) for what, name, beside in lines if name in row and row[name] == row[name]
        ]

    def head_figure(self, layer: int, head: int, token: int | None) -> go.Figure:
        """Attention received and value norms by position, means over the sequences."""
        received = self._at(layer, head, "sinks", ("importance", "null"))
        values = self._at(layer, head, "value_drains", ("value_norm", "output_norm"))
        if not received and not values:
            return empty_figure(head_label(layer, head), "Not measured: this scan kept nothing by position.")
        count = len(self.lengths)
        note = "one sequence" if count == 1 else f"mean over {count} sequences"
        return by_position(
            layer, head, received, values, self.token_strings(0) if count == 1 else [], token=token, note=note
        )

    def received(self, layer: int, head: int) -> np.ndarray | None:
        """Importance of every position for a head, mean over the sequences; ``None`` where not measured."""
        return self._at(layer, head, "sinks", ("importance",)).get("importance")

    def received_by_head(self, position: int) -> np.ndarray | None:
        """Importance of one position for every head ``[layer head]``, mean over the sequences."""
        cube = self.tables.cube("sinks").get("importance")
        if cube is None or position >= cube.shape[2]:
            return None
        shape = (int(self.model.get("n_layers") or cube.shape[0]), cube.shape[1])
        out = np.full((max(shape[0], cube.shape[0]), shape[1]), np.nan, dtype=np.float32)
        out[: cube.shape[0]] = cube[:, :, position]
        return out

    def norms(self, sequence: int) -> tuple[pd.DataFrame, str]:
        """Residual norms by layer and position, and what they are: of the sequence itself where it was kept."""
        if sequence == 0 and "profile" in self.tables.names:
            return self.tables.frame("profile"), "this sequence"
        if "residual_norms" in self.tables.names:
            return self.tables.frame("residual_norms"), "mean over sequences"
        return pd.DataFrame({"layer": [], "position": [], "resid_norm": []}), ""

    def massive(self, sequence: int, position: int) -> pd.DataFrame:
        """The largest entries of the residual stream at one token that are among the largest of their layer."""
        if "massive" not in self.tables.names:
            return pd.DataFrame()
        table = self.tables.frame("massive")
        return table[(table["sequence"] == sequence) & (table["position"] == position)].sort_values("layer")

    def _at(self, layer: int, head: int, table: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows = self.tables.head(table, layer, head)
        return {name: rows[name] for name in columns if name in rows}

    def _token_at(self, position: int) -> str:
        tokens = {rows["token"].iloc[position] for rows in self._sequences() if position < len(rows)}
        return f"token {visible_text(str(tokens.pop()))}" if len(tokens) == 1 else "different tokens by sequence"

    def _sequences(self) -> list[pd.DataFrame]:
        if not hasattr(self, "_rows"):
            if "tokens" not in self.tables.names:
                raise ResultError("This census keeps no table of tokens; scan again.")
            table = self.tables.frame("tokens").sort_values(["sequence", "position"], kind="stable")
            self._rows = [rows for _, rows in table.groupby("sequence", sort=True)]
        return self._rows


def census_run(name: str, label: str, meta: Mapping[str, Any], tables: Tables, maps: Mapping[str, AttentionMap]) -> Run:
    """A census from its parts."""
    kept = {(0, each.layer, each.head): each for each in maps.values()}
    return CensusRun(name, label, Census.format, meta, tables, drawings=drawings(Census.format), maps=kept)
