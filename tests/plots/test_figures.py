import json
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.errors import InputError
from sinklens.plots.massive_table import strongest_activations
from sinklens.studies.census.result import Census
from tests.plots.checks import title
from tests.plots.synthetic import (
    EVIL,
    N_HEADS,
    N_LAYERS,
    SINK_HEADS,
    WITHOUT_ATTENTION,
    attentionless_census,
    synthetic_census,
)


@pytest.fixture(scope="module")
def census() -> Census:
    return synthetic_census()


def trace(fig: go.Figure) -> Any:
    return fig.data[0]


def every_figure(census: Census) -> dict[str, go.Figure]:
    t = census.tables
    return {
        "sink_heatmap": plots.sink_heatmap(t["heads"]),
        "received_mass": plots.received_mass(t["sinks"]),
        "by_head": plots.received_mass(t["sinks"], by="head", log_x=True, log_y=False),
        "resid_norm": plots.norms_by_token(t["profile"]),
        "value_norm": plots.norms_by_token(t["profile"], value="value_norm"),
        "massive_activations": plots.massive_activations(t["layers"]),
        "massive_table": plots.massive_table(t["massive"]),
        "residual_peaks": plots.residual_peaks(t["layers"]),
        "eps_sweep": plots.eps_sweep(t["eps_sweep"], eps=0.3),
    } | {name: plots.attention_map(kept) for name, kept in census.maps.items()}


@pytest.mark.parametrize("make", [synthetic_census, attentionless_census])
def test_no_figure_has_category_axes_or_raw_markup(make: Any) -> None:
    for name, fig in every_figure(make()).items():
        text = fig.to_json()
        assert "<script" not in text, name
        for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
            assert axis.type in (None, "linear", "log"), name
        # Nothing heavier than float32 goes to the browser.
        for one in json.loads(text)["data"]:
            assert all(not isinstance(v, dict) or v.get("dtype") != "f8" for k, v in one.items() if k != "x"), name


# ---------------------------------------------------------------- layer x head


def test_heatmap_puts_every_head_in_its_cell_and_leaves_the_rest_missing(census: Census) -> None:
    fig = plots.sink_heatmap(census.tables["heads"], n_layers=N_LAYERS + 1)
    z = np.asarray(trace(fig).z, dtype=float)
    assert z.shape == (N_LAYERS + 1, N_HEADS)
    assert np.isnan(z[WITHOUT_ATTENTION]).all() and np.isnan(z[N_LAYERS]).all()
    assert {(int(layer), int(head)) for layer, head in np.argwhere(z == 1)} == SINK_HEADS
    assert f"layers {WITHOUT_ATTENTION}, {N_LAYERS}, not applicable" in title(fig)
    assert (trace(fig).zmin, trace(fig).zmax) == (0, 1)


def test_heatmap_hover_says_not_applicable(census: Census) -> None:
    heads = census.tables["heads"].assign(drain=math.nan)
    text = trace(plots.sink_heatmap(heads)).text[1][0]
    assert "<b>L1H0</b>" in text and "strongest key at position: 0" in text and "value drain |v| / others: n/a" in text


def test_diverging_values_are_centred(census: Census) -> None:
    margin = trace(plots.sink_heatmap(census.tables["heads"], value="delta_logit"))
    assert margin.zmid == 0 and margin.zmin == -margin.zmax == -6
    ratio = trace(plots.sink_heatmap(census.tables["heads"], value="drain"))
    assert ratio.zmid == 0 and ratio.zmin == -ratio.zmax
    assert np.nanmin(np.asarray(ratio.z, dtype=float)) == pytest.approx(math.log10(0.05))


def test_clipped_colours_are_counted(census: Census) -> None:
    heads = census.tables["heads"].copy()
    heads.loc[heads.index[0], "ratio"] = 5e6
    heads.loc[heads.index[1], "ratio"] = 0.0
    fig = plots.sink_heatmap(heads, value="ratio")
    assert "Colours are clipped: 2 cells lie" in title(fig)
    assert np.nanmax(np.abs(np.asarray(trace(fig).z, dtype=float))) == pytest.approx(3)


def test_a_model_without_attention_is_not_applicable(census: Census) -> None:
    for fig in (
        plots.sink_heatmap(census.tables["heads"].iloc[:0]),
        plots.sink_heatmap(census.tables["heads"].assign(bos_mass=math.nan), value="bos_mass"),
        plots.received_mass(census.tables["sinks"].iloc[:0]),
        plots.received_mass(census.tables["sinks"], min_queries=10_000),
        plots.eps_sweep(census.tables["eps_sweep"].iloc[:0]),
        plots.norms_by_token(census.tables["profile"].assign(value_norm=math.nan), value="value_norm"),
        plots.residual_peaks(census.tables["layers"].iloc[:0]),
        plots.massive_activations(census.tables["layers"].iloc[:0]),
        plots.massive_table(census.tables["massive"].iloc[:0]),
    ):
        assert not fig.data
        assert fig.layout.annotations[0].text.startswith("Not applicable")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda t: plots.sink_heatmap(t["heads"], value="colour"), "got 'colour'"),
        (lambda t: plots.sink_heatmap(t["layers"]), "needs the column"),
        (lambda t: plots.norms_by_token(t["profile"], value="x"), "got 'x'"),
        (lambda t: plots.received_mass(t["heads"]), "position"),
        (lambda t: plots.token_strip(t["tokens"], sequence=99), "no sequence 99"),
    ],
)
def test_wrong_input_is_explained(census: Census, draw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(census.tables)


# ---------------------------------------------------------------- positions


def test_keys_seen_by_few_queries_are_not_drawn(census: Census) -> None:
    fig = plots.received_mass(census.tables["sinks"], min_queries=10)
    assert max(max(one.x) for one in fig.data) == 48 - 10
    assert "positions 0 to 38" in title(fig)
    own = census.tables["sinks"].assign(n_queries=lambda t: np.where(t["position"] < 5, 99, 1))
    assert max(max(one.x) for one in plots.received_mass(own).data) == 4


def test_layers_with_another_mask_have_their_own_null(census: Census) -> None:
    nulls = [one for one in plots.received_mass(census.tables["sinks"]).data if "null" in one.name]
    assert [one.name for one in nulls] == ["null, layers 0-2, 5", "null, layer 4"]
    assert len({one.line.dash for one in nulls}) == 2
    full = next(one for one in nulls if one.name.endswith("5"))
    # Key 0 receives H_T / T of uniform attention.
    assert float(full.y[0]) == pytest.approx(sum(1 / i for i in range(1, 49)) / 48, rel=1e-5)


def test_lines_are_means_over_heads(census: Census) -> None:
    sinks = census.tables["sinks"]
    line = next(one for one in plots.received_mass(sinks).data if one.name == "layer 2")
    expected = sinks[(sinks["layer"] == 2) & (sinks["position"] == 0)]["importance"].mean()
    assert float(line.y[0]) == pytest.approx(expected, rel=1e-6)


def test_many_layers_get_a_colour_bar_instead_of_a_legend() -> None:
    rows = [(layer, 0, k, 0.1, 0.1) for layer in range(30) for k in range(20)]
    table = pd.DataFrame(rows, columns=["layer", "head", "position", "importance", "null"])
    fig = plots.received_mass(table)
    assert sum(one.showlegend is not False for one in fig.data) == 1
    assert any(one.marker.showscale for one in fig.data)


def test_log_positions_keep_position_zero(census: Census) -> None:
    fig = plots.received_mass(census.tables["sinks"], log_x=True)
    assert min(trace(fig).x) == 1 and trace(fig).customdata[0] == 0
    assert list(fig.layout.xaxis.ticktext[:3]) == ["0", "1", "2"]
    assert list(fig.layout.xaxis.tickvals[:3]) == [1, 2, 3]


# ---------------------------------------------------------------- tokens


def test_repeated_tokens_keep_their_columns(census: Census) -> None:
    fig = plots.norms_by_token(census.tables["profile"])
    assert np.asarray(trace(fig).z).shape == (N_LAYERS + 1, 48)
    assert list(trace(fig).x) == list(range(48))
    ticks = list(fig.layout.xaxis2.ticktext)
    assert ticks.count("·the") > 2 and len(ticks) == len(fig.layout.xaxis2.tickvals)
    assert "&lt;script&gt;ale…" in ticks
    # The hidden axis names every position for the hover.
    assert len(set(fig.layout.xaxis.ticktext)) == 48
    assert fig.layout.yaxis.ticktext[0] == "embed"


def test_long_sequences_are_cut_and_ticks_thinned() -> None:
    n = 200
    profile = pd.DataFrame({"layer": 0, "position": range(n), "token": "a", "resid_norm": np.arange(n) + 1.0})
    fig = plots.norms_by_token(profile, limit=150)
    assert "First 150 of 200 tokens" in title(fig)
    assert np.asarray(trace(fig).z).shape == (1, 150)
    assert len(fig.layout.xaxis2.tickvals) <= 64


def test_layers_without_values_stay_missing(census: Census) -> None:
    fig = plots.norms_by_token(census.tables["profile"], value="value_norm")
    z = np.asarray(trace(fig).z, dtype=float)
    assert z.shape == (N_LAYERS, 48) and np.isnan(z[WITHOUT_ATTENTION]).all()
    assert not np.isnan(np.delete(z, WITHOUT_ATTENTION, axis=0)).any()
    assert trace(fig).zmin == 0


def test_residual_norms_have_log_colours_and_true_hover(census: Census) -> None:
    one = trace(plots.norms_by_token(census.tables["profile"]))
    np.testing.assert_allclose(10 ** np.asarray(one.z), np.asarray(one.customdata), rtol=1e-5)
    assert one.zmax == pytest.approx(math.log10(1800))


def test_token_strip_shows_markup_as_text(census: Census) -> None:
    strip = plots.token_strip(census.tables["tokens"])
    assert "<script" not in strip and "&lt;script&gt;alert(1)&lt;/script&gt;" in strip
    assert strip.count("<span title=") == 48
    assert "⏎" in strip and "·cat" in strip


def test_token_strip_greys_what_is_not_applicable(census: Census) -> None:
    strip = plots.token_strip(census.tables["tokens"].assign(received=math.nan))
    assert "importance n/a" in strip and strip.count("background:#d4d7dc") == 48


def test_token_strip_greys_tokens_that_few_queries_see(census: Census) -> None:
    tokens = census.tables["tokens"]
    strip = plots.token_strip(tokens.assign(received=tokens["received"].where(tokens["position"] < 47, 1.0)))
    assert strip.count("background:#d4d7dc") == 9 and "seen by fewer than 10 queries" in strip
    # The last token's 1.0 does not stretch the colours.
    highest = tokens.loc[tokens["position"] < 39, "received"].max()
    assert f"</span> {highest:.3g};" in strip


def test_token_strip_says_when_it_clips_or_cuts(census: Census) -> None:
    tokens = census.tables["tokens"]
    assert "≤" not in plots.token_strip(tokens)
    assert "≤" in plots.token_strip(tokens.assign(received=tokens["received"].where(tokens["position"] != 3, 1e-30)))
    assert "First 5 of 48 tokens" in plots.token_strip(census.tables["tokens"], 1, limit=5)


# ---------------------------------------------------------------- maps


def test_masked_cells_are_missing(census: Census) -> None:
    one = trace(plots.attention_map(census.maps["L2H1"]))
    z = np.asarray(one.z)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(z), np.triu(np.ones_like(z), 1) == 1)
    assert (one.zmin, one.zmax) == (0, 1)
    assert one.text is None and one.customdata is None


def test_pooled_maps_say_so(census: Census) -> None:
    fig = plots.attention_map(census.maps["L1H0"])
    assert "max over 5 x 5 tokens" in title(fig)
    assert "largest weight" in trace(fig).hovertemplate
    assert fig.layout.xaxis.ticktext[-1].startswith("45-47 ")


def test_log_maps_say_what_is_clipped(census: Census) -> None:
    fig = plots.attention_map(census.maps["L2H1"], log=True, floor=0.01)
    z = np.asarray(trace(fig).z)
    assert "clipped below 0.01" in title(fig)
    assert np.nanmin(z) == pytest.approx(-2) and np.isnan(z[0, 1])
    assert trace(fig).colorbar.ticktext[0].startswith("≤")
    np.testing.assert_array_equal(np.asarray(trace(fig).customdata), census.maps["L2H1"].values)


def test_maps_that_do_not_fit_their_tokens_are_refused(census: Census) -> None:
    from dataclasses import replace

    kept = census.maps["L2H1"]
    with pytest.raises(InputError, match="expected 48 x 48 cells"):
        plots.attention_map(replace(kept, values=kept.values[:5]))
    with pytest.raises(InputError, match="floor"):
        plots.attention_map(kept, log=True, floor=0)


# ---------------------------------------------------------------- states


def test_massive_layers_are_ringed(census: Census) -> None:
    fig = plots.massive_activations(census.tables["layers"])
    rings = next(one for one in fig.data if one.name == "over both thresholds")
    assert list(rings.x) == [1, 2, 3, 4]
    assert {"1000 x median", "|h| = 100"} <= {one.name for one in fig.data}
    assert "Over both, ringed: 4." in title(fig)
    assert "&lt;script&gt;" in trace(fig).text[1] and EVIL not in trace(fig).text[1]


def test_massive_table_lists_an_activation_once(census: Census) -> None:
    best = strongest_activations(census.tables["massive"], 3)
    assert best[["sequence", "position", "channel"]].values.tolist() == [[0, 0, 7], [1, 0, 7], [0, 1, 8]]
    assert (best["n_layers"] == N_LAYERS + 1).all()
    assert (best["layer"] == -1).all()  # equal in all layers here: the earliest
    table = trace(plots.massive_table(census.tables["massive"]))
    cells = dict(zip([text.strip("</b>") for text in table.header.values], table.cells.values, strict=True))
    assert cells["channel"][0] == 7  # one row a channel, however many texts and layers have it
    assert len({*cells["channel"]}) == len(cells["channel"])
    assert cells["token"][0] == "&lt;s&gt;" and cells["after layer"][0] == "embed"


def test_eps_sweep_averages_heads(census: Census) -> None:
    table = pd.DataFrame(
        [(0, 0, 0, 0.3, 1.0), (0, 1, 0, 0.3, 0.0), (0, 1, 7, 0.3, 1.0)],
        columns=["layer", "head", "position", "eps", "sink_rate"],
    )
    first, strongest = plots.eps_sweep(table).data
    assert (first.name, list(first.y)) == ("position 0", [0.5])
    assert list(strongest.y) == [1.0]


def test_residual_peaks_name_the_embedding(census: Census) -> None:
    fig = plots.residual_peaks(census.tables["layers"])
    assert fig.layout.xaxis.ticktext[0] == "embed"
    assert fig.layout.yaxis.type == "log"
    assert "n/a" in trace(fig).text[0]
