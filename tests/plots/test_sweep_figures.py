"""Figures of a sweep against the table that they draw: cells, marks, bands, gaps, and what is not applicable."""

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.errors import InputError
from sinklens.plots.effects import EFFECTS
from sinklens.wording import several
from tests.plots.checks import named, title
from tests.plots.synthetic_sweep import (
    DRAWS,
    MEAN,
    N_HEADS,
    N_LAYERS,
    NOT_ABLATED,
    SIZES,
    STRONG,
    WITHOUT_ATTENTION,
    WITHOUT_DRAWS,
    ZERO,
    heads,
    synthetic_effects,
    synthetic_summary,
)


@pytest.fixture(scope="module")
def effects() -> pd.DataFrame:
    return synthetic_effects()


@pytest.fixture(scope="module")
def summary(effects: pd.DataFrame) -> pd.DataFrame:
    return synthetic_summary(effects)


def of(summary: pd.DataFrame, kind: str, label: str = ZERO) -> pd.DataFrame:
    return summary[(summary["kind"] == kind) & (summary["intervention"] == label)]


def every_figure(summary: pd.DataFrame, effects: pd.DataFrame) -> dict[str, go.Figure]:
    some = summary[summary["kind"].isin(["group", "top"])]
    figures = {"perplexity": plots.before_after(some, effects=effects, perplexity=True)}
    for metric in EFFECTS:
        figures[f"heatmap {metric}"] = plots.ablation_heatmap(summary, metric=metric, intervention=MEAN)
        figures[f"curve {metric}"] = plots.cumulative_curve(summary, metric=metric)
        figures[f"table {metric}"] = plots.before_after(some, effects=effects, metric=metric)
    return figures


def test_axes_are_numbers_and_nothing_is_heavier_than_needed(summary: pd.DataFrame, effects: pd.DataFrame) -> None:
    for name, fig in every_figure(summary, effects).items():
        text = fig.to_json()
        assert "<mean>" not in text and "<rest>" not in text, name  # labels are escaped
        for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
            assert axis.type in (None, "linear"), name
        for one in json.loads(text)["data"]:
            heavy = [k for k, v in one.items() if isinstance(v, dict) and v.get("dtype") == "f8" and k not in "xy"]
            assert not heavy or heavy == ["customdata"], name


def test_nothing_given_is_changed(summary: pd.DataFrame, effects: pd.DataFrame) -> None:
    before = summary.copy(), effects.copy()
    every_figure(summary, effects)
    pd.testing.assert_frame_equal(before[0], summary)
    pd.testing.assert_frame_equal(before[1], effects)


# ---------------------------------------------------------------- layer x head


@pytest.mark.parametrize("metric", [*EFFECTS])
def test_every_head_is_in_its_cell_and_the_rest_is_missing(summary: pd.DataFrame, metric: Any) -> None:
    fig = plots.ablation_heatmap(summary, metric=metric, intervention=ZERO, n_layers=N_LAYERS + 1)
    z = np.asarray(fig.data[0].z, dtype=float)
    assert z.shape == (N_LAYERS + 1, N_HEADS)
    expected = np.full(z.shape, np.nan)
    for row in of(summary, "head").to_dict("records"):
        expected[row["layer"], row["head"]] = row[metric]
    np.testing.assert_allclose(z, expected, rtol=1e-6)
    assert np.isnan(z).sum() == 2 * N_HEADS + 1 and np.isnan(z[NOT_ABLATED])
    assert f"nothing ablated in layers {WITHOUT_ATTENTION}, {N_LAYERS}" in title(fig)
    assert "Grey cells (1)" in title(fig) and ZERO in title(fig)


def test_changes_are_centred_on_zero_and_others_start_there(summary: pd.DataFrame) -> None:
    for metric in EFFECTS:
        one = plots.ablation_heatmap(summary, metric=metric, intervention=ZERO).data[0]  # type: ignore[arg-type]
        largest = float(np.nanmax(np.abs(np.asarray(one.z, dtype=float))))
        if metric.startswith("delta"):
            assert one.zmid == 0 and one.zmin == -one.zmax == pytest.approx(-largest)
        else:
            assert one.zmin == 0 and one.zmax == pytest.approx(1 if metric == "top1_agreement" else largest)


def test_heads_whose_interval_leaves_out_zero_are_marked(summary: pd.DataFrame) -> None:
    table = summary.copy()
    rows = table.index[(table["kind"] == "head") & (table["intervention"] == ZERO)]
    table.loc[rows, ["delta_loss_low", "delta_loss_high"]] = [-1.0, 1.0]
    table.loc[rows[3], ["delta_loss_low", "delta_loss_high"]] = [0.001, 1.0]
    table.loc[rows[5], ["delta_loss_low", "delta_loss_high"]] = [-1.0, -0.001]
    table.loc[rows[6], ["delta_loss_low", "delta_loss_high"]] = [0.0, 1.0]  # 0 is inside
    table.loc[rows[7], ["delta_loss_low", "delta_loss_high"]] = [math.nan, math.nan]
    fig = plots.ablation_heatmap(table, intervention=ZERO)
    marks = named(fig, "interval leaves out 0")
    assert {*zip(marks.y, marks.x, strict=True)} == {heads()[3], heads()[5]}
    assert f"(2 of {len(heads()) - 1} heads that have one)" in title(fig)
    for metric in ("kl", "top1_agreement"):
        fig = plots.ablation_heatmap(table, metric=metric, intervention=ZERO)  # type: ignore[arg-type]
        assert len(fig.data) == 1 and "Diamond" not in title(fig)


def test_without_intervals_no_figure_says_there_are_some(summary: pd.DataFrame) -> None:
    """Fewer than 5 sequences have no interval: "0 of 9 heads leave out 0" was said of heads that were not judged."""
    table = summary.copy()
    table[["delta_loss_low", "delta_loss_high"]] = math.nan
    assert "No head has an interval" in title(plots.ablation_heatmap(table, intervention=ZERO))
    curve = plots.cumulative_curve(table, intervention=ZERO)
    assert "top k (no interval)" in [one.name for one in curve.data]
    assert "effect (no interval)" in [one.name for one in plots.before_after(table.head(3)).data]
    one_draw = summary[(summary["kind"] != "random") | (summary["draw"] == 0)]
    assert "one draw has no spread" in title(plots.cumulative_curve(one_draw, intervention=ZERO))


def test_hover_has_all_effects_with_their_intervals(summary: pd.DataFrame) -> None:
    row = summary.index[(summary["variant"] == "L1H0") & (summary["intervention"] == ZERO)][0]
    table = summary.copy()
    table.loc[row, ["delta_loss", "delta_loss_low", "delta_loss_high"]] = [2.5, 2.25, 2.75]
    table.loc[row, ["delta_logit_diff", "delta_logit_diff_low", "delta_logit_diff_high"]] = math.nan
    text = plots.ablation_heatmap(table, intervention=ZERO).data[0].text[1][0]
    assert text.startswith("<b>L1H0</b><br>Δ loss, nats: 2.5 [2.25, 2.75]<br>KL, nats: ")
    assert "Δ logit difference: n/a" in text and "sequences: 8" in text


def test_colours_end_at_a_limit_visibly(summary: pd.DataFrame) -> None:
    fig = plots.ablation_heatmap(summary, intervention=ZERO, limit=0.5)
    beyond = sum(abs(value) > 0.5 for value in STRONG.values())
    said = f"clipped: {several(beyond, 'cell')} {'lies' if beyond == 1 else 'lie'} beyond 0.5"
    assert fig.data[0].zmax == 0.5 and said in title(fig)
    # the cell keeps its value, only its colour ends
    assert np.nanmax(np.asarray(fig.data[0].z, dtype=float)) > 2
    assert "clipped" not in title(plots.ablation_heatmap(summary, intervention=ZERO))


def test_a_head_that_was_run_hides_its_estimate(summary: pd.DataFrame) -> None:
    run = of(summary, "head").assign(exact=True)
    estimates = run.assign(exact=False, delta_loss=-9.0, kl=math.nan)
    both = pd.concat([run.iloc[:5], estimates, run.iloc[5:10]])
    fig = plots.ablation_heatmap(both)
    z = np.asarray(fig.data[0].z, dtype=float)
    assert (z == -9).sum() == len(run) - 10 and z[heads()[0]] == pytest.approx(run["delta_loss"].iloc[0])
    assert f"Estimated by attribution, not run: {len(run) - 10} heads" in title(fig)
    assert "(estimate)" in fig.data[0].text[5][0] and "(estimate)" not in fig.data[0].text[0][0]
    assert "Estimated" not in title(plots.ablation_heatmap(both, metric="kl"))
    assert np.isnan(np.asarray(plots.ablation_heatmap(both, metric="kl").data[0].z, dtype=float)[5, 0])


# ---------------------------------------------------------------- cumulative


@pytest.mark.parametrize("metric", [*EFFECTS])
def test_the_curve_and_its_random_band_are_those_of_the_table(summary: pd.DataFrame, metric: Any) -> None:
    fig = plots.cumulative_curve(summary, metric=metric)
    top = of(summary, "top").set_index("k")
    curve = named(fig, "top k, 95 % interval")
    assert list(curve.x) == [*SIZES]
    np.testing.assert_allclose(curve.y, top[metric], rtol=1e-6)
    np.testing.assert_allclose(curve.y + curve.error_y.array, top[f"{metric}_high"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(curve.y - curve.error_y.arrayminus, top[f"{metric}_low"], rtol=1e-5, atol=1e-6)
    draws = of(summary, "random")
    points = named(fig, "one random draw")
    assert sorted(zip(points.x, points.y, strict=True)) == [
        (k, pytest.approx(v, rel=1e-6)) for k, v in sorted(zip(draws["k"], draws[metric], strict=True))
    ]
    by_k = draws.groupby("k")[metric]
    lines = [one for one in fig.data if one.name == "random k, mean ± sd"]
    upper, lower, mean = (one for one in lines if one.mode != "markers")
    np.testing.assert_allclose(upper.y, by_k.mean() + by_k.std(), rtol=1e-5)
    np.testing.assert_allclose(lower.y, by_k.mean() - by_k.std(), rtol=1e-5)
    assert lower.fill == "tonexty" and list(upper.x) == list(lower.x) == [k for k in SIZES if k != WITHOUT_DRAWS]
    np.testing.assert_allclose(mean.y, by_k.mean().reindex(SIZES), rtol=1e-5)
    low, high = (one for one in fig.data if one.name == "random k, extremes")
    np.testing.assert_allclose(low.y, by_k.min().reindex(SIZES), rtol=1e-5)
    np.testing.assert_allclose(high.y, by_k.max().reindex(SIZES), rtol=1e-5)
    assert f"{DRAWS} draws of each size" in title(fig) and "1 of 4 sizes have no random draws" in title(fig)


def test_a_band_is_not_drawn_across_sizes_without_draws(summary: pd.DataFrame) -> None:
    table = summary[~((summary["kind"] == "random") & (summary["k"] == 2))]
    filled = [one for one in plots.cumulative_curve(table).data if one.fill == "tonexty"]
    assert [list(one.x) for one in filled] == [[1], [4]]
    mean = plots.cumulative_curve(table).data[-2]
    assert np.isnan(mean.y[1]) and not mean.connectgaps


def test_controls_of_a_group_are_no_part_of_the_band(summary: pd.DataFrame) -> None:
    table = summary.assign(control_of=None)
    random = table["kind"] == "random"
    table.loc[random, "control_of"] = "top-" + table.loc[random, "k"].astype(str)
    table.loc[random & (table["k"] == 2) & (table["draw"] > 3), "control_of"] = "sink heads"
    points = named(plots.cumulative_curve(table), "one random draw")
    assert [list(points.x).count(k) for k in SIZES] == [DRAWS, 4, DRAWS, 0]
    assert "4 to 12 draws" in title(plots.cumulative_curve(table))


def test_a_curve_without_random_sets_says_so(summary: pd.DataFrame) -> None:
    fig = plots.cumulative_curve(summary[summary["kind"] == "top"])
    assert "No random draws" in title(fig) and [one.name for one in fig.data] == ["top k, 95 % interval"]


# ---------------------------------------------------------------- before and after


def cells(fig: go.Figure) -> dict[str, list[str]]:
    """The columns of numbers beside the picture, by their head."""
    texts: dict[float, dict[float, str]] = {}
    for note in fig.layout.annotations:
        texts.setdefault(note.x, {})[note.y] = note.text
    found = {}
    for _, column in sorted(texts.items()):
        head, *rest = [text for _, text in sorted(column.items())]
        found[re.sub("<[^>]+>", " ", head).strip()] = rest
    return found


def test_the_numbers_beside_the_picture(summary: pd.DataFrame, effects: pd.DataFrame) -> None:
    some = summary[summary["kind"].isin(["group", "top"])]
    fig = plots.before_after(some, effects=effects)
    effect = named(fig, "effect, 95 % interval")
    np.testing.assert_allclose(effect.x, some["delta_loss"], rtol=1e-6)
    np.testing.assert_allclose(effect.x + effect.error_x.array, some["delta_loss_high"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(effect.x - effect.error_x.arrayminus, some["delta_loss_low"], rtol=1e-5, atol=1e-6)
    assert list(fig.layout.yaxis.ticktext)[:2] == [f"{ZERO}<br>top-1", f"{ZERO}<br>top-2"]
    assert fig.layout.yaxis.ticktext[-1] == "AblateHeads(&lt;mean&gt;)<br>quiet &amp; &lt;rest&gt;"
    found = cells(fig)
    assert [*found] == ["before, loss, nats", "after", "Δ loss, nats [95 % interval]", "controls, mean ± sd", "rank"]
    own = effects[(effects["intervention"] == ZERO) & (effects["variant"] == "top-4")]
    assert found["before, loss, nats"][2] == f"{own['clean_loss'].mean():.3f}"
    assert found["after"][2] == f"{own['loss'].mean():.3f}"
    row = some.iloc[2]
    assert found["Δ loss, nats [95 % interval]"][2] == (
        f"{row['delta_loss']:.3f} [{row['delta_loss_low']:.3f}, {row['delta_loss_high']:.3f}]"
    )
    assert found["controls, mean ± sd"][2] == f"{row['control_mean']:.3f} ± {row['control_sd']:.3f}"
    assert found["rank"][2] == f"1 of {DRAWS + 1}"
    # a set of a size without draws has no control, and nothing is drawn for it
    without = some["k"].isin([8, 3]).to_numpy()
    assert [text == "n/a" for text in found["rank"]] == without.tolist()
    controls = named(fig, "controls, mean ± sd")
    assert len(controls.x) == (~without).sum()
    np.testing.assert_allclose(controls.x, some.loc[~without, "control_mean"], rtol=1e-5)
    np.testing.assert_allclose(controls.error_x.array, some.loc[~without, "control_sd"], rtol=1e-5)
    assert controls.y[0] == pytest.approx(0.2) and controls.y[-1] == pytest.approx(5.2)


def test_levels_are_perplexities_or_left_out(summary: pd.DataFrame, effects: pd.DataFrame) -> None:
    some = summary[summary["kind"] == "group"]
    found = cells(plots.before_after(some, effects=effects, perplexity=True))
    loss = effects[(effects["intervention"] == ZERO) & (effects["variant"] == "sink heads")]["loss"].mean()
    assert found["after"][0] == f"{math.exp(loss):.3g}" and "before, perplexity" in found
    assert "after" not in cells(plots.before_after(some))
    given = some.assign(clean_loss=[1.0, math.nan, 800.0], loss=2.0)
    assert cells(plots.before_after(given, effects=effects, perplexity=True))["before, perplexity"] == [
        "2.72", "n/a", "inf",
    ]  # fmt: skip
    assert cells(plots.before_after(given))["before, loss, nats"][1] == "n/a"
    logits = cells(plots.before_after(some, effects=effects, metric="delta_logit_diff"))
    assert "before, logit difference" in logits and "rank" not in logits


def test_small_effects_keep_their_digits_and_long_labels_two_lines() -> None:
    name = "values of the sink set to the mean of ordinary tokens, in every layer"
    row = {"intervention": name, "delta_loss": 0.0004, "delta_loss_low": 0.0001, "delta_loss_high": 0.0007}
    fig = plots.before_after(pd.DataFrame([row]))
    assert cells(fig)["Δ loss, nats [95 % interval]"] == ["0.00040 [0.00010, 0.00070]"]
    assert fig.layout.yaxis.ticktext[0] == "values of the sink set to<br>the mean of ordinary…"
    many = pd.DataFrame([row | {"intervention": f"x{i}"} for i in range(50)])
    fig = plots.before_after(many)
    assert len(fig.data[0].x) == 40 and "10 more rows are not drawn" in title(fig)


# ---------------------------------------------------------------- what cannot be drawn


def test_nothing_to_draw_is_not_applicable(summary: pd.DataFrame) -> None:
    for fig in (
        plots.ablation_heatmap(summary[summary["kind"] == "top"]),
        plots.ablation_heatmap(summary.assign(delta_logit_diff=math.nan), metric="delta_logit_diff"),
        plots.ablation_heatmap(summary.iloc[:0]),
        plots.cumulative_curve(summary[summary["kind"] == "head"]),
        plots.cumulative_curve(summary.assign(kl=math.nan), metric="kl"),
        plots.before_after(summary.iloc[:0]),
        plots.before_after(summary.assign(delta_loss=math.nan)),
    ):
        assert not fig.data
        assert fig.layout.annotations[0].text.startswith("Not applicable")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda t: plots.ablation_heatmap(t, metric="loss"), "got 'loss'"),
        (lambda t: plots.ablation_heatmap(t), r"Choose one intervention .*AblateHeads\(<mean>\), AblateHeads\(zero\)"),
        (lambda t: plots.ablation_heatmap(t, intervention="x"), "not 'x'"),
        (lambda t: plots.ablation_heatmap(t, intervention=ZERO, limit=0), "limit must be"),
        (lambda t: plots.ablation_heatmap(t.drop(columns="delta_loss_low")), "delta_loss_low"),
        (lambda t: plots.cumulative_curve(t, metric="loss"), "got 'loss'"),
        (lambda t: plots.cumulative_curve(t, intervention=MEAN), r"Choose one.*not 'AblateHeads\(<mean>\)'"),
        (lambda t: plots.cumulative_curve(t.drop(columns="k")), "column"),
        (lambda t: plots.before_after(t, metric="loss"), "got 'loss'"),
        (lambda t: plots.before_after(t, metric="kl", perplexity=True), "belongs to the loss"),
        (lambda t: plots.before_after(t.drop(columns="intervention")), "intervention"),
        (lambda t: plots.before_after(t, effects=t), "clean_loss"),
    ],
)
def test_wrong_input_is_explained(summary: pd.DataFrame, draw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(summary)
