"""Prompts: where needle, answer and question stand, at every length and depth."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.studies import make_needles
from sinklens.studies.needles.haystack import sentence_ends, text_haystack
from sinklens.studies.needles.instance import NeedleInstance
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.question import Question
from sinklens.studies.needles.random_needles import random_needle
from sinklens.studies.needles.text_needles import json_entries, natural_questions, passkey_question

TEXT = (
    'It rained. "Shall we go?" she asked. Nobody knew what 3.5 miles meant to him!\n\nA new day came and the boats lay '
    "still. The keeper of the light slept. Gulls cried over the water, as they did every day of the year. "
) * 12


# ------------------------------------------------------------------ random tokens
@settings(max_examples=60)
@given(st.integers(6, 70), st.floats(0, 1), st.integers(1, 5), st.integers(0, 50), st.booleans(), st.integers(12, 90))
def test_random_needles_stand_where_they_say(
    length: int, depth: float, size: int, repeat: int, bos: bool, vocabulary: int
) -> None:
    prefix = [1000] if bos else []
    length = max(length, len(prefix) + size + 2)
    options = {"repeat": repeat, "size": size, "seed": 3, "bos": ""}
    [found] = random_needle(range(vocabulary), prefix, [(length, depth)], **options)
    key, (start, stop) = found.ids[-1], found.span
    assert len(found.ids) == length and list(found.ids[: len(prefix)]) == prefix
    assert found.ids[start:stop] == found.answer and len(found.answer) == size
    assert found.ids[start - 1] == key and found.needle == (start - 1, stop)
    assert found.ids.count(key) == 2  # in the needle and at the end
    assert all(found.ids.count(value) == 1 for value in found.answer)
    filler = length - len(prefix) - size - 2
    if filler:
        assert abs(found.depth_got - depth) <= 0.5 / filler + 1e-9
    else:
        assert math.isnan(found.depth_got)
    if filler <= vocabulary - size - 1:
        assert len(set(found.ids)) == length - 1
    assert found.fed == found.ids + found.answer[:-1]


def test_cells_of_a_repeat_share_their_beginning(induction: TransformerBridge) -> None:
    needles = make_needles(induction, lengths=(30, 60), depths=(0, 0.5, 1), repeats=2, size=4)
    assert len(needles) == 12 and needles.meta["lengths"] == [30, 60]
    deep = {(each.repeat, each.length): each for each in needles.instances if each.depth == 1}
    for each in needles.instances:
        assert each.ids[0] == induction.tokenizer.bos_token_id and "BOS was prepended" in each.bos
        longest = deep[each.repeat, 60]
        assert each.ids[: each.needle[0]] == longest.ids[: each.needle[0]]
        assert each.answer == longest.answer
    assert deep[0, 60].answer != deep[1, 60].answer
    again = make_needles(induction, lengths=(30, 60), depths=(0, 0.5, 1), repeats=2, size=4)
    other = make_needles(induction, lengths=(30, 60), depths=(0, 0.5, 1), repeats=2, size=4, seed=1)
    assert again == needles and again.digest == needles.digest != other.digest


def test_special_tokens_are_never_drawn(induction: TransformerBridge) -> None:
    needles = make_needles(induction, lengths=(500,), depths=(0.5,), repeats=3)
    special = set(induction.tokenizer.all_special_ids)
    assert all(not special & set(each.ids[1:]) for each in needles.instances)


def test_a_small_vocabulary_is_said(prose: TransformerBridge, induction: TransformerBridge) -> None:
    assert not make_needles(induction, lengths=(500,), depths=(0,), repeats=1).meta["notes"]
    ordinary = len(induction.tokenizer.get_vocab()) - len(set(induction.tokenizer.all_special_ids))
    assert "random tokens, 512 different" in make_needles(induction, lengths=(64,), repeats=1).meta["source"]
    assert ordinary == 512


# ------------------------------------------------------------------ texts
@pytest.mark.parametrize("kind", ["passkey", "natural", "json"])
@pytest.mark.parametrize("length", [280, 400])
def test_spans_in_text_hold_the_answer(prose: TransformerBridge, kind: str, length: int) -> None:
    needles = make_needles(prose, kind, lengths=(length,), depths=(0, 0.4, 1), repeats=3, size=3, shots=0)  # type: ignore[arg-type]
    decode = prose.tokenizer.decode
    for each in needles.instances:
        assert each.text is not None and each.answer_text is not None
        assert decode(each.answer).strip() == each.answer_text
        assert each.ids[0] == prose.tokenizer.bos_token_id
        assert decode(each.ids[1:]) == each.text
        assert each.text.count(each.answer_text) == 1 and not each.text[-40:].count(each.answer_text)
        assert len(each.ids) <= length and (kind == "json" or len(each.ids) >= length - 3)
        assert each.needle[0] <= each.span[0] < each.span[1] <= each.needle[1]
        assert each.depth_got <= each.depth + 0.05
        # what greedy decoding writes after the prompt are these very tokens
        blank = "" if kind == "json" else " "
        whole = prose.tokenizer(f"{each.text}{blank}{each.answer_text}", add_special_tokens=False)["input_ids"]
        assert tuple(whole[len(each.ids) - 1 :]) == each.answer
    if kind != "json":  # where every entry is whole, a short list has few places
        assert {each.depth_got for each in needles.instances if each.depth in (0, 1)} == {0.0, 1.0}
    assert not needles.meta["notes"] or kind == "json"


def test_the_needle_follows_a_whole_sentence(prose: TransformerBridge) -> None:
    needles = make_needles(prose, "natural", lengths=(300, 480), depths=(0.2, 0.5, 0.8), repeats=4, text=TEXT)
    for each in needles.instances:
        question = natural_questions()[each.repeat % 6]
        before, after = (each.text or "").split(question.needle)
        assert before == "" or re.search(r"[.!?]\"?\s?$", before), before[-30:]
        assert after[:1].isspace()
        assert each.depth_got <= each.depth + 0.02


def test_own_questions_and_text(prose: TransformerBridge) -> None:
    own = Question.about("The red key lies under the third stone.", "Where is it?", "under the third stone")
    needles = make_needles(prose, "natural", lengths=(200,), depths=(0.5,), repeats=2, text=TEXT, questions=[own])
    for each in needles.instances:
        assert (each.text or "").endswith("Question: Where is it?\nAnswer:")
        assert each.answer_text == "under the third stone"
    assert needles.meta["source"] == "text given by the caller" and needles.meta["own_questions"]


def test_repeats_begin_elsewhere_in_the_text(prose: TransformerBridge) -> None:
    needles = make_needles(prose, "natural", lengths=(300,), depths=(1,), repeats=4)
    assert len({each.ids[1:15] for each in needles.instances}) == 4


def test_passkeys_and_entries() -> None:
    asked = passkey_question(2, size=5, seed=0)
    assert "third passkey" in asked.needle and asked.lead.endswith("third passkey to the vault:")
    assert len(set(asked.answer.split())) == 5
    assert passkey_question(2, size=40, seed=0).answer.count(" ") == 39
    haystack, question = json_entries(TEXT, 600, 0, shots=2)
    entry = re.compile(r'"[0-9a-f]{32}": "[^"]+",\n')
    assert entry.fullmatch(question.needle)
    assert entry.sub("", haystack.text) == ""  # nothing but entries
    assert all(haystack.text[:place] == "" or haystack.text[place - 1] == "\n" for place in haystack.places)
    assert question.lead.count('"') == 2 * 4 + 3 and question.lead.endswith('": "')
    assert question.lead[1:].startswith(haystack.text[:36])  # the shots are entries of the object
    assert question.needle[:34] not in haystack.text


def test_a_short_text_is_repeated_and_an_empty_one_refused() -> None:
    haystack = text_haystack("One. Two three.", 200)
    assert len(haystack.text) >= 200 and haystack.text.startswith("One. Two three.\n\nOne.")
    assert haystack.places[:3] == (4, 15, 21)
    with pytest.raises(InputError, match="empty"):
        text_haystack("  \n", 10)


def test_sentences_end_where_a_reader_says() -> None:
    text = 'No? "Yes." (He left.) At 3.5 km\n\nThe end'
    assert [text[:end].split()[-1] for end in sentence_ends(text)] == ["No?", '"Yes."', "left.)", "km"]


CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def test_chat_template(prose: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no chat template"):
        make_needles(prose, "natural", template="chat")
    monkeypatch.setattr(prose.tokenizer, "chat_template", CHAT, raising=False)
    needles = make_needles(
        prose, "natural", lengths=(300,), depths=(0, 0.5), repeats=2, template="chat", sentence=False
    )
    for each in needles.instances:
        assert (each.text or "").startswith("[user]") and (each.text or "").endswith("[end][model]Answer:")
        assert each.answer_text is not None
        assert prose.tokenizer.decode(each.answer).strip() == each.answer_text
        assert each.ids[0] == prose.tokenizer.bos_token_id and each.ids[1] != each.ids[0]
    monkeypatch.setattr(prose.tokenizer, "chat_template", "{{ bos_token }}" + CHAT)
    written = make_needles(
        prose, "natural", lengths=(300,), depths=(0.5,), repeats=1, template="chat", sentence=False
    ).instances[0]
    assert written.ids[0] == prose.tokenizer.bos_token_id and written.ids[1] != written.ids[0]
    assert written.bos == "The chat template writes the BOS."
    assert prose.tokenizer.decode(written.answer).strip() == written.answer_text
    monkeypatch.setattr(
        prose.tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    )
    with pytest.raises(InputError, match="changes the message"):
        make_needles(prose, "natural", lengths=(300,), template="chat")


def test_no_bos(prose: TransformerBridge) -> None:
    for kind in ("random", "natural"):
        each = make_needles(prose, kind, lengths=(200,), depths=(0.5,), repeats=1, bos="no").instances[0]  # type: ignore[arg-type]
        assert each.ids[0] != prose.tokenizer.bos_token_id and "asked for none" in each.bos


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "needle"}, 'kind must be "random"'),
        ({"lengths": (9,)}, "A prompt of 9 tokens has no room"),
        ({"lengths": (510,)}, "longer than the model's context of 512; use lengths up to 505"),
        ({"lengths": ()}, "Expected lengths"),
        ({"depths": (0.5, 1.2)}, "between 0 and 1"),
        ({"depths": ()}, "between 0 and 1"),
        ({"repeats": 0}, "at least 1"),
        ({"text": "Some text."}, "takes no text"),
        ({"questions": []}, 'kind="natural"'),
        ({"kind": "natural", "template": "odd"}, "template must be"),
        ({"kind": "natural", "lengths": (20,)}, "no room for the needle and the question"),
        ({"kind": "natural", "text": " "}, "empty"),
        ({"kind": "json", "text": "One two three."}, "at least two sentences"),
        ({"bos": "maybe"}, "bos must be"),
    ],
)
def test_refusals(prose: TransformerBridge, options: dict, sentence: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=re.escape(sentence)):
        make_needles(prose, **options)


def test_a_vocabulary_too_small_for_the_needle_is_refused() -> None:
    with pytest.raises(InputError, match="needs 7 ordinary tokens and this vocabulary has 6"):
        random_needle(range(6), [], [(50, 0.5)], repeat=0, size=5, seed=0, bos="")


def test_text_the_tokenizer_cannot_read_is_refused(induction: TransformerBridge) -> None:
    with pytest.raises(InputError, match="kind='random'"):
        make_needles(induction, "natural")


def test_an_answer_must_stand_in_its_needle() -> None:
    with pytest.raises(InputError, match="once and word for word"):
        Question.about("The key is red.", "Which colour?", "blue")
    with pytest.raises(InputError, match="once and word for word"):
        Question.about("red red", "Which colour?", "red")


def test_an_instance_must_hold_its_answer() -> None:
    given = dict(kind="random", length=4, depth=0.0, repeat=0, depth_got=0.0, bos="")
    with pytest.raises(InputError, match="must be the answer"):
        NeedleInstance(ids=(1, 2, 3), answer=(3,), span=(1, 2), needle=(0, 2), **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one needle"):
        NeedleSet(())


def test_default_lengths_fit_the_context(prose: TransformerBridge) -> None:
    random = make_needles(prose, repeats=1, depths=(0.5,))
    assert random.meta["lengths"] == [63, 126, 252, 505]
    natural = make_needles(prose, "natural", repeats=2, depths=(0.5,))
    assert natural.meta["lengths"] == [121, 242, 485]  # an eighth has no room for needle and question
    assert max(len(each.fed) for each in natural.instances) <= 512
