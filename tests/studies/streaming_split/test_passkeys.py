"""Drawn passkeys: where everything stands, what is unique, and that draws follow from the generator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import InputError
from sinklens.studies.streaming_split.passkeys import Passkeys, draw_passkeys

WORDS = torch.arange(10, 310)
BOS = 3


def draw(seed: int = 0, **changes: object) -> Passkeys:
    options = {"length": 120, "passkeys": 3, "value_len": 4, "batch": 5, "bos_id": BOS, **changes}
    generator = torch.Generator().manual_seed(seed)
    return draw_passkeys(options.pop("vocabulary", WORDS), generator=generator, **options)  # type: ignore[arg-type]


@given(
    st.integers(0, 99),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(60, 200),
    st.booleans(),
    st.sampled_from([30, 300]),
)
def test_every_question_has_its_answer_in_the_haystack(
    seed: int, passkeys: int, value_len: int, length: int, bos: bool, n_words: int
) -> None:
    drawn = draw(
        seed,
        passkeys=passkeys,
        value_len=value_len,
        length=length,
        bos_id=BOS if bos else None,
        vocabulary=WORDS[:n_words],
        batch=2,
    )
    span, end = 1 + value_len, length - passkeys * (1 + value_len)
    assert drawn.ids.shape == (2, length)
    for row, questions, answers, needles in zip(drawn.ids, drawn.questions, drawn.answers, drawn.needles, strict=True):
        assert (row[0] == BOS) == bos and int((row == BOS).sum()) == int(bos)
        assert questions.nonzero().flatten().tolist() == [end + number * span for number in range(passkeys)]
        assert (questions | answers)[end:].all() and not (questions | answers)[:end].any()
        assert int(needles.sum()) == passkeys * span and not needles[end:].any()
        hidden = row[needles].view(passkeys, span)
        for asked in row[end:].view(passkeys, span):
            # the key occurs once before it asks, and what follows it there are the values
            places = (row[:end] == asked[0]).nonzero().flatten()
            assert len(places) == 1
            assert torch.equal(row[places[0] : places[0] + span], asked)
            assert bool((hidden == asked).all(1).any())
        if drawn.distinct:
            assert len(row[:end].unique()) == end
    assert drawn.distinct == (n_words >= end - int(bos))


def test_needles_keep_to_their_depths() -> None:
    drawn = draw(passkeys=1, batch=200, depths=(0.25, 0.5), length=200)
    first = drawn.needles.double().argmax(1) - 1  # haystack tokens before the needle
    haystack = 200 - 1 - 2 * 5
    assert int(first.min()) >= int(0.25 * haystack) and int(first.max()) <= int(0.5 * haystack)
    assert len(first.unique()) > 30


def test_questions_come_in_random_order_and_draws_repeat() -> None:
    drawn = draw(batch=64)
    ends = drawn.ids[:, -15:].view(64, 3, 5)[..., 0]
    hidden = torch.stack([row[needles].view(3, 5)[:, 0] for row, needles in zip(drawn.ids, drawn.needles, strict=True)])
    same_order = (ends == hidden).all(1).double().mean()
    assert 0 < float(same_order) < 0.5
    assert torch.equal(draw(batch=64).ids, drawn.ids) and not torch.equal(draw(1, batch=64).ids, drawn.ids)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"length": 31}, "leave no haystack in 31 tokens"),
        ({"vocabulary": WORDS[:4]}, "3 keys need more ordinary tokens than the 4"),
        ({"depths": (0.5, 0.2)}, "depths must be"),
        ({"passkeys": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        draw(**changes)  # type: ignore[arg-type]
