"""Live computations give the library's own numbers, and stop, fail and refuse in sentences."""

import dataclasses
import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinklens.app.dashboard import compute
from sinklens.app.dashboard.bench import Bench, open_source
from sinklens.app.dashboard.callbacks.form import exported_python, form_of, history_of
from sinklens.app.dashboard.compute import MAX_CHARACTERS, exact_window, text_tokens
from sinklens.app.dashboard.methods import build, described, methods
from sinklens.app.dashboard.state import State
from sinklens.app.dashboard.trying import history_json
from sinklens.app.dashboard.worker import Status, Worker, WorkerProgress
from sinklens.attention import FullMap
from sinklens.capture import capture
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention, MaskKeys, ScaleKeys, SlidingWindow
from sinklens.models import load, tokenize
from sinklens.policies.sink_window import SinkWindow
from sinklens.studies import Census, measure_effects, scan
from tests.families import boot, random_ids

TEXT = "The king is dead, long live the king. <b>Who</b> comes here? Nay, answer me: stand and unfold yourself.\n" * 3


@pytest.fixture(scope="module")
def model() -> Any:
    return load("tiny-llama", device="cpu")


@pytest.fixture
def live(model: Any) -> Bench:
    return open_source(model)


def tried(method: str, **fields: str) -> State:
    return State(method=method, fields=fields)


def finished(bench: Bench) -> Status:
    status = bench.worker.wait(120)
    assert not status.busy and status.error == ""
    return status


def test_a_text_gives_a_scan_with_all_maps(live: Bench, model: Any) -> None:
    live.compute(State(), "tiny-llama", TEXT, "auto", False)
    assert finished(live).result.changes["run"] == "live-1"
    run, expected = live.census("live-1"), scan(model, TEXT)
    assert run is not None and len(run.maps) == 16
    for column in ("importance", "drain_wo", "entropy"):
        np.testing.assert_array_equal(run.tables.frame("heads")[column], expected.tables["heads"][column])
    live.compute(State(), "tiny-llama", TEXT, "auto", False)  # known: nothing is computed again
    assert finished(live).result.changes["run"] == "live-1" and len(live.choices()) == 1


@pytest.mark.parametrize(
    ("state", "intervention"),
    [
        (tried("ScaleKeys", gamma="3", keys="0-1", heads="L0H3"), ScaleKeys((0, 1), 3.0, ["L0H3"])),
        (tried("MaskKeys"), MaskKeys(0)),
        (tried("AblateHeads", heads="L0H1,L2H1", how="uniform"), AblateHeads(["L0H1", "L2H1"], "uniform")),
        (tried("SlidingWindow", window="8", sinks="1"), SlidingWindow(8, 1)),
        (tried("sink_window", sinks="2", recent="6"), SinkWindow(sinks=2, recent=6)),
    ],
)
def test_an_intervention_is_measured_beside_the_same_tokens(
    live: Bench, model: Any, state: State, intervention: Any
) -> None:
    live.compute(state, "tiny-llama", TEXT, "auto", False)
    changes = finished(live).result.changes
    assert (changes["run"], changes["compare"]) == ("live-1", "live-2")
    changed = live.run("live-2")
    expected = scan(model, TEXT, intervention=intervention)
    np.testing.assert_allclose(
        changed.tables.frame("heads")["importance"], expected.tables["heads"]["importance"], rtol=1e-6
    )
    effect = measure_effects(model, {"x": intervention}, tokenize(model, [TEXT])).summary().iloc[0]
    said = re.search(r"\(([+-]\d+\.\d{3})\)", changed.notes[0])
    assert said is not None and float(said[1]) == pytest.approx(effect["delta_loss"], abs=6e-4)
    assert "5 random sets" in changed.notes[1] and "of 6" in changed.notes[1]
    assert changed.notes[2].startswith("Sink: ") and "heads sink before" in changed.notes[2]


def test_the_shown_tokens_are_run_again_exactly(saved: Path, small_census: Census, model: Any) -> None:
    bench = open_source(saved, models=["tiny-llama"])
    bench.compute(State(run="tiny", method="ScaleKeys", fields={"gamma": "1"}), "", "", "auto", True)
    assert finished(bench).result.changes["run"] == "tiny"
    again = bench.run("live-1").tables.frame("heads")
    np.testing.assert_allclose(again["importance"], small_census.tables["heads"]["importance"], rtol=1e-5)
    assert re.search(r"\([+-]0\.000\)", bench.run("live-1").notes[0])  # gamma 1 changes nothing
    bench.compute_maps("tiny", 2)
    finished(bench)
    run = bench.census("tiny")
    assert run is not None
    kept = run.map(0, *next((layer, head) for sequence, layer, head in run.maps if sequence == 0))
    assert kept is not None and run.map(2, 3, 3) is not None and run.map(1, 3, 3) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_exact_rows_are_those_of_the_whole_map(family: str, zoo: Path) -> None:
    bridge = boot(family, zoo)
    row = tokenize(bridge, random_ids(1, 40))
    record = next(r for r in capture(bridge, row, statistics=lambda rows, start: [FullMap]) if r.layer == 1)
    whole = record.attention["full_map"][0, 1].numpy()
    found = exact_window(bridge, row, (1, 1), (7, 23, 3, 15), None, WorkerProgress(Worker()))
    np.testing.assert_array_equal(found, whole[7:23, 3:15])
    outside = exact_window(bridge, row, (1, 1), (38, 99, 30, 99), None, WorkerProgress(Worker()))
    np.testing.assert_array_equal(outside, whole[38:, 30:])


def test_exact_rows_of_an_intervention_are_changed_too(live: Bench, model: Any) -> None:
    live.compute(tried("ScaleKeys", gamma="0.01"), "tiny-llama", TEXT, "auto", False)
    finished(live)
    for name in ("live-1", "live-2"):
        live.compute_window(name, 0, (0, 3), (20, 30, 0, 5))
        assert finished(live).result.changes == {"region": "20-29:0-4"}
    before, after = (live.census(name).windows[(0, 0, 3, (20, 30, 0, 5))] for name in ("live-1", "live-2"))  # type: ignore[union-attr]
    np.testing.assert_allclose(after[:, 0], 0.01 * before[:, 0] / (1 - 0.99 * before[:, 0]), rtol=1e-4)


def test_cancel_stops_between_layers_and_the_model_is_whole(live: Bench, model: Any, monkeypatch: Any) -> None:
    reached, go, layers = threading.Event(), threading.Event(), []
    step = WorkerProgress.advance

    def slow(self: WorkerProgress, done: float = 1.0, note: str = "") -> None:
        layers.append(done)
        reached.set()
        go.wait(30)
        step(self, done, note)

    ids = tokenize(model, [TEXT]).ids
    with torch.no_grad():
        before = model(ids)
    monkeypatch.setattr(WorkerProgress, "advance", slow)
    live.compute(State(), "tiny-llama", TEXT, "auto", False)
    assert reached.wait(30)
    live.worker.cancel()
    go.set()
    status = live.worker.wait(60)
    assert "Cancelled" in status.error and len(layers) == 1 and live.choices() == []
    with torch.no_grad():
        assert torch.equal(model(ids), before)


@pytest.mark.parametrize(
    ("state", "text", "said"),
    [
        (State(), "king " * 30_000, f"up to {MAX_CHARACTERS:,}"),
        (State(), "king " * 5_000, "up to 512 with this model"),
        (State(), "too short", "too short to measure"),
        (tried("AblateHeads"), TEXT, "AblateHeads needs heads; write heads such as"),
        (tried("AblateHeads", heads="L9H0"), TEXT, "does not exist"),
        (tried("AblateHeads", heads="<b>"), TEXT, "L5H1"),
        (tried("ScaleKeys", keys="9999"), TEXT, "Position 9999 does not exist"),
        (tried("MaskKeys", keys="a"), TEXT, "counted from 0"),
        (tried("SetActivations", where="1:0"), TEXT, "layer, position, dim"),
        (tried("Explode"), TEXT, "no intervention 'Explode'"),
    ],
)
def test_what_cannot_be_used_is_said(live: Bench, state: State, text: str, said: str) -> None:
    live.compute(state, "tiny-llama", text, "auto", False)
    status = live.worker.wait(120)
    assert said in status.error and status.result is None


def test_only_named_models_are_loaded(live: Bench, tmp_path: Path) -> None:
    for name in (str(tmp_path), "../../etc", "gpt2"):
        live.compute(State(), name, TEXT, "auto", False)
        assert "was not started with the model" in live.worker.wait(60).error


def test_another_model_than_the_results_is_refused(saved: Path, census: Census) -> None:
    bench = open_source(saved)
    bench.compute_maps("made-up", 0)
    assert "This needs the model" in bench.worker.wait(60).error
    other = replace(census, meta=census.meta | {"model": census.meta["model"] | {"name": "tiny-llama"}})
    name = bench.add(other)
    bench.compute_maps(name, 0)
    assert "it is another model" in bench.worker.wait(60).error


def test_too_large_a_region_is_refused(live: Bench) -> None:
    with pytest.raises(InputError, match="zoom further in"):
        live.compute_window("live-1", 0, (0, 0), (0, 257, 0, 5))


def test_a_text_is_never_cut(model: Any) -> None:
    batch, source = text_tokens(model, TEXT, "auto")
    assert batch is not None and batch.dropped == 0 and "<b>" not in source.partition("…")[2]
    assert text_tokens(model, " \n", "auto") == (None, "")
    assert compute.token_limit(model) == 512


def test_what_was_tried_is_kept_and_repeats_in_three_lines(live: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    tries = [
        tried("MaskKeys"),
        tried("AblateHeads", heads="L0H3", how="mean"),
        tried("AblateHeads", heads="L0H3", how="resample"),
        tried("EditValues", to="mean"),
        tried("SetActivations", where="1:0:66", to="mean"),
        tried("h2o", heavy="4", recent="4"),
        tried("snap_kv"),
    ]
    for state in tries:
        live.compute(state, "tiny-llama", TEXT[:104], "auto", False)
        finished(live)
    assert [trial.label.partition("(")[0] for trial in live.trials] == [
        "MaskKeys", "AblateHeads", "AblateHeads", "EditValues", "SetActivations", "H2O", "SnapKV",
    ]  # fmt: skip
    for trial in live.trials[:-1]:
        assert len(trial.python.splitlines()) == 3
        spoken = trial.python.splitlines()
        spoken[2] = "found = " + spoken[2].removeprefix("print(").removesuffix(".T)")
        space: dict[str, Any] = {}
        exec("\n".join(spoken), space)
        assert space["found"]["delta_loss"].iloc[0] == pytest.approx(trial.delta, abs=1e-5)
        assert len(trial.controls) >= 3 and trial.rank is not None and 1 <= trial.rank <= 6
    ahead = live.trials[-1]
    assert ahead.delta is None and "tokens that come later" in ahead.notes[0]
    history = json.loads(history_json(live.trials))
    for each, trial in zip(history["trials"], live.trials, strict=True):
        again = Intervention.from_json(json.dumps(each["intervention"]))
        assert type(again).__name__ == trial.label.partition("(")[0]
    table = json.dumps(history_of(live.trials, live.trials[0].live), default=lambda part: part.to_plotly_json())
    first = live.trials[0]
    assert f"{first.delta:+.3f}" in table and f"{first.mean:+.3f}" in table and "of as many other positions" in table
    assert exported_python(live.trials).count("measure_effects(model") == 7
    before = len(live.trials)
    live.compute(tries[0], "tiny-llama", TEXT[:104], "auto", False)  # known: not tried again
    finished(live)
    assert len(live.trials) == before


@pytest.mark.parametrize("name", methods())
def test_every_intervention_and_policy_has_a_form(name: str) -> None:
    method = methods()[name]
    assert method.says.endswith(".") and all(field.kind for field in method.fields)
    named = {field.name for field in method.fields} | {"prompt", "outputs", "means"}
    assert {each.name for each in dataclasses.fields(method.kind)} <= named
    page = json.dumps(form_of(name, {}), default=lambda part: part.to_plotly_json())
    assert all(f'{{"field": "{field.name}"}}' in page for field in method.fields)
    typed = {"heads": "L0H1", "where": "1:0:66", "table": '{"L0H3": [16, 0.0]}', "sinks": "0"}
    typed["weights"] = "a.b[1, 2];a.c[3]"
    made = build(method, {n: text for n, text in typed.items() if n in named}, lambda name, arguments: None)
    assert isinstance(made, method.kind) and Intervention.from_json(made.to_json()) == made
    assert described(method, typed).startswith(f"{method.kind.__name__}(")
