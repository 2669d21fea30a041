"""Attention on delimiters: what counts as one, the uniform null under every mask, and the mean against a loop."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.capture import capture
from sinklens.detectors.delimiter import DelimiterDetector, delimiter_mask, delimiter_score, uniform_share
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch, tokenize
from tests import oracle
from tests.detectors.stripes import one_key
from tests.families import BOS, boot

WORDS = ("<s>", "The", ",", " king", ".\n", "\n", "\n\n", " ", "</s>", " $", '!"', "…", "don't", "\u3002", "<s>")
IS_MARK = {",", ".\n", '!"', "…", "\u3002"}
IS_LINE = {"\n", "\n\n"}


def batch_of(words: tuple[str, ...]) -> TokenBatch:
    ids = torch.arange(len(words))[None]
    special = torch.tensor([[word in ("<s>", "</s>") for word in words]])
    return TokenBatch(ids, torch.ones_like(special), special, (words,), None, "caller", "")


def chosen(batch: TokenBatch, *kinds: str) -> list[str]:
    mask = delimiter_mask(batch, kinds)[0].tolist()  # type: ignore[arg-type]
    return [word for word, marked in zip(batch.tokens[0], mask, strict=False) if marked]


def test_what_counts_as_a_delimiter() -> None:
    batch = batch_of(WORDS)
    assert set(chosen(batch, "punctuation")) == IS_MARK
    assert set(chosen(batch, "newline")) == IS_LINE
    assert chosen(batch, "special") == ["</s>", "<s>"]  # the one at position 0 is where sinks are
    assert set(chosen(batch, "punctuation", "newline")) == IS_MARK | IS_LINE
    assert chosen(batch_of((",", "a", ",")), "punctuation") == [","]
    special = replace(batch_of((" a", ",")), special=torch.tensor([[False, True]]))
    assert chosen(special, "punctuation") == []  # a special token is one by id, whatever it looks like
    for kinds in ((), ("comma",)):
        with pytest.raises(InputError, match="punctuation, newline, special"):
            delimiter_mask(batch, kinds)  # type: ignore[arg-type]


@given(length=st.integers(1, 30), window=st.integers(1, 40), seed=st.integers(0, 999))
def test_the_null_is_the_share_of_visible_keys(length: int, window: int, seed: int) -> None:
    members = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.4
    real = torch.arange(length) < torch.tensor([[length], [max(1, length - 3)]])
    seen = oracle.visible_keys(real, window)
    visible = seen.sum(-1).double().masked_fill(~real, math.nan)
    found = uniform_share(members, visible)
    for b in range(2):
        for i in range(length):
            if real[b, i]:
                expected = (members[b] & seen[b, i]).sum() / seen[b, i].sum()
                assert found[b, i].item() == pytest.approx(expected.item())
            else:
                assert math.isnan(found[b, i].item())


def test_planted_delimiter_heads() -> None:
    marks = torch.tensor([[False, False, True, False, False, True, False, False]])
    latest = one_key(8, lambda i: 5 if i >= 5 else 2)
    assert delimiter_score(latest[None], marks).item() == pytest.approx(6 / 7)  # query 1 sees none
    assert delimiter_score(one_key(8, lambda i: 0)[None], marks).item() == 0
    assert delimiter_score(latest[None], torch.zeros_like(marks)).isnan().all()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_streamed_equals_a_loop(name: str, batch_size: int, zoo: Path) -> None:
    model = boot(name, zoo)
    text = "one, two.\nthree four; five\n six"
    ids = [BOS, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    rows = [ids, ids[:12], [BOS, 70, 71, 72, 73]]  # the last without a delimiter
    batch, detector = tokenize(model, rows), DelimiterDetector()
    capture(model, batch, [detector], batch_size=batch_size, statistics=lambda rows, start: detector.statistics(rows))
    result = detector.tables()["head_scores"]
    assert detector.kinds == ("punctuation", "newline")
    table = result.set_index(["layer", "head"])
    masks = [[char in ",.;\n" for char in tokens] for tokens in batch.tokens]
    assert [sum(mask) for mask in masks] == [5, 3, 0]
    mass: dict[tuple[int, int], list[float]] = {}
    null: dict[tuple[int, int], list[float]] = {}
    for row, mask in zip(rows[:2], masks[:2], strict=True):
        for found in oracle.full_patterns(model, torch.tensor([row])):
            assert found is not None
            for head in range(4):
                for i in range(1, len(row)):
                    weights, seen = found.pattern[0, head, i], found.visible[0, i]
                    key = (found.layer, head)
                    mass.setdefault(key, []).append(sum(w.item() for w, m in zip(weights, mask, strict=True) if m))
                    marked = sum(bool(s) and m for s, m in zip(seen, mask, strict=True))
                    null.setdefault(key, []).append(marked / int(seen.sum()))
    for key, values in mass.items():
        assert table.loc[key, "delimiter_mass"] == pytest.approx(np.mean(values), abs=2e-6)
        assert table.loc[key, "delimiter_mass_null"] == pytest.approx(np.mean(null[key]), abs=1e-6)
        assert table.loc[key, "delimiter_mass_n"] == 2
    halves = [DelimiterDetector(), DelimiterDetector()]
    for half, part, first in ((halves[0], rows[1:], 1), (halves[1], rows[:1], 0)):
        capture(
            model,
            tokenize(model, part),
            [half],
            statistics=lambda rows, start, half=half: half.statistics(rows),
            first_sequence=first,
        )
    halves[0].merge(halves[1])
    merged = halves[0].tables()["head_scores"]
    np.testing.assert_allclose(merged["delimiter_mass"], result["delimiter_mass"], atol=1e-6)


def test_nothing_seen_is_an_empty_table() -> None:
    assert DelimiterDetector().tables()["head_scores"].empty
