"""The census: every detector's tables of one run, their joins, and what they say in words."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from sinklens.detectors.sink_ranking import by_importance
from sinklens.errors import ResultError
from sinklens.results.provenance import precision
from sinklens.results.table import Table
from sinklens.results.tables import load_result, save_result

FORMAT = "sinklens-census"
FORMAT_VERSION = 1
_ABSENT = {"domains": "its texts had no domains", "sinks_after": "it was made without an intervention"}


@dataclass(frozen=True)
class AttentionMap:
    """The attention map of one head on the example sequence, for display.

    Attributes:
        layer: Block index.
        head: Query head.
        values: ``[q_cell k_cell]`` fp32; NaN where the mask hides the cell.
        cell: 1 = one token per cell, else the maximum over ``cell x cell`` tokens.
        n_tokens: Length of the example sequence.
        tokens: Its token strings.
        why: Why this head is shown.
    """

    layer: int
    head: int
    values: np.ndarray
    cell: int
    n_tokens: int
    tokens: list[str]
    why: str

    @property
    def name(self) -> str:
        """``L5H1``."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class Census:
    """Extreme tokens of one model on some texts: all tables with their definitions, tokens and settings.

    Attributes:
        meta: Model, tokens with BOS provenance, metric definitions and versions, settings, warnings, verdict.
        tables: All tables by name; the properties below wrap them.
        maps: Attention maps of the most interesting heads by name, e.g. ``"L0H3"``.
    """

    meta: dict[str, Any] = field(repr=False)
    tables: dict[str, pd.DataFrame] = field(repr=False)
    maps: dict[str, AttentionMap] = field(default_factory=dict, repr=False)
    format: ClassVar[str] = FORMAT

    def _table(self, name: str) -> Table:
        if name not in self.tables:
            chosen = ", ".join(self.meta["settings"]["detectors"])
            why = _ABSENT.get(name, f"it was made with the detectors {chosen}")
            raise ResultError(f"This census has no table {name!r}: {why}.")
        return Table(name, self.tables[name])

    @property
    def sinks(self) -> Table:
        """Per layer, head and key position: importance, sink_rate, null, ratio."""
        return self._table("sinks")

    @property
    def heads(self) -> Table:
        """Per head: strongest key, sink rate, drain, entropy, masses."""
        return self._table("heads")

    @property
    def layers(self) -> Table:
        """Per layer (-1 = embedding): sink rate, residual norms, largest entries."""
        return self._table("layers")

    @property
    def tokens(self) -> Table:
        """Per token: for how many heads it is a sink, whether it is massive or special."""
        return self._table("tokens")

    @property
    def token_types(self) -> Table:
        """Sinks, massive activations and drains by token string and class, first or later in the sequence."""
        return self._table("token_types")

    @property
    def value_drains(self) -> Table:
        """Per layer, head and position: value norms and drain ratios before and after W_O."""
        return self._table("value_drains")

    @property
    def massive_activations(self) -> Table:
        """Largest residual entries per sequence and layer."""
        return self._table("massive")

    @property
    def massive_episodes(self) -> Table:
        """When each massive channel lives: runs of blocks, number of sequences, size, token-specific or everywhere."""
        return self._table("massive_episodes")

    @property
    def massive_channels(self) -> Table:
        """All massive entries counted per layer, criterion, place (position 0, others) and channel."""
        return self._table("massive_channels")

    @property
    def residual_peaks(self) -> Table:
        """Residual norm by layer and position."""
        return self._table("residual_norms")

    @property
    def peaks(self) -> Table:
        """Which tokens stand out by residual norm, per layer and position, and in how many sequences."""
        return self._table("peaks")

    @property
    def domains(self) -> Table:
        """Per head and domain: importance, sink rate and mass of position 0, and how they differ between domains."""
        return self._table("domains")

    @property
    def sinks_after(self) -> Table:
        """Sink heads by position before and under the intervention (of a scan with one)."""
        return self._table("sinks_after")

    @property
    def secondary_sinks(self) -> Table:
        """Tokens that point along the BOS in some layers: creation layer, lifetime, attention received, label."""
        return self._table("secondary_sinks")

    @property
    def decorrelation(self) -> Table:
        """Per layer: how much the other tokens' residual states point along position 0's."""
        return self._table("decorrelation")

    @property
    def compression(self) -> Table:
        """Per layer: matrix entropy and anisotropy with and without row 0 (made on request)."""
        return self._table("compression")

    @property
    def plot(self) -> Any:
        """Its figures: ``census.plot.<figure>()``, and ``dir(census.plot)`` lists those that this census can draw."""
        return import_module("sinklens.plots.draws").Drawings(self)  # by name: plots stand above

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences; the first is the headline."""
        return list(self.meta["verdict"])

    def save(self, directory: str | Path) -> Path:
        """Write the census as a directory of Parquet tables and a JSON header, complete or not at all.

        Raises:
            ResultError: The place cannot be written, or holds something else.
        """
        path = Path(directory)
        arrays = {name: m.values.astype(np.float32) for name, m in self.maps.items()}
        maps = {
            name: {"layer": m.layer, "head": m.head, "cell": m.cell, "n_tokens": m.n_tokens, "why": m.why}
            for name, m in self.maps.items()
        }
        tokens = next((m.tokens for m in self.maps.values()), [])
        meta = {"format": FORMAT, **self.meta, "maps": maps, "map_tokens": tokens}
        save_result(path, meta, self.tables, arrays)
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a saved census.

        Raises:
            ResultError: No census there, a newer format, or damaged files.
        """
        meta, tables, arrays = load_result(Path(directory), kind=FORMAT, newest=FORMAT_VERSION)
        try:
            described, tokens = meta.pop("maps"), meta.pop("map_tokens")
            maps = {name: AttentionMap(values=arrays[name], tokens=tokens, **m) for name, m in described.items()}
            meta.pop("format")
            return cls(meta, tables, maps)
        except (KeyError, TypeError) as error:
            raise ResultError(f"{directory} is damaged: {error} is missing or wrong in its header.") from error

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file that opens offline."""
        from sinklens.app.report import write_report  # the only import that points up: a result knows its report

        return write_report(self, Path(path))

    def to_markdown(self) -> str:
        """Verdict, provenance and the table of the strongest heads as Markdown."""
        model, tokens = self.meta["model"], self.meta["tokens"]
        lines = [f"# Extreme-token census of {model['name']}", ""]
        lines += [f"- {sentence}" for sentence in self.verdict]
        lines += [
            "",
            f"Model: {model['architecture']}, {model['n_layers']} layers x {model['n_heads']} heads, "
            f"{precision(model)}. "
            f"Tokens: {tokens['n_sequences']} sequences of {tokens['min_length']} to {tokens['max_length']} "
            f"({tokens['source']}). {tokens['bos']['statement']}",
            "",
        ]
        if "heads" in self.tables and len(self.tables["heads"]):
            lines += [_markdown(strongest_heads(self.tables["heads"])), ""]
        for name, metric in self.meta["metrics"].items():
            lines.append(f"- `{name}` v{metric['version']}: {metric['definition']} ({metric['source']})")
        lines += [f"- Warning: {warning}" for warning in self.meta["warnings"]]
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        from html import escape

        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.verdict)
        return f"<b>Extreme-token census of {escape(str(self.meta['model']['name']))}</b><ul>{items}</ul>"


def strongest_heads(heads: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """The heads that give their strongest key the most attention, in a short table.

    Columns: strongest key, importance alpha, its causal-uniform null and their ratio, sink rate, norm of the key's
    value state over the others' before and after W_O, entropy in nats.
    """
    columns = {
        "sink_position": "key",
        "importance": "alpha",
        "null": "null",
        "ratio": "x null",
        "sink_rate": "rate",
        "drain": "|v|",
        "drain_wo": "|W_O v|",
        "entropy": "entropy",
    }
    top = by_importance(heads).head(count)
    out = pd.DataFrame({"head": [f"L{row.layer}H{row.head}" for row in top.itertuples()]})
    for column, title in columns.items():
        if column in top:
            out[title] = top[column].to_numpy()
    return out


def _markdown(frame: pd.DataFrame) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "n/a" if np.isnan(value) else f"{value:.3g}"
        return str(value)

    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
