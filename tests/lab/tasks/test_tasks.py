"""Tasks draw what they say and score what they should."""

from typing import Any

import pytest
import torch

from sinklens.errors import InputError
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.tasks import Backcopy, Needle
from sinklens.lab.tasks.task import token_batch


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_backcopy_is_the_studys_task_with_two_classes() -> None:
    ours, theirs = Backcopy(seq_len=20), BigramBackcopy(seq_len=20)
    ids = ours.sample(50, generator=draw())
    assert torch.equal(ids, theirs.sample(50, generator=draw()))
    classes = ours.classes(ids)
    copied = ids[:, 1:] == torch.cat([ids[:, :1], ids[:, :-2]], 1)
    assert classes["backcopy"].any() and copied[classes["backcopy"]].all()
    assert not (classes["backcopy"] & classes["bigram"]).any() and (classes["backcopy"] | classes["bigram"]).all()


@pytest.mark.parametrize("bos", [True, False])
def test_triggers_of_ones_own_choice_are_copied_after_and_never_adjacent(bos: bool) -> None:
    task = Backcopy(triggers="aeo ", bos=bos)
    ids = task.sample(200, generator=draw())
    trigger = torch.isin(ids, torch.tensor([task.characters.index(c) for c in "aeo "]))
    assert torch.equal(task.trigger_mask(ids), trigger)
    assert not (trigger[:, 1:] & trigger[:, :-1]).any() and not trigger[:, int(bos)].any()
    assert torch.equal(ids[:, 2:][trigger[:, 1:-1]], ids[:, :-2][trigger[:, 1:-1]])
    assert 0.2 < trigger.float().mean() < 0.45
    assert task.d_vocab == 65 + bos and task.surprisal(ids).isfinite().all()


@pytest.mark.parametrize("triggers", ["aa", "é", "ab\x00"])
def test_wrong_triggers_are_refused(triggers: str) -> None:
    with pytest.raises(InputError, match="different characters"):
        Backcopy(triggers=triggers)


@pytest.mark.parametrize("changes", [{}, {"pairs": 4, "queries": 3, "value_len": 2}, {"haystack": 0, "pairs": 2}])
def test_needles_stand_where_they_say_and_are_asked_for_once(changes: dict[str, Any]) -> None:
    task = Needle(**changes)
    drawn = task.draw(300, draw())
    ids, span = drawn.ids, 1 + task.value_len
    is_key = (ids >= task.n_fillers) & (ids < task.n_fillers + task.n_keys)
    assert ids.shape == (300, task.seq_len) and (ids[:, 0] == task.bos_id).all()
    assert (ids[:, 1:] != task.bos_id).all()
    assert (is_key.sum(1) == task.pairs + task.queries).all()
    first_query = int(drawn.query.min())
    for row in range(300):
        keys = ids[row, :first_query][is_key[row, :first_query]].tolist()
        assert len(set(keys)) == task.pairs
        asked = []
        for start, query in zip(drawn.start[row].tolist(), drawn.query[row].tolist(), strict=True):
            assert 1 < start < first_query and ids[row, start - 1] == ids[row, query]
            assert torch.equal(ids[row, start : start + task.value_len], ids[row, query + 1 : query + span])
            asked.append(int(ids[row, query]))
        assert len(set(asked)) == task.queries
    scored = task.classes(ids)["needle"]
    assert scored.sum(1).eq(task.queries * task.value_len).all()
    ends = drawn.query[..., None] + torch.arange(task.value_len)
    assert scored.gather(1, ends.flatten(1)).all()


def test_needles_are_spread_over_the_haystack() -> None:
    start = Needle().draw(4000, draw()).start.flatten()
    counts = torch.bincount(start, minlength=51)[2:]
    assert len(counts) == 49 and counts.min() > 40 and counts.max() < 130  # 82 expected in each of 49 places


def test_equal_generators_draw_equal_needles() -> None:
    assert torch.equal(Needle().sample(5, generator=draw(3)), Needle().sample(5, generator=draw(3)))
    assert not torch.equal(Needle().sample(5, generator=draw(3)), Needle().sample(5, generator=draw(4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"value_len": 0}, "at least 1"), ({"pairs": 1, "queries": 2}, "queries <= pairs"), ({"haystack": -1}, "-1")],
)
def test_needle_settings_are_checked(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Needle(**changes)
    with pytest.raises(InputError, match="67 tokens, not 5"):
        Needle().sample(1, 5)


def test_a_batch_says_who_put_the_bos() -> None:
    with_bos, without = Backcopy(), Backcopy(bos=False)
    batch = token_batch(with_bos, with_bos.sample(3, 8, draw()))
    assert batch.bos[:, 0].all() and batch.special.sum() == 3 and batch.bos_added_by == "caller"
    bare = token_batch(without, without.sample(3, 8, draw()))
    assert bare.bos_added_by == "nobody" and not bare.special.any() and bare.bos_id is None
