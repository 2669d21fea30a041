"""Figures over training steps, of domains and of alignment: what lies where, what is missing, and step 0."""

import base64
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.errors import InputError
from tests.plots.checks import title
from tests.plots.synthetic import EVIL

NAN = float("nan")
STEPS = [0, 10, 100, 1000]


def numbers(values: Any) -> list[float]:
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return np.asarray(values, dtype=float).tolist()


def make_steps(domains: tuple[str, ...] = ("all", "prose", EVIL)) -> pd.DataFrame:
    rows = [
        {
            "step": step, "name": f"step-{step}", "domain": domain, "importance_first": 0.1 * (place + 1),
            "null_first": 0.07, "importance_first_max": 0.2 * (place + 1), "sink_head_share": 0.25 * place,
            "delta_logit": place - 0.5, "drain": 1 - 0.2 * place, "drain_wo": 1 - 0.25 * place,
            "resid_ratio": 1 + place,
            "max_over_median": 10.0 ** (place + 1), "loss": 7 - place, "loss_uniform": 7.6,
        }
        for place, step in enumerate(STEPS)
        for domain in domains
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_heads(domains: tuple[str, ...] = ("all", "prose", EVIL), n_layers: int = 2) -> pd.DataFrame:
    rows = [
        {
            "step": step, "domain": domain, "layer": layer, "head": head, "importance_first": (layer + head) / 10,
            "delta_logit": float(place * head), "drain": 0.5, "drain_wo": NAN if layer else 0.4 + place / 10,
        }
        for place, step in enumerate(STEPS)
        for domain in domains
        for layer in range(n_layers)
        for head in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def steps() -> pd.DataFrame:
    return make_steps()


@pytest.fixture
def heads() -> pd.DataFrame:
    return make_heads()


def panel(fig: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in fig.data if trace.name == name]


# ------------------------------------------------------------------ through training
def test_step_0_stands_apart_of_a_logarithmic_axis(steps: pd.DataFrame, heads: pd.DataFrame) -> None:
    fig = plots.dynamics(steps, heads)
    ticks = dict(zip(fig.layout.xaxis.ticktext, fig.layout.xaxis.tickvals, strict=True))
    assert ticks["10"] == pytest.approx(1) and ticks["1,000"] == pytest.approx(3) and ticks["0"] < 0.8
    assert "step 0 stands apart" in title(fig)
    solid, dotted = panel(fig, "logit margin")
    assert numbers(solid.x) == pytest.approx([1, 2, 3]) and numbers(solid.y) == pytest.approx([0.5, 1.5, 2.5])
    assert dotted.line.dash == "dot" and numbers(dotted.x) == pytest.approx([ticks["0"], 1])
    assert numbers(dotted.y) == pytest.approx([-0.5, 0.5]) and dotted.showlegend is False
    low, high = fig.layout.xaxis.range
    assert low < ticks["0"] and high > 3
    gaps = [shape for shape in fig.layout.shapes if ticks["0"] < shape.x0 < 1]
    assert len(gaps) == 6


def test_without_step_0_there_is_no_gap(steps: pd.DataFrame, heads: pd.DataFrame) -> None:
    fig = plots.dynamics(steps[steps["step"] > 0], heads[heads["step"] > 0])
    assert "0" not in fig.layout.xaxis.ticktext and not fig.layout.shapes and "stands apart" not in title(fig)
    assert len(panel(fig, "logit margin")) == 1


def test_step_0_alone_is_drawn(steps: pd.DataFrame, heads: pd.DataFrame) -> None:
    fig = plots.dynamics(steps[steps["step"] == 0], heads[heads["step"] == 0])
    shown = [trace for trace in panel(fig, "logit margin") if len(numbers(trace.x))]
    assert len(shown) == 1 and numbers(shown[0].y) == pytest.approx([-0.5])


def test_bands_hold_the_middle_of_the_heads(steps: pd.DataFrame, heads: pd.DataFrame) -> None:
    fig = plots.dynamics(steps, heads)
    bands = [trace for trace in fig.data if trace.fill == "toself"]
    assert len(bands) == 3
    margin = next(band for band in bands if band.xaxis == "x2")
    expected = np.quantile([0, 3, 6, 9] * 2, [0.1, 0.9])  # the last step: place 3 times head 0 to 3
    half = len(margin.x) // 2
    assert numbers(margin.y)[half - 1] == pytest.approx(expected[0]) and numbers(margin.y)[half] == pytest.approx(
        expected[1]
    )


def test_domains_losses_and_hostile_names(steps: pd.DataFrame, heads: pd.DataFrame) -> None:
    fig = plots.dynamics(steps, heads)
    names = [trace.name for trace in fig.data]
    assert "loss: prose" in names and "loss: &lt;script&gt;alert(1)&lt;/script&gt;" in names
    assert not any(name and "<script" in name for name in names)
    assert numbers(panel(plots.dynamics(steps, heads, domain="prose"), "loss: prose")[0].y) == pytest.approx([6, 5, 4])
    one = plots.dynamics(make_steps(("text",)), make_heads(("text",)))
    assert [trace.name for trace in one.data].count("loss") == 2
    assert (
        "Not applicable: nothing was measured on x."
        in plots.dynamics(steps, heads, domain="x").layout.annotations[0].text
    )


def test_what_does_not_apply_has_no_panel(steps: pd.DataFrame, heads: pd.DataFrame) -> None:
    attention = ["importance_first", "importance_first_max", "null_first", "sink_head_share", "delta_logit", "drain"]
    gone = steps.assign(**dict.fromkeys([*attention, "drain_wo"], NAN))
    fig = plots.dynamics(gone, heads.iloc[:0])
    titles = [annotation.text for annotation in fig.layout.annotations]
    assert len(titles) == 3 and not any("Attention" in each or "Value norm" in each for each in titles)
    assert "bands" not in title(fig)
    empty = plots.dynamics(steps.iloc[:0], heads)
    assert "no checkpoint was measured" in empty.layout.annotations[0].text
    with pytest.raises(InputError, match="sink_head_share"):
        plots.dynamics(steps.drop(columns="sink_head_share"), heads)


# ------------------------------------------------------------------ heads and layers by step
def test_the_heatmap_holds_every_head_and_step(heads: pd.DataFrame) -> None:
    fig = plots.step_heatmap(heads, "delta_logit")
    z = np.asarray(fig.data[0].z)
    assert z.shape == (8, 4) and z[3].tolist() == [0, 3, 6, 9] and list(fig.layout.yaxis.ticktext)[3] == "L0H3"
    assert fig.layout.xaxis.ticktext == ("0", "10", "100", "1,000")
    missing = np.asarray(plots.step_heatmap(heads, "drain_wo").data[0].z)
    assert np.isnan(missing[4:]).all() and not np.isnan(missing[:4]).any()
    bounded = plots.step_heatmap(heads, "importance_first").data[0]
    assert (bounded.zmin, bounded.zmax) == (0, 1)


def test_many_heads_are_cut_to_those_that_change(heads: pd.DataFrame) -> None:
    fig = plots.step_heatmap(heads, "delta_logit", limit=2)
    assert list(fig.layout.yaxis.ticktext) == ["L0H3", "L1H3"] and "2 of 8 rows" in title(fig)


def test_layers_have_a_logarithmic_scale() -> None:
    layers = pd.DataFrame(
        [
            {"step": step, "domain": "text", "layer": layer, "max_over_median": 10.0 ** (layer + 2)}
            for step in STEPS
            for layer in (-1, 0, 1)
        ]
    )
    fig = plots.step_heatmap(layers, "max_over_median")
    assert np.asarray(fig.data[0].z).tolist() == [[2] * 4, [3] * 4] and fig.layout.yaxis.ticktext == (
        "layer 0",
        "layer 1",
    )
    assert "layer by layer" in title(fig)
    nothing = plots.step_heatmap(layers.assign(max_over_median=NAN), "max_over_median")
    assert "Not applicable" in nothing.layout.annotations[0].text


# ------------------------------------------------------------------ domains and alignment
def make_domains(names: tuple[str, ...] = ("prose", EVIL)) -> pd.DataFrame:
    rows = []
    for head, difference in enumerate([0.3, -0.2, 0.01]):
        for place, name in enumerate(names):
            sign = 1 if place == 0 else -1
            value, spread = sign * difference, 0.05
            rows.append((0, head, name, 0.4 + value / 2, 0.07, value, value - spread, value + spread))
    ends = [f"importance_first_difference{end}" for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["layer", "head", "domain", "importance_first", "null_first", *ends])


def test_domain_differences_have_marks_and_intervals() -> None:
    fig = plots.domain_differences(make_domains())
    first, second, difference = fig.data
    assert first.name == "prose" and second.name == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert numbers(first.x) == pytest.approx([0.55, 0.3, 0.405]) and list(first.y) == [0, 1, 2]
    assert numbers(difference.x) == pytest.approx([0.3, -0.2, 0.01])
    assert list(difference.marker.symbol) == ["circle", "circle", "circle-open"]
    assert numbers(difference.error_x.array) == pytest.approx([0.05] * 3)
    assert fig.layout.xaxis2.title.text == "prose minus &lt;script&gt;alert(1)&lt;/script&gt;"
    assert list(plots.domain_differences(make_domains(), limit=1).layout.yaxis.ticktext) == ["L0H0"]


def test_three_domains_draw_the_one_that_differs_most() -> None:
    table = make_domains(("a", "b", "c"))
    table.loc[(table["head"] == 1) & (table["domain"] == "c"), "importance_first_difference"] = 0.4
    drawn = plots.domain_differences(table).data[-1]
    assert numbers(drawn.x)[1] == pytest.approx(0.4) and drawn.text[1] == "c minus the rest"


def test_one_domain_or_too_few_sequences_is_not_applicable() -> None:
    table = make_domains()
    assert "one domain" in plots.domain_differences(table[table["domain"] == "prose"]).layout.annotations[0].text
    no_interval = table.assign(importance_first_difference_low=NAN, importance_first_difference_high=NAN)
    assert "at least 5 sequences" in plots.domain_differences(no_interval).layout.annotations[0].text
    with pytest.raises(InputError, match="null_first"):
        plots.domain_differences(table.drop(columns="null_first"))


def test_alignment_and_its_null() -> None:
    table = pd.DataFrame(
        {
            "layer": [-1, 0, 1, 2],
            "bos_cosine": [0.1, -0.4, 0.6, 0.2],
            "bos_cosine_sq": [0.01, 0.16, 0.36, 0.04],
            "null": [1 / 64] * 4,
            "in_loss": [False, True, True, False],
        }
    )
    fig = plots.decorrelation(table)
    assert numbers(fig.data[0].y) == pytest.approx([0.01, 0.16, 0.36, 0.04])
    assert list(fig.data[0].marker.symbol) == ["circle-open", "circle", "circle", "circle-open"]
    assert "filled marks: 0.260" in title(fig) and numbers(fig.data[1].y) == pytest.approx([1 / 64] * 4)
    assert "mean cosine: -0.400" in fig.data[0].text[1]
    nothing = plots.decorrelation(table.assign(bos_cosine_sq=NAN))
    assert "Not applicable" in nothing.layout.annotations[0].text
