"""What each part of the page shows for a state, without a browser."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens.app.dashboard.bench import Bench, open_source
from sinklens.app.dashboard.callbacks.compute import uploaded, watched
from sinklens.app.dashboard.callbacks.everything import everything_view
from sinklens.app.dashboard.callbacks.grid import frames, grid_view, headline
from sinklens.app.dashboard.callbacks.head import head_view, zoomed
from sinklens.app.dashboard.callbacks.navigate import changed, describe
from sinklens.app.dashboard.callbacks.save import saved as saved_as
from sinklens.app.dashboard.callbacks.text import text_view
from sinklens.app.dashboard.callbacks.token import token_view
from sinklens.app.dashboard.state import State
from sinklens.errors import InputError, ResultError
from sinklens.models import load
from sinklens.studies import Census, scan
from tests.plots.synthetic import EVIL


def written(component: Any) -> str:
    """All a Dash component holds, as JSON."""
    return json.dumps(component, default=lambda part: part.to_plotly_json())


def keys(bench: Bench, **chosen: Any) -> dict[str, Any]:
    return describe(bench, State(**chosen))


def test_the_grid_holds_the_score(bench: Bench, census: Census) -> None:
    for score in ("sink_rate", "drain", "entropy"):
        figure, note, title = grid_view(bench, keys(bench, run="made-up", score=score)["grid-key"])
        heads = census.tables["heads"]
        drawn = np.asarray(figure.data[0].z, dtype=float)
        expected = heads.set_index(["layer", "head"])[score]
        for (layer, head), value in expected.items():
            value = np.log10(value) if score == "drain" else value
            assert drawn[layer, head] == pytest.approx(value, rel=1e-5)
        assert np.isnan(drawn[3]).all() and title and note


def test_two_results_are_compared(bench: Bench) -> None:
    figure, _, _ = grid_view(bench, keys(bench, run="made-up", compare="made-up")["grid-key"])
    assert len(figure.data) == 3 and not np.nan_to_num(np.asarray(figure.data[2].z, dtype=float)).any()
    figure, note, _ = grid_view(bench, keys(bench, run="made-up", compare="tiny")["grid-key"])
    assert len(figure.data) == 2 and "different shapes" in note
    figure, note, _ = grid_view(bench, keys(bench, run="made-up", compare="sweeps/zero")["grid-key"])
    assert len(figure.data) == 1 and "cannot be compared" in note


def test_a_damaged_or_foreign_result_is_said(bench: Bench) -> None:
    for name, said in (("broken", "damaged"), ("../etc", "outside"), ("live-7", "session that has ended")):
        figure = grid_view(bench, keys(bench, run=name)["grid-key"])[0]
        assert not figure.data and said in figure.layout.annotations[0].text.replace("<br>", " ")


def test_a_head_of_a_census(bench: Bench, census: Census) -> None:
    view = head_view(bench, keys(bench, run="made-up", head="L2H1")["head-key"])
    title, facts, figure = view.title, view.facts, view.map
    assert title == "L2H1" and figure is not None
    np.testing.assert_array_equal(
        np.asarray(figure.data[0].z, dtype=np.float32), census.maps["L2H1"].values.astype(np.float32)
    )
    row = census.tables["heads"].query("layer == 2 and head == 1").iloc[0]
    assert f"uniform null {row['null']:.3g}" in written(facts)
    missing = head_view(bench, keys(bench, run="made-up", head="L1H1")["head-key"])
    assert "--model" in missing.note and missing.map is None and not missing.can_map
    able = head_view(bench, keys(bench, run="tiny", head="L1H1", sequence=1)["head-key"])
    assert "can compute" in able.note and able.can_map
    no_attention = head_view(bench, keys(bench, run="made-up", head="L3H0")["head-key"])
    assert "not applicable" in written(no_attention.facts)


def test_two_heads_stand_beside_each_other(bench: Bench) -> None:
    view = head_view(bench, keys(bench, run="made-up", compare="tiny", head="L0H1")["head-key"])
    table = written(view.facts)
    assert '"A"' in table and '"B"' in table and view.map is None and view.second is not None


def test_a_head_of_a_sweep(bench: Bench) -> None:
    described = keys(bench, run="sweeps/zero", head="L0H0")
    table = bench.run("sweeps/zero").tables.frame("summary")
    row = table[(table["kind"] == "head") & (table["layer"] == 0) & (table["head"] == 0)].iloc[0]
    facts = written(head_view(bench, described["head-key"]).facts)
    assert f"{row['delta_loss']:.3g}" in facts
    figure = bench.run("sweeps/zero").head_figure(0, 0, None)
    effects = bench.run("sweeps/zero").tables.frame("effects")
    own = effects[(effects["kind"] == "head") & (effects["layer"] == 0) & (effects["head"] == 0)]["delta_loss"]
    np.testing.assert_allclose(np.asarray(figure.data[0].x, dtype=float), np.sort(own), rtol=1e-5)


def test_the_strip_is_text_and_its_colours_follow_the_head(bench: Bench, small_census: Census) -> None:
    data, legend, of, _, last = text_view(bench, keys(bench, run="made-up", head="L2H1")["text-key"])
    assert EVIL in data["tokens"] and len(data["tokens"]) == 48 and last == 1 and of == "text 0 of 2"
    data = text_view(bench, keys(bench, run="tiny", head="L0H3", sequence=1)["text-key"])[0]
    judged = small_census.sequence(1).importance[: 64 - 9, 0, 3].astype(float)
    assert data["places"][: 64 - 9] == sorted_places(judged) and set(data["places"][64 - 9 :]) == {-1}
    assert data["places"][int(np.argmax(judged))] == 31
    everyone, legend, *_ = text_view(bench, keys(bench, run="tiny", head="L0H3", sequence=1, colours="all")["text-key"])
    assert everyone["places"] != data["places"] and "mean over heads" in legend
    assert text_view(bench, keys(bench, run="made-up", sequence=9)["text-key"])[1].startswith("This census has")


def sorted_places(values: np.ndarray) -> list[int]:
    """Written out a second time: 32 steps, logarithmic, over at most four decades."""
    low = max(values.min(), values.max() / 1e4)
    return [round(31 * np.log(max(value, low) / low) / np.log(values.max() / low)) for value in values]


def test_a_token(bench: Bench, census: Census) -> None:
    view = token_view(bench, keys(bench, run="made-up", token=0)["token-key"])
    profile = census.tables["profile"].query("position == 0").sort_values("layer")
    norms = {trace.name: np.asarray(trace.y, dtype=float) for trace in view.norm.data}  # type: ignore[union-attr]
    np.testing.assert_allclose(norms["this token"], profile["resid_norm"], rtol=1e-5)
    massive = census.tables["massive"].query("sequence == 0 and position == 0")
    for channel in massive["channel"].unique():
        assert f'"children": {channel}' in written(view.massive)
    assert '"embed, 0-5"' in written(view.massive)  # layers of a channel as a span
    assert EVIL in token_view(bench, keys(bench, run="made-up", token=6)["token-key"]).title
    assert "positions 0 to 47" in token_view(bench, keys(bench, run="made-up", token=999)["token-key"]).facts


def test_a_head_of_nan_has_no_strongest_key() -> None:
    model = load("tiny-llama", device="cpu")
    model.original_model.model.layers[1].self_attn.q_proj.weight.data[0] = np.nan  # head 0
    bench = open_source(scan(model, max_sequences=2))
    for of in ("texts", "text"):
        described = keys(bench, of=of, head="L1H0")
        facts = written(head_view(bench, described["head-key"]).facts)
        assert "NaN or infinite in this head" in facts and "strongest key" not in facts and described["token"] is None
        assert "strongest key" in written(head_view(bench, keys(bench, of=of, head="L1H1")["head-key"]).facts)
    said = token_view(bench, keys(bench, token=0)["token-key"]).facts
    assert said == "id 0 · BOS · special · no attention was measured on this text, or it is NaN or infinite"


def test_clicks_and_controls_change_the_state(bench: Bench) -> None:
    state = State(run="made-up")

    def after(prop: str, value: Any, before: State = state) -> State:
        name = prop.partition(".")[0] if prop.endswith(".value") and prop[0] != "{" else prop
        return changed(bench, before, prop, {name: value})

    click = {"points": [{"x": 2, "y": 5}]}
    assert after("grid.clickData", click).head == "L5H2" == after("token-heads.clickData", click).head
    assert after("map.clickData", click, State(run="made-up", head="L2H1")).token == 2
    assert after("map.clickData", click, State(run="made-up", head="L1H0")).token == 10  # cells of 5 tokens
    assert after("positions.clickData", click).token == 2
    assert after("positions.clickData", click, State(run="sweeps/zero")).token is None
    assert after("strip-pick.data", {"position": 7}).token == 7
    masking = after("method.value", "MaskKeys")
    typed = after('{"field":"keys"}.value', "3", masking)
    assert (typed.method, dict(typed.fields)) == ("MaskKeys", {"keys": "3"})
    assert after('{"field":"keys"}.value', "0", typed).fields == {}  # as it is by itself
    assert after('{"field":"gamma"}.value', "3", masking) == masking
    assert after("method.value", "AblateHeads", typed).fields == {}
    assert after('{"use":"keys"}.n_clicks', 1, replace(masking, token=7)).fields == {"keys": "7"}
    held = replace(masking, head="L0H3", fields={"heads": "L1H0"})
    assert after('{"use":"heads"}.n_clicks', 1, held).fields == {"heads": "L1H0,L0H3"}
    assert after('{"use":"heads"}.n_clicks', None, held) == held  # a button that has just come
    editing = State(run="made-up", head="L2H3", method="EditValues")
    assert after('{"use":"kv_heads"}.n_clicks', 1, editing).fields == {"kv_heads": "L2KV1"}
    setting = State(run="made-up", token=0, method="SetActivations")
    assert after('{"use":"where"}.n_clicks', 1, setting).fields == {"where": "0:0:7"}
    assert after("head-step.data", {"layers": 2, "heads": -9}, State(run="made-up", head="L1H2")).head == "L3H0"
    assert after("head-step.data", {"layers": "x"}, State(run="made-up", head="L1H2")).head == "L1H2"
    line = after("line-pick.data", {"position": 5, "role": "key"})
    assert (line.token, line.role) == (5, "key")
    assert after("token.value", 4).token == 4 and after("token.value", None, State(token=4)).token is None
    assert after("run.value", "tiny", State(run="made-up", token=3)).token is None
    assert after("head-after.n_clicks", 1, State(run="made-up", head="L0H3")).head == "L1H0"
    layer = State(run="tiny", head="L0H0", look="layer")
    assert after("layer.clickData", {"points": [{"x": 1, "y": 1}]}, layer).head == "L0H0"
    assert after("arrival.data", {"number": 2, "compare": "live-1"}).compare == "live-1"
    for nonsense in (None, {}, {"points": []}, {"points": [{"x": "a"}]}, [], {"points": [{"x": -4, "y": 0}]}):
        assert after("grid.clickData", nonsense) == state


def test_a_state_fills_every_control(bench: Bench) -> None:
    state = State(run="made-up", score="drain", head="L2H1", token=5, method="MaskKeys", fields={"keys": "3"})
    described = describe(bench, state)
    assert (described["score"], described["head"], described["token"]) == ("drain", "L2H1", 5)
    assert (described["method"], described["form-key"]["fields"]) == ("MaskKeys", {"keys": "3"})
    assert State.from_query(described["search"]) == state
    unknown = describe(bench, State(run="made-up", score="none", head="L99H0"))
    assert unknown["score"] == "sink_rate" and unknown["head"] in ("L1H0", "L2H1", "L2H2", "L5H3")  # a sink head
    assert describe(bench, State())["run"] == "broken"  # the first one; the grid says what is wrong with it


def test_saved_files_hold_what_is_shown(bench: Bench, census: Census, small_census: Census) -> None:
    state = State(run="made-up", head="L2H1", token=6)
    own = State(run="tiny", head="L0H3", token=6, of="text", sequence=1)
    for card in ("grid", "head", "positions", "token"):
        chosen = own if card == "token" else state
        page = saved_as(bench, chosen, card, "html")
        assert page.count("plotly.js v") == 1 and EVIL not in page.partition("<body>")[0]
        assert len(saved_as(bench, chosen, card, "csv").splitlines()) > 5
    rows = pd.read_csv(io.StringIO(saved_as(bench, own, "token", "csv")))
    np.testing.assert_allclose(rows["importance"], small_census.sequence(1).importance[6].ravel(), rtol=1e-5)
    rows = pd.read_csv(io.StringIO(saved_as(bench, own, "positions", "csv")))
    np.testing.assert_allclose(rows["importance"], small_census.sequence(1).importance[:, 0, 3], rtol=1e-5)
    assert rows["token"][0] == "<s>"
    rows = pd.read_csv(io.StringIO(saved_as(bench, state, "positions", "csv")))
    table = census.tables["sinks"].query("layer == 2 and head == 1").sort_values("position")
    assert rows["importance"].tolist() == pytest.approx(table["importance"].tolist(), rel=1e-5)
    assert len(rows) == 48
    assert saved_as(bench, State(run="made-up", table="table layers"), "all", "csv").startswith("layer,")
    with pytest.raises(InputError, match="no figure"):
        saved_as(bench, State(run="sweeps/zero", head="L0H0"), "head", "html")


def test_every_figure_and_table_of_every_result_opens(bench: Bench) -> None:
    for name in ("made-up", "tiny", "sweeps/zero"):
        for title in describe(bench, State(run=name))["table-options"]:
            figure, body = everything_view(bench, {"run": name, "table": title})
            assert isinstance(figure, go.Figure) or body, title
    body = written(everything_view(bench, {"run": "made-up", "table": "table tokens"})[1])
    assert "<script>" in body  # as a string in a cell, which React writes as text


def test_what_was_found_is_said(bench: Bench, census: Census) -> None:
    said = written(headline(bench, {"run": "made-up", "compare": ""}))
    assert json.dumps(census.meta["verdict"][0])[1:-1] in said and census.meta["tokens"]["bos"]["statement"] in said
    assert frames(State(head="L1H2"), 3)[5]["xref"] == "x3" and frames(State(), 1) == []


def test_a_zoom_that_is_none_is_refused() -> None:
    for nothing in (None, {}, {"autosize": True}, {"xaxis.range[0]": 1}):
        with pytest.raises(InputError, match="Drag a box"):
            zoomed(nothing, 1, 10)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("data:;base64,//79", "not a UTF-8 text"),
        ("data:;base64,!!!", "did not arrive whole"),
        ("data:;base64,AGEA", "binary"),
        ("data:;base64," + "QUFB" * 200_000, "up to 100,000 characters"),
    ],
)
def test_a_bad_file_is_refused(contents: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        uploaded(contents, "<b>name")
    assert uploaded("data:text/plain;base64,PGI+eDwvYj4=", "x") == "<b>x</b>"


def test_a_reload_does_not_jump_to_what_was_computed_before(bench: Bench) -> None:
    bench.worker.start("x", lambda progress: None)
    bench.worker.wait()
    assert watched(bench, None)[4] == {"number": 1}
    bench.worker.start("y", lambda progress: 1 / 0)
    bench.worker.wait()
    hidden, _, _, stopped, arrival, message, disabled = watched(bench, {"number": 1})
    assert hidden and stopped and not disabled and arrival == {"number": 2} and "ZeroDivisionError" in message


def test_sources(saved: Path, census: Census, small_census: Census) -> None:
    assert open_source(saved / "tiny").first() == "."
    held = open_source(census)
    assert held.first() == "live-1" and held.run("live-1").scores
    assert open_source("tiny-llama").models.names[0] == "tiny-llama"
    with pytest.raises(InputError, match="A dashboard opens"):
        open_source(3)


def test_what_others_are_compared_with_is_kept_longest(census: Census) -> None:
    bench = open_source(census)
    under = replace(census, meta=census.meta | {"intervention": {"kind": "MaskKeys"}})
    base, *tried = [bench.add(census), *(bench.add(under) for _ in range(30))]
    kept = [name for name, _ in bench.choices()]
    assert len(kept) == 24 and {"live-1", base, tried[-1]} <= {*kept} and tried[0] not in kept
    newest = [bench.add(census) for _ in range(30)]
    kept = [name for name, _ in bench.choices()]
    assert "live-1" in kept and {*newest[-20:]} <= {*kept} and len(kept) == 24
    with pytest.raises(ResultError, match="before the last 24 results"):
        bench.run(tried[0])
