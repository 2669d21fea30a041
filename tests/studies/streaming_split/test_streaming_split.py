"""Gates learned on the built-in induction model: what they say, what holds after deployment, interrupted runs."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.errors import InputError, ResultError, UnsupportedArchitectureError
from sinklens.interventions import SlidingWindow
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.studies import GateSettings, SplitCheck, StreamingGates, check_split, learn_gates
from sinklens.studies.streaming_split.check import CHECK
from sinklens.studies.streaming_split.learn import Learner, stream
from sinklens.studies.streaming_split.passkeys import draw_passkeys
from sinklens.studies.streaming_split.run import STATE
from sinklens.studies.streaming_split.split import split_gates
from tests.families import FAMILIES, boot, checkpoint
from tests.heard import Heard
from tests.interventions import reference

SHORT = GateSettings(steps=100, sinks=1, recent=8, min_length=48, max_length=80, batch=4)
BRIEF = GateSettings(steps=6, sinks=1, recent=4, min_length=32, max_length=40, value_len=3, batch=2)


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return sinklens.load("induction-2l")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def learned(model: TransformerBridge) -> StreamingGates:
    model(torch.tensor([[512, 1]]))  # TransformerLens wires hooks of its own in a bridge's first forward pass
    before = reference.state(model)
    with torch.no_grad():  # gates are learned all the same
        found = learn_gates(model, SHORT)
    assert reference.same(before, reference.state(model))
    assert all(parameter.requires_grad for parameter in model.parameters())
    return found


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    above, equal = positive[:, None] > negative, positive[:, None] == negative
    return float((above + equal / 2).mean())


def check_acceptance(found: StreamingGates) -> None:
    """Card duoattention, check 2, on the labels of the retrieval score: layer 1 retrieves, layer 0 does not."""
    gates = found.gates
    assert gates.shape == (2, 4)
    assert gates[1].min() > 0.9 and gates[0].max() < 0.3, gates
    assert area_under_curve(gates[1], gates[0]) >= 0.95
    assert float(found.losses()["distillation"].iloc[-10:].mean()) < 0.05


def test_gates_tell_retrieval_heads_from_others_that_matter_as_much(
    model: TransformerBridge, learned: StreamingGates
) -> None:
    check_acceptance(learned)
    split = learned.retrieval_heads(sparsity=0.5)
    assert split.retrieval_kv == ((1, 0), (1, 1), (1, 2), (1, 3)) == split.retrieval_heads
    checked = check_split(model, split, SHORT, n_sequences=32)
    rows = checked.to_dataframe().set_index("condition")
    assert rows.at["full", "exact_match"] >= 0.9
    assert abs(rows.at["split", "delta_exact_match"]) <= 0.05
    # the same budget in other heads, or none at all, leaves nothing: layer 0 needs no more than the last tokens
    assert rows.at["random 0", "exact_match"] <= 0.05 and rows.at["streaming", "exact_match"] <= 0.05
    assert rows.at["split, compensated", "answer_loss"] <= rows.at["split", "answer_loss"] + 0.05
    kept = (4 * 80 + 4 * 9) / (8 * 80)
    assert rows.at["split", "kv_kept"] == kept == checked.meta["kv_bytes"]["fraction"]
    assert checked.meta["controls"]["draws"] == 1  # there is only one other set of four


def test_the_learned_gates_as_a_table(learned: StreamingGates, tmp_path: Path) -> None:
    table, losses = learned.to_dataframe(), learned.losses()
    assert list(table.columns) == ["layer", "kv_head", "alpha"] and len(table) == 8
    assert table["alpha"].between(0, 1).all()
    assert losses["step"].tolist() == [*range(100)]
    recorded = losses["distillation"] + 0.05 * losses["regulariser"]
    np.testing.assert_allclose(losses["loss"], recorded, atol=1e-6)
    assert losses["regulariser"].iloc[0] == 1.0 and losses["distillation"].iloc[0] < 1e-10  # open gates: the teacher
    np.testing.assert_allclose(losses["regulariser"], losses["mean_gate"].clip(0, 1), atol=0.03)
    scores = learned.heads
    assert scores.scores == ["streaming_gate"] and scores.frame[["layer", "head"]].drop_duplicates().shape[0] == 8
    json.dumps(learned.meta, allow_nan=False)
    assert learned.meta["settings"]["regulariser"] == "mean" and learned.meta["settings"]["passkeys"] == 1
    assert learned.meta["tokens"]["bos"]["id"] == 512 and learned.meta["tokens"]["distinct"]
    again = StreamingGates.load(learned.save(tmp_path / "gates"))
    assert again.meta == learned.meta
    assert again.to_dataframe().equals(table) and again.losses().equals(losses)
    (tmp_path / "gates" / "losses.parquet").unlink()
    with pytest.raises(ResultError, match="incomplete"):
        StreamingGates.load(tmp_path / "gates")


def test_a_check_is_saved_and_read(model: TransformerBridge, learned: StreamingGates, tmp_path: Path) -> None:
    split = learned.retrieval_heads(threshold=0.5)
    heard = Heard()
    checked = check_split(model, split, SHORT, n_sequences=6, compensated=False, progress=heard)
    assert checked.to_dataframe()["condition"].tolist() == ["full", "split", "random 0", "streaming"]
    assert heard.done == [1.0] * 4 and heard.whole
    again = SplitCheck.load(checked.save(tmp_path / "check"))
    assert again.to_dataframe().equals(checked.to_dataframe()) and again.by_sequence().equals(checked.by_sequence())
    assert again.meta["split"] == checked.meta["split"]
    assert checked.meta["split"]["retrieval_kv"] == ["L1KV0", "L1KV1", "L1KV2", "L1KV3"]
    everything = check_split(model, learned.retrieval_heads(sparsity=0), SHORT, n_sequences=4)
    assert everything.to_dataframe()["condition"].tolist() == ["full", "streaming"]


def test_answers_are_those_of_a_plain_forward_pass(model: TransformerBridge) -> None:
    """Also where some of a question's values are right: one of four retrieval heads is left."""
    most = split_gates({(layer, kv): float(layer and kv > 2) for layer in (0, 1) for kv in range(4)}, 1, threshold=0.5)
    checked = check_split(model, most, SHORT, n_sequences=24, draws=1, seed=3)
    drawn = draw_passkeys(
        ordinary_ids(model),
        length=80,
        passkeys=1,
        value_len=8,
        batch=24,
        generator=stream(3, CHECK),
        bos_id=512,
    )
    partly = 0
    for condition, heads in (("full", []), ("split", [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)])):
        with torch.no_grad(), SlidingWindow(8, 1, heads)(model) if heads else nullcontext():  # type: ignore[arg-type]
            log_probs = model(drawn.ids).log_softmax(-1)
        rows = checked.by_sequence().query(f"condition == '{condition}'")
        for row, ids in zip(rows.to_dict("records"), drawn.ids, strict=True):
            here = log_probs[row["sequence"], 71:79]
            assert row["accuracy"] == float((here.argmax(-1) == ids[72:]).double().mean())
            assert row["exact_match"] == float(row["accuracy"] == 1)
            assert row["answer_loss"] == pytest.approx(-float(here.gather(-1, ids[72:, None]).mean()), abs=1e-4)
            partly += 0 < row["accuracy"] < 1
    assert partly >= 3, partly


# ------------------------------------------------------------------ settings
def learner(model: TransformerBridge, **changes: Any) -> Learner:
    settings = GateSettings(**{**BRIEF.as_dict(), **changes}).resolved(model)
    made = Learner(model, settings, ordinary_ids(model), 512)
    with torch.no_grad():
        made.gates.copy_(torch.linspace(0.2, 0.9, 8).view(2, 4))
    return made


def test_paper_and_code_differ_by_known_factors(model: TransformerBridge) -> None:
    """Card duoattention, check 3: mean and sum are told apart, and both are what they are called."""
    drawn = learner(model).draw(0)
    mean = float(learner(model)._distil(drawn).detach())
    total = float(learner(model, distillation="sum")._distil(drawn).detach())
    assert total == pytest.approx(mean * int(drawn.answers.sum()) / len(drawn.ids) * 128, rel=1e-4)
    regularisers = {}
    for how in ("mean", "sum"):
        made = learner(model, regulariser=how)
        made.advance()
        regularisers[how] = made.losses[0]["regulariser"]
    assert regularisers["mean"] == pytest.approx(0.55) and regularisers["sum"] == pytest.approx(8 * 0.55)
    labels = float(learner(model, labels="questions_and_answers")._distil(drawn).detach())
    own = float(learner(model, full_outputs="own")._distil(drawn).detach())
    assert len({mean, labels, own}) == 3


def test_gates_are_clamped_before_a_step_and_in_the_end(model: TransformerBridge) -> None:
    made = learner(model, lr=0.0)
    with torch.no_grad():
        made.gates[0, 0], made.gates[1, 3] = -0.5, 1.7
    made.advance()
    gates = made.gates.detach()
    assert (float(gates[0, 0]), float(gates[1, 3])) == (0.0, 1.0)
    assert made.losses[0]["mean_gate"] == pytest.approx(float(gates.mean()))
    wild = learn_gates(model, GateSettings(**{**BRIEF.as_dict(), "lr": 5.0, "reg_weight": 10.0}))
    assert wild.gates.min() == 0 and wild.gates.max() <= 1


def test_the_rate_is_that_of_the_released_code() -> None:
    for steps in (10, 100, 2000):
        settings = GateSettings(steps=steps)
        for step in range(steps):
            fifth = steps // 5
            factor = min(1, max((step + 1) / fifth, 0.1), max((steps - step) / fifth, 0.1))
            assert settings.rate(step) == pytest.approx(0.02 * factor)


def test_defaults_follow_the_context(model: TransformerBridge) -> None:
    settings = GateSettings().resolved(model)
    sizes = (settings.sinks, settings.recent, settings.min_length, settings.max_length, settings.passkeys)
    assert sizes == (16, 32, 128, 512, 1)
    assert (
        settings.text_lengths()[0] == 128 and settings.text_lengths()[-1] == 512 and len(settings.text_lengths()) == 10
    )
    assert settings.resolved(model) == settings


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_length": 513}, "longer than the model's context of 512"),
        ({"max_length": 16, "recent": 16, "sinks": 0}, "streaming changes nothing"),
        ({"min_length": 300, "max_length": 200}, "min_length=300 is longer"),
        ({"steps": 0}, "steps must be an integer from 1"),
        ({"regulariser": "l2"}, 'regulariser must be "mean" or "sum"'),
        ({"labels": "all"}, "labels must be"),
        ({"lr": -1.0}, "lr must be a number"),
        ({"max_length": 64, "passkeys": 5}, "leave no haystack"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], problem: str, model: TransformerBridge) -> None:
    with pytest.raises(InputError, match=problem):
        learn_gates(model, GateSettings(**changes))


def test_models_that_cannot_be_gated_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning), pytest.raises(UnsupportedArchitectureError, match="not measured on the fast path"):
        learn_gates(boot("bloom", tmp_path), BRIEF)
    with pytest.raises(UnsupportedArchitectureError, match="has no attention heads"):
        learn_gates(boot("mamba", tmp_path), BRIEF)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "qwen3_next"])
def test_other_families_have_a_gate_for_every_kv_head(name: str, tmp_path: Path) -> None:
    bridge = boot(name, tmp_path)
    found = learn_gates(bridge, BRIEF, bos="no")
    gates = found.gates
    assert gates.shape[1] == 2
    attention = [layer in FAMILIES[name].attention_layers for layer in range(len(bridge.blocks))]
    assert (~np.isnan(gates)).all(1).tolist() == attention and np.isnan(gates).all(1).tolist() == [
        not x for x in attention
    ]
    frame = found.heads.frame
    assert frame.groupby(["layer", "kv_head"])["head"].apply(list).tolist()[0] == [0, 1]
    assert found.meta["tokens"]["bos"]["added_by"] == "nobody"


def test_half_precision_learns_too(tmp_path: Path) -> None:
    bridge = sinklens.load(checkpoint("llama", tmp_path), dtype="bfloat16")
    found = learn_gates(bridge, BRIEF, bos="no")
    assert found.losses().notna().all(axis=None) and found.losses()["distillation"].iloc[-1] > 0
    assert found.meta["model"]["dtype"] == "bfloat16" and found.gates.max() < 1


# ------------------------------------------------------------------ runs that break off
class Stop(Exception):
    pass


def stop_after(steps: int) -> Any:
    def stop(heard: Heard) -> None:
        if len(heard.done) == steps:
            raise Stop

    return Heard(stop)


def test_an_interrupted_run_goes_on_where_it_was(model: TransformerBridge, tmp_path: Path) -> None:
    whole = learn_gates(model, BRIEF)
    with pytest.raises(Stop):
        learn_gates(model, BRIEF, out=tmp_path / "run", progress=stop_after(4))
    assert (tmp_path / "run" / "parts" / STATE).is_file()
    heard = Heard()
    again = learn_gates(model, BRIEF, out=tmp_path / "run", progress=heard)
    assert heard.skipped == 4 and heard.done == [1.0] * 2
    assert again.to_dataframe().equals(whole.to_dataframe()) and again.losses().equals(whole.losses())
    assert not (tmp_path / "run" / "parts" / STATE).exists()
    # a finished run is read, not run again
    read = learn_gates(model, BRIEF, out=tmp_path / "run", progress=stop_after(1))
    assert read.to_dataframe().equals(whole.to_dataframe())
    with pytest.raises(ResultError, match=r"holds another set of gates \(settings.seed: 0 there, 5 now"):
        learn_gates(model, GateSettings(**{**BRIEF.as_dict(), "seed": 5}), out=tmp_path / "run")
    other = learn_gates(model, GateSettings(**{**BRIEF.as_dict(), "seed": 5}), out=tmp_path / "run", restart=True)
    assert not other.losses().equals(whole.losses())


def test_progress_of_other_settings_or_damaged_is_refused(model: TransformerBridge, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        learn_gates(model, BRIEF, out=tmp_path, progress=stop_after(2))
    with pytest.raises(ResultError, match="holds another set of gates"):
        learn_gates(model, GateSettings(**{**BRIEF.as_dict(), "lr": 0.5}), out=tmp_path)
    (tmp_path / "parts" / STATE).write_bytes(b"half of it")
    with pytest.raises(ResultError, match="is damaged"):
        learn_gates(model, BRIEF, out=tmp_path)
    learn_gates(model, BRIEF, out=tmp_path, restart=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ResultError, match="holds no result"):
        learn_gates(model, BRIEF, out=tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"seed": 1}, {"labels": "questions_and_answers"}, {"regulariser": "sum"}])
def test_the_split_does_not_hang_on_one_choice(changes: dict[str, Any], model: TransformerBridge) -> None:
    found = learn_gates(model, GateSettings(**{**SHORT.as_dict(), "steps": 150, **changes}))
    assert found.retrieval_heads(sparsity=0.5).retrieval_kv == ((1, 0), (1, 1), (1, 2), (1, 3))
    assert area_under_curve(found.gates[1], found.gates[0]) >= 0.95


@pytest.mark.slow
def test_the_defaults_hold_up(model: TransformerBridge) -> None:
    found = learn_gates(model)
    split = found.retrieval_heads(sparsity=0.5)
    assert area_under_curve(found.gates[1], found.gates[0]) >= 0.95
    rows = check_split(model, split).to_dataframe().set_index("condition")
    assert abs(rows.at["split", "delta_exact_match"]) <= 0.05
