"""Checks of figures of sinks by position, sweeps, needles, training and studies."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens import plots
from sinklens.plots.sink_emergence import sink_emergence as draw_emergence
from tests.plots.checks import array, column, head_grid, named, same, shows
from tests.plots.synthetic_sweep import ZERO, synthetic_effects, synthetic_summary

SEEDS = st.integers(0, 10_000)


def sink_table(data: st.DataObject) -> pd.DataFrame:
    heads, n = head_grid(data), data.draw(st.integers(11, 14))
    rows = [(*place, k) for place in heads for k in range(n)]
    table = pd.DataFrame(rows, columns=["layer", "head", "position"])
    return table.assign(importance=column(data, len(rows), 2**-10, 1), null=0.07)


@shows("received_mass")
def received_mass(data: st.DataObject) -> go.Figure:
    table = sink_table(data)
    fig = plots.received_mass(table)
    seen = table[table["position"].max() + 1 - table["position"] >= 10]
    for layer, rows in seen.groupby("layer"):
        mean = rows.groupby("position")["importance"].mean()
        same(named(fig, f"layer {layer}").y, mean)
        assert list(named(fig, f"layer {layer}").x) == list(mean.index)
    same(named(fig, "causal-uniform null").y, [0.07] * seen["position"].nunique())
    return fig


@shows("eps_sweep")
def eps_sweep(data: st.DataObject) -> go.Figure:
    heads, thresholds = head_grid(data), (0.2, 0.3, 0.4)
    rows = [(*place, k, eps) for place in heads for k in (0, 5) for eps in thresholds]
    table = pd.DataFrame(rows, columns=["layer", "head", "position", "eps"])
    table["sink_rate"] = column(data, len(rows), 0, 1)
    fig = plots.eps_sweep(table)
    for trace, position in zip(fig.data, (0, 5), strict=True):
        same(trace.y, table[table["position"] == position].groupby("eps")["sink_rate"].mean(), rtol=1e-4)
    return fig


def summary(data: st.DataObject) -> pd.DataFrame:
    return synthetic_summary(synthetic_effects(data.draw(SEEDS)))


@shows("ablation_heatmap")
def ablation_heatmap(data: st.DataObject) -> go.Figure:
    table = summary(data)
    fig = plots.ablation_heatmap(table, intervention=ZERO)
    own = table[(table["intervention"] == ZERO) & (table["kind"] == "head")]
    z = array(fig.data[0].z)
    assert (~np.isnan(z)).sum() == len(own)
    same([z[row.layer, row.head] for row in own.itertuples()], own["delta_loss"])
    return fig


@shows("cumulative_curve")
def cumulative_curve(data: st.DataObject) -> go.Figure:
    table = summary(data)
    fig = plots.cumulative_curve(table)
    same(named(fig, "top k, 95 % interval").y, table[table["kind"] == "top"].sort_values("k")["delta_loss"])
    draws = table[table["kind"] == "random"]
    same(sorted(named(fig, "one random draw").y), sorted(draws["delta_loss"]))
    return fig


@shows("before_after")
def before_after(data: st.DataObject) -> go.Figure:
    rows = summary(data)
    rows = rows[rows["kind"].isin(["group", "top"])]
    fig = plots.before_after(rows)
    same(named(fig, "effect, 95 % interval").x, rows["delta_loss"])
    same(named(fig, "controls, mean ± sd").x, rows["control_mean"].dropna().astype(float))
    return fig


@shows("sink_emergence")
def sink_emergence(data: st.DataObject) -> go.Figure:
    rows = []
    for condition in ("softmax", "<b>"):
        values = column(data, 3, 0, 1)
        joined = ";".join(map(str, values))
        rows.append((condition, "g", "weights", "mass_first_bigram", float(np.mean(values)), joined))
    table = pd.DataFrame(rows, columns=["condition", "group", "reading", "figure", "mean", "values"])
    fig = draw_emergence(table)
    seeds, means = fig.data[:2]
    same(seeds.x, [float(x) for text in table["values"] for x in text.split(";")])
    same(means.x, table["mean"])
    assert list(seeds.y) == [0] * 3 + [1] * 3
    return fig


@shows("needle_grid")
def needle_grid(data: st.DataObject) -> go.Figure:
    lengths, depths = (512, 1024, 4096), (0.0, 0.5, 1.0)
    cells = [(length, depth) for length in lengths for depth in depths if data.draw(st.integers(0, 4))] or [(512, 0.0)]
    table = pd.DataFrame(
        [(variant, *cell, 4) for variant in ("clean", "<x>") for cell in cells],
        columns=["variant", "length", "depth", "n"],
    )
    table["exact"] = column(data, len(table), 0, 1)
    fig = plots.needle_grid(table)
    have = sorted({length for length, _ in cells}), sorted({depth for _, depth in cells})
    grids = []
    for variant in ("clean", "<x>"):
        grid = np.full((len(have[1]), len(have[0])), np.nan)
        for row in table[table["variant"] == variant].itertuples():
            grid[have[1].index(row.depth), have[0].index(row.length)] = row.exact
        grids.append(grid)
    for trace, grid in zip(fig.data, (*grids, grids[1] - grids[0]), strict=True):
        same(trace.z, grid)
    return fig


@shows("dynamics")
def dynamics(data: st.DataObject) -> go.Figure:
    taken, heads = (0, 10, 1000), head_grid(data)
    steps = pd.DataFrame({"step": taken, "domain": "all", "null_first": 0.07})
    names = ("importance_first", "sink_head_share", "delta_logit", "drain", "drain_wo", "resid_ratio", "loss")
    steps = steps.assign(**{name: column(data, 3, 0, 5) for name in names}, max_over_median=column(data, 3, 1, 900))
    rows = [(step, "all", *place) for step in taken for place in heads]
    by_head = pd.DataFrame(rows, columns=["step", "domain", "layer", "head"])
    by_head = by_head.assign(**dict.fromkeys(("importance_first", "delta_logit", "drain", "drain_wo"), 0.5))
    fig = plots.dynamics(steps, by_head)
    for title, name in (
        ("attention to position 0, mean", "importance_first"), ("share of heads with a sink", "sink_head_share"),
        ("logit margin", "delta_logit"), ("|v|", "drain"), ("|W_O v|", "drain_wo"), ("loss", "loss"),
        ("residual norm ratio", "resid_ratio"), ("max / median of |h|", "max_over_median"),
    ):  # fmt: skip
        line, before = (trace for trace in fig.data if trace.name == title)
        same(line.y, steps[name].iloc[1:])
        same(line.x, [1.0, 3.0])
        same(before.y, steps[name].iloc[:2])  # dotted, from step 0
        assert before.x[0] < 1.0
    return fig


@shows("calibration")
def calibration(data: st.DataObject) -> go.Figure:
    names = ["unchanged", "tuned", *(f"random-{n}" for n in range(data.draw(st.integers(0, 3))))]
    table = pd.DataFrame({"variant": names, "n": 40})
    rates = ("accuracy", "valid_rate", "accuracy_given_valid")
    for name in rates:
        table[name] = column(data, len(names), 0, 1)
        table[f"{name}_low"], table[f"{name}_high"] = table[name] / 2, (1 + table[name]) / 2
    fig = plots.calibration(table)
    for row in table.head(2).to_dict("records"):
        trace = named(fig, f"{row['variant']}, 95 % interval")
        same(trace.x, [row[name] for name in rates])
        same(trace.error_x.array, [row[f"{name}_high"] - row[name] for name in rates])
    if len(names) > 2:
        same(named(fig, "random heads").x, table.iloc[2:][[*rates]].to_numpy().ravel())
    return fig


@shows("policy_costs")
def policy_costs(data: st.DataObject) -> go.Figure:
    n = data.draw(st.integers(1, 6))
    table = pd.DataFrame({"policy": [f"p{i}" for i in range(n)], "rule": [f"<r{i // 2}>" for i in range(n)]})
    table["scope"] = [data.draw(st.sampled_from(["causal", "global"])) for _ in range(n)]
    table["group"], table["mass"] = "head", column(data, n, 0, 1)
    table["kept"], table["delta_loss"] = column(data, n, 1, 50), column(data, n, -1, 2)
    table["delta_loss_low"], table["delta_loss_high"] = table["delta_loss"] - 0.5, table["delta_loss"] + 0.25
    fig = plots.policy_costs(table)
    drawn = table[table["kept"].notna() & table["delta_loss"].notna()]
    if not drawn.empty:
        needles_beside(data, table, drawn)
    if drawn["rule"].is_unique:
        same(fig.data[0].x, drawn["delta_loss"])
        same(fig.data[0].error_x.arrayminus, drawn["delta_loss"] - drawn["delta_loss_low"], rtol=1e-3)
        names = dict(zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext, strict=True))
        assert [names[at].split(",")[0] for at in fig.data[0].y] == list(drawn["policy"])
        assert [each.endswith("-open") for each in fig.data[0].marker.symbol] == list(drawn["scope"] == "global")
        return fig
    assert len(fig.data) == drawn["rule"].nunique()
    for trace, (rule, rows) in zip(fig.data, drawn.groupby("rule", sort=False), strict=True):
        rows = rows.sort_values("kept")
        same(trace.x, rows["kept"])
        same(trace.y, rows["delta_loss"])
        same(trace.error_y.array, rows["delta_loss_high"] - rows["delta_loss"], rtol=1e-3)
        assert trace.name == f"{rule} ({rows['scope'].iloc[0]}, head)"
        assert trace.marker.symbol.endswith("-open") == (rows["scope"].iloc[0] == "global")
    return fig


def needles_beside(data: st.DataObject, table: pd.DataFrame, drawn: pd.DataFrame) -> None:
    """The panel to the right: the same rules in the same colours, at what their needles lose."""
    needles = table[["policy", "rule", "scope", "kept"]].copy()
    for name in ("needle_exact", "needle_rank", "delta_needle_log_prob", "needle_mass", "needle_kept"):
        needles[name] = column(data, len(table), 0, 3)
    both = plots.policy_costs(table, needles)
    shown = needles[needles["delta_needle_log_prob"].notna() & needles["rule"].isin(drawn["rule"])]
    right = [trace for trace in both.data if trace.xaxis == "x2"]
    colours = {trace.name.split(" (")[0]: trace.marker.color for trace in both.data if trace.xaxis != "x2"}
    assert len(colours) == drawn["rule"].nunique()
    for trace, (rule, rows) in zip(right, shown.groupby("rule", sort=False), strict=True):
        same(trace.x, rows.sort_values("kept")["kept"])
        same(trace.y, rows.sort_values("kept")["delta_needle_log_prob"])
        assert trace.marker.color == colours[rule]


@shows("task_scores")
def task_scores(data: st.DataObject) -> go.Figure:
    rows = []
    for task in ("<t>", "b")[: data.draw(st.integers(1, 2))]:
        for metric in ("acc", "acc_norm"):
            conditions = [("unchanged", "unchanged", "")]
            for change in ("<x>", "y")[: data.draw(st.integers(0, 2))]:
                conditions.append((change, "change", ""))
                conditions += [
                    (f"{change}, random {n}", "control", change) for n in range(data.draw(st.integers(0, 3)))
                ]
            rows += [(*each, task, metric, 8) for each in conditions]
    table = pd.DataFrame(rows, columns=["condition", "kind", "of", "task", "metric", "n"])
    table["value"], table["delta"] = column(data, len(table), 0, 1), column(data, len(table), -1, 1)
    table["delta_low"], table["delta_high"] = table["delta"] - 0.25, table["delta"] + 0.5
    fig = plots.task_scores(table, metric=data.draw(st.sampled_from([None, "acc"])))
    own = table[table["metric"] == "acc"]
    places: list[tuple[str, str]] = []
    expected: dict[str, list[tuple[float, int]]] = {
        "unchanged": [], "changed, 95 % interval": [], "random controls of equal budget": [],
    }  # fmt: skip
    for task, part in own.groupby("task", sort=False):
        clean, changes = part[part["kind"] == "unchanged"].iloc[0], part[part["kind"] == "change"]
        for row in [None] if changes.empty else changes.to_dict("records"):
            at = len(places)
            places.append((task, "unchanged" if row is None else row["condition"]))
            expected["unchanged"].append((clean["value"], at))
            if row is not None:
                expected["changed, 95 % interval"].append((row["value"], at))
                controls = part[part["of"] == row["condition"]]["value"]
                expected["random controls of equal budget"] += [(value, at) for value in controls]
    for name, points in expected.items():
        trace = named(fig, name)
        assert (trace is None) == (not points)
        if points:
            same(trace.x, [x for x, _ in points])
            assert list(trace.y) == [y for _, y in points]
    if named(fig, "changed, 95 % interval"):
        same(named(fig, "changed, 95 % interval").error_x.arrayminus, [0.25] * len(expected["changed, 95 % interval"]))
    assert len(fig.layout.yaxis.ticktext) == len(places)
    return fig
