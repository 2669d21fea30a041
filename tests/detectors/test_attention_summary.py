"""Per-head means of what the engine says about queries, against a loop over whole patterns."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sinklens.capture import LayerRecord, capture
from sinklens.detectors import METRICS
from sinklens.detectors.attention_summary import AttentionSummaryDetector
from sinklens.models.tokens import tokenize
from tests import oracle
from tests.detectors.records import (
    HEADS,
    WINDOWS,
    Text,
    collate,
    make_text,
    passes,
    random_pattern,
    random_texts,
    visible,
)
from tests.families import BOS, boot, boot_hf, random_ids

LENGTHS = (9, 4, 1, 12)


def detect(records: Sequence[Sequence[LayerRecord]]) -> pd.DataFrame:
    detector = AttentionSummaryDetector()
    for layers in records:
        for record in layers:
            detector.update(record)
    result = detector.tables()
    return result["attention_summary"]


def naive(texts: Sequence[Text]) -> pd.DataFrame:
    """The mean over all queries of all sequences, query by query."""
    rows = []
    for layer, window in enumerate(WINDOWS):
        for head in range(HEADS):
            found: dict[str, list[float]] = {
                name: [] for name in ("entropy", "null", "distance", "bos", "missing", "gate")
            }
            for text in texts:
                pattern = text.patterns[layer][head].tolist()
                found["gate"] += text.statistics[layer]["gate"][head].tolist()
                for i, row in enumerate(pattern):
                    total = sum(row)
                    shares = [p / total for p in row]
                    found["entropy"].append(-sum(p * math.log(p) for p in shares if p > 0))
                    found["null"].append(math.log(min(i + 1, window or i + 1)))
                    found["distance"].append(sum(p * (i - j) for j, p in enumerate(shares)))
                    found["missing"].append(1 - total)
                    if 0 in text.ids:
                        found["bos"].append(sum(p for j, p in enumerate(row) if text.ids[j] == 0))
            mean = {name: np.mean(values) if values else math.nan for name, values in found.items()}
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "entropy": mean["entropy"],
                    "entropy_null": mean["null"],
                    "distance": mean["distance"],
                    "bos_mass": mean["bos"],
                    "special_mass": mean["bos"],
                    "missing_mass": mean["missing"],
                    "gate": mean["gate"],
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (2, 2), (3, 1)])
def test_streaming_equals_a_loop_on_ragged_batches(sizes: tuple[int, ...], missing: bool) -> None:
    texts = random_texts(LENGTHS, missing=missing)
    pd.testing.assert_frame_equal(detect(passes(texts, sizes)), naive(texts), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (2, 2), (1, 3)])
def test_mass_on_the_bos_is_a_mean_over_sequences_that_have_one(sizes: tuple[int, ...]) -> None:
    # how the sequences fall into passes must not matter: a pass without any BOS has no such statistic
    texts = random_texts(LENGTHS, without_bos=(0, 2))
    found = detect(passes(texts, sizes))
    pd.testing.assert_frame_equal(found, naive(texts), rtol=1e-9, atol=1e-12)


def test_without_any_bos_its_mass_is_not_applicable() -> None:
    found = detect([collate(random_texts([5, 8], without_bos=(0, 1)))])
    assert found[["bos_mass", "special_mass"]].isna().all(axis=None)
    assert found[["entropy", "distance", "missing_mass"]].notna().all(axis=None)


def test_uniform_attention_has_its_null_entropy() -> None:
    for window in (None, 4):
        seen = visible(16, window).double()
        uniform = (seen / seen.sum(-1, keepdim=True))[None].expand(HEADS, -1, -1)
        found = detect([collate([make_text([uniform], windows=[window])])])
        np.testing.assert_allclose(found["entropy"], found["entropy_null"])


def test_pattern_of_one_key_by_hand() -> None:
    first = torch.zeros(HEADS, 5, 5, dtype=torch.float64)
    first[:, :, 0] = 1
    found = detect([collate([make_text([first])])])
    np.testing.assert_allclose(found["entropy"], 0, atol=1e-12)
    np.testing.assert_allclose(found["distance"], 2)  # (0 + 1 + 2 + 3 + 4) / 5
    np.testing.assert_allclose(found["bos_mass"], 1)
    np.testing.assert_allclose(found["entropy_null"], np.log(np.arange(1, 6)).mean())


def test_statistics_that_were_not_taken_are_not_applicable() -> None:
    records = collate(random_texts([5]))
    for record in records:
        record.attention.pop("distance", None)
    found = detect([records])
    assert found["distance"].isna().all() and found["entropy"].notna().all()
    for record in records:
        record.attention.pop("entropy", None)
    assert detect([records]).empty


def test_halves_merge_into_the_whole() -> None:
    texts = random_texts(LENGTHS, without_bos=(1,))
    one, two = AttentionSummaryDetector(), AttentionSummaryDetector()
    for detector, records in zip((one, two), passes(texts, (1, 3)), strict=True):
        for record in records:
            detector.update(record)
    one.merge(two)
    pd.testing.assert_frame_equal(one.tables()["attention_summary"], naive(texts), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "bloom"])
@pytest.mark.filterwarnings("ignore:BloomForCausalLM is measured through the bridge's hooks")
def test_from_a_model_equals_its_whole_patterns(name: str, zoo: Path) -> None:
    model, ids = boot(name, zoo), random_ids(3, 30)
    ids[:, 0] = BOS
    ids[2, 0] = 17  # one without a BOS
    rows = [ids[0].tolist(), ids[1, :11].tolist(), ids[2, :20].tolist()]
    detector = AttentionSummaryDetector()
    capture(model, tokenize(model, rows), [detector], batch_size=1)
    table = detector.tables()["attention_summary"].set_index(["layer", "head"])
    expected: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        for found in oracle.full_patterns(model, torch.tensor([row])):
            assert found is not None
            p, seen = found.pattern, found.visible
            per_query = {
                "entropy": oracle.entropy(p, seen),
                "entropy_null": seen.sum(-1).log()[:, None].expand(-1, HEADS, -1),
                "distance": oracle.distance(p, seen),
                "missing_mass": oracle.missing_mass(p, seen),
            }
            if row[0] == BOS:
                per_query["bos_mass"] = oracle.mass_on(p, seen, torch.tensor([row]) == BOS)
            for column, value in per_query.items():
                expected.setdefault(f"{column} {found.layer}", []).append(value[0])
    for key, values in expected.items():
        column, layer = key.split()
        naive_mean = torch.cat(values, -1).double().mean(-1)
        np.testing.assert_allclose(table.loc[int(layer)][column], naive_mean, rtol=2e-4, atol=1e-5, err_msg=key)


def test_output_gates_of_a_model(zoo: Path) -> None:
    model, hf_model = boot("qwen3_next", zoo), boot_hf("qwen3_next", zoo)
    rows = [random_ids(1, length, seed=length)[0].tolist() for length in (20, 9)]
    detector = AttentionSummaryDetector()
    capture(model, tokenize(model, rows), [detector])
    projected = []
    projection = hf_model.model.layers[3].self_attn.q_proj
    handle = projection.register_forward_hook(lambda module, args, out: projected.append(out[0]))
    for row in rows:
        hf_model(torch.tensor([row]))
    handle.remove()
    # each head's slice holds its query and then its gate
    gates = torch.cat(projected).unflatten(-1, (HEADS, 2, -1))[:, :, 1].sigmoid()
    found = detector.tables()["attention_summary"]
    assert set(found["layer"]) == {3}
    np.testing.assert_allclose(found["gate"], gates.mean((0, 2)), rtol=1e-4)
    llama, detector = boot("llama", zoo), AttentionSummaryDetector()
    capture(llama, tokenize(llama, rows), [detector])
    assert detector.tables()["attention_summary"]["gate"].isna().all()  # no gate is not an open gate


def test_every_metric_says_what_it_is() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.version >= 1 and len(metric.definition) > 40 and metric.source
        assert metric.as_dict() == {
            "version": metric.version,
            "definition": metric.definition,
            "source": metric.source,
        }


def test_entropy_is_finite_where_a_weight_is_zero() -> None:
    pattern = random_pattern(8, torch.Generator().manual_seed(0))
    pattern[:, 5] = torch.eye(8, dtype=torch.float64)[5]
    assert detect([collate([make_text([pattern])])])["entropy"].between(0, math.log(8)).all()
