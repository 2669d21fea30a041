"""Filters of answers, stemming against Porter's published examples, and answers as chat models give them."""

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.studies import NeedleResult, make_needles, measure_needles
from sinklens.studies.needles.answers import KEEP, answered, contains, stems
from sinklens.studies.needles.decode import ends_answer

PORTER = {
    "caresses": "caress", "ponies": "poni", "plastered": "plaster", "motoring": "motor", "conflated": "conflat",
    "hopping": "hop", "falling": "fall", "relational": "relat", "vietnamization": "vietnam", "predication": "predic",
    "operator": "oper", "feudalism": "feudal", "decisiveness": "decis", "sensibiliti": "sensibl",
    "electriciti": "electr", "hopefulness": "hope", "revival": "reviv", "adjustable": "adjust",
    "replacement": "replac", "adoption": "adopt",
    "effective": "effect", "probate": "probat", "controlling": "control", "cats": "cat",
}  # fmt: skip
"""Examples of the steps in Porter (1980), with what all steps together make of them in the published output."""

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def test_stems_are_porters() -> None:
    assert {word: stems(word)[0] for word in PORTER} == PORTER
    assert stems("The Buses did GO, café!") == ["the", "buse", "did", "go", "café"]


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), min_size=1, max_size=3))
def test_contained_is_a_run_of_words(response: list[str], answer: list[str]) -> None:
    expected = f" {' '.join(answer)} " in f" {' '.join(response)} "
    assert contains(", ".join(response).upper(), " ".join(answer)) == expected


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"exact": False, "correct": 15 / 16, "contained": True, "rouge1": 1.0}, "contained share rouge all"),
        ({"exact": False, "correct": 0.5, "contained": False, "rouge1": 0.5}, "share all"),
        ({"exact": True, "correct": 1.0, "contained": False, "rouge1": 0.0}, "exact share all"),
    ],
)
def test_every_filter(row: dict[str, Any], kept: str) -> None:
    """15 of 16 tokens right was "answered no needle"."""
    assert [keep for keep in KEEP if answered(row, keep)] == kept.split()
    with pytest.raises(InputError, match="nothing was decoded"):
        answered({"exact": True, "correct": 1.0, "rouge1": float("nan")}, "rouge")


@pytest.fixture(scope="module")
def result(prose: TransformerBridge) -> NeedleResult:
    needles = make_needles(prose, "natural", lengths=(120,), depths=(0, 1), repeats=3)
    return measure_needles(prose, needles, generate=6)


def test_counts_by_filter_are_those_of_the_table(result: NeedleResult) -> None:
    table = result.tables["instances"]
    answers = result.prompts.to_dataframe()["answer_text"]
    assert result.keep == "rouge" and table["response"].notna().all()
    for response, answer, got in zip(table["response"], answers, table["contained"], strict=True):
        assert got == contains(response, answer)
    counts = result.answered().set_index("keep")["n"]
    assert counts["exact"] == table["exact"].sum() and counts["share"] == (table["correct"] >= 0.5).sum()
    assert counts["contained"] == table["contained"].sum() and counts["rouge"] == (table["rouge1"] > 0.5).sum()
    for keep in KEEP:
        assert result.heads_of(keep).meta["n_kept"] == counts[keep]


def test_a_filter_that_keeps_nothing_says_how_near_the_prompts_came(result: NeedleResult) -> None:
    table = result.tables["instances"].assign(exact=False, rouge1=0.0, contained=False)
    right = [15 / 16, *[0.25] * (len(table) - 1)]
    table = table.assign(correct=right, n_answer=16)
    none = NeedleResult(result.meta, result.tables | {"instances": table})
    said = none.heads.meta["warnings"][0]
    assert "filter 'rouge'" in said and "the best prompt has 15 of 16 answer tokens right; share keeps 1." in said
    assert none.heads_of("share").meta["n_kept"] == 1


def test_a_line_break_before_any_text_ends_no_answer(prose: TransformerBridge) -> None:
    """Chat models begin with one; the answer was read as empty."""
    ends = ends_answer(prose)
    line, word = (prose.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("\n", "the"))
    assert not ends([line]) and not ends([line, word]) and ends([line, word, line])
    assert ends([word, prose.tokenizer.bos_token_id])


def test_chat_where_there_is_a_template_and_a_complete_sentence_in_it(
    prose: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"lengths": (300,), "depths": (0, 0.5, 1), "repeats": 2}
    assert make_needles(prose, "natural", **words).meta["template"] == "plain"
    monkeypatch.setattr(prose.tokenizer, "chat_template", CHAT, raising=False)
    found = make_needles(prose, "natural", **words)
    assert found.meta["template"] == "chat" and found.meta["sentence"]
    for each in found.instances:
        assert each.text is not None and each.text.endswith("[end][model]"), "nothing is put in the model's mouth"
        copied = prose.tokenizer.decode(each.answer)
        assert copied.endswith(".") and each.answer_text is not None and each.answer_text in copied
        assert each.text.count(copied) == 1 and prose.tokenizer.decode(each.ids[slice(*each.span)]) == copied
        assert each.text[each.text.index(copied) - 1] in "\n]" and each.span == each.needle
    assert make_needles(prose, "natural", **words, template="plain").instances[0].text != found.instances[0].text
    with pytest.raises(InputError, match="Complete sentences go with"):
        make_needles(prose, "passkey", sentence=True)


def test_old_results_kept_exact_matches(result: NeedleResult) -> None:
    settings = {name: value for name, value in result.meta["settings"].items() if name != "keep"}
    table = result.tables["instances"].drop(columns="contained")
    old = NeedleResult(result.meta | {"settings": settings}, result.tables | {"instances": table})
    assert old.keep == "exact" and {*old.answered()["keep"]} == {"exact", "share", "all"}
    pd.testing.assert_frame_equal(old.heads.frame, result.heads_of("exact").frame)
