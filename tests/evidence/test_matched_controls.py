"""Controls are as large as what they control for, random, and apart from it."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sinklens.evidence.matched_controls import matched_controls
from sinklens.interventions import (
    AblateHeads,
    CalibrateSinks,
    CompensatedWindow,
    EditValues,
    MaskKeys,
    ScaleKeys,
    SetActivations,
    SlidingWindow,
    mean_outputs,
)
from sinklens.models import load, tokenize
from sinklens.policies import Policy, make_policy


@pytest.fixture(scope="module")
def model() -> Any:
    return load("tiny-llama", device="cpu")


@pytest.fixture(scope="module")
def batch(model: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    return tokenize(model, torch.randint(5, int(model.cfg.d_vocab), (2, 30), generator=draw))


@pytest.mark.parametrize("tested", [MaskKeys((0, 3)), ScaleKeys((0, 3), 0.5, ["L0H1"]), EditValues((0, 3))])
def test_as_many_other_positions(model: Any, batch: Any, tested: Any) -> None:
    found = matched_controls(model, batch, tested)
    sets = [each.keys for each in found.interventions]  # type: ignore[attr-defined]
    assert len({*sets}) == 5 and found.kind == "positions"
    for keys in sets:
        assert len(keys) == 2 and not {0, 3} & {*keys} and max(keys) < 30
    assert all(getattr(each, "heads", "all") == getattr(tested, "heads", "all") for each in found.interventions)
    everything = MaskKeys(tuple(range(20)))
    assert "not enough other positions" in matched_controls(model, batch, everything).note


def test_as_many_other_heads_of_the_same_layers(model: Any, batch: Any) -> None:
    tested = AblateHeads(["L0H1", "L2H3"], "mean", mean_outputs(model, batch, heads=((0, 1), (2, 3))))
    asked = []

    def outputs(heads: Any) -> Any:
        asked.append(heads)
        return mean_outputs(model, batch, heads=heads)

    found = matched_controls(model, batch, tested, draws=3, outputs=outputs)
    assert found.kind == "heads of the same layers" and len(asked) == 3
    for each in found.interventions:
        each.check(model)
        assert [layer for layer, _ in each.heads] == [0, 2] and not {(0, 1), (2, 3)} & {*each.heads}  # type: ignore[attr-defined]
    assert "none is left" in matched_controls(model, batch, CalibrateSinks()).note
    few = matched_controls(model, batch, CalibrateSinks(["L0H1"]))  # there are three others in its layer
    assert len(few.interventions) == 5 and few.kind == "heads" and "only 3 different sets" in few.note


def test_entries_of_median_size(model: Any, batch: Any) -> None:
    found = matched_controls(model, batch, SetActivations([(1, 0, 67)]), draws=2)
    entries = [each.where[0] for each in found.interventions]  # type: ignore[attr-defined]
    assert [entry[:2] for entry in entries] == [(1, 0)] * 2 and 67 not in {entry[2] for entry in entries}


@dataclass(frozen=True)
class Noted(Policy):
    """Hands on what a rule keeps."""

    rule: Any
    store: list[Any]

    scope = "causal"

    def keep(self, view: Any) -> Any:
        found = self.rule.keep(view).expand_as(view.scores) & view.visible
        self.store.append(found)
        return found


@pytest.mark.parametrize("rule", [SlidingWindow(6, 2), SlidingWindow(6, 0, ["L0H1"]), CompensatedWindow(6)], ids=str)
def test_as_many_random_keys_in_every_row(model: Any, batch: Any, rule: Any) -> None:
    found = matched_controls(model, batch, rule, draws=2)
    assert found.kind == "keys in every row and head"
    kept: list[list[Any]] = []
    for control in found.interventions:
        kept.append([])
        with torch.no_grad(), Noted(control, kept[-1])(model):
            model(batch.ids, return_type=None)
    for layer, random in zip((0, 0, 1, 1, 2, 2, 3, 3), kept[0], strict=True):
        for head, row in itertools.product(range(4), range(30)):
            keys = [key for key in range(row + 1) if row - key < rule.window or key < rule.sinks]
            named = rule.heads == "all" or (layer, head) in rule.heads
            assert int(random[head, row].sum()) == (len(keys) if named else row + 1)
    assert any(not torch.equal(*pair) for pair in zip(*kept, strict=True))
    policy = make_policy("h2o:heavy=4,recent=4")
    assert [each.policy for each in matched_controls(model, batch, policy).interventions] == [policy] * 5  # type: ignore[attr-defined]


def test_what_drops_no_key_has_no_control(model: Any, batch: Any) -> None:
    assert "drops none" in matched_controls(model, batch, make_policy("fake_quant:bits=4")).note
