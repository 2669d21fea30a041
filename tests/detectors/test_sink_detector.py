"""The streaming sink detector against whole patterns, from hand-made records and from models."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sinklens.capture import LayerRecord, capture
from sinklens.detectors.attention_summary import AttentionSummaryDetector
from sinklens.detectors.sinks import SinkDetector, importance
from sinklens.errors import InputError
from sinklens.models.tokens import tokenize
from tests import oracle
from tests.detectors.records import (
    WINDOWS,
    Text,
    collate,
    make_text,
    passes,
    random_pattern,
    random_texts,
    visible,
)
from tests.families import HEADS, WINDOW, boot, random_ids
from tests.ties import TIE

LENGTHS = (30, 12, 30, 7, 19)


def detect(records: Sequence[Sequence[LayerRecord]], detector: SinkDetector | None = None) -> dict[str, pd.DataFrame]:
    detector = detector or SinkDetector()
    for layers in records:
        for record in layers:
            detector.update(record)
    return detector.tables()


def naive_table(patterns: Sequence[Sequence[Tensor]], windows: Sequence[int | None], eps: float = 0.3) -> pd.DataFrame:
    """Layer by layer, head by head, key by key, from the whole patterns ``[layer][sequence] head q k``."""
    rows = []
    for layer, window in enumerate(windows):
        alphas = [importance(pattern) for pattern in patterns[layer]]
        nulls, margins = [], []
        for pattern in patterns[layer]:
            seen = visible(pattern.shape[-1], window)
            nulls.append(importance((seen / seen.sum(-1, keepdim=True).double())[None])[0])
            margins.append(oracle.margins(pattern[None], seen[None])[0])
        for head in range(alphas[0].shape[0]):
            for key in range(max(alpha.shape[-1] for alpha in alphas)):
                reach = [s for s, alpha in enumerate(alphas) if key < alpha.shape[-1]]
                found = [alphas[s][head, key].item() for s in reach]
                null = np.mean([nulls[s][key].item() for s in reach])
                finite = [margins[s][head, key].item() for s in reach]
                finite = [margin for margin in finite if math.isfinite(margin)]
                rows.append(
                    {
                        "layer": layer,
                        "head": head,
                        "position": key,
                        "importance": np.mean(found),
                        "sink_rate": np.mean([alpha > eps for alpha in found]),
                        "null": null,
                        "ratio": np.mean(found) / null,
                        "delta_logit": np.mean(finite) if finite else math.nan,
                        "n_sequences": len(found),
                    }
                )
    return pd.DataFrame(rows)


def by_layer(texts: Sequence[Text]) -> list[list[Tensor]]:
    return [[text.patterns[layer] for text in texts] for layer in range(len(WINDOWS))]


def same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 1e-9) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


# ------------------------------------------------------------------ hand-made records
@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (2, 3), (3, 2)])
def test_streaming_equals_whole_patterns_on_ragged_batches(sizes: tuple[int, ...]) -> None:
    texts = random_texts(LENGTHS)
    found = detect(passes(texts, sizes))
    same(found["sinks"], naive_table(by_layer(texts), WINDOWS))
    assert found["sinks"]["sink_rate"].between(0.01, 0.99).any()  # the random patterns do have sinks


def test_sweep_counts_the_same_sequences_against_other_thresholds() -> None:
    texts = random_texts(LENGTHS)
    found = detect([collate(texts)], SinkDetector(0.35, (0.2, 0.5)))
    best = found["sink_heads"].set_index(["layer", "head"])["position"]
    for eps in (0.35, 0.2, 0.5):
        table = naive_table(by_layer(texts), WINDOWS, eps).set_index(["layer", "head", "position"])
        part = found["eps_sweep"][found["eps_sweep"]["eps"] == eps]
        places = {(i, h, k) for (i, h), k in best.items()} | {(i, h, 0) for i, h in best.index}
        assert set(part[["layer", "head", "position"]].itertuples(index=False, name=None)) == places
        for row in part.itertuples():
            expected = table.loc[(row.layer, row.head, row.position), "sink_rate"]
            assert row.sink_rate == pytest.approx(expected)
    rate = found["eps_sweep"].pivot_table(index=["layer", "head", "position"], columns="eps", values="sink_rate")
    assert (rate.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)  # more is asked, fewer sequences have it


def test_the_threshold_is_strict() -> None:
    length = 64
    pattern = torch.eye(length, dtype=torch.float64).repeat(2, 1, 1)
    for head, queries in enumerate((32, 33)):  # the first ones give all to key 0, the others look at themselves
        pattern[head, :queries] = torch.eye(length)[0]
    found = detect([one_layer([pattern])], SinkDetector(0.5))
    first = found["sinks"][found["sinks"]["position"] == 0]
    assert first["importance"].tolist() == [0.5, 33 / 64]
    assert first["sink_rate"].tolist() == [0, 1]


def test_padding_holds_no_meaning() -> None:
    texts = random_texts(LENGTHS)
    clean = detect([collate(texts)])
    for filler in (0.0, 1e30, -math.inf):
        records = collate(texts)
        for record in records:
            for value in record.attention.values():
                if value.is_floating_point():
                    value[value.isnan() & ~record.real.reshape(len(texts), *[1] * (value.ndim - 2), -1)] = filler
        pd.testing.assert_frame_equal(detect([records])["sinks"], clean["sinks"])


def test_a_layer_whose_scores_are_unknown_has_no_margin() -> None:
    texts = random_texts(LENGTHS[:2])
    records = collate(texts)
    for record in records:
        record.attention.pop("delta_logit", None)
    found = detect([records])["sinks"]
    assert found["delta_logit"].isna().all() and found["importance"].notna().all()


# ------------------------------------------------------------------ strongest key
@pytest.mark.parametrize("min_queries", [1, 3, 10])
def test_strongest_key_by_the_rule_in_words(min_queries: int) -> None:
    # among keys with at least min_queries queries and an eighth of the sequence after them in half of the sequences,
    # the one with the largest mean importance over those sequences
    texts = random_texts(LENGTHS, seed=3)
    found = detect(passes(texts, (2, 3)), SinkDetector(min_queries=min_queries))["sink_heads"]
    for layer in range(len(WINDOWS)):
        alphas = [importance(text.patterns[layer]) for text in texts]
        for head in range(HEADS):
            scores = {}
            for key in range(max(LENGTHS)):
                judges = [a[head, key].item() for a in alphas if a.shape[-1] - key >= max(min_queries, a.shape[-1] / 8)]
                if len(judges) >= len(LENGTHS) / 2:
                    scores[key] = np.mean(judges)
            row = found[(found["layer"] == layer) & (found["head"] == head)]
            assert row["position"].item() == max(scores, key=lambda key: scores[key])


def one_layer(patterns: Sequence[Tensor]) -> list[LayerRecord]:
    return collate([make_text([pattern]) for pattern in patterns])


def previous_token(length: int) -> Tensor:
    pattern = torch.zeros(length, length, dtype=torch.float64)
    pattern[0, 0] = 1
    pattern[torch.arange(1, length), torch.arange(length - 1)] = 1
    return pattern


def sink_at(length: int, key: int, share: float = 0.9) -> Tensor:
    pattern = torch.eye(length, dtype=torch.float64)
    pattern[key + 1 :] *= 1 - share
    pattern[key + 1 :, key] += share
    return pattern


def test_a_head_that_looks_at_a_fixed_offset_is_no_sink_at_the_end() -> None:
    length = 64
    whole = torch.stack([previous_token(length), torch.eye(length, dtype=torch.float64)])
    assert importance(whole)[0, length - 2] == 0.5  # one of two queries: the trap
    assert importance(whole)[1, length - 1] == 1
    found = detect([one_layer([whole] * 3)])
    assert (found["sink_heads"]["position"] <= length - 10).all()
    assert found["sink_heads"]["importance"].max() <= 0.1 + 1e-12
    assert (found["sink_heads"]["sink_rate"] == 0).all()
    assert (found["eps_sweep"]["sink_rate"] == 0).all()
    assert found["sinks"]["sink_rate"].max() == 1  # the table hides nothing


@pytest.mark.parametrize("key", [0, 3, 20, 53])
def test_the_strongest_key_is_the_planted_one(key: int) -> None:
    pattern = torch.stack([previous_token(64), sink_at(64, key)])
    best = detect([one_layer([pattern] * 2)])["sink_heads"].set_index("head").loc[1]
    assert best["position"] == key
    assert best["sink_rate"] == 1
    assert best["importance"] == pytest.approx((1 + (63 - key) * 0.9) / (64 - key))


def test_a_key_too_few_queries_see_is_not_chosen() -> None:
    pattern = sink_at(64, 57)[None]  # seen by seven queries
    assert detect([one_layer([pattern])])["sink_heads"]["position"].item() < 55
    assert (
        detect([one_layer([pattern])], SinkDetector(min_queries=5, min_share=0))["sink_heads"]["position"].item() == 57
    )


def test_a_key_must_be_seen_in_half_of_the_sequences() -> None:
    # position 25 is a perfect sink, but only one of four sequences is long enough for ten queries to see it
    patterns = [sink_at(40, 25)[None]] + [sink_at(20, 2, 0.5)[None]] * 3
    found = detect([one_layer(patterns)])
    assert found["sink_heads"]["position"].item() == 2
    assert found["sink_heads"]["n_sequences"].item() == 4
    # and with two of four it is
    found = detect([one_layer([sink_at(40, 25)[None]] * 2 + [sink_at(20, 2, 0.5)[None]] * 2)])
    assert found["sink_heads"]["position"].item() == 25


def test_sequences_where_few_queries_see_the_key_do_not_vote_for_it() -> None:
    # in the short sequence position 8 is seen by three queries only and has all of their attention
    patterns = [sink_at(40, 2, 0.6)[None], sink_at(40, 2, 0.6)[None], sink_at(11, 8, 1.0)[None]]
    assert detect([one_layer(patterns)])["sink_heads"]["position"].item() == 2


def test_sequences_shorter_than_min_queries_have_no_strongest_key() -> None:
    texts = random_texts([6, 8])
    found = detect([collate(texts)])
    assert found["sink_heads"].empty and list(found["sink_heads"].columns) == list(found["sinks"].columns)
    assert set(found["eps_sweep"]["position"]) == {0}
    assert len(found["sinks"]) == 2 * 4 * 8


# ------------------------------------------------------------------ nulls
def test_uniform_attention_has_ratio_one_under_any_window() -> None:
    windows = (None, 4, 12)
    texts = []
    for length in (40, 23):
        seen = [visible(length, window).double() for window in windows]
        texts.append(make_text([(s / s.sum(-1, keepdim=True))[None] for s in seen], windows=windows))
    found = detect([collate(texts)])["sinks"]
    np.testing.assert_allclose(found["ratio"], 1)
    first = found[found["position"] == 0].set_index("layer")["null"]
    assert first[0] == pytest.approx(np.mean([oracle_floor(40), oracle_floor(23)]))
    assert first[1] < first[2] < first[0]  # a narrow window takes the first key away from most queries


def oracle_floor(length: int) -> float:
    return sum(1 / i for i in range(1, length + 1)) / length


# ------------------------------------------------------------------ merging and options
def test_halves_merge_into_the_whole() -> None:
    texts = random_texts(LENGTHS)
    one, two = SinkDetector(), SinkDetector()
    records = passes(texts, (2, 3))
    detect(records[:1], one)
    detect(records[1:], two)
    one.merge(two)
    whole = detect([collate(texts)])
    same(one.tables()["sinks"], whole["sinks"])
    same(one.tables()["sink_heads"], whole["sink_heads"])
    same(one.tables()["eps_sweep"], whole["eps_sweep"])
    same(two.tables()["sinks"], detect(records[1:])["sinks"])  # the other one is left as it was


def test_detectors_with_other_settings_do_not_merge() -> None:
    for other in (
        SinkDetector(0.4),
        SinkDetector(min_queries=5),
        SinkDetector(min_share=0.5),
        SinkDetector(eps_sweep=(0.1,)),
    ):
        with pytest.raises(InputError, match=r"with different .* cannot be merged"):
            SinkDetector().merge(other)


def test_bad_thresholds_are_refused() -> None:
    with pytest.raises(InputError, match="eps must lie between 0 and 1, got 0"):
        SinkDetector(0)
    with pytest.raises(InputError, match=r"got 1\.5"):
        SinkDetector(eps_sweep=(0.2, 1.5))


# ------------------------------------------------------------------ models
@pytest.mark.filterwarnings("ignore:GPTJForCausalLM is measured through the bridge's hooks")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gptj", "qwen3_next"])
def test_from_a_model_equals_its_whole_patterns(name: str, zoo: Path) -> None:
    model = boot(name, zoo)
    ids = random_ids(3, 40)
    lengths = (40, 13, 26)
    rows = [ids[s, :length].tolist() for s, length in enumerate(lengths)]
    detector = SinkDetector()
    capture(model, tokenize(model, rows), [detector], batch_size=2)
    alone = [oracle.full_patterns(model, torch.tensor([row])) for row in rows]
    layers = [layer for layer, found in enumerate(alone[0]) if found is not None]
    windows = oracle.attention_layers(model.original_model.config)
    expected = naive_table(
        [[text[layer].pattern[0] for text in alone] for layer in layers], [windows[i] for i in layers]
    )
    expected["layer"] = expected["layer"].map(dict(enumerate(layers)))
    found = detector.tables()
    exact = ["layer", "head", "position", "n_sequences"]
    pd.testing.assert_frame_equal(found["sinks"][exact], expected[exact], check_dtype=False)
    lower, upper = (
        naive_table([[text[i].pattern[0] for text in alone] for i in layers], [windows[i] for i in layers], eps)
        for eps in (0.3 + TIE, 0.3 - TIE)
    )
    assert found["sinks"]["sink_rate"].between(lower["sink_rate"] - 1e-9, upper["sink_rate"] + 1e-9).all()
    for column in ("importance", "null", "ratio"):
        np.testing.assert_allclose(found["sinks"][column], expected[column], rtol=1e-4, atol=2e-6, err_msg=column)
    if name != "gptj":  # the log of a weight that underflows is no score; the hooks show the pattern alone
        finite = np.isfinite(expected["delta_logit"])
        np.testing.assert_allclose(
            found["sinks"]["delta_logit"][finite], expected["delta_logit"][finite], rtol=1e-3, atol=1e-3
        )


def test_windowed_layers_of_a_model_have_their_own_null(zoo: Path) -> None:
    model = boot("gpt_oss", zoo)  # windows 16, none, 16
    detector = SinkDetector()
    capture(model, tokenize(model, random_ids(2, 40)), [detector])
    null = detector.tables()["sinks"].groupby(["layer", "position"])["null"].first()
    assert null[1, 0] == pytest.approx(oracle_floor(40), rel=1e-5)
    windowed = sum(1 / min(i, WINDOW) for i in range(1, WINDOW + 1)) / 40
    assert null[0, 0] == null[2, 0] == pytest.approx(windowed, rel=1e-5)


def test_virtual_sink_of_gpt_oss_is_reported_and_not_renormalised_away(zoo: Path) -> None:
    model = boot("gpt_oss", zoo)
    ids = random_ids(3, 40)
    sinks, summary = SinkDetector(), AttentionSummaryDetector()
    capture(model, tokenize(model, ids), [sinks, summary], batch_size=2)
    missing = summary.tables()["attention_summary"].set_index(["layer", "head"])["missing_mass"]
    table = sinks.tables()["sinks"]
    received = (table["importance"] * (40 - table["position"])).groupby([table["layer"], table["head"]]).sum()
    np.testing.assert_allclose(received + 40 * missing, 40, rtol=1e-5)
    naive = [oracle.missing_mass(p.pattern, p.visible).mean((0, 2)) for p in oracle.full_patterns(model, ids)]
    np.testing.assert_allclose(missing.to_numpy(), torch.cat(naive), rtol=1e-4, atol=1e-6)
    assert missing.min() > 0.001
    # an ordinary softmax misses nothing
    summary = AttentionSummaryDetector()
    llama = boot("llama", zoo)
    capture(llama, tokenize(llama, ids), [summary])
    np.testing.assert_allclose(summary.tables()["attention_summary"]["missing_mass"], 0, atol=1e-6)


def test_random_pattern_helper_is_causal_and_windowed() -> None:
    pattern = random_pattern(10, torch.Generator().manual_seed(0), window=3)
    assert ((pattern > 0) == visible(10, 3)).all()
    assert pattern.shape == (HEADS, 10, 10)
