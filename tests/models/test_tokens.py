"""Texts and ids to tokens: who put the BOS there, what is padding, what is cut off, and what is refused."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from sinklens.errors import InputError
from sinklens.lab.tokenizer import character_tokenizer
from sinklens.models.load import load
from sinklens.models.tokens import TokenBatch, tokenize
from tests.families import BOS, EOS, FAMILIES, N_CTX, PAD, VOCAB, boot, byte_tokenizer, checkpoint, random_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*beyond the longest sequence")

A, B, C = byte_tokenizer()("abc")["input_ids"]


def with_tokenizer(zoo: Path, directory: Path, tokenizer: PreTrainedTokenizerFast) -> TransformerBridge:
    """The tiny Llama, loaded with another tokenizer."""
    path = Path(shutil.copytree(checkpoint("llama", zoo), directory / "model"))
    (path / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(path)
    return load(path, device="cpu")


def templated(single: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with a template such as ``<s> $A``."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def plain(zoo: Path) -> TransformerBridge:
    """A loaded model whose tokenizer has a BOS and does not prepend it."""
    return load(checkpoint("llama", zoo), device="cpu")


@pytest.fixture(scope="module")
def prepending(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A loaded model whose tokenizer prepends a BOS and appends an EOS."""
    return with_tokenizer(zoo, tmp_path_factory.mktemp("prepending"), templated("<s> $A </s>"))


@pytest.fixture(scope="module")
def without_bos(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A loaded model whose tokenizer has an EOS and no BOS, as Qwen's."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    return with_tokenizer(zoo, tmp_path_factory.mktemp("without_bos"), tokenizer)


@pytest.fixture(scope="module")
def bare(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A loaded model whose tokenizer has no special token at all and fills the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(f"unused{i}" for i in range(4))])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return with_tokenizer(zoo, tmp_path_factory.mktemp("bare"), PreTrainedTokenizerFast(tokenizer_object=core))


@pytest.fixture(scope="module")
def booted(zoo: Path) -> TransformerBridge:
    """A bridge that the user booted, without sinklens."""
    return boot("llama", zoo)


def rows(batch: TokenBatch) -> list[list[int]]:
    return [ids[real].tolist() for ids, real in zip(batch.ids, batch.real, strict=True)]


# ------------------------------------------------------------------ BOS
def test_auto_does_what_the_shipped_tokenizer_does(plain: TransformerBridge, prepending: TransformerBridge) -> None:
    batch = tokenize(plain, ["abc", "b"])
    assert rows(batch) == [[A, B, C], [B]]
    assert batch.bos_added_by == "nobody" and batch.bos_id == BOS and not batch.bos.any()
    assert batch.statement == ("No BOS was prepended because the checkpoint's own tokenizer does not prepend one.")
    batch = tokenize(prepending, ["abc", "b"])
    assert rows(batch) == [[BOS, A, B, C], [BOS, B]]  # and no EOS, whatever the template says
    assert batch.bos_added_by == "sinklens"
    assert batch.bos.tolist() == [[True, False, False, False], [True, False, False, False]]
    assert batch.statement == (
        "A BOS was prepended to every sequence because the checkpoint's own tokenizer prepends one."
    )


def test_an_appended_eos_of_the_same_id_is_no_prepended_bos(zoo: Path, tmp_path: Path) -> None:
    tokenizer = templated("$A <s>")
    tokenizer.eos_token = "<s>"
    assert tokenize(with_tokenizer(zoo, tmp_path, tokenizer), "abc").bos_added_by == "nobody"


@pytest.mark.parametrize("choice", ["yes", True])
def test_yes_always_prepends(choice: Any, plain: TransformerBridge, prepending: TransformerBridge) -> None:
    for model in (plain, prepending):
        batch = tokenize(model, "ab", bos=choice)
        assert rows(batch) == [[BOS, A, B]] and batch.bos_added_by == "sinklens"
        assert batch.statement == "A BOS was prepended to every sequence because the caller asked for it."


@pytest.mark.parametrize("choice", ["no", False])
def test_no_never_prepends(choice: Any, plain: TransformerBridge, prepending: TransformerBridge) -> None:
    for model in (plain, prepending):
        batch = tokenize(model, "ab", bos=choice)
        assert rows(batch) == [[A, B]] and batch.bos_added_by == "nobody"
        assert batch.statement == "No BOS was prepended because the caller asked for none."


@pytest.mark.parametrize("choice", ["maybe", None, "", 2])
def test_other_choices_are_refused(choice: Any, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match='bos must be "auto", "yes" or "no"'):
        tokenize(plain, "ab", bos=choice)


def test_a_bridge_the_user_booted_follows_the_tokenizer_on_disk(zoo: Path, booted: TransformerBridge) -> None:
    assert booted.cfg.default_prepend_bos  # TransformerLens would prepend one
    for model in (booted, boot("qwen2", zoo)):
        batch = tokenize(model, "ab")
        assert rows(batch) == [[A, B]] and batch.bos_added_by == "nobody" and batch.bos_id == BOS
        assert batch.statement == (
            f"No BOS was prepended because the tokenizer in {model.tokenizer.name_or_path} does not prepend one."
        )


@pytest.mark.parametrize("which", ["without_bos", "bare"])
def test_a_tokenizer_without_bos_gets_none(which: str, request: pytest.FixtureRequest) -> None:
    # TransformerLens makes its EOS, or an id beyond the vocabulary, the BOS
    model = request.getfixturevalue(which)
    assert model.tokenizer.bos_token_id is not None
    batch = tokenize(model, "abc")
    assert batch.bos_added_by == "nobody" and batch.bos_id is None and not batch.bos.any()
    assert batch.statement == "The tokenizer has no BOS token, so none was prepended."
    with pytest.raises(InputError, match='bos="yes" needs a tokenizer with a BOS token and this one has none'):
        tokenize(model, "abc", bos="yes")
    assert tokenize(model, [[EOS, 50]]).bos_added_by == "nobody"  # an EOS is not taken for a BOS


@pytest.mark.parametrize("which", ["plain", "prepending", "without_bos", "bare", "booted"])
def test_padding_is_always_in_the_vocabulary(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    batch = tokenize(model, ["abcdef", "a"])
    assert batch.ids.max() < VOCAB
    assert model(batch.ids).isfinite().all()


def test_a_bos_spelled_out_in_the_text_is_accounted_for(
    plain: TransformerBridge, prepending: TransformerBridge
) -> None:
    batch = tokenize(plain, ["<s>ab", "<s>a"])
    assert rows(batch) == [[BOS, A, B], [BOS, A]]
    assert batch.bos_added_by == "caller" and batch.statement.endswith("2 of 2 texts spell the BOS out at their start.")
    batch = tokenize(plain, ["<s>ab", "a"])
    assert batch.bos_added_by == "nobody" and "1 of 2 texts spell" in batch.statement
    batch = tokenize(prepending, ["<s>ab", "a"])
    assert rows(batch) == [[BOS, BOS, A, B], [BOS, A]]
    assert batch.bos_added_by == "sinklens"
    assert batch.statement.endswith("1 of 2 texts spells the BOS out at its start, so it stands there twice.")


# ------------------------------------------------------------------ ids
@pytest.mark.parametrize("bos", ["auto", "no"])
def test_ids_are_taken_as_they_are(bos: Any, prepending: TransformerBridge) -> None:
    given_rows = [[A, B, C], [EOS, A], [BOS, BOS]]
    padded = torch.tensor([[A, B, C], [EOS, A, PAD], [BOS, BOS, PAD]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    for batch in (
        tokenize(prepending, given_rows, bos=bos),
        tokenize(prepending, padded, attention_mask=mask, bos=bos),
        tokenize(prepending, tuple(map(tuple, given_rows)), bos=bos),
        tokenize(prepending, [np.array(row) for row in given_rows], bos=bos),
        tokenize(prepending, [torch.tensor(row) for row in given_rows], bos=bos),
    ):
        assert rows(batch) == given_rows
        assert batch.ids.dtype == torch.long and batch.real.dtype == torch.bool


def test_who_put_the_bos_before_given_ids(plain: TransformerBridge) -> None:
    for ids, who, end in (
        ([[BOS, A], [BOS, B, C]], "caller", "they start with the BOS."),
        ([[A], [B, C]], "nobody", "they do not start with a BOS."),
        ([[BOS, A], [B, C]], "nobody", "some start with the BOS and some do not."),
        ([[A, BOS]], "nobody", "they do not start with a BOS."),
    ):
        batch = tokenize(plain, ids)
        assert batch.bos_added_by == who
        assert batch.statement == f"Ids were given by the caller; {end}"
    assert tokenize(plain, [[A, BOS]]).bos.tolist() == [[False, True]]  # wherever it is, it is one


def test_left_padding_is_packed_to_the_right(plain: TransformerBridge) -> None:
    ids = random_ids(3, 12)
    lengths = (12, 5, 1)
    left = torch.arange(12)[None] >= 12 - torch.tensor(lengths)[:, None]
    right = left.flip(1)
    packed = tokenize(plain, ids, attention_mask=left)
    assert rows(packed) == [ids[i, 12 - n :].tolist() for i, n in enumerate(lengths)]
    assert torch.equal(packed.real, right)
    assert (packed.ids[~packed.real] == PAD).all()
    assert packed.lengths.tolist() == list(lengths)
    # the mask's dtype is free, and padding may differ from row to row
    mixed = torch.stack([left[0], left[1], right[2]])
    for mask in (mixed, mixed.long(), mixed.float()):
        batch = tokenize(plain, ids, attention_mask=mask)
        assert rows(batch) == [ids[0].tolist(), ids[1, 7:].tolist(), ids[2, :1].tolist()]


def test_a_tensor_is_not_changed_and_shares_nothing(plain: TransformerBridge) -> None:
    ids = random_ids(2, 6)
    before = ids.clone()
    tokenize(plain, ids).ids.fill_(9)
    assert torch.equal(ids, before)


def test_width_is_that_of_the_longest_row(plain: TransformerBridge) -> None:
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 3:7] = False
    mask[0, :4] = mask[1, :2] = True
    assert tokenize(plain, random_ids(2, 20), attention_mask=mask).ids.shape == (2, 4)


# ------------------------------------------------------------------ special tokens and the pad id
def test_special_tokens_are_marked_by_id_and_never_padding(plain: TransformerBridge) -> None:
    batch = tokenize(plain, [[BOS, A, EOS, PAD, B], [A, 2]])
    assert batch.special.tolist() == [[True, False, True, True, False], [False, True, False, False, False]]
    assert (batch.ids[1, 2:] == PAD).all() and batch.real[0].all()
    assert not tokenize(plain, "abc").special.any()
    assert tokenize(plain, "a</s>b").special.tolist() == [[False, True, False]]


def test_padding_is_no_special_token_even_if_it_is_the_bos(zoo: Path, tmp_path: Path) -> None:
    tokenizer = character_tokenizer("abc#", "<s>", N_CTX)  # <s> serves as BOS, EOS and padding
    batch = tokenize(with_tokenizer(zoo, tmp_path, tokenizer), ["abc", "a"])
    bos = tokenizer.bos_token_id
    assert batch.ids.tolist() == [[bos, 0, 1, 2], [bos, 0, bos, bos]]
    assert batch.special.tolist() == batch.bos.tolist() == [[True] + [False] * 3] * 2


# ------------------------------------------------------------------ lengths
def test_max_tokens_cuts_and_counts(plain: TransformerBridge, prepending: TransformerBridge) -> None:
    batch = tokenize(plain, ["a" * 10, "b" * 4, "c" * 7], max_tokens=5)
    assert batch.lengths.tolist() == [5, 4, 5] and batch.dropped == 5 + 2
    batch = tokenize(prepending, ["a" * 10, "b" * 4], max_tokens=5)
    assert rows(batch) == [[BOS, A, A, A, A], [BOS, B, B, B, B]] and batch.dropped == 6
    assert tokenize(plain, [[A] * 9], max_tokens=3).dropped == 6
    assert tokenize(plain, "abc").dropped == 0


def test_the_context_is_the_longest_by_default(plain: TransformerBridge, zoo: Path) -> None:
    batch = tokenize(plain, "a" * 500)
    assert batch.ids.shape == (1, N_CTX) and batch.dropped == 500 - N_CTX
    assert tokenize(plain, "a" * 500, max_tokens=N_CTX).ids.shape == (1, N_CTX)
    with pytest.raises(InputError, match=f"max_tokens={N_CTX + 1} is longer than the model's context of {N_CTX} "):
        tokenize(plain, "abc", max_tokens=N_CTX + 1)
    unlimited = boot("mamba", zoo)
    assert tokenize(unlimited, "a" * 500, bos="no").ids.shape == (1, 500)
    assert tokenize(unlimited, "a" * 500, bos="no", split=True).ids.shape == (1, 500)
    assert tokenize(unlimited, "a" * 500, max_tokens=300).ids.shape == (1, 300)


@pytest.mark.parametrize("max_tokens", [0, -3])
def test_max_tokens_must_leave_room(max_tokens: int, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match=f"max_tokens must be at least 1, got {max_tokens}"):
        tokenize(plain, "abc", max_tokens=max_tokens)


def test_a_bos_needs_room_for_text(plain: TransformerBridge) -> None:
    assert rows(tokenize(plain, "abc", max_tokens=1)) == [[A]]
    with pytest.raises(InputError, match=r"max_tokens=1 leaves no room for text after the BOS; use at least 2"):
        tokenize(plain, "abc", max_tokens=1, bos="yes")
    assert rows(tokenize(plain, "abc", max_tokens=2, bos="yes")) == [[BOS, A]]


def test_split_cuts_into_consecutive_rows(plain: TransformerBridge) -> None:
    text = "abcdefghijklmnopqrstuvwxyz"
    batch = tokenize(plain, [text, "xyz"], max_tokens=8, split=True)
    assert ["".join(row) for row in batch.tokens] == ["abcdefgh", "ijklmnop", "qrstuvwx", "xyz"]
    assert batch.dropped == 2  # yz is shorter than half a row; xyz is all that its text has
    batch = tokenize(plain, text, max_tokens=8, split=True, bos="yes")
    assert ["".join(row[1:]) for row in batch.tokens] == ["abcdefg", "hijklmn", "opqrstu", "vwxyz"]
    assert batch.bos[:, 0].all() and batch.dropped == 0


@pytest.mark.parametrize(("length", "kept", "dropped"), [(11, [8], 3), (12, [8, 4], 0), (3, [3], 0), (16, [8, 8], 0)])
def test_split_leaves_out_a_last_row_shorter_than_half(
    length: int, kept: list[int], dropped: int, plain: TransformerBridge
) -> None:
    batch = tokenize(plain, "a" * length, max_tokens=8, split=True)
    assert batch.lengths.tolist() == kept and batch.dropped == dropped


def test_split_of_given_ids_adds_no_bos_and_says_so(plain: TransformerBridge) -> None:
    batch = tokenize(plain, [[BOS, A, A, A], [BOS, B]], max_tokens=2, split=True)
    assert rows(batch) == [[BOS, A], [A, A], [BOS, B]]
    assert batch.bos_added_by == "nobody" and "some start with the BOS and some do not" in batch.statement


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    max_tokens=st.integers(2, 20),
    bos=st.sampled_from(["yes", "no"]),
    split=st.booleans(),
)
def test_nothing_is_lost_unaccounted(lengths: list[int], max_tokens: int, bos: Any, split: bool) -> None:
    model = BRIDGE["plain"]
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    texts = [(alphabet * 2)[i : i + length] for i, length in enumerate(lengths)]
    batch = tokenize(model, texts, max_tokens=max_tokens, bos=bos, split=split)
    prefix = bos == "yes"
    assert batch.lengths.max() <= max_tokens and batch.ids.shape[1] == batch.lengths.max()
    assert (batch.bos[:, 0] == prefix).all() and batch.bos[:, 1:].sum() == 0
    assert int(batch.lengths.sum()) - prefix * len(batch) + batch.dropped == sum(lengths)
    kept = ["".join(row[prefix:]) for row in batch.tokens]
    if split:
        room = max_tokens - prefix
        for text in texts:  # its rows, one after the other, are its beginning
            own, length = 0, 0
            while own < len(kept) and text[length:].startswith(kept[own]) and length < len(text):
                if own and 2 * (len(text) - length) < room:  # this row is the next text's, which only begins alike
                    break
                length += len(kept[own])
                own += 1
                if len(kept[own - 1]) < room:
                    break
            assert own and len(text) - length < max(1, room / 2)
            kept = kept[own:]
        assert not kept
    else:
        assert kept == [text[: max_tokens - prefix] for text in texts]


BRIDGE: dict[str, TransformerBridge] = {}


@pytest.fixture(scope="module", autouse=True)
def bridge_for_hypothesis(plain: TransformerBridge) -> None:
    BRIDGE["plain"] = plain


# ------------------------------------------------------------------ rows
def test_rows_trim_padding(plain: TransformerBridge) -> None:
    batch = tokenize(plain, ["abcdef", "ab", "abcd", "a"], max_tokens=5)
    part = batch.rows([1, 3])
    assert rows(part) == [[A, B], [A]] and part.ids.shape == (2, 2)
    assert part.tokens == (("a", "b"), ("a",)) and len(part) == 2
    assert part.real.tolist() == [[True, True], [True, False]] and part.special.shape == (2, 2)
    assert (part.statement, part.bos_id, part.bos_added_by) == (
        batch.statement,
        batch.bos_id,
        batch.bos_added_by,
    )
    assert rows(batch.rows(slice(1, None))) == [[A, B], rows(batch)[2], [A]]
    assert batch.rows(slice(1, None)).ids.shape == (3, 4)
    assert rows(batch.rows(range(3, -1, -2))) == [[A], [A, B]]
    assert rows(batch.rows([-1, 0])) == [[A], rows(batch)[0]]
    assert rows(batch.rows([1, 1])) == [[A, B], [A, B]]
    assert rows(batch.rows(torch.tensor([2, 0]))) == [rows(batch)[2], rows(batch)[0]]
    for nothing in ([], slice(4, None)):
        assert len(batch.rows(nothing)) == 0 and batch.rows(nothing).tokens == ()
    assert rows(batch.rows(slice(0, 2)).rows([1])) == [[A, B]]


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("nothing", [[], (), torch.zeros(0, 5, dtype=torch.long), np.zeros((0, 3), dtype=int)])
def test_nothing_to_tokenize(nothing: Any, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match="Expected at least one text or sequence of ids, got none"):
        tokenize(plain, nothing)


@pytest.mark.parametrize(("texts", "index"), [("", 0), (["abc", ""], 1), (["abc", " \n\t "], 1)])
def test_empty_texts(texts: Any, index: int, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match=f"Text {index} is empty"):
        tokenize(plain, texts)


@pytest.mark.parametrize("ids", [[[A], []], torch.zeros(1, 0, dtype=torch.long)])
def test_empty_sequences(ids: Any, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match=r"Sequence \d is empty; expected at least one token id"):
        tokenize(plain, ids)


def test_a_row_of_padding_alone(plain: TransformerBridge) -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    with pytest.raises(InputError, match="Sequence 1 is empty"):
        tokenize(plain, random_ids(2, 3), attention_mask=mask)


@pytest.mark.parametrize(("ids", "which", "bad"), [([[A], [A, VOCAB]], 1, VOCAB), ([[-1, A]], 0, -1)])
def test_ids_outside_the_vocabulary(ids: Any, which: int, bad: int, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match=f"Sequence {which} holds id {bad}; .* ids 0 to {VOCAB - 1}"):
        tokenize(plain, ids)


def test_only_real_ids_are_checked(plain: TransformerBridge) -> None:
    ids = torch.tensor([[-100, A, B]])  # what a data collator pads labels with
    assert rows(tokenize(plain, ids, attention_mask=torch.tensor([[0, 1, 1]]))) == [[A, B]]


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([1, 2]),
        torch.tensor(1),
        torch.ones(1, 2, 3, dtype=torch.long),
        torch.ones(1, 4),
        torch.ones(1, 4, dtype=torch.bool),
    ],
)
def test_tensors_of_another_kind(ids: torch.Tensor, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match=r"Expected integer ids of shape \[batch pos\], got"):
        tokenize(plain, ids)


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1.5, 2]], [None], [[[1]]], np.ones((1, 2)), [[True, None]]])
def test_lists_of_something_else(ids: Any, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match="Expected texts, lists of integer ids or an id tensor"):
        tokenize(plain, ids)


@pytest.mark.parametrize("texts", [["abc", [1, 2]], [[1, 2], "abc"], ["abc", None], ["abc", 3]])
def test_mixtures_of_texts_and_ids(texts: Any, plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match="Expected texts or ids, not a mixture"):
        tokenize(plain, texts)


@pytest.mark.parametrize("mask", [[1, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
def test_masks_with_holes(mask: Sequence[int], plain: TransformerBridge) -> None:
    whole = [1, 1, 1, 1]
    with pytest.raises(InputError, match="holes; expected padding on the left or the right side only"):
        tokenize(plain, random_ids(2, 4), attention_mask=torch.tensor([whole, mask]))


def test_masks_that_do_not_fit(plain: TransformerBridge) -> None:
    with pytest.raises(InputError, match=r"attention_mask has shape \(2, 3\), ids have \(2, 4\)"):
        tokenize(plain, random_ids(2, 4), attention_mask=torch.ones(2, 3))
    with pytest.raises(InputError, match="attention_mask goes with ids; texts carry no padding"):
        tokenize(plain, "abc", attention_mask=torch.ones(1, 3))


def test_characters_that_the_vocabulary_lacks(zoo: Path, tmp_path: Path) -> None:
    model = with_tokenizer(zoo, tmp_path, character_tokenizer("abc", "<s>", N_CTX))
    assert rows(tokenize(model, "cab")) == [[3, 2, 0, 1]]
    with pytest.raises(InputError, match=r"Text 1 \('abz'\) cannot be tokenized") as error:
        tokenize(model, ["abc", "abz"])
    assert "Every character must be in the vocabulary" in str(error.value)


def test_a_model_without_tokenizer(zoo: Path) -> None:
    model = boot.__wrapped__("llama", zoo)
    model.tokenizer = None
    with pytest.raises(InputError, match="no tokenizer, so text cannot be used; pass token ids"):
        tokenize(model, "abc")
    batch = tokenize(model, [[BOS, A], [B]])
    assert batch.tokens == ((f"<{BOS}>", f"<{A}>"), (f"<{B}>",))
    assert batch.bos_id is None and not batch.special.any() and batch.bos_added_by == "nobody"
    assert batch.ids[1, 1] == 0


# ------------------------------------------------------------------ families
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_text_and_gives_it_back(name: str, zoo: Path) -> None:
    text = "Hello,  world.\n\tTwo lines \u2014 and caf\u00e9"
    ascii_text = text.encode("ascii", "ignore").decode()
    for model in (boot(name, zoo), load(checkpoint(name, zoo), device="cpu")):
        batch = tokenize(model, [ascii_text, "b"], bos="no")
        assert "".join(batch.tokens[0]) == ascii_text
        assert batch.tokens[1] == ("b",) and batch.lengths.tolist() == [len(ascii_text), 1]
        batch = tokenize(model, text, bos="no")
        assert model.tokenizer.decode(rows(batch)[0]) == text
    for each in (boot(name, zoo), model):  # as the shipped tokenizer, whatever TransformerLens would do
        assert tokenize(each, "a").bos_added_by == "nobody"
