"""Every registered detector through ``measure`` alone: tables, halves that make the whole, needs met or refused."""

from typing import Any

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import plots, scan
from sinklens.capture import capture
from sinklens.capture.needs import FIELDS
from sinklens.detectors import Detector, measure
from sinklens.detectors.registry import asked_for, built_in_detectors
from sinklens.detectors.repeats import Repeats
from sinklens.detectors.retrieval import Answer, RetrievalDetector
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.load import load
from sinklens.models.tokens import TokenBatch, tokenize
from sinklens.studies.needles.make import make_needles
from sinklens.studies.needles.retrieval_scores import retrieval_scores
from tests.detectors.test_stripe_scores import probe_batch
from tests.plots.checks import same

PROBE = Repeats(block=8, repeats=2, prefix=1)
SETTINGS: dict[str, Any] = {
    "repeats": PROBE,
    "entries": [(0, 3), (9, 5)],
    "answers": [Answer((2, 5), torch.tensor([30 + row, 31, 32]), row != 1) for row in range(4)],
}
"""What some detectors cannot be made without, by the name of the parameter."""
KINDS = built_in_detectors()
EVERY = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return load("tiny-llama")


@pytest.fixture(scope="module")
def batch(model: TransformerBridge) -> TokenBatch:
    return probe_batch(model, PROBE, 4)


def settings(name: str) -> dict[str, Any]:
    return {each: SETTINGS[each] for each in asked_for(KINDS[name])}


@EVERY
def test_it_gives_a_table_and_halves_make_the_whole(name: str, model: TransformerBridge, batch: TokenBatch) -> None:
    whole = measure(model, batch, name, batch_size=2, **settings(name))
    assert any(len(frame) for frame in whole.tables.values())
    one = measure(model, batch.rows([0, 1]), name, batch_size=2, **settings(name))
    two = measure(model, batch.rows([2, 3]), name, batch_size=2, first_sequence=2, **settings(name))
    if KINDS[name].merge is Detector.merge:
        with pytest.raises(InputError, match="defines no merge"):
            one.merge(two)
        return
    with pytest.raises(InputError, match="Both measured sequence 0"):
        one.merge(one)
    merged = one.merge(two)
    assert merged.tables.keys() == whole.tables.keys()
    for key, frame in whole.tables.items():
        pd.testing.assert_frame_equal(merged.tables[key], frame, rtol=1e-6, atol=1e-9, obj=f"{name}: {key}")


@EVERY
def test_what_it_cannot_be_made_without_is_named(name: str, model: TransformerBridge, batch: TokenBatch) -> None:
    if asked := asked_for(KINDS[name]):
        with pytest.raises(InputError, match=f"The detector '{name}' needs {asked[0]}.*{KINDS[name].__name__}"):
            measure(model, batch, name)
    else:
        assert KINDS[name]().name == name


@EVERY
def test_a_need_that_no_model_meets_is_refused(
    name: str, model: TransformerBridge, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    monkeypatch.setattr("sinklens.capture.run.fields_lacking", lambda *_, **__: dict.fromkeys(FIELDS, "so it is"))
    if kind.needs:
        with pytest.raises(UnsupportedArchitectureError, match=f"{kind.__name__} needs the {kind.needs[0]} .*so it is"):
            capture(model, batch, [kind(**settings(name))])
    else:
        assert any(len(frame) for frame in measure(model, batch, name, **settings(name)).tables.values())


@EVERY
def test_its_first_sentence_stands_alone(name: str) -> None:
    first = (KINDS[name].__doc__ or "").split("\n\n")[0]
    assert first.endswith(".") and ":func:" not in first and "Cost" not in first and len(first) > 40


def test_an_option_that_nobody_takes_is_refused(model: TransformerBridge, batch: TokenBatch) -> None:
    with pytest.raises(InputError, match=r"No named detector of this pass takes epss; they take .*eps"):
        measure(model, batch, ["sinks", "state_norms"], epss=0.4)
    with pytest.raises(InputError, match="takes position; they take no options"):
        measure(model, batch, KINDS["state_norms"](), position=3)


def test_scores_of_heads_stand_side_by_side(model: TransformerBridge, batch: TokenBatch) -> None:
    found = measure(model, batch, ["previous_token", "induction"], repeats=PROBE)
    alone = measure(model, batch, "induction", repeats=PROBE)
    assert [*found.tables] == ["head_scores"] and [*found.metrics] == ["previous_token", "induction"]
    expected = alone.tables["head_scores"]
    pd.testing.assert_frame_equal(found.tables["head_scores"][[*expected]], expected)
    with pytest.raises(InputError, match="same detectors"):
        found.merge(alone)


def test_a_scan_with_more_detectors_keeps_and_draws_their_tables(model: TransformerBridge, batch: TokenBatch) -> None:
    census = scan(model, tokens=batch, detectors=["sinks", "state_norms", "channel_profile"], maps=0)
    alone = measure(model, batch, ["state_norms", "channel_profile"])
    for name, frame in alone.tables.items():
        pd.testing.assert_frame_equal(census.tables[name], frame, rtol=1e-4, atol=1e-5)  # other sums, other roundings
    assert {"state_norms", "massive_map", "entropy_scatter"} <= {*dir(census.plot)} and "lifecycle" not in dir(
        census.plot
    )
    for one, other in zip(census.plot.state_norms().data, plots.state_norms(alone).data, strict=True):
        same(one.y, other.y, rtol=1e-4)


def test_retrieval_scores_of_given_answers_are_those_of_the_needles() -> None:
    model = load("induction-2l")
    needles = make_needles(model, lengths=[40, 64], repeats=2, size=4)
    rows = [[*each.ids, *each.answer[:-1]] for each in needles.instances]
    answers = []
    for row, each in zip(rows, needles.instances, strict=True):
        with torch.no_grad():
            produced = model(torch.tensor([row]))[0, -len(each.answer) :].argmax(-1)
        answers.append(Answer(each.span, produced, bool((produced == torch.tensor(each.answer)).all())))
    found = measure(model, tokenize(model, rows), "retrieval", answers=answers, batch_size=3).tables["retrieval"]
    pd.testing.assert_frame_equal(found, retrieval_scores(model, needles).frame, rtol=1e-6)
    assert found["retrieval"].max() > 0.5 and found["n_kept"].max() > 0
    with pytest.raises(InputError, match="an answer for each sequence: 1 for 2"):
        measure(model, tokenize(model, rows[:2]), RetrievalDetector(answers[:1]), batch_size=2)
    with pytest.raises(InputError, match="does not end a sequence of 3"):
        measure(model, tokenize(model, [rows[0][:3]]), RetrievalDetector(answers[:1]))
