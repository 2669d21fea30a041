"""The data of the Bigram-Backcopy task keeps its rules, and its counts are the text's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinklens.errors import InputError, ResultError
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.bigrams import BigramCounts, tinyshakespeare_bigrams


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sampled() -> torch.Tensor:
    return BigramBackcopy().sample(1600, 65, generator())


def test_the_alphabet_is_that_of_tiny_shakespeare() -> None:
    table = tinyshakespeare_bigrams()
    assert len(table.characters) == 65
    assert table.counts.sum() == 1_115_393
    # Known by counting the text itself: space, e and t are its most frequent characters.
    assert table.occurrences.sum() == 1_115_394
    assert {c: int(table.occurrences[table.characters.index(c)]) for c in " et3\n"} == {
        " ": 169_892,
        "e": 94_611,
        "t": 67_009,
        "3": 27,
        "\n": 40_000,
    }


def test_triggers_are_the_most_frequent_characters() -> None:
    task = BigramBackcopy(n_triggers=3)
    assert [task.characters[i] for i in task.trigger_ids] == [" ", "e", "t"]
    assert task.bos_id == 65 and task.d_vocab == 66


def test_sequences_keep_the_rules(sampled: torch.Tensor) -> None:
    task = BigramBackcopy()
    trigger = task.trigger_mask(sampled)
    assert sampled.numel() > 100_000
    assert (sampled[:, 0] == task.bos_id).all() and (sampled[:, 1:] < 65).all()
    assert not trigger[:, :2].any(), "neither BOS nor x_1 is a trigger"
    assert not (trigger[:, 1:] & trigger[:, :-1]).any(), "no two triggers are adjacent"
    assert (sampled[:, 2:] == sampled[:, :-2])[trigger[:, 1:-1]].all(), "after a trigger comes x_{t-1}"
    # Exact by carrying the distribution along: 24.9 % at this length, 25.5 % at 256.
    assert trigger.double().mean().item() == pytest.approx(0.249, abs=0.005)


def test_bigrams_follow_the_shares(sampled: torch.Tensor) -> None:
    task = BigramBackcopy()
    h = task.characters.index("h")
    current, following = sampled[:, 1:-1].flatten(), sampled[:, 2:].flatten()
    after_h = following[current == h].bincount(minlength=65).double()
    assert after_h.sum() > 1000
    assert torch.allclose(after_h / after_h.sum(), task.transition[h], atol=0.05)
    first = sampled[:, 1].bincount(minlength=65).double() / len(sampled)
    assert torch.allclose(first, task.start, atol=0.05)
    assert torch.isfinite(task.surprisal(sampled)).all(), "nothing of share 0 is ever drawn"


def test_oracle_loss_is_what_sampling_tends_to(sampled: torch.Tensor) -> None:
    task = BigramBackcopy()
    surprisal, trigger = task.surprisal(sampled), task.trigger_mask(sampled[:, :-1])
    assert (surprisal[trigger] == 0).all()
    assert surprisal[~trigger].mean().item() == pytest.approx(task.oracle_bigram_loss(64), abs=0.02)
    # The method's card has 2.2549 (64) and 2.2285 (256), both from samples.
    assert task.oracle_bigram_loss(64) == pytest.approx(2.2549, abs=0.01)
    assert task.oracle_bigram_loss(256) == pytest.approx(2.2285, abs=0.01)


def test_surprisal_is_infinite_where_a_rule_is_broken() -> None:
    task = BigramBackcopy()
    ids = torch.tensor([[65, *(task.characters.index(c) for c in "he")], [65, *map(task.characters.index, "3h")]])
    ids = torch.cat([ids, ids[:, -1:]], 1)
    assert task.surprisal(ids)[0, 2] == math.inf, "e is a trigger and must be followed by h, not e"
    assert task.surprisal(ids)[1, 1] == math.inf, "3 is never followed by h"


def test_without_bos_sequences_begin_with_a_character() -> None:
    task = BigramBackcopy(bos=False)
    ids = task.sample(400, 40, generator())
    trigger = task.trigger_mask(ids)
    assert task.bos_id is None and task.d_vocab == 65
    assert ids.max() < 65 and not trigger[:, 0].any() and trigger.any()
    assert (ids[:, 2:] == ids[:, :-2])[trigger[:, 1:-1]].all()
    surprisal = task.surprisal(ids)[~trigger[:, :-1]].mean().item()
    assert surprisal == pytest.approx(task.oracle_bigram_loss(39), abs=0.05)


def test_equal_generators_give_equal_sequences() -> None:
    task = BigramBackcopy()
    assert torch.equal(task.sample(3, 20, generator(1)), task.sample(3, 20, generator(1)))
    assert not torch.equal(task.sample(3, 20, generator(1)), task.sample(3, 20, generator(2)))


def test_texts_spell_sequences_without_bos() -> None:
    task = BigramBackcopy()
    ids = torch.tensor([[65, *map(task.characters.index, "a\nb")]])
    assert task.texts(ids) == ["a\nb"]


@given(n_triggers=st.integers(0, 64), seed=st.integers(0, 2**31), bos=st.booleans(), length=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_rules_hold_for_any_number_of_triggers(n_triggers: int, seed: int, bos: bool, length: int) -> None:
    task = BigramBackcopy(n_triggers=n_triggers, bos=bos)
    ids = task.sample(8, length, generator(seed))
    trigger = task.trigger_mask(ids)
    assert ids.shape == (8, length)
    assert not (trigger[:, 1:] & trigger[:, :-1]).any()
    assert torch.isfinite(task.surprisal(ids)).all()


@pytest.mark.parametrize("wrong", [{"n_triggers": -1}, {"n_triggers": 65}, {"seq_len": 1}])
def test_impossible_tasks_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="not"):
        BigramBackcopy(**wrong)


def test_impossible_samples_are_refused() -> None:
    with pytest.raises(InputError, match="At least one sequence"):
        BigramBackcopy().sample(0)
    with pytest.raises(InputError, match="At least one position"):
        BigramBackcopy().oracle_bigram_loss(0)


@given(st.text(st.sampled_from('ab ,"\n\t\\\r'), min_size=2))
@settings(max_examples=50, deadline=None)
def test_counts_survive_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    table = BigramCounts.from_text(text + text[0] + text)  # so that every character has a follower
    path = tmp_path_factory.mktemp("bigrams") / "table.csv"
    table.save(path)
    loaded = BigramCounts.load(path)
    assert loaded.characters == table.characters and torch.equal(loaded.counts, table.counts)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "first,second,count\n",
        "first,second,count\na,b\n",
        "first,second,count\na,b,1\n",
        "a,b,c\na,a,1\n",
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(ResultError, match=r"table\.csv"):
        BigramCounts.load(path)


def test_a_text_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        BigramCounts.from_text("a")
    with pytest.raises(InputError, match="Nothing follows"):
        BigramCounts.from_text("aab")
