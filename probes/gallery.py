"""What do the figures of the field look like on the built-in models?

Draws every published kind of figure that sinklens offers, from `tiny-llama` (and the Bigram-Backcopy models where it
says so), and writes for each one a PNG, the table behind it, an interactive HTML file, and a page with all of them.
The same command gives the same tables.

    python probes/gallery.py                          everything into figures/gallery: about a minute and a half
    python probes/gallery.py --only drain_scatter sink_share
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import plotly.graph_objects as go
import torch
from gallery_page import html_page, markdown

import sinklens
from sinklens import plots
from sinklens.detectors import measure
from sinklens.errors import SinkLensError
from sinklens.interventions import SlidingWindow
from sinklens.models.tokens import TokenBatch
from sinklens.passes.sequences import choose_sequences
from sinklens.plots.massive_table import strongest_activations
from sinklens.plots.pooling import pooled
from sinklens.plots.save_figure import Saving, save_figures
from sinklens.results.files import write_atomically
from sinklens.results.table import Table
from sinklens.studies import Dynamics, make_needles, measure_dynamics, measure_needles
from sinklens.studies.census.result import AttentionMap, Census

MODEL = "tiny-llama"
OTHERS = ("bb-3l", "bb-1l")
DIGITS = 6
"""Significant digits in the tables: beyond them machines differ."""


class Runs:
    """What the figures are made from, each run once and only if a figure asks for it."""

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences

    @cached_property
    def model(self) -> Any:
        """The model of most figures."""
        return sinklens.load(MODEL)

    @cached_property
    def batch(self) -> TokenBatch:
        """Its texts, those that a scan takes by default."""
        batch, _source = choose_sequences(self.model, None, None, "auto", None, False, 0, None, self.sequences)
        return batch

    @cached_property
    def census(self) -> Census:
        """Everything a scan finds, with the maps of all heads."""
        return sinklens.scan(self.model, max_sequences=self.sequences, maps=10_000)

    @cached_property
    def others(self) -> dict[str, Census]:
        """Scans of the other models."""
        return {name: sinklens.scan(name, max_sequences=self.sequences) for name in OTHERS}

    @cached_property
    def norms(self) -> pd.DataFrame:
        """Norms of states at position 0 against the others."""
        return measure(self.model, self.batch, "state_norms").tables["state_norms"]

    @cached_property
    def channels(self) -> pd.DataFrame:
        """The strongest channels of the first sequence."""
        return measure(self.model, self.batch.rows([0]), "channel_profile").tables["channel_profile"]

    @cached_property
    def traced(self) -> pd.DataFrame:
        """Contributions to the largest entry of the residual stream."""
        best = strongest_activations(self.census.massive_activations.to_dataframe(), 1).iloc[0]
        entries = [(int(best["position"]), int(best["channel"]))]
        return measure(self.model, self.batch, "lifecycle", entries=entries).tables["lifecycle"]

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """What ablating heads does: each alone, the sink heads together, and the first k of their order."""
        heads = self.census.heads.to_dataframe()
        sinks = [f"L{layer}H{head}" for layer, head in heads.loc[heads["is_sink"], ["layer", "head"]].to_numpy()]
        groups = {"sink heads": sinks} if sinks else None
        result = sinklens.sweep(
            self.model, "zero", tokens=self.batch, heads="all", groups=groups, ranking="own", controls=20
        )
        return result.summary.to_dataframe()

    @cached_property
    def needles(self) -> pd.DataFrame:
        """Needles in a model with induction heads, as it is and with a window of the last 128 tokens and 4 sinks."""
        model = sinklens.load("induction-2l")
        hidden = make_needles(model, "random", lengths=[64, 128, 256, 448], repeats=5)
        changed = {"window of 128, 4 sinks": SlidingWindow(128, sinks=4)}
        return measure_needles(model, hidden, interventions=changed, keys=False).grid.to_dataframe()

    @cached_property
    def dynamics(self) -> Dynamics:
        """The model's checkpoints through training."""
        return measure_dynamics(MODEL, max_sequences=max(2, self.sequences // 4))


Drawn = tuple[go.Figure | str, pd.DataFrame]


@dataclass(frozen=True)
class Entry:
    """One figure of the gallery.

    Attributes:
        name: Of its files.
        title: What it shows.
        read: How to read it, one sentence.
        draw: Makes the figure (or, for a strip of tokens, HTML) and the table behind it.
        scale: Image pixels per layout pixel, so that no PNG passes 150 KB.
    """

    name: str
    title: str
    read: str
    draw: Callable[[Runs], Drawn]
    scale: float = 1.0


def columns(table: Table, *names: str) -> pd.DataFrame:
    """Some columns of a census's table."""
    return table.to_dataframe()[[*names]]


def sink_heatmap(runs: Runs) -> Drawn:
    """Score of every head."""
    table = columns(
        runs.census.heads,
        "layer",
        "head",
        "sink_position",
        "importance",
        "null",
        "ratio",
        "sink_rate",
        "entropy",
        "drain",
    )
    return plots.sink_heatmap(table, value="importance"), table


def strongest_map(runs: Runs) -> AttentionMap:
    """The map of the strongest sink head."""
    heads = runs.census.heads.to_dataframe().sort_values("importance", ascending=False)
    return runs.census.maps[f"L{heads['layer'].iloc[0]}H{heads['head'].iloc[0]}"]


def weights(maps: Iterable[AttentionMap], cell: int) -> pd.DataFrame:
    """Maps as a table: a row for each visible cell; positions are those of the first token of the cell."""
    rows = []
    for one in maps:
        values = pooled(one.values, cell, (0, 1))
        for query in range(values.shape[0]):
            for key in range(query + 1):
                rows.append((one.layer, one.head, query * cell, key * cell, round(float(values[query, key]), 4)))
    return pd.DataFrame(rows, columns=["layer", "head", "query", "key", "weight"])


def attention_map(runs: Runs) -> Drawn:
    """One head."""
    one = strongest_map(runs)
    return plots.attention_map(one, log=True), weights([one], 1)


def head_montage(runs: Runs) -> Drawn:
    """All heads."""
    maps = runs.census.maps.values()
    return plots.head_montage(maps, cells=32), weights(maps, 2)


def sink_share(runs: Runs) -> Drawn:
    """Attention on position 0 by layer, of three models."""
    names = ("layer", "head", "importance_first", "null_first")
    tables = {run: columns(each.heads, *names) for run, each in {MODEL: runs.census, **runs.others}.items()}
    return plots.sink_share(tables), pd.concat([table.assign(run=name) for name, table in tables.items()])


def received_mass(runs: Runs) -> Drawn:
    """Attention received by position."""
    table = columns(runs.census.sinks, "layer", "head", "position", "importance", "null")
    means = table.groupby(["layer", "position"])[["importance", "null"]].mean().reset_index()
    return plots.received_mass(table), means


def massive_activations(runs: Runs) -> Drawn:
    """Largest and median entry, with the thresholds."""
    table = columns(runs.census.layers, "layer", "max_abs", "median_abs", "top_position", "top_token", "top_channel")
    return plots.massive_activations(table), table


def residual_peaks(runs: Runs) -> Drawn:
    """Norm of position 0 against the others."""
    table = columns(runs.census.layers, "layer", "resid_norm_first", "resid_norm_others", "resid_ratio", "resid_growth")
    return plots.residual_peaks(table), table


def norms_by_token(runs: Runs) -> Drawn:
    """Residual norms of one text."""
    table = runs.census.tables["profile"][["layer", "position", "token", "resid_norm"]]
    return plots.norms_by_token(table), table


def state_norms(runs: Runs) -> Drawn:
    """Norms of hidden states, keys and values."""
    return plots.state_norms(runs.norms), runs.norms


def channels(runs: Runs, kind: Literal["2d", "3d"]) -> Drawn:
    """The strongest channels of the layer with the largest entry."""
    table = runs.channels
    drawn = int(table["layer"].iloc[int(table["value"].abs().argmax())])
    return plots.massive_map(table, layer=drawn, kind=kind), table[table["layer"] == drawn]


def top_magnitudes(runs: Runs) -> Drawn:
    """The largest entries against the median."""
    names = ("sequence", "layer", "position", "token", "channel", "value", "median")
    table = columns(runs.census.massive_activations, *names)
    first = table.assign(size=table["value"].abs(), rank=lambda t: t.groupby(["sequence", "layer"]).cumcount() + 1)
    return plots.top_magnitudes(table), first.groupby(["layer", "rank"])[["size", "median"]].mean().reset_index()


def lifecycle(runs: Runs) -> Drawn:
    """Which block writes the largest entry."""
    parts = ["before", "attention", "mlp", "after"]
    means = runs.traced.groupby(["position", "channel", "layer"])[parts].mean().reset_index()
    return plots.lifecycle(runs.traced), means


def drain_scatter(runs: Runs) -> Drawn:
    """Value drain against sink strength."""
    table = columns(
        runs.census.heads, "layer", "head", "sink_position", "importance", "null", "drain", "drain_wo", "is_sink"
    )
    return plots.drain_scatter(table), table


def entropy_scatter(runs: Runs) -> Drawn:
    """Entropy against key norm."""
    table = columns(runs.census.heads, "layer", "head", "kv_head", "entropy", "entropy_null", "is_sink")
    keys = runs.norms[runs.norms["state"] == "key"][["layer", "kv_head", "ratio"]].astype({"kv_head": "int64"})
    return plots.entropy_scatter(table, runs.norms), table.merge(keys, on=["layer", "kv_head"])


def sweep_rows(runs: Runs, *kinds: str) -> pd.DataFrame:
    """Rows of the sweep's summary."""
    table = runs.sweep[runs.sweep["kind"].isin(kinds)]
    return table.dropna(axis="columns", how="all").drop(columns=["heads"], errors="ignore")


def ablation_heatmap(runs: Runs) -> Drawn:
    """Every head by itself."""
    return plots.ablation_heatmap(runs.sweep, n_layers=len(runs.model.blocks)), sweep_rows(runs, "head")


def cumulative_curve(runs: Runs) -> Drawn:
    """The first k heads."""
    return plots.cumulative_curve(runs.sweep), sweep_rows(runs, "top", "random")


def before_after(runs: Runs) -> Drawn:
    """Sets of heads and their controls."""
    rows = runs.sweep[runs.sweep["kind"].isin(["group", "top"])]
    return plots.before_after(rows), sweep_rows(runs, "group", "top")


def training(runs: Runs) -> Drawn:
    """Through training."""
    return plots.dynamics(runs.dynamics.to_dataframe(), runs.dynamics.heads()), runs.dynamics.to_dataframe()


def token_types(runs: Runs) -> Drawn:
    """Kinds of tokens among the sinks."""
    table = runs.census.token_types.to_dataframe()
    names = ["by", "name", "occurrence", "n_tokens", "token_share", "n_sinks", "sink_share"]
    return plots.token_types(table), table.loc[table["by"] == "class", names]


def token_strip(runs: Runs) -> Drawn:
    """Tokens coloured by what they receive."""
    table = runs.census.tokens.to_dataframe()
    table = table[table["sequence"] == 0]
    return plots.token_strip(table), table[["position", "token_id", "token", "received", "n_sink_heads", "peak_ratio"]]


ENTRIES = (
    Entry("sink_heatmap", "Score of every head", "A bright cell is a head whose strongest key takes most of its "
          "attention; even attention gives 0.07.", sink_heatmap),
    Entry("attention_map", "One head", "Queries run downwards, keys to the right; the bright first column is the sink.",
          attention_map),
    Entry("head_montage", "All heads at once", "One small map a head: bright left edges are sinks, diagonals are heads "
          "that look at the tokens just before.", head_montage),
    Entry("sink_share", "Sink share by layer", "Mean over heads with the middle half as a band; the dashed line is "
          "what even attention gives.", sink_share),
    Entry("received_mass", "Attention by key position", "The sink stands far above the dashed null at position 0; late "
          "keys rise where heads look nearby.", received_mass),
    Entry("state_norms", "Norms: sink against the others", "Above 1 the sink's state is longer than the others' "
          "(residual peak), below 1 shorter (drained values).", state_norms),
    Entry("massive_map", "Massive activations, token by channel", "The dark cell is one channel of one token, which "
          "carries the largest entry of the layer.", lambda runs: channels(runs, "2d")),
    Entry("massive_map_3d", "The same in space", "Height is |h|; one line a channel.",
          lambda runs: channels(runs, "3d")),
    Entry("top_magnitudes", "Largest entries against the median", "Lines far above the dashed median over many layers "
          "are massive activations.", top_magnitudes),
    Entry("massive_activations", "Largest entry and the thresholds", "A ringed layer would meet both criteria of Sun "
          "et al.; this model meets one.", massive_activations),
    Entry("residual_peaks", "Residual norm by layer", "The gap between the lines is the residual peak.",
          residual_peaks),
    Entry("norms_by_token", "Residual norm by layer and token", "A bright column is a token with a residual peak.",
          norms_by_token),
    Entry("lifecycle", "Life of a massive activation", "Bars are what attention and MLP of each block add; the line is "
          "the entry after the block.", lifecycle),
    Entry("drain_scatter", "Value drain against sink strength", "Sink heads lie at the lower right: the values of "
          "their sink are drained.", drain_scatter),
    Entry("entropy_scatter", "Entropy against key norm", "A sink head below 1 has a sink with a short key: direction, "
          "not length, makes it.", entropy_scatter),
    Entry("ablation_heatmap", "Ablation of every head", "Red: the loss rises without the head; diamonds mark intervals "
          "that leave out 0.", ablation_heatmap),
    Entry("cumulative_curve", "The first k heads against k random ones", "The ranking found something where its line "
          "leaves the band of random sets.", cumulative_curve),
    Entry("before_after", "Sets of heads and their controls", "An effect that its grey controls share is no effect of "
          "what was chosen.", before_after),
    Entry("needle_grid", "Needles by length and depth", "Yellow: found (by induction-2l). A window of 128 tokens with "
          "sinks loses the needles that lie before it.",
          lambda runs: (plots.needle_grid(runs.needles), runs.needles)),
    Entry("dynamics", "Through training", "Sink, margin, drain, peak and loss of the same model's checkpoints.",
          training, scale=0.85),
    Entry("token_types", "Kinds of tokens among the sinks", "A bar beyond its line: a kind that is more "
          "often a sink than its share of all tokens says.", token_types),
    Entry("token_strip", "Tokens by received attention", "Log colours: the brightest token is the sink.", token_strip),
)  # fmt: skip


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with as many digits as every machine gives."""
    floats = table.select_dtypes("floating").columns
    return table.assign(**{name: table[name].map(lambda x: float(f"{x:.{DIGITS}g}")) for name in floats})


def build(out: Path, only: list[str] | None = None, sequences: int = 50, pictures: bool = True) -> list[Path]:
    """Write the gallery, or some of its figures; the index page is written with the whole of it alone."""
    runs, written, saving, strips = Runs(sequences), [], [], {}
    for entry in ENTRIES:
        if only and entry.name not in only:
            continue
        print(f"{entry.name}: {entry.title}", file=sys.stderr, flush=True)
        figure, table = entry.draw(runs)
        if isinstance(figure, str):
            strips[entry.name] = figure
            text = rounded(table).to_csv(index=False, lineterminator="\n")
            written.append(write_atomically(out / f"{entry.name}.csv", text.encode()))
            continue
        path = out / f"{entry.name}.{'png' if pictures else 'html'}"
        saving.append(Saving(figure, path, rounded(table), scale=entry.scale, shared_js=True))
    written += save_figures(saving)
    if not only:
        written.append(write_atomically(out / "index.html", html_page(ENTRIES, strips, MODEL).encode()))
        written.append(write_atomically(out / "README.md", markdown(ENTRIES, strips, MODEL).encode()))
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--sequences", type=int, default=50, help="texts of 64 tokens")
    parser.add_argument("--no-pictures", action="store_true", help="tables and HTML alone")
    parser.add_argument("--out", type=Path, default=Path("figures/gallery"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        written = build(options.out, options.only, options.sequences, not options.no_pictures)
    except SinkLensError as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"Wrote {len(written)} files to {options.out}")


if __name__ == "__main__":
    main()
