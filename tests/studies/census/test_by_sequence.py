"""Every head's numbers on each text by itself equal those of that text measured alone, and of plain loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinklens.attention import FullMap
from sinklens.capture import capture
from sinklens.capture.finite import NonFinite
from sinklens.errors import InputError, ResultError
from sinklens.models import load, tokenize
from sinklens.studies import Census, scan
from sinklens.studies.census import record_sequences
from sinklens.studies.census.by_sequence import NO_KEY
from sinklens.studies.census.record_sequences import sequences_kept
from tests.families import boot

LENGTHS = (40, 12, 33)


def ragged(vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, vocabulary, (length,), generator=draw).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def model() -> Any:
    return load("tiny-llama", device="cpu")


@pytest.fixture(scope="module")
def census(model: Any) -> Census:
    return scan(model, tokens=ragged(int(model.cfg.d_vocab)), batch_size=2)


def test_each_text_is_as_if_measured_alone(census: Census, model: Any) -> None:
    for sequence, ids in enumerate(ragged(int(model.cfg.d_vocab))):
        alone = scan(model, tokens=[ids]).tables["heads"].sort_values(["layer", "head"])
        found = census.sequence(sequence).heads(census.meta["settings"])
        assert found["sink_position"].tolist() == alone["sink_position"].tolist()
        assert found["is_sink"].tolist() == alone["is_sink"].tolist()
        for column in found.columns.difference(["layer", "head", "kv_head", "is_sink"]):
            np.testing.assert_allclose(found[column], alone[column], rtol=2e-4, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the second has windows and a soft cap
def test_numbers_are_those_of_whole_patterns(family: str, tmp_path: Path) -> None:
    bridge = boot(family, tmp_path)
    rows = ragged(int(bridge.cfg.d_vocab))
    census = scan(bridge, tokens=rows, batch_size=3)
    for sequence, ids in enumerate(rows):
        own = census.sequence(sequence)
        for record in capture(bridge, tokenize(bridge, [ids]), statistics=lambda rows, start: [FullMap]):
            if record.layer < 0:
                np.testing.assert_allclose(own.resid_norm[:, 0], record.residual.norm[0], rtol=1e-4)  # type: ignore[index,union-attr]
                continue
            for head in range(own.importance.shape[2]):
                pattern = record.attention["full_map"][0, head].numpy()
                seen = ~np.isnan(pattern)
                weights = np.where(seen, pattern, 0.0)
                for k in range(len(ids)):
                    expected = sum(weights[i, k] for i in range(k, len(ids))) / (len(ids) - k)
                    assert own.importance[k, record.layer, head] == pytest.approx(expected, abs=1e-5)
                    uniform = sum(1 / seen[i].sum() for i in range(k, len(ids)) if seen[i, k]) / (len(ids) - k)
                    assert own.null[k, record.layer] == pytest.approx(uniform, abs=1e-5)
                    top = int(own.top_key[k, record.layer, head])  # type: ignore[index]
                    assert weights[k, top] == pytest.approx(weights[k].max(), abs=1e-5)
                    assert own.top_weight[k, record.layer, head] == pytest.approx(weights[k].max(), abs=1e-5)  # type: ignore[index]


def test_the_means_of_the_texts_are_the_tables(census: Census) -> None:
    table = census.tables["sinks"].set_index(["layer", "head", "position"])
    drains = census.tables["value_drains"].set_index(["layer", "head", "position"])
    texts = [census.sequence(sequence) for sequence in range(3)]
    for layer, head, position in [(0, 0, 0), (1, 3, 11), (3, 2, 30), (2, 1, 39)]:
        there = [text for text in texts if text.length > position]
        group = 4 // texts[0].value_norm.shape[2]  # type: ignore[union-attr]
        for column, values in {
            "importance": [text.importance[position, layer, head] for text in there],
            "null": [text.null[position, layer] for text in there],
        }.items():
            assert table[column][layer, head, position] == pytest.approx(np.mean(values), rel=1e-5)
        norms = [text.value_norm[position, layer, head // group] for text in there]  # type: ignore[index]
        assert drains["value_norm"][layer, head, position] == pytest.approx(np.mean(norms), rel=1e-5)
    profile = census.tables["profile"].pivot(index="position", columns="layer", values="resid_norm")
    np.testing.assert_allclose(texts[0].resid_norm, profile, rtol=1e-5)  # type: ignore[arg-type]


def test_they_are_saved_and_read_where_they_lie(census: Census, tmp_path: Path) -> None:
    census.save(tmp_path / "x")
    again = Census.load(tmp_path / "x")
    part = again.sequence(2).importance
    assert isinstance(part, np.memmap)
    np.testing.assert_array_equal(part, census.sequence(2).importance)
    with pytest.raises(InputError, match="texts 0 to 2, not 3"):
        again.sequence(3)


def test_more_than_fits_is_left_out_and_said(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ragged(int(model.cfg.d_vocab))
    monkeypatch.setattr(record_sequences, "MOST_BYTES", 4 * 4 * (5 * 4 + 2) * 60)
    assert sequences_kept(LENGTHS, 4, 4) == 2
    census = scan(model, tokens=rows)
    assert census.meta["by_sequence"]["kept"] == 2 and census.sequence(1).length == 12
    with pytest.raises(ResultError, match="texts 0 to 1 of 3"):
        census.sequence(2)
    old = Census({**census.meta, "by_sequence": None}, census.tables, {})
    with pytest.raises(ResultError, match="means over its texts alone"):
        old.sequence(0)


def test_what_is_not_finite_has_no_numbers(model: Any) -> None:
    batch = tokenize(model, ragged(int(model.cfg.d_vocab)))
    keep, bad = record_sequences.RecordSequences(batch, 4, 4), NonFinite()
    capture(model, batch, [keep], nonfinite=bad)
    bad.heads.add((1, 2))
    arrays = keep.arrays(bad)
    assert np.isnan(arrays["by_sequence.importance"][:, 1, 2]).all()
    assert (arrays["by_sequence.top_key"][:, 1, 2] == NO_KEY).all()
    assert np.isfinite(arrays["by_sequence.importance"][:, 1, 3]).all()
