"""Texts become domains, tokens and batches, with nothing held out ever trained on."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import InputError
from sinklens.lab.language.domains import LONGEST, read_domains, split
from sinklens.lab.language.tokens import BOS, BOS_ID, Streams, bpe_texts, cut, draw, encode, train_bpe, wrap
from sinklens.lab.streams import stream


def test_folders_and_files_are_domains(texts: Path) -> None:
    code, prose = read_domains(texts)
    assert (code.name, code.files, prose.name, prose.files) == ("code", 1, "prose", 2)
    assert "naïve" in prose.train[0] and "return" in code.held_out[0]


def test_the_standard_library_is_a_domain() -> None:
    (code,) = read_domains(None, python_stdlib=True)
    everything = "".join(code.train + code.held_out)
    assert code.name == "code" and code.files > 100
    assert (
        "def namedtuple(" in everything
        and "class IdleConf" not in everything
        and "import unittest.test" not in code.train
    )


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=2, unique=True))
def test_a_split_loses_nothing_and_does_not_depend_on_order(texts: list[str]) -> None:
    domain, shuffled = split("x", texts), split("x", random.Random(0).sample(texts, len(texts)))
    assert sorted(domain.train + domain.held_out) == sorted(shuffled.train + shuffled.held_out)
    assert sorted("".join(domain.train + domain.held_out)) == sorted("".join(texts))
    assert set(domain.held_out) == set(shuffled.held_out)
    assert domain.train and domain.held_out and not set(domain.train) & set(domain.held_out)


def test_long_texts_are_cut_at_line_ends_and_copies_left_out() -> None:
    text = "".join(f"line {n}\n" for n in range(300_000))
    domain = split("x", [text, text])
    assert sorted(domain.train + domain.held_out) == sorted(split("x", [text]).train + split("x", [text]).held_out)
    assert max(map(len, domain.train)) <= LONGEST and all(document.endswith("\n") for document in domain.train)
    assert 0.05 <= sum(map(len, domain.held_out)) / len(text) < 0.07
    assert split("x", ["a" * 3 * LONGEST, "b"]).train  # one line longer than any document


def test_the_digest_is_of_the_texts() -> None:
    first, same, other = split("x", ["a", "b"]), split("y", ["a", "b"]), split("x", ["a", "c"])
    assert first.digest == same.digest != other.digest


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        read_domains(tmp_path / "none")
    (tmp_path / "file.txt").write_text("a")
    with pytest.raises(InputError, match="is a file"):
        read_domains(tmp_path / "file.txt")
    with pytest.raises(InputError, match="1 documents"):
        read_domains(tmp_path)
    (tmp_path / "file.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"file\.txt is not UTF-8 text \(byte 3\)"):
        read_domains(tmp_path)
    (tmp_path / "file.txt").unlink()
    with pytest.raises(InputError, match="No domain was found"):
        read_domains(tmp_path)
    (tmp_path / "prose").mkdir()
    with pytest.raises(InputError, match="holds no"):
        read_domains(tmp_path)
    (tmp_path / "prose" / "a.txt").write_text("a")
    (tmp_path / "prose.txt").write_text("a")
    with pytest.raises(InputError, match="called 'prose'"):
        read_domains(tmp_path)
    with pytest.raises(InputError, match="already has a domain 'code'"):
        read_domains(texts, python_stdlib=True)
    with pytest.raises(InputError, match="No texts were given"):
        read_domains(None)


@pytest.fixture(scope="module")
def tokenizer_json(texts: Path) -> str:
    return train_bpe(bpe_texts(read_domains(texts)), 300)


def test_the_tokenizer_itself_puts_the_bos_first_and_loses_no_text(tokenizer_json: str) -> None:
    tokenizer = wrap(tokenizer_json)
    assert tokenizer(" naïve 😀\n\n\tdef")["input_ids"][0] == BOS_ID == tokenizer.bos_token_id
    ids = tokenizer(" naïve 😀\n\n\tdef")["input_ids"]
    assert tokenizer.decode(ids) == BOS + " naïve 😀\n\n\tdef"
    assert ids.count(BOS_ID) == 1 and max(ids) < len(tokenizer) == 300
    assert tokenizer("head", "sink")["input_ids"].count(BOS_ID) == 2


def test_the_tokenizer_is_repeatable_and_wants_enough_text(texts: Path, tokenizer_json: str) -> None:
    assert train_bpe(bpe_texts(read_domains(texts)), 300) == tokenizer_json
    with pytest.raises(InputError, match="instead of 5000"):
        train_bpe(["only this"], 5000)


def test_streams_hold_the_documents_without_bos(texts: Path, tokenizer_json: str) -> None:
    domains = read_domains(texts)
    for domain, tokens in zip(domains, encode(domains, tokenizer_json, 24), strict=True):
        assert BOS_ID not in tokens.train and BOS_ID not in tokens.held_out
        assert wrap(tokenizer_json).decode(tokens.train.tolist()) == "".join(domain.train)
    with pytest.raises(InputError, match="fewer than one sequence of 9999999"):
        encode([split("x", ["a b c " * 5000, "d"])], tokenizer_json, 9_999_999)


def test_batches_come_from_the_domains_in_turn_and_reach_every_place() -> None:
    a, b = torch.arange(100, 107), torch.arange(200, 250)
    batch = draw([Streams("a", a, a), Streams("b", b, b)], 401, 5, stream(0, "test"))
    assert (batch[:, 0] == BOS_ID).all() and batch.shape == (401, 6)
    assert set(batch[::2, 1].tolist()) == {100, 101, 102}  # three places for five tokens of seven
    assert ((batch[1::2, 1:] >= 200) & (batch[1::2, 1:] < 250)).all()
    assert ((batch[:, 2:] - batch[:, 1:-1]) == 1).all()


def test_held_out_sequences_do_not_overlap() -> None:
    rows = cut(torch.arange(1000), 64)
    assert rows.shape == (15, 65) and rows[:, 1:].flatten().tolist() == list(range(960))
    some = cut(torch.arange(1000), 64, 4)
    assert some[:, 1].tolist() == [0, 256, 576, 896]
