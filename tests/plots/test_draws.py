"""A figure takes a result, a table of it or a frame, draws the same of each, and refuses rows it would overwrite."""

import functools
import json
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings

from sinklens import plots
from sinklens.errors import InputError
from sinklens.plots.draws import FIGURES, Drawings, one_row_each
from sinklens.plots.effects import VARIANT
from sinklens.studies.census.result import Census
from tests.plots.checks import CHECKS, array, heads, retrieval, runs, states, studies
from tests.plots.synthetic import N_LAYERS, attentionless_census, synthetic_census
from tests.plots.synthetic_sweep import ZERO, synthetic_effects, synthetic_summary

assert all((heads, retrieval, runs, states, studies))  # imported for the checks they register

ENDS = ("", "_low", "_high")
UNREGISTERED = {"save_figure", "use_in_notebook"}
KEYED = sorted(name for name, figure in FIGURES.items() if any(figure.needs.values()))


@pytest.fixture(scope="module")
def census() -> Census:
    return synthetic_census()


def test_every_figure_is_registered_and_checked() -> None:
    assert {*plots.__all__} - UNREGISTERED == {*FIGURES} - {"sink_emergence"}
    assert {*CHECKS} == {name for name, figure in FIGURES.items() if figure.draw.__annotations__["return"] is go.Figure}


@pytest.mark.parametrize("name", [name for name in KEYED if name in CHECKS])
@settings(max_examples=8)
@given(data=st.data())
def test_rows_that_would_overwrite_each_other_are_refused(name: str, data: st.DataObject) -> None:
    """Whatever a check draws: once more with one of its rows twice, the second with other numbers."""
    figure, calls = FIGURES[name], []

    @functools.wraps(figure.draw)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return figure.draw(*args, **kwargs)

    module = runs if name == "sink_emergence" else plots
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_emergence" if name == "sink_emergence" else name, recorded)
        CHECKS[name](data)
    args, kwargs = calls[-1]
    for place, key in enumerate(list(figure.needs.values())[: len(args)]):
        frames = args[place] if figure.many and isinstance(args[place], dict) else {"": args[place]}
        which = data.draw(st.sampled_from(sorted(frames)))
        frame = frames[which]
        if frame.empty:
            continue
        row = frame.iloc[[data.draw(st.integers(0, len(frame) - 1))]]
        held = [column for column in frame.columns if column not in key and frame[column].dtype == float]
        twice = pd.concat([frame, row.assign(**dict.fromkeys(held, 0.25))])
        if key[0] not in frame.columns:
            continue
        given_twice = {**frames, which: twice} if which else twice
        with pytest.raises(InputError, match=rf"{name} draws one row for each .*, but got 2 rows for "):
            figure.draw(*args[:place], given_twice, *args[place + 1 :], **kwargs)


def test_a_refusal_names_the_place_and_what_differs() -> None:
    table = pd.DataFrame({"layer": [0, 0, 1], "head": [2, 2, 2], "position": [0, 1, 0], "importance": 0.5})
    with pytest.raises(InputError, match="got 2 rows for layer 0, head 2, which differ in position; pass the result"):
        plots.sink_heatmap(table, value="importance")
    with pytest.raises(InputError, match="got 2 rows for state hidden, layer 0; pass the result"):
        norms = pd.DataFrame({"layer": [0, 0], "state": "hidden", "kv_head": pd.array([None, None], "Int64")})
        plots.state_norms(norms.assign(norm=1.0, others=1.0, ratio=1.0))
    one_row_each(table, ("layer", "head", "position", "nowhere"), "x")  # further columns may be missing
    one_row_each(table, ("nowhere", "layer"), "x")  # the figure itself says what is missing


def test_a_census_draws_what_its_tables_do(census: Census) -> None:
    drawn = {
        "sink_heatmap": plots.sink_heatmap(census.tables["heads"], n_layers=N_LAYERS),
        "received_mass": plots.received_mass(census.tables["sinks"], min_queries=10),
        "eps_sweep": plots.eps_sweep(census.tables["eps_sweep"], eps=0.3),
        "norms_by_token": plots.norms_by_token(census.tables["profile"]),
        "massive_activations": plots.massive_activations(census.tables["layers"]),
        "massive_table": plots.massive_table(census.tables["massive"], census.tables["massive_episodes"]),
        "top_magnitudes": plots.top_magnitudes(census.tables["massive"]),
        "residual_peaks": plots.residual_peaks(census.tables["layers"]),
        "drain_scatter": plots.drain_scatter(census.tables["heads"]),
        "head_montage": None,
        "attention_map": plots.attention_map(census.maps["L0H0"]),
        "token_strip": plots.token_strip(census.tables["tokens"], min_queries=10),
        "sink_share": None,
    }
    assert dir(census.plot) == sorted(drawn)
    lines = repr(census.plot).splitlines()
    assert lines[0] == f"{len(drawn)} figures of this result, as .plot.attention_map():"
    assert [line.split()[0] for line in lines[1 : len(drawn) + 1]] == sorted(drawn)
    assert lines[1].endswith("keys to the right, colours from 0 to 1 on every map.")
    rest = {line.split()[0]: line for line in lines[len(drawn) + 1 :]}
    assert set(rest) == {name for name, figure in FIGURES.items() if census.format in figure.of} - {*drawn}
    assert rest["compression"].endswith('(needs scan(model, detectors=[..., "compression"]))')
    assert census.plot._repr_html_().count("<tr>") == len(lines) - 1
    for name, expected in drawn.items():
        if expected is not None:
            for found in (getattr(plots, name)(census), getattr(census.plot, name)()):
                assert to_json(found) == to_json(expected), name
    assert census.plot.sink_heatmap.__doc__ == plots.sink_heatmap.__doc__
    assert len(array(census.plot.sink_heatmap().data[0].z)) == N_LAYERS  # the census knows layers without attention
    assert plots.sink_heatmap(census.heads).data[0].z.shape[1] == 4  # one of its tables


def to_json(figure: go.Figure | str) -> Any:
    return figure if isinstance(figure, str) else json.loads(figure.to_json())


def test_settings_that_are_given_win(census: Census) -> None:
    assert len(census.plot.sink_heatmap(n_layers=9).data[0].z) == 9
    assert "eps 0.5 is used here" in census.plot.eps_sweep(eps=0.5).layout.annotations[0].text
    later = census.plot.received_mass(min_queries=20)
    assert max(max(trace.x) for trace in later.data) == 48 - 20


def test_several_censuses_are_drawn_by_name(census: Census) -> None:
    heads = census.tables["heads"].assign(null_first=0.09)
    one = Census(census.meta, census.tables | {"heads": heads})
    fig = plots.sink_share({"a": one, "b": heads, "c": one.heads})
    a, b, c = ([*trace.y] for trace in fig.data if trace.name in "abc")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)
    with pytest.raises(InputError, match="got 2 rows for layer 0, head 0"):
        plots.sink_share({"a": pd.concat([heads, heads])})


def test_a_map_of_a_census_is_chosen_by_its_head(census: Census) -> None:
    fig = census.plot.attention_map(head="L2H1")
    np.testing.assert_array_equal(array(fig.data[0].z), census.maps["L2H1"].values)
    with pytest.raises(InputError, match=r"no map of L9H9; the census kept L0H0, .*scan\(model, maps=10_000\)"):
        census.plot.attention_map(head="L9H9")
    with pytest.raises(InputError, match="several of one"):
        plots.head_montage([census.maps["L2H1"], census.maps["L2H1"]])
    none = Census(census.meta, census.tables)
    assert "attention_map" not in dir(none.plot) and not plots.attention_map(none).data


def test_what_a_result_cannot_draw_says_which_call_makes_it(census: Census) -> None:
    for draw, message in (
        (plots.compression, r'draws the table compression, .*scan\(model, detectors=\[..., "compression"\]\) makes it'),
        (plots.domain_differences, r"scan\(model, \{name: texts, ...\}\) makes it"),
        (plots.state_norms, r'measure\(model, tokens, "state_norms"\) makes it'),
        (plots.lifecycle, r"entries=\[\(position, channel\)\]\) makes it"),
        (plots.massive_map, r'measure\(model, tokens, "channel_profile"\) makes it'),
        (plots.entropy_scatter, r'the table state_norms, .*measure\(model, tokens, "state_norms"\) makes it'),
        (
            plots.needle_grid,
            "draws the table grid, but this result has sinks, heads.*; a result of the kind sinklens-needles has it",
        ),
    ):
        with pytest.raises(InputError, match=message):
            draw(census)
    with pytest.raises(
        InputError, match="sink_heatmap draws a result of the kind sinklens-census or its table heads as a D"
    ):
        plots.sink_heatmap([1, 2])
    with pytest.raises(AttributeError, match="has no figure 'needle_grid'; it can draw attention_map"):
        census.plot.needle_grid()
    assert not hasattr(census.plot, "nothing") and "norms_by_token" in dir(attentionless_census().plot)


def test_every_kind_of_result_is_one_that_is_saved() -> None:
    import importlib
    from pathlib import Path

    room = Path(plots.__file__).parents[1]
    source = "".join(path.read_text("utf-8") for path in (room / "studies").rglob("*.py"))
    kinds = {kind for figure in FIGURES.values() for kind in figure.of}
    assert all(f'"{kind}"' in source for kind in kinds)
    assert importlib.import_module("sinklens.plots.draws").Drawings is Drawings


def test_a_sweep_and_effects_are_drawn(census: Census) -> None:
    effects = synthetic_effects()
    sweep = SimpleNamespace(
        format="sinklens-sweep",
        meta={"model": {"n_layers": 9}},
        tables={"effects": effects, "summary": synthetic_summary(effects)},
    )
    assert dir(Drawings(sweep)) == ["ablation_heatmap", "before_after", "cumulative_curve"]
    assert len(Drawings(sweep).ablation_heatmap(intervention=ZERO).data[0].z) == 9
    small = SimpleNamespace(summary=lambda: sweep.tables["summary"], to_dataframe=lambda: effects)
    summary = sweep.tables["summary"]
    assert to_json(plots.before_after(sweep)) == to_json(plots.before_after(summary, effects=effects))
    assert to_json(plots.before_after(small)) == to_json(plots.before_after(summary))
    assert {*VARIANT} & {*effects.columns}


def test_two_results_of_one_head_are_refused_and_an_estimate_gives_way() -> None:
    summary = synthetic_summary()
    rows = summary[(summary["kind"] == "head") & (summary["intervention"] == ZERO)].assign(exact=True)
    estimate = rows.assign(exact=False, delta_loss=99.0)
    z = array(plots.ablation_heatmap(pd.concat([estimate, rows])).data[0].z)
    assert np.nanmax(z) == pytest.approx(rows["delta_loss"].max())
    with pytest.raises(InputError, match="ablation_heatmap draws one row for each layer, head"):
        plots.ablation_heatmap(pd.concat([rows, rows.assign(variant="again")]))
    top = summary[summary["kind"].isin(["top", "random"])]
    other = top[top["kind"] == "top"].assign(variant="another ranking")
    with pytest.raises(InputError, match="cumulative_curve draws one row for each k"):
        plots.cumulative_curve(pd.concat([top, other]))


def test_a_head_with_three_positions_has_no_strongest_key() -> None:
    table = pd.DataFrame({"layer": 0, "head": 0, "position": [0, 4, 7], "eps": 0.3, "sink_rate": 0.5})
    with pytest.raises(InputError, match=r"eps_sweep draws one row for each layer, head, eps, .* differ in position"):
        plots.eps_sweep(table)


def test_one_of_several_domains_is_never_drawn_in_silence() -> None:
    steps = pd.DataFrame({"step": [1, 1], "domain": ["prose", "code"], "layer": 0, "head": 0, "drain": [0.1, 0.9]})
    with pytest.raises(InputError, match="step_heatmap draws one domain; choose it with domain=: prose, code"):
        plots.step_heatmap(steps, "drain")
    fig = plots.step_heatmap(steps, "drain", domain="code")
    assert array(fig.data[0].z).tolist() == [[pytest.approx(0.9)]] and "Texts: code." in fig.layout.title.text


def test_windows_drawn_are_windows_that_sequences_have() -> None:
    tokens = pd.DataFrame({"first_layer": [2], "life": [7], "label": "secondary", "token": " the"})
    windows = pd.DataFrame(
        {"sequence": [0, 1, 2, 3, 4], "window": 0, "start": [1, 1, 2, 2, 2], "end": [9, 9, 30, 29, 28]}
    )
    fig = plots.secondary_sinks(tokens.assign(importance_max=0.9), windows)
    line = next(trace for trace in fig.data if trace.mode == "lines")
    assert (list(line.x), list(line.y)) == ([1, 8], [8, 1])  # starts and ends apart would give 2 to 8
    assert "Dashed: layers 1 to 8 (2 sequences)." in fig.layout.title.text


def test_one_random_draw_has_no_spread_and_no_band() -> None:
    summary = synthetic_summary()
    rows = summary[summary["kind"].isin(["top", "random"])]
    single = rows[(rows["kind"] != "random") | (rows["k"] != 4) | (rows["draw"] == 0)]
    bands = [trace for trace in plots.cumulative_curve(single).data if trace.fill == "tonexty"]
    assert {int(k) for band in bands for k in band.x} == {1, 2}  # sizes of 4 have one draw, sizes of 8 none
    assert all(np.isfinite(array(band.y)).all() for band in bands)


def test_a_calibration_is_drawn_by_its_summary() -> None:
    rates = {f"{name}{end}": 0.5 for name in ("accuracy", "valid_rate", "accuracy_given_valid") for end in ENDS}
    frame = pd.DataFrame([{"variant": "unchanged", "n": 9, **rates}])
    found = SimpleNamespace(format="sinklens-calibration", meta={}, tables={}, summary=lambda: frame)
    assert to_json(plots.calibration(found)) == to_json(plots.calibration(frame))
    assert dir(Drawings(found)) == ["calibration"]
