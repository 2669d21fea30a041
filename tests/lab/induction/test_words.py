"""Words and ids go both ways, in the tokenizer as made and as shipped."""

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sinklens.lab.tokenizer import word_tokenizer, words
from sinklens.models.builtin import data_dir
from sinklens.models.load import load
from sinklens.models.tokens import tokenize


@pytest.fixture(params=["made", "shipped"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "made":
        return word_tokenizer(words(512), "<s>", 512)
    return AutoTokenizer.from_pretrained(data_dir() / "models" / "induction-2l")


def test_names_are_different_and_follow_the_alphabet() -> None:
    names = words(26 + 26 * 26 + 2)
    assert len(set(names)) == len(names) and names[-3:] == ["zz", "aaa", "aab"]
    assert sorted(names, key=lambda name: (len(name), name)) == names


def test_ids_are_places_and_text_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    names, ids = words(512), torch.randperm(512, generator=torch.Generator().manual_seed(0)).tolist()
    text = " ".join(names[i] for i in ids)
    assert tokenizer(text)["input_ids"] == [512, *ids]
    assert tokenizer(f"  {text}\n", add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.decode([512, *ids], skip_special_tokens=True) == text
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.model_max_length) == (513, 512, 512)


@pytest.mark.parametrize("word", ["ss", "A", "a,", "w0"])
def test_another_word_is_an_error(tokenizer: PreTrainedTokenizerFast, word: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        tokenizer(word)


def test_sinklens_reads_words_and_shows_them() -> None:
    batch = tokenize(load("induction-2l", device="cpu"), "do be or no be")
    assert batch.tokens[0] == ("<s>", "do", "be", "or", "no", "be") and batch.bos_added_by == "sinklens"
    assert batch.special[0].tolist() == [True] + [False] * 5
