"""One token per character, in both directions, also through Hugging Face and TransformerLens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sinklens.lab.bigram_backcopy import BOS, BigramBackcopy
from sinklens.lab.streams import stream
from sinklens.lab.tokenizer import character_tokenizer
from sinklens.models.builtin import data_dir

BUILT_IN = ["bb-1l", "bb-3l"]


@pytest.fixture(params=["made", *BUILT_IN])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "made":
        return character_tokenizer(BigramBackcopy().characters, BOS, 64)
    return AutoTokenizer.from_pretrained(data_dir() / "models" / request.param)


def test_ids_are_those_of_the_task_and_text_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    task = BigramBackcopy()
    everything = "".join(task.characters) + "  a\n\n b . , don't "
    ids = tokenizer(everything)["input_ids"]
    assert ids == [task.bos_id, *map(task.characters.index, everything)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == everything
    assert tokenizer.decode(ids) == BOS + everything
    assert tokenizer(everything, add_special_tokens=False)["input_ids"] == ids[1:]
    assert len(tokenizer) == task.d_vocab and tokenizer.bos_token_id == task.bos_id


def test_samples_survive_the_way_through_text(tokenizer: PreTrainedTokenizerFast) -> None:
    task = BigramBackcopy()
    ids = task.sample(5, 60, stream(0, "test"))
    assert tokenizer(task.texts(ids), return_tensors="pt")["input_ids"].tolist() == ids.tolist()


def test_a_character_outside_the_alphabet_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="UNK"):
        tokenizer("naïve")


@pytest.mark.parametrize("name", BUILT_IN)
def test_transformer_lens_loads_the_built_in_models_offline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, task = str(data_dir() / "models" / name), BigramBackcopy()
    bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = task.sample(4, 64, stream(0, "test"))
    with torch.no_grad():
        torch.testing.assert_close(bridge(ids), model(ids).logits, atol=1e-4, rtol=1e-4)
    assert bridge.to_tokens("a\nb").tolist() == [[65, *map(task.characters.index, "a\nb")]]
    # Padding stays within the embedding's rows.
    assert bridge.to_tokens(["abc", "a"]).max() == 65
    assert bridge.cfg.d_vocab == 66
