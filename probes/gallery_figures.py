"""The figures of the gallery: each from the runs to a picture and the table behind it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
from gallery_runs import FIGURES, Runs

from sinklens import plots
from sinklens.plots.pooling import pooled
from sinklens.results.table import Table
from sinklens.studies.census.result import AttentionMap

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
        of: The pages that it stands on: "real", "toys".
    """

    name: str
    title: str
    read: str
    draw: Callable[[Runs], Drawn]
    scale: float = 1.0
    of: tuple[str, ...] = ("real", "toys")


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
    few = len(maps) <= 32
    return plots.head_montage(maps, cells=32 if few else 16), weights(maps, 2 if few else 16)


def sink_share(runs: Runs) -> Drawn:
    """Attention on position 0 by layer, of three models."""
    names = ("layer", "head", "importance_first", "null_first")
    tables = {run: columns(each.heads, *names) for run, each in {runs.name: runs.census, **runs.others}.items()}
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
    table = runs.census.state_norms.to_dataframe()
    return plots.state_norms(table), table


def channels(runs: Runs, kind: Literal["2d", "3d"]) -> Drawn:
    """The strongest channels of the layer with the largest entry."""
    table = runs.census.channel_profile.to_dataframe()
    drawn = int(table["layer"].iloc[int(table["value"].abs().argmax())])
    return plots.massive_map(table, layer=drawn, kind=kind), table[table["layer"] == drawn]


def top_magnitudes(runs: Runs) -> Drawn:
    """The largest entries against the median."""
    names = ("sequence", "layer", "position", "token", "channel", "value", "median")
    table = columns(runs.census.massive_activations, *names)
    first = table.assign(size=table["value"].abs(), rank=lambda t: t.groupby(["sequence", "layer"]).cumcount() + 1)
    return plots.top_magnitudes(table), first.groupby(["layer", "rank"])[["size", "median"]].mean().reset_index()


def lifecycle(runs: Runs) -> Drawn:
    """Which layer writes the largest entry."""
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
    norms = runs.census.state_norms.to_dataframe()
    keys = norms[norms["state"] == "key"][["layer", "kv_head", "ratio"]].astype({"kv_head": "int64"})
    return plots.entropy_scatter(table, norms), table.merge(keys, on=["layer", "kv_head"])


def sweep_rows(runs: Runs, *kinds: str) -> pd.DataFrame:
    """Rows of the sweep's summary."""
    table = runs.sweep[runs.sweep["kind"].isin(kinds)]
    return table.dropna(axis="columns", how="all").drop(columns=["heads"], errors="ignore")


def ablation_heatmap(runs: Runs) -> Drawn:
    """Every head by itself."""
    return plots.ablation_heatmap(runs.sweep, n_layers=runs.census.meta["model"]["n_layers"]), sweep_rows(runs, "head")


def cumulative_curve(runs: Runs) -> Drawn:
    """The first k heads."""
    return plots.cumulative_curve(runs.sweep), sweep_rows(runs, "top", "random")


def before_after(runs: Runs) -> Drawn:
    """Sets of heads and their controls."""
    rows = runs.sweep[runs.sweep["kind"].isin(["group", "top"])]
    return plots.before_after(rows), sweep_rows(runs, "group", "top")


def training(runs: Any) -> Drawn:
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


def whole(name: str, *names: str, run: str = "census", table: str | None = None) -> Callable[[Runs], Drawn]:
    """A figure of a table as it stands.

    Args:
        name: Of the figure.
        names: Columns of the table that are written; default: all.
        run: Which run.
        table: Which table; default: that of the figure's name.
    """

    def draw(runs: Runs) -> Drawn:
        result = getattr(runs, run)
        frame = result.tables[table or name]
        return getattr(plots, name)(result), frame[[*names]] if names else frame

    return draw


def needle_grid(runs: Runs) -> Drawn:
    """Found or not."""
    table = runs.needles.grid.to_dataframe()
    return plots.needle_grid(table), table


def head_scores(runs: Runs) -> Drawn:
    """Retrieval scores."""
    scores = runs.needles.heads
    return plots.head_scores(runs.needles), (scores() if callable(scores) else scores).to_dataframe()


def secondary_sinks(runs: Runs) -> Drawn:
    """Tokens that point along the BOS."""
    names = ("sequence", "position", "token", "label", "first_layer", "last_layer", "life", "importance_max")
    return plots.secondary_sinks(runs.census), runs.census.tables["secondary_sinks"][[*names]]


def massive_table(runs: Runs) -> Drawn:
    """The largest entries in words."""
    from sinklens.plots.massive_table import strongest_channels

    tables = runs.census.tables
    return plots.massive_table(runs.census), strongest_channels(tables["massive"], tables["massive_episodes"])


def eps_sweep(runs: Runs) -> Drawn:
    """Sink rate by threshold."""
    table = runs.census.tables["eps_sweep"]
    means = table[table["position"] == 0].groupby("eps")["sink_rate"].mean().reset_index()
    return plots.eps_sweep(runs.census), means


def sink_causes(runs: Runs) -> Drawn:
    """Why heads sink."""
    names = ["layer", "head", "name", "margin", "channel", "channel_share", "component", "n_channels", "channels_share"]
    return plots.sink_causes(runs.causes), runs.causes.tables["heads"][names]


def massive_sources(runs: Runs) -> Drawn:
    """Which weights write massive activations."""
    table = next(iter(runs.sources.tables.values()))
    return plots.massive_sources(runs.sources), table.select_dtypes(["number", "object", "str"]).head(400)


def study(name: str, run: str, table: str = "") -> Callable[[Runs], Drawn]:
    """A figure of a study with its main table, or what its ``summary()`` gives."""

    def draw(runs: Runs) -> Drawn:
        found = getattr(runs, run)
        shown = found.summary() if table == "summary" else found.to_dataframe(table or None)
        return getattr(plots, name)(found), shown

    return draw


def policy_costs(runs: Any) -> Drawn:
    """What rules keep and cost."""
    names = (
        "policy",
        "rule",
        "budget",
        "scope",
        "group",
        "kept",
        "mass",
        "delta_loss",
        "delta_loss_low",
        "delta_loss_high",
    )
    return plots.policy_costs(runs.policies), runs.policies[[*names]]


def active_dormant(runs: Runs) -> Drawn:
    """The committed judgement of tiny-llama's heads."""
    table = pd.read_csv(FIGURES / "active_dormant_heads.csv")
    return plots.active_dormant(table), table


def step_heatmap(runs: Any) -> Drawn:
    """Heads through training."""
    table = runs.dynamics.tables["heads"]
    shown = table[table["domain"] == runs.dynamics.domains[0]]
    return plots.step_heatmap(shown), shown[["step", "layer", "head", "importance_first"]]


def calibration(runs: Any) -> Drawn:
    """Answers before and after."""
    return plots.calibration(runs.calibration), runs.calibration.summary()


def head_roles(runs: Any) -> Drawn:
    """Roles of every head."""
    return plots.head_roles(runs.roles), runs.roles.tables["heads"].select_dtypes("number")


def retrieval_join(runs: Any) -> Drawn:
    """Retrieval against sinks."""
    return plots.retrieval_join(runs.roles), runs.roles.retrieval_join().heads


DOMAIN_COLUMNS = ("layer", "head", "domain", "importance_first", "null_first", "importance_first_difference")
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
    Entry("massive_activations", "Largest entry and the thresholds", "A ringed layer meets both criteria of Sun et "
          "al., |h| above 100 and above 1,000 times the median.", massive_activations),
    Entry("residual_peaks", "Residual norm by layer", "The gap between the lines is the residual peak.",
          residual_peaks),
    Entry("norms_by_token", "Residual norm by layer and token", "A bright column is a token with a residual peak.",
          norms_by_token),
    Entry("lifecycle", "Life of a massive activation", "Bars are what attention and MLP of each layer add; the line is "
          "the entry after the layer.", lifecycle),
    Entry("drain_scatter", "Value drain against sink strength", "Sink heads lie at the lower right: the values of "
          "their sink are drained.", drain_scatter),
    Entry("sink_causes", "What makes heads sink", "Shares of the margin by residual channel (above) and by writer "
          "(below).", sink_causes, of=("real",)),
    Entry("massive_sources", "Which weights write massive activations", "From the entry back to the weight that writes "
          "it.", massive_sources, of=("toys",)),
    Entry("donors", "What the value at the sink does", "Marks at 0: whatever stands in the sink's place, nothing "
          "is lost; open marks are the same at another position.", study("donors", "donors", "donors"), of=("toys",)),
    Entry("near_far", "Near keys alone, far keys alone", "A head that works near loses nothing by the upper "
          "restriction and much by the lower.", study("near_far", "near_far"), of=("toys",)),
    Entry("generation", "While generating", "Which generated tokens become sinks, and which are massive.",
          study("generation", "generation", "tokens"), of=("toys",)),
    Entry("extreme_tokens", "Extreme tokens of a corpus", "In which channels of which layers, and which tokens.",
          study("extreme_tokens", "extreme", "channels"), of=("toys",)),
    Entry("injection", "Inserted tokens", "Whether later tokens look at what was put in, beside random tokens there.",
          study("injection", "injection", "summary"), of=("toys",)),
    Entry("pooling_ranks", "Poolings as embeddings", "A mean that holds the sink makes all texts alike.",
          study("pooling_ranks", "pooling", "summary"), of=("real",)),
    Entry("span_heads", "Heads of a span", "Red: heads that depend on the right document more than on another.",
          study("span_heads", "spans", "heads"), of=("toys",)),
    Entry("factual_recall", "Recall of facts", "What each layer adds to the right answer, and how likely it is "
          "after it.", study("factual_recall", "recall"), of=("real",)),
    Entry("entropy_scatter", "Entropy against key norm", "A sink head below 1 has a sink with a short key: direction, "
          "not length, makes it.", entropy_scatter),
    Entry("ablation_heatmap", "Ablation of every head", "Red: the loss rises without the head; diamonds mark intervals "
          "that leave out 0.", ablation_heatmap),
    Entry("cumulative_curve", "The first k heads against k random ones", "The ranking found something where its line "
          "leaves the band of random sets.", cumulative_curve),
    Entry("before_after", "Sets of heads and their controls", "An effect that its grey controls share is no effect of "
          "what was chosen.", before_after),
    Entry("needle_grid", "Needles by length and depth", "Yellow: found. A window of 128 tokens with sinks loses the "
          "needles that lie before it.", needle_grid),
    Entry("head_scores", "Retrieval scores of every head", "Bright cells copy the needle's answer from where it "
          "stands.", head_scores),
    Entry("policy_costs", "What KV-cache rules read and cost", "Beside each rule the keys that it really reads; "
          "further left costs less. Bars are 95 % intervals.", policy_costs, of=("real",)),
    Entry("eps_sweep", "Sink rate by threshold", "A finding that holds at one threshold only is a finding about the "
          "threshold.", eps_sweep),
    Entry("massive_table", "The largest entries by channel", "Where each channel lives, and its largest entry.",
          massive_table, of=("real",)),
    Entry("secondary_sinks", "Secondary sinks", "Tokens that turn along the BOS's direction for some layers, by when "
          "and for how long.", secondary_sinks, of=("real",)),
    Entry("decorrelation", "Alignment with position 0", "High where the other tokens' states point as position 0's.",
          whole("decorrelation")),
    Entry("compression", "Compression", "The valley of all tokens that is not there without position 0 is the length "
          "of one row.", whole("compression")),
    Entry("domain_differences", "Position 0 by kind of text", "A bar beyond 0 is a head that rests on position 0 more "
          "in one kind of text.", whole("domain_differences", *DOMAIN_COLUMNS, run="domains", table="domains"),
          of=("real",)),
    Entry("dynamics", "Through training", "Sink, margin, drain, peak and loss of the same model's checkpoints.",
          training, scale=0.85, of=("toys",)),
    Entry("step_heatmap", "Heads through training", "Columns are checkpoints: which head's attention to position 0 "
          "grows when.", step_heatmap, of=("toys",)),
    Entry("active_dormant", "Active and dormant heads", "Left: rests on the sink; right: what its removal costs.",
          active_dormant, of=("toys",)),
    Entry("calibration", "A calibration", "Answers of the model, of the tuned one, and with random heads changed.",
          calibration, of=("toys",)),
    Entry("head_roles", "Roles of every head", "Scores by several criteria, labels marked, and whether they agree.",
          head_roles, of=("toys",)),
    Entry("retrieval_join", "Retrieval, sinks and induction", "Heads at the upper right rest on their sink in text and "
          "copy a needle.", retrieval_join, of=("toys",)),
    Entry("token_types", "Kinds of tokens among the sinks", "A bar beyond its line: a kind that is more "
          "often a sink than its share of all tokens says.", token_types),
    Entry("token_strip", "Tokens by received attention", "Log colours: the brightest token is the sink.", token_strip),
)  # fmt: skip
