"""FollowGaze against whole patterns, a planted gaze, caches, padding, paths, JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sinklens.errors import InputError
from sinklens.interventions import FollowGaze
from sinklens.interventions.follow_gaze import saliency
from tests.families import boot, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS, PROMPT

SPAN, QUESTION = range(3, 9), [11, 12, 13, 17]
GAZE: Any = FollowGaze(SPAN, QUESTION, gaze_layer=0, first_layer=1, last_layer=1)  # type: ignore[arg-type]
TOLD: Any = FollowGaze(SPAN, QUESTION, gaze_layer=0, first_layer=1, last_layer=1, prompt_length=PROMPT)  # type: ignore[arg-type]
SOME: Any = FollowGaze(SPAN, QUESTION, 2.0, 0, 1, 1, ((1, 0), (1, 3)), PROMPT)  # type: ignore[arg-type]


def change_for(method: FollowGaze, end: int) -> Any:
    """The definition on whole patterns, one sequence at a time; layer 0 looks, layer 1 is changed."""
    factors: list[Tensor] = []

    def change(layer: int, pattern: Tensor) -> Tensor:
        pattern = pattern.clone()
        span, question = [*method.span], [*method.question]
        if layer == 0:
            factors.clear()
            for one in pattern:
                shift = torch.stack(
                    [(one[:, t, span] - one[:, t - 1, span]).clamp(min=0) for t in question], 1
                )  # [head question span]
                totals = shift.sum((1, 2))
                best = sorted(range(len(totals)), key=lambda head, totals=totals: -float(totals[head]))  # type: ignore[misc]
                m = shift[best[: len(totals) // 2]].mean((0, 1))
                m = m.clamp(m.mean() - 3 * m.std(), m.mean() + 3 * m.std())
                factors.append((method.alpha * (m - m.min()) / (m.max() - m.min())).exp())
            return pattern
        for one, factor in zip(pattern, factors, strict=True):
            for head in range(4):
                if method.heads == "all" or (1, head) in method.heads:
                    for row in range(end - 1, one.shape[1]):
                        total, seen = one[head, row].sum(), one[head, row, span].sum()
                        one[head, row, span] *= factor
                        one[head, row, question] *= max(1.0, float(one[head, row, span].sum() / seen.clamp(min=1e-30)))
                        one[head, row] *= total / one[head, row].sum()
        return pattern

    return change


@pytest.mark.parametrize("method", [TOLD, SOME], ids=repr)
@pytest.mark.parametrize("name", ["llama", "opt", "bloom"])
def test_it_equals_the_definition(name: str, method: FollowGaze, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    expected = reference.logits(bridge, name, ids, change_for(method, PROMPT))
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-3


def test_the_key_that_the_question_turns_to_gets_the_factor() -> None:
    before = torch.full((4, 2, 5), 0.1)
    rows = before.clone()
    rows[1, :, 3] = 0.5  # one head turns to key 3
    found = saliency(rows, before, alpha=5.0)
    assert found[3] == pytest.approx(float(torch.tensor(5.0).exp())) and (found[[0, 1, 2, 4]] == 1).all()
    assert (saliency(before, before, 5.0) == 1).all()  # nobody turns: nothing is emphasised
    assert (saliency(before, rows, 5.0) == 1).all()  # turning away is no gaze


def test_rows_stay_stochastic_and_rows_before_the_end_stay(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    before, after = (reference.patterns(bridge, ids, each)[1] for each in (None, TOLD))
    torch.testing.assert_close(after.sum(-1), torch.ones_like(after[..., 0]), atol=1e-5, rtol=0)
    assert torch.equal(after[:, :, : PROMPT - 1], before[:, :, : PROMPT - 1])
    assert float((after - before)[:, :, PROMPT - 1 :].abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "opt", "bloom"])
def test_cached_decoding(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, TOLD, zoo, untold=GAZE)


def test_left_padding_does_not_count(zoo: Path) -> None:
    invariants.check_left_padding("llama", GAZE, zoo)
    alone: Any = FollowGaze(range(3, 6), [8, 9], gaze_layer=0, prompt_length=PROMPT - 7)  # type: ignore[arg-type]
    several: Any = FollowGaze(range(3, 6), [8, 9], gaze_layer=0, prompt_length=(PROMPT, PROMPT - 7))  # type: ignore[arg-type]
    invariants.check_padded_decoding("llama", several, alone, zoo)


def test_two_texts_in_turn_are_each_their_own(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    alone = [reference.under(bridge, TOLD, row[None]) for row in ids]
    with TOLD(bridge):
        turns = [bridge(row[None]) for row in ids]
    for found, expected in zip(turns, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_models_and_texts_that_do_not_fit(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    assert FollowGaze(0, 1).layers(32) == (10, 11, 21) and FollowGaze(0, 1).layers(2) == (0, 1, 1)  # type: ignore[arg-type]
    for method, sentence in (
        (FollowGaze(SPAN, [45]), "question ends at position 45"),  # type: ignore[arg-type]
        (FollowGaze(SPAN, [11], gaze_layer=1), "gaze_layer < first_layer"),  # type: ignore[arg-type]
        (FollowGaze(SPAN, [11], gaze_layer=0, last_layer=9), "gaze_layer < first_layer"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=sentence):
            reference.under(bridge, method, ids)
    with pytest.raises(InputError, match="so it has to stand behind the span"):
        FollowGaze(SPAN, [5])  # type: ignore[arg-type]
    for wrong in ({"alpha": -1}, {"gaze_layer": -1}, {"span": ()}, {"question": "x"}):
        with pytest.raises(InputError):
            FollowGaze(**({"span": SPAN, "question": QUESTION} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [GAZE, TOLD, SOME], ids=repr)
def test_json(method: FollowGaze) -> None:
    invariants.check_json(method)


def test_layers_counted_by_numpy_go_to_json() -> None:
    counted = FollowGaze(SPAN, QUESTION, 5.0, *np.arange(3))  # type: ignore[arg-type]
    assert FollowGaze.from_json(counted.to_json()) == FollowGaze(SPAN, QUESTION, 5.0, 0, 1, 2)  # type: ignore[arg-type]
