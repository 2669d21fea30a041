"""Probabilities of continuations and texts beside single passes of the plain bridge, unchanged and under policies."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.errors import InputError
from sinklens.policies import Account
from sinklens.policies.fake_quant import FakeQuantKV
from sinklens.policies.h2o import H2O
from sinklens.policies.matched_random import MatchedRandom
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.snap_kv import SnapKV
from sinklens.studies.evaluation.scorer import TextScorer

PAIRS = [
    ("Once upon a time there was a little", " girl"),
    ("Once upon a time there was a little", " dog who ran"),
    ("The cat sat on the ", "mat"),
    ("To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer", " the slings"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load("tiny-llama")


def by_hand(model: Any, prefix: list[int], context: str, continuation: str, change: Any = None) -> tuple[float, bool]:
    """Token by token, a whole pass each."""
    whole = model.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    n = len(model.tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"])
    total, greedy = 0.0, True
    for at in range(n, len(whole)):
        ids = torch.tensor([prefix + whole[:at]])
        if change is None:
            row = model(ids)[0, -1]
        else:
            with replace(change, prompt=len(prefix) + n - 1)(model):
                row = model(ids)[0, -1]
        total += float(row.double().log_softmax(-1)[whole[at]])
        greedy = greedy and int(row.argmax()) == whole[at]
    return total, greedy


@torch.no_grad()
@pytest.mark.parametrize("change", [None, SinkWindow(2, 6), H2O(3, 3), SnapKV(8, window=3)])
def test_continuations_are_as_likely_as_token_by_token(change: Any, model: Any) -> None:
    scorer = TextScorer(model, change, batch_size=2)
    told: list[int] = []
    found = scorer.log_likelihoods(PAIRS, told.append)
    assert sum(told) == len(PAIRS)
    for pair, (value, greedy) in zip(PAIRS, found, strict=True):
        expected = by_hand(model, scorer.prefix, *pair, change)
        assert value == pytest.approx(expected[0], abs=1e-3) and greedy == expected[1]


@torch.no_grad()
def test_a_text_and_what_is_written_next(model: Any) -> None:
    scorer = TextScorer(model, None)
    text = "Once upon a time there was a little girl. She liked to play."
    ids = scorer.prefix + scorer.encode(text)
    rows: Tensor = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    expected = sum(float(rows[at - 1, ids[at]]) for at in range(1, len(ids)))
    assert scorer.rolling(text) == pytest.approx(expected, abs=1e-3)
    written = scorer.generate("Once upon a time", [], 6)
    greedy = scorer.prefix + scorer.encode("Once upon a time")
    n = len(greedy)
    for _ in range(6):
        greedy.append(int(model(torch.tensor([greedy]))[0, -1].argmax()))
    assert written == model.tokenizer.decode(greedy[n:])
    assert scorer.generate("Once upon a time", [written[2:4]], 6) == written[:2]


def test_random_keys_are_as_many_as_the_rule_reads_and_follow_from_the_seed(model: Any) -> None:
    ids = torch.randint(4, 400, (2, 24), generator=torch.Generator().manual_seed(1))

    def masks(policy: Any, tokens: Tensor) -> tuple[list[Tensor], Any]:
        kept: list[Tensor] = []

        class Masks(Account):
            def add(self, view: Any, which: Tensor, *rest: Any) -> None:
                super().add(view, which, *rest)
                kept.append(which.clone())

        account = Masks()
        with torch.no_grad(), policy.counted(account)(model):
            model(tokens)
        return kept, account.by_head()

    rule = H2O(4, 4)
    (control, table), (_, own) = masks(MatchedRandom(rule), ids), masks(rule, ids)
    assert (table["kept"] == own["kept"]).all() and (table["mass"].mean() < own["mass"].mean())
    assert all(bool(which.diagonal(dim1=-2, dim2=-1)[:, :24].all()) for which in control)  # the own key
    again, other = masks(MatchedRandom(rule), ids)[0], masks(MatchedRandom(rule, 1), ids)[0]
    assert torch.equal(control[0], again[0]) and not torch.equal(control[0], other[0])
    alone = masks(MatchedRandom(SinkWindow(2, 6)), ids[1:])[0]
    both = masks(MatchedRandom(SinkWindow(2, 6)), ids)[0]
    assert torch.equal(both[1][..., :24], alone[0][..., :24])  # company changes nothing
    with pytest.raises(InputError, match="no number to match"):
        MatchedRandom(FakeQuantKV(2))
