"""Every number in the panels of a head and a token is that of the table it says it comes from; one text or a mean."""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinklens.app.dashboard.bench import Bench, open_source
from sinklens.app.dashboard.callbacks.grid import grid_view, said_of
from sinklens.app.dashboard.callbacks.head import head_view, positions_view
from sinklens.app.dashboard.callbacks.navigate import changed, describe
from sinklens.app.dashboard.callbacks.text import text_view
from sinklens.app.dashboard.callbacks.token import spans, token_view
from sinklens.app.dashboard.lines import lines_of
from sinklens.app.dashboard.state import State
from sinklens.models import load
from sinklens.studies import Census, scan

COLUMN = {
    "strongest key": "sink_position", "importance": "importance", "sink rate": "sink_rate", "sink": "sink_rate",
    "importance of position 0": "importance_first", "entropy": "entropy", "distance": "distance",
    "attention on BOS": "bos_mass", "missing mass": "missing_mass", "value drain": "drain",
    "value drain after W_O": "drain_wo", "logit margin": "delta_logit",
}  # fmt: skip
"""Lines of the panel, by column of the table of heads."""

texts = st.integers(0, 2)
heads = st.tuples(st.integers(0, 3), st.integers(0, 3))
positions = st.integers(0, 63)


@pytest.fixture(scope="module")
def opened(saved: Path) -> Bench:
    return open_source(saved)


@pytest.fixture(scope="module")
def alone(small_census: Census) -> Any:
    """The census of one text measured by itself."""
    model = load("tiny-llama")

    @cache
    def measured(sequence: int) -> Census:
        rows = small_census.tables["tokens"].query("sequence == @sequence")
        return scan(model, tokens=[rows["token_id"].tolist()])

    return measured


def own(census: Census, name: str, sequence: int) -> np.ndarray:
    """Rows of a text in the arrays of the census, found by counting tokens."""
    lengths = census.tables["tokens"].groupby("sequence").size().tolist()
    start = sum(lengths[:sequence])
    return census.arrays[f"by_sequence.{name}"][start : start + lengths[sequence]]


def near(shown: str, expected: float) -> bool:
    """Whether three digits of a number are shown, or that there is none."""
    if math.isnan(expected):
        return shown == "n/a"
    return float(shown.replace(",", "")) == pytest.approx(expected, rel=6e-3, abs=1e-6)


def cells(facts: Any) -> list[list[str]]:
    rows = json.loads(json.dumps(facts, default=lambda part: part.to_plotly_json()))["props"]["children"]
    body = rows["props"]["children"]
    return [[str(cell["props"].get("children", "")) for cell in row["props"]["children"]] for row in body]


@settings(max_examples=25)
@given(texts, heads, st.sampled_from(["texts", "text"]))
def test_numbers_of_a_head(opened: Bench, small_census: Census, alone: Any, sequence: int, head: Any, of: str) -> None:
    state = State(run="tiny", head=f"L{head[0]}H{head[1]}", of=of, sequence=sequence, token=0)
    view = head_view(opened, describe(opened, state)["head-key"])
    table = (small_census if of == "texts" else alone(sequence)).tables["heads"]
    row = table[(table["layer"] == head[0]) & (table["head"] == head[1])].iloc[0]
    assert view.of == ("numbers: mean over 3 texts" if of == "texts" else f"numbers: text {sequence} of 3")
    found = cells(view.facts)
    assert len(found) >= 8
    for what, value, beside in found:
        expected = float(row[COLUMN[what]]) if what != "attention on BOS" or of == "texts" else math.nan
        if what == "sink":
            assert value == ("yes" if expected == 1 else "no")
        elif what == "attention on BOS" and of == "text":  # ids alone do not say where the BOS is
            assert near(value, float(row["importance_first"]))
        else:
            assert near(value, expected), what
        nulls = re.findall(r"uniform null ([\d.e+-]+)", beside)
        column = "null_first" if "position 0" in what else "null"
        assert all(near(null, float(row[column])) for null in nulls) and len(nulls) == what.startswith("importance")
        for times in re.findall(r"([\d.,]+) times", beside):
            assert near(times, float(row["ratio"]))


@settings(max_examples=12)
@given(texts, heads, st.sampled_from(["texts", "text"]))
def test_lines_and_grid_of_a_head(
    opened: Bench, small_census: Census, alone: Any, sequence: int, head: Any, of: str
) -> None:
    census = small_census if of == "texts" else alone(sequence)
    state = State(run="tiny", head=f"L{head[0]}H{head[1]}", of=of, sequence=sequence, token=0)
    figure = positions_view(opened, state, None)
    assert figure is not None
    shown = {trace.name: np.asarray(trace.y, dtype=float) for trace in figure.data}
    for name, table, column in (
        ("attention received", "sinks", "importance"),
        ("uniform null", "sinks", "null"),
        ("|v| (KV head)", "value_drains", "value_norm"),
        ("|W_O v|", "value_drains", "output_norm"),
    ):
        rows = census.tables[table].query("layer == @head[0] and head == @head[1]").sort_values("position")
        np.testing.assert_allclose(shown[name], rows[column].to_numpy(), rtol=2e-4, atol=1e-7)
    key = describe(opened, state)["grid-key"] | {"score": "entropy"}
    cell = np.asarray(grid_view(opened, key)[0].data[0].z, dtype=float)[head]
    rows = census.tables["heads"].query("layer == @head[0] and head == @head[1]")
    assert cell == pytest.approx(rows["entropy"].iloc[0], rel=2e-4)
    assert said_of(opened, key) == ("mean over 3 texts" if of == "texts" else f"text {sequence} of 3")


@settings(max_examples=25)
@given(texts, positions)
def test_numbers_of_a_token(opened: Bench, small_census: Census, sequence: int, position: int) -> None:
    state = State(run="tiny", head="L0H3", sequence=sequence, token=position)
    view = token_view(opened, describe(opened, state)["token-key"])
    importance, norms = own(small_census, "importance", sequence), own(small_census, "resid_norm", sequence)
    row = small_census.tables["tokens"].query("sequence == @sequence and position == @position").iloc[0]
    assert view.of == f"text {sequence} of 3" and f"id {row['token_id']} " in view.facts
    judged = 64 - position >= 10
    found = re.search(r"sink \(> 0.3\) of (\d+) heads", view.facts)
    assert (found is not None) == judged
    if found is not None:
        assert int(found[1]) == int((importance[position] > 0.3).sum()) == row["n_sink_heads"]
        layer, head, most = re.search(r"most from L(\d+)H(\d+): ([\d.e-]+)", view.facts).groups()  # type: ignore[union-attr]
        assert importance[position, int(layer), int(head)] == importance[position].max()
        assert near(most, float(importance[position].max()))
    assert near(re.search(r"received ([\d.e-]+)", view.facts)[1], float(importance[position].mean()))  # type: ignore[index]
    medians = np.sort(norms, axis=0)[(64 - 1) // 2, 1:]
    assert near(re.search(r"peak ([\d.,]+)", view.facts)[1], float((norms[position, 1:] / medians).max()))  # type: ignore[index]
    np.testing.assert_array_equal(np.asarray(view.heads.data[0].z, dtype=np.float32), importance[position])  # type: ignore[union-attr]
    drawn = {trace.name: np.asarray(trace.y, dtype=float) for trace in view.norm.data}  # type: ignore[union-attr]
    np.testing.assert_allclose(drawn["this token"], norms[position], rtol=1e-6)
    others = np.delete(norms, position, 0)
    np.testing.assert_allclose(drawn["median of the others"], np.median(others, 0), rtol=1e-5)
    keys, weights = (
        own(small_census, "top_key", sequence)[position],
        own(small_census, "top_weight", sequence)[position],
    )
    said = str(view.reads.children)
    for key, _, count, weight in re.findall(r"(\d+) (\S+) in (\d+) \(mean weight ([\d.e-]+)\)", said):
        assert int(count) == int((keys == int(key)).sum())
        assert near(weight, float(weights[keys == int(key)].mean()))
    table = small_census.tables["massive"].query("sequence == @sequence and position == @position")
    rows = re.findall(r'"children": (\d+)[^0-9]', json.dumps(view.massive, default=lambda part: part.to_plotly_json()))
    assert {int(each) for each in rows} == {*table["channel"].tolist()} if len(table) else not rows


@settings(max_examples=20)
@given(texts, heads)
def test_the_strip_and_the_lines_are_of_the_text(opened: Bench, small_census: Census, sequence: int, head: Any) -> None:
    state = State(run="tiny", head=f"L{head[0]}H{head[1]}", sequence=sequence, token=3, look="lines")
    data, legend, of, _, last = text_view(opened, describe(opened, state)["text-key"])
    assert of == f"text {sequence} of 3" and last == 2 and "on this text" in legend
    received = own(small_census, "importance", sequence)[:, head[0], head[1]]
    for shown, expected in zip(data["values"][:55], received, strict=False):
        assert near(shown, float(expected))
    run = opened.census("tiny")
    assert run is not None
    lines = lines_of(run, sequence, head)
    for query, key, weight in lines["lines"] if lines["kind"] == "top" else []:
        assert key == own(small_census, "top_key", sequence)[query, head[0], head[1]]
        assert weight == pytest.approx(own(small_census, "top_weight", sequence)[query, head[0], head[1]], abs=1e-4)
    if lines["kind"] == "map":
        kept = run.map(sequence, *head)
        assert kept is not None
        assert len(lines["lines"]) == int((np.nan_to_num(kept.values) >= 5e-4).sum())
        for query, key, weight in lines["lines"]:
            assert weight == pytest.approx(kept.values[query, key], abs=1e-4)


def test_an_older_run_says_that_it_keeps_means_alone(bench: Bench, census: Census) -> None:
    state = State(run="made-up", of="text", sequence=1, head="L2H1", token=3)
    described = describe(bench, state)
    figure = grid_view(bench, described["grid-key"])[0]
    assert not figure.data and "keeps means over its texts alone" in figure.layout.annotations[0].text.replace(
        "<br>", " "
    )
    view = head_view(bench, described["head-key"])
    assert "keeps means over its texts alone" in view.facts.children and view.of == ""
    legend = text_view(bench, described["text-key"])[1]
    assert "keeps means" in legend and "on this text, mean over heads" in legend
    token = token_view(bench, described["token-key"])
    assert not token.heads.data and not token.norm.data and token.reads == ""  # type: ignore[union-attr]
    first = token_view(bench, describe(bench, State(run="made-up", token=3))["token-key"])
    assert first.norm.data and not first.heads.data  # type: ignore[union-attr]  # of its first text it keeps the norms
    means = State(run="made-up", head="L2H1")
    assert head_view(bench, describe(bench, means)["head-key"]).of == "numbers: mean over 2 texts"


def test_a_single_text_of_an_older_run_has_all_but_strongest_keys(alone: Any) -> None:
    whole = alone(1)
    old = Census({**whole.meta, "by_sequence": None}, whole.tables, {})
    results = []
    for census in (whole, old):
        bench = open_source(census)
        described = describe(bench, State(head="L3H1", token=0))
        assert described["score"] == "importance" and described["of-options"] == []
        view, token = head_view(bench, described["head-key"]), token_view(bench, described["token-key"])
        assert view.of == "numbers: one text"
        results.append((cells(view.facts), token.facts, np.asarray(token.heads.data[0].z).tolist()))  # type: ignore[union-attr]
    assert results[0] == results[1]


def test_the_strongest_finding_stands_there_at_the_start(bench: Bench, small_census: Census) -> None:
    state = State(run="tiny")
    described = describe(bench, state)
    table = small_census.tables["heads"]
    first = table[table["is_sink"]].sort_values("importance").iloc[-1]
    assert described["head"] == f"L{first['layer']}H{first['head']}" and described["token"] == first["sink_position"]
    assert described["search"] == f"?run=tiny&head={described['head']}&token={described['token']}"
    # the numbers follow the text that is chosen, and its own strongest key is chosen with it
    after = changed(bench, State.from_mapping(described["state"]), "sequence.value", {"sequence": 2})
    assert after.of == "text" and after.token is None
    own_key = small_census.sequence(2).heads(small_census.meta["settings"])
    row = own_key.query("layer == @first['layer'] and head == @first['head']").iloc[0]
    assert describe(bench, after)["token"] == row["sink_position"]
    assert describe(bench, after)["score"] == "importance" and described["score"] == "sink_rate"
    before = changed(bench, after, "text-before.n_clicks", {"text-before.n_clicks": 1})
    assert before.sequence == 1


def test_layers_are_written_as_spans() -> None:
    assert spans(pd.Series([5, 3, 4, -1])) == "embed, 3-5" and spans([2]) == "2" and spans([-1]) == "embed"
