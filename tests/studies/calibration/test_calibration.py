"""Choosing interventions on planted tasks: a head or factor that helps, form without content, and nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, tokenize
from sinklens.errors import InputError, ResultError
from sinklens.interventions import AblateHeads, Intervention, MaskKeys, ScaleKeys, SlidingWindow
from sinklens.interventions.calibrate_sinks import CalibrateSinks
from sinklens.interventions.heads import head_name
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.studies.calibration.answer_rates import AnswerRates, RateChange
from sinklens.studies.calibration.choose_gamma import _dominant, choose_gamma
from sinklens.studies.calibration.classification import ClassificationTask, classification_task, score_task
from sinklens.studies.calibration.filter_heads import filter_heads
from sinklens.studies.calibration.profile_heads import head_units, profile_heads
from sinklens.studies.calibration.result import Calibration
from tests import families
from tests.heard import Heard


@pytest.fixture(scope="module")
def tiny(tiny_directory: Path) -> TransformerBridge:
    """A random Llama, on the CPU wherever the tests run."""
    return load(tiny_directory, device="cpu")


EVERY_HEAD = [(layer, head) for layer in range(2) for head in range(families.HEADS)]


@torch.no_grad()
def top(model: TransformerBridge, ids: torch.Tensor, intervention: Intervention | None = None) -> torch.Tensor:
    """The model's answers, as its own logits at the last position have them."""
    if intervention is None:
        return model(ids)[:, -1].argmax(-1)
    with intervention(model):
        return model(ids)[:, -1].argmax(-1)


def planted(model: TransformerBridge, helper: Intervention, n: int, seed: int = 0, pos: int = 10) -> ClassificationTask:
    """n prompts answered right only under ``helper``, and n answered right anyway."""
    ids = families.random_ids(batch=16 * n, pos=pos, seed=seed)
    before, after = top(model, ids), top(model, ids, helper)
    differs = before != after
    chosen = torch.cat([differs.nonzero()[:n, 0], (~differs).nonzero()[:n, 0]])
    assert len(chosen) == 2 * n
    labels = []
    for index in chosen.tolist():
        right = int(after[index])
        wrong = int(before[index]) if differs[index] else (right + 1) % families.VOCAB
        labels.append(((right,), (wrong,)) if index % 2 else ((wrong,), (right,)))
    answers = tuple(0 if index % 2 else 1 for index in chosen.tolist())
    return ClassificationTask(tokenize(model, ids[chosen]), tuple(labels), answers)


def backcopy(model: TransformerBridge, n: int) -> ClassificationTask:
    """The built-in models' own task: after a trigger, the character before it; the other label is one that stands
    elsewhere in the prompt."""
    task = BigramBackcopy()
    ids = task.sample(n, 24, torch.Generator().manual_seed(0))
    rows, labels = [], []
    for row, trigger in zip(ids.tolist(), task.trigger_mask(ids).tolist(), strict=True):
        last = max(t for t in range(24) if trigger[t])
        other = next(token for token in row[1:] if token != row[last - 1])
        rows.append(row[: last + 1])
        labels.append(((row[last - 1],), (other,)))
    return ClassificationTask(tokenize(model, rows), tuple(labels), (0,) * n)


# ---------------------------------------------------------------- rates


def test_the_six_runs_of_the_notebook_are_a_format_effect() -> None:
    valid = {1.0: 347, 1.5: 393, 2.0: 469, 3.0: 492, 3.5: 496, 4.0: 498}
    correct = {1.0: 318, 1.5: 365, 2.0: 426, 3.0: 442, 3.5: 444, 4.0: 443}
    runs = {gamma: AnswerRates(500, valid[gamma], correct[gamma]) for gamma in valid}
    given = {gamma: round(run.accuracy_given_valid, 3) for gamma, run in runs.items()}
    assert given == {1.0: 0.916, 1.5: 0.929, 2.0: 0.908, 3.0: 0.898, 3.5: 0.895, 4.0: 0.890}
    changes = {gamma: RateChange(runs[1.0], run) for gamma, run in runs.items()}
    assert {gamma for gamma, change in changes.items() if change.format_effect} == {2.0, 3.0, 3.5, 4.0}
    assert changes[4.0].accuracy == pytest.approx(0.25) and changes[4.0].accuracy_given_valid < -0.026
    for change in changes.values():
        assert change.from_validity + change.from_choice == pytest.approx(change.accuracy)
    boolq = RateChange(AnswerRates(500, 495, 362), AnswerRates(500, 499, 403))
    assert not boolq.format_effect and boolq.from_choice > 0.07


def test_rates_that_do_not_apply_are_nan() -> None:
    none = AnswerRates(5, 0, 0)
    assert none.accuracy == 0 and np.isnan(none.accuracy_given_valid) and np.isnan(AnswerRates(0, 0, 0).accuracy)
    assert RateChange(none, AnswerRates(5, 5, 3)).format_effect
    assert not RateChange(AnswerRates(5, 5, 3), AnswerRates(5, 5, 3)).format_effect
    with pytest.raises(InputError, match="correct <= valid <= n"):
        AnswerRates(5, 2, 3)


# ---------------------------------------------------------------- tasks


def test_scores_are_the_models_answers_one_by_one(tiny: TransformerBridge) -> None:
    ids = families.random_ids(batch=9, pos=20)
    ragged = [row[: 20 - 3 * (index % 4)].tolist() for index, row in enumerate(ids)]
    change = AblateHeads(["L0H1"])
    answers = [int(top(tiny, torch.tensor([row]), change)[0]) for row in ragged]
    labels = tuple(
        (((a + 1) % families.VOCAB, a), ((a + 2) % families.VOCAB,))
        if i % 3
        else (((a + 1) % families.VOCAB,), ((a + 2) % families.VOCAB,))
        for i, a in enumerate(answers)
    )
    task = ClassificationTask(tokenize(tiny, ragged), labels, tuple(int(i % 3 == 1) for i in range(9)))
    found = score_task(tiny, task, change, batch_size=2)
    assert found.valid.tolist() == [i % 3 != 0 for i in range(9)]
    assert found.correct.tolist() == [i % 3 == 2 for i in range(9)]
    assert (found.rates.n, found.rates.valid, found.rates.correct) == (9, 6, 3)
    with torch.no_grad(), change(tiny):
        for row, entropy in zip(ragged, found.entropy, strict=True):
            p = tiny(torch.tensor([row]))[0, -1].double().softmax(-1)
            assert entropy == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)


def test_bb1_answers_its_own_task_by_attention_alone() -> None:
    model = load("bb-1l", device="cpu")
    task = backcopy(model, 40)
    assert score_task(model, task).rates.accuracy == 1
    assert score_task(model, task, AblateHeads("all")).rates.accuracy < 0.1


def test_split_is_disjoint_seeded_and_keeps_equal_prompts_together(tiny: TransformerBridge) -> None:
    ids = families.random_ids(batch=20, pos=6)
    ids[10:15] = ids[:5]
    task = classification_task(tiny, tokenize(tiny, ids), [10, 20], [0, 1] * 10)
    search, report = task.split(0.4, seed=3)
    assert sorted(search + report) == list(range(20)) and len(search) == 8
    assert (search, report) == task.split(0.4, seed=3) != task.split(0.4, seed=4)
    for seed in range(20):
        search, _ = task.split(0.5, seed=seed)
        assert all((i in search) == (i + 10 in search) for i in range(5)) and len(search) in (9, 10)
    rows = task.rows([3, 0])
    assert rows.answers == (1, 0) and torch.equal(rows.prompts.ids[0], task.prompts.ids[3])
    for share in (0.0, 1.0, 0.01, -1):
        with pytest.raises(InputError, match="one side of the split empty"):
            task.split(share)


def test_labels_are_single_tokens(tiny: TransformerBridge) -> None:
    task = classification_task(tiny, ["ab", "cd"], ["x", ["y", "Y", 7]], [0, 1])
    ids = [tiny.tokenizer(text)["input_ids"][-1] for text in "xyY"]
    assert task.labels[1] == ((ids[0],), (ids[1], ids[2], 7))
    with pytest.raises(InputError, match="'yes' is 3 tokens"):
        classification_task(tiny, ["ab"], ["yes", "n"], [0])
    with pytest.raises(InputError, match="no token of this model"):
        classification_task(tiny, ["ab"], [5, 10**6], [0])
    with pytest.raises(InputError, match="stands for two labels"):
        classification_task(tiny, ["ab"], [5, [6, 5]], [0])
    with pytest.raises(InputError, match="label 2; it has 2"):
        classification_task(tiny, ["ab"], [5, 6], [2])
    with pytest.raises(InputError, match="two labels"):
        classification_task(tiny, ["ab"], [5], [0])
    with pytest.raises(InputError, match="1 prompt, labels for 1 and answers for 2"):
        classification_task(tiny, ["ab"], [5, 6], [0, 1])


# ---------------------------------------------------------------- head filter


def test_the_head_that_helps_is_kept_and_reported_on_other_prompts(tiny: TransformerBridge) -> None:
    task = planted(tiny, AblateHeads(["L0H2"]), 24)
    heard = Heard()
    found = filter_heads(tiny, task, AblateHeads("all"), controls=5, progress=heard)
    assert found.heads == ("L0H2",) and found.intervention == AblateHeads(["L0H2"])
    report = found.summary().set_index("variant")
    assert report.loc["tuned", "accuracy"] == 1 and 0.3 < report.loc["unchanged", "accuracy"] < 0.7
    assert found.is_gain and not found.format_effect and found.accuracy_gain.low > 0.2
    assert found.controls.n == 5 and found.controls.rank == 1  # three other heads in that layer, two elsewhere
    assert any("only 3 different sets of the tested layers" in note for note in found.notes)
    assert ": a gain." in found.verdict[0] and "p = 0.17" in found.verdict[2]
    search, held_out = set(found.meta["split"]["search"]), set(found.answers["prompt"])
    assert not search & held_out and search | held_out == set(range(48))
    assert heard.whole and heard.begun[0][1] == 24 * (1 + 8) + 24 * (2 + 5) and len(heard.done) == 9 + 7


def test_kept_heads_are_those_of_a_plain_loop(tiny: TransformerBridge) -> None:
    task = planted(tiny, AblateHeads(["L0H2", "L1H1"]), 20, seed=5)
    found = filter_heads(tiny, task, MaskKeys(1), share=0.6, seed=2, controls=1)
    search, _ = task.split(0.6, seed=2)
    ids = task.prompts.ids[search]
    right = torch.tensor([task.labels[i][task.answers[i]][0] for i in search])
    before = (top(tiny, ids) == right).float().mean()
    rates = [float((top(tiny, ids, MaskKeys(1, [head])) == right).float().mean()) for head in EVERY_HEAD]
    rows = found.search[found.search["stage"] == "heads"]
    np.testing.assert_allclose(rows["accuracy"], rates, atol=1e-6)
    assert found.heads == tuple(head_name(h) for h, rate in zip(EVERY_HEAD, rates, strict=True) if rate > before)
    assert len(found.search) == 9 and (rows["kept"] == (rows["gain"] > 0)).all()


@pytest.mark.parametrize("objective", ["accuracy", "entropy"])
@pytest.mark.parametrize(
    "nothing",
    [ScaleKeys(0, 1.0), MaskKeys(500), CalibrateSinks(rule="absolute", threshold=1.0)],
    ids=["gamma 1", "no such key", "no sink"],
)
def test_what_does_nothing_keeps_no_head(tiny: TransformerBridge, nothing: Intervention, objective: str) -> None:
    task = planted(tiny, AblateHeads(["L0H2"]), 10)
    found = filter_heads(tiny, task, nothing, objective=objective)
    assert found.heads == () and found.intervention is None
    assert (found.search["gain"] == 0).all() and not found.search["kept"].any()
    assert found.accuracy_gain.value == 0 and not found.is_gain and not found.format_effect
    assert found.verdict == ["Nothing was chosen.", "No head alone makes the answers better."]
    assert list(found.summary()["variant"]) == ["unchanged", "tuned"] and np.isnan(found.controls.rank)


def test_what_does_nothing_is_named_by_what_was_tried(tiny: TransformerBridge) -> None:
    task = planted(tiny, AblateHeads(["L0H2"]), 10)
    for per, unit in (("head", "head alone"), ("index", "head index, in all layers together,")):
        found = choose_gamma(tiny, task, ScaleKeys(500, 2.0), per=per, gammas=(2.0,), controls=1)  # type: ignore[arg-type]
        assert found.verdict == ["Nothing was chosen.", f"No {unit} changes accuracy."]


def test_only_named_heads_are_candidates(tiny: TransformerBridge) -> None:
    task = planted(tiny, AblateHeads(["L0H2"]), 10)
    found = filter_heads(tiny, task, AblateHeads(["L1H0", "L1H1", "L1H3"]))
    assert list(found.search["heads"]) == ["", "L1H0", "L1H1", "L1H3"]


# ---------------------------------------------------------------- gamma


@pytest.fixture(scope="module")
def tuned_task(tiny: TransformerBridge) -> ClassificationTask:
    return planted(tiny, ScaleKeys(0, 6.0, ["L0H3"]), 40, seed=1)


def test_a_factor_that_helps_is_found_and_reported_on_other_prompts(
    tiny: TransformerBridge, tuned_task: ClassificationTask
) -> None:
    template = ScaleKeys(0, 2.0, ["L0H3", "L1H2"])
    found = choose_gamma(tiny, tuned_task, template, gammas=(0.2, 3.0, 6.0, 9.0))
    assert found.intervention == ScaleKeys(0, 6.0, ["L0H3"])
    assert found.meta["settings"]["dominant"] == "up"
    search = found.search
    up = search[(search["stage"] == "heads") & (search["effect"] == "up")]
    assert up["heads"].iloc[0] == "L0H3" and up["gain"].max() == up["gain"].iloc[0]
    grid = search[search["stage"] == "gamma"].set_index("gamma")
    assert grid["accuracy"].idxmax() == 6.0 == grid.index[grid["kept"]].item()
    assert grid.loc[1.0, "accuracy"] == search.loc[0, "accuracy"]
    report = found.summary().set_index("variant")
    assert report.loc["tuned", "accuracy"] == 1 and found.is_gain and found.controls.rank == 1
    assert found.controls.n == 7 and "only 3 different sets of the tested layers" in found.notes[0]


def test_by_entropy_labels_do_not_matter(tiny: TransformerBridge, tuned_task: ClassificationTask) -> None:
    options = {"objective": "entropy", "controls": 1, "per": "index", "gammas": (0.5, 1, 2.0)}
    found = choose_gamma(tiny, tuned_task, **options)
    again = choose_gamma(tiny, tuned_task.shuffled(3), **options)
    assert found.intervention == again.intervention and found.intervention is not None
    assert len(found.search[found.search["stage"] == "heads"]) == families.HEADS
    assert set(found.search[found.search["stage"] == "gamma"]["gamma"]) == {0.5, 1.0, 2.0}
    grid = found.search[found.search["stage"] == "gamma"].set_index("gamma")
    assert grid["entropy"].idxmin() == found.intervention.gamma
    assert all(f"L{layer}{name[2:]}" in found.heads for name in found.heads for layer in range(2))


def test_with_shuffled_labels_there_is_no_gain(tiny: TransformerBridge, tuned_task: ClassificationTask) -> None:
    claims = 0
    for seed in (5, 8, 10, 11, 14):  # seeds with which something seems to help on the prompts chosen on
        shuffled = tuned_task.shuffled(seed)
        assert shuffled.answers != tuned_task.answers and sorted(shuffled.answers) == sorted(tuned_task.answers)
        found = choose_gamma(tiny, shuffled, seed=seed, controls=1, gammas=(0.25, 2.0, 4.0))
        assert found.intervention is not None and found.search["gain"].max() > 0
        claims += found.is_gain or found.accuracy_gain.low > 0
    assert claims == 0


def test_better_form_alone_is_flagged(tiny: TransformerBridge) -> None:
    helper = AblateHeads(["L0H2"])
    ids = families.random_ids(batch=400, pos=10)
    before, after = top(tiny, ids), top(tiny, ids, helper)
    chosen = (before != after).nonzero()[:60, 0].tolist()
    # unchanged: no label on two thirds of the prompts, right on the rest; helped: always a label, half of them right
    labels, answers = [], []
    for place, index in enumerate(chosen):
        new, old = int(after[index]), int(before[index])
        other = next(token for token in range(families.VOCAB) if token not in (new, old))
        labels.append(((new,), (other,)) if place % 3 else ((old,), (new,)))
        answers.append(int(place % 3 > 0 and place % 12 < 3))
    task = ClassificationTask(tokenize(tiny, ids[chosen]), tuple(labels), tuple(answers))
    assert score_task(tiny, task).rates == AnswerRates(60, 20, 20)
    assert score_task(tiny, task, helper).rates == AnswerRates(60, 60, 30)
    found = filter_heads(tiny, task, helper, controls=1)
    assert found.heads == ("L0H2",) and found.change.accuracy > 0 and found.change.valid_rate > 0.5
    assert found.format_effect and not found.is_gain and "a format effect" in found.verdict[0]
    assert found.accuracy_given_valid_gain.high < 0


def test_dominant_type_and_its_share() -> None:
    gains = np.array([0.1, -0.2, 0.3, 0.0, 0.2, 0.05, -0.4])
    effects = np.array(["up", "down", "up", "none", "up", "up", "down"])
    assert _dominant(gains, effects, 0.4) == ("up", [2, 4])
    assert _dominant(gains, effects, 1.0) == ("up", [0, 2, 4, 5])
    assert _dominant(gains[:2], effects[:2], 0.4) == ("down", [1])  # one each: the larger effect
    assert _dominant(gains[3:4], effects[3:4], 0.4) == (None, [])
    many = np.full(25, 0.1)
    assert _dominant(many, np.full(25, "up"), 0.28)[1] == [*range(7)]  # 0.28 * 25 is a little above 7 in binary


def test_head_units(tiny: TransformerBridge) -> None:
    assert head_units(EVERY_HEAD) == [(head,) for head in EVERY_HEAD]
    assert head_units(EVERY_HEAD, "index")[3] == ((0, 3), (1, 3))
    task = planted(tiny, AblateHeads(["L0H2"]), 8)
    table = profile_heads(tiny, task, AblateHeads(["L0H2", "L1H0"]))
    assert list(table["heads"]) == ["", "L0H2", "L1H0"] and table["gamma"].isna().all()
    assert list(table["effect"][:2]) == ["none", "up"]


@pytest.mark.cuda
def test_calibration_is_the_same_on_a_gpu(tiny: TransformerBridge, tiny_directory: Path) -> None:
    task = planted(tiny, AblateHeads(["L0H2"]), 24)
    here, there = (
        filter_heads(model, task, AblateHeads("all"), controls=2)
        for model in (tiny, load(tiny_directory, device="cuda"))
    )
    assert here.heads == there.heads and here.verdict == there.verdict
    pd.testing.assert_frame_equal(here.summary(), there.summary(), atol=1e-4)


# ---------------------------------------------------------------- results


def test_calibration_survives(tiny: TransformerBridge, tmp_path: Path) -> None:
    found = filter_heads(tiny, planted(tiny, AblateHeads(["L0H2"]), 10), AblateHeads("all"), controls=2)
    again = Calibration.load(found.save(tmp_path / "calibration"))
    assert again.meta == found.meta == json.loads(json.dumps(found.meta))
    pd.testing.assert_frame_equal(again.search, found.search)
    pd.testing.assert_frame_equal(again.summary(), found.summary())
    assert (again.intervention, again.verdict, again.heads) == (found.intervention, found.verdict, found.heads)
    assert again.controls == found.controls and again.accuracy_given_valid_gain == found.accuracy_given_valid_gain
    (tmp_path / "calibration" / "search.parquet").unlink()
    with pytest.raises(ResultError, match="incomplete"):
        Calibration.load(tmp_path / "calibration")


def wrong_requests() -> list[tuple[str, Callable[[TransformerBridge, ClassificationTask], object]]]:
    return [
        ("a field 'heads'", lambda m, t: filter_heads(m, t, SlidingWindow(4) + MaskKeys(0))),
        ("a field 'heads'", lambda m, t: filter_heads(m, t, AblateHeads(["L0H0"]) + MaskKeys(0))),
        ("a field 'gamma'", lambda m, t: choose_gamma(m, t, AblateHeads(["L0H0"]))),
        ("L7H0 does not exist", lambda m, t: filter_heads(m, t, AblateHeads(["L7H0"]))),
        ("top_share", lambda m, t: choose_gamma(m, t, top_share=0.0)),
        ("gamma must be", lambda m, t: choose_gamma(m, t, gammas=(2.0, -1.0))),
        ("one side of the split", lambda m, t: choose_gamma(m, t, share=1.0)),
        ("controls must be at least 1", lambda m, t: filter_heads(m, t, MaskKeys(0), controls=0)),
        ("batch_size must be at least 1", lambda m, t: filter_heads(m, t, MaskKeys(0), batch_size=0)),
    ]


@pytest.mark.parametrize(("message", "call"), wrong_requests())
def test_wrong_requests_are_refused(
    tiny: TransformerBridge, message: str, call: Callable[[TransformerBridge, ClassificationTask], object]
) -> None:
    task = classification_task(tiny, families.random_ids(batch=6, pos=8), [10, 20], [0, 1] * 3)
    with pytest.raises(InputError, match=message):
        call(tiny, task)
