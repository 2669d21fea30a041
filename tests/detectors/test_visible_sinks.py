"""Importance per query that sees the key, against whole patterns with windows and padding, key by key."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sinklens.capture import capture
from sinklens.detectors.visible_sinks import VisibleSinkDetector, importance_visible
from sinklens.errors import InputError
from sinklens.models.tokens import tokenize
from tests import oracle
from tests.detectors.records import WINDOWS, Text, collate, make_text, passes, random_texts, visible
from tests.families import boot, random_ids

LENGTHS = (30, 12, 30, 7, 19)
COLUMNS = ["importance_visible", "sink_rate_visible", "null_visible", "ratio_visible", "ceiling"]


def naive(patterns: list[list[torch.Tensor]], windows: list[int | None], eps: float = 0.3) -> pd.DataFrame:
    """From whole patterns ``[layer][sequence] head q k``, one number at a time."""
    rows = []
    for layer, window in enumerate(windows):
        longest = max(pattern.shape[-1] for pattern in patterns[layer])
        for head in range(patterns[layer][0].shape[0]):
            for key in range(longest):
                betas, nulls, ceilings = [], [], []
                for pattern in patterns[layer]:
                    length = pattern.shape[-1]
                    if key >= length:
                        continue
                    seers = [i for i in range(key, length) if window is None or i - key < window]
                    betas.append(sum(pattern[head, i, key].item() for i in seers) / len(seers))
                    sizes = [i + 1 if window is None else min(i + 1, window) for i in seers]
                    nulls.append(sum(1 / size for size in sizes) / len(seers))
                    ceilings.append(len(seers) / (length - key))
                beta, null = np.mean(betas), np.mean(nulls)
                rate = np.mean([each > eps for each in betas])
                rows.append((layer, head, key, beta, rate, null, beta / null, np.mean(ceilings)))
    return pd.DataFrame(rows, columns=["layer", "head", "position", *COLUMNS])


def detect(texts: list[Text], sizes: tuple[int, ...], **settings: float) -> VisibleSinkDetector:
    detector = VisibleSinkDetector(**settings)  # type: ignore[arg-type]
    for records in passes(texts, sizes):
        for record in records:
            detector.update(record)
    return detector


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (2, 3)])
def test_windows_and_padding_equal_whole_patterns(sizes: tuple[int, ...]) -> None:
    texts = random_texts(LENGTHS)
    expected = naive([[text.patterns[layer] for text in texts] for layer in range(2)], list(WINDOWS))
    found = detect(texts, sizes).tables()["sinks_visible"]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-9, atol=1e-9)
    full, windowed = (found[found["layer"] == layer] for layer in range(2))
    assert full["ceiling"].eq(1).all() and windowed["ceiling"].min() < 0.5


def test_importance_is_the_ceiling_times_this() -> None:
    (text,) = random_texts((30,))
    plain = sum(text.patterns[1][:, i, 0] for i in range(30)) / 30
    found = detect([text], (1,)).tables()["sinks_visible"]
    first = found[(found["layer"] == 1) & (found["position"] == 0)]
    np.testing.assert_allclose(first["importance_visible"] * first["ceiling"], plain)


def planted(length: int, window: int) -> Text:
    """Head 0 gives position 0 everything while it sees it, head 1 looks at itself."""
    patterns = torch.eye(length, dtype=torch.float64).repeat(2, 1, 1)
    for row in range(window):
        patterns[0, row] = torch.eye(length)[0]
    return make_text([patterns], windows=[window])


def test_a_full_sink_in_a_window_is_one_by_this_count_alone() -> None:
    text = planted(64, 16)
    found = detect([text] * 3, (3,)).tables()
    best = found["sink_heads_visible"].set_index("head").loc[0]
    assert best["position"] == 0 and best["importance_visible"] == 1 and best["sink_rate_visible"] == 1
    assert best["ceiling"] == 0.25  # which Gu's importance cannot exceed
    assert found["sinks_visible"]["ceiling"].iloc[0] == 16 / 64


def test_a_window_too_short_to_judge_has_no_strongest_key() -> None:
    assert detect([planted(64, 9)], (1,)).tables()["sink_heads_visible"].empty
    assert not detect([planted(64, 9)], (1,), min_queries=5).tables()["sink_heads_visible"].empty


def test_halves_merge_and_other_settings_do_not() -> None:
    texts = random_texts(LENGTHS)
    one, two = detect(texts[:2], (2,)), detect(texts[2:], (3,))
    one.merge(two)
    pd.testing.assert_frame_equal(one.tables()["sinks_visible"], detect(texts, (5,)).tables()["sinks_visible"])
    with pytest.raises(InputError, match="cannot be merged"):
        one.merge(VisibleSinkDetector(0.4))


def test_nan_is_no_rate_of_zero() -> None:
    records = collate(random_texts(LENGTHS))
    detector = VisibleSinkDetector()
    for record in records:
        if "mass" in record.attention:
            record.attention["mass"][0, 1] = math.nan
        detector.update(record)
    broken = detector.tables()["sinks_visible"].query("head == 1 and position < 7")
    assert broken[["importance_visible", "sink_rate_visible"]].isna().all(axis=None)


def test_the_function_equals_the_detector_and_refuses_other_shapes() -> None:
    (text,) = random_texts((30,))
    found = detect([text], (1,)).tables()["sinks_visible"]
    alone = importance_visible(text.patterns[1], visible(30, WINDOWS[1]))
    rows = found[found["layer"] == 1]["importance_visible"].to_numpy().reshape(alone.shape)
    np.testing.assert_allclose(rows, alone.numpy(), atol=1e-6)
    with pytest.raises(InputError, match="Expected patterns"):
        importance_visible(torch.ones(2, 4, 4), torch.ones(5, 5))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_from_a_model(name: str, tmp_path: Path) -> None:
    model = boot(name, tmp_path)
    ids, lengths = random_ids(3, 40), (40, 13, 26)
    rows = [ids[s, :length].tolist() for s, length in enumerate(lengths)]
    detector = VisibleSinkDetector()
    capture(model, tokenize(model, rows), [detector], batch_size=2)
    alone = [oracle.full_patterns(model, torch.tensor([row])) for row in rows]
    config: Any = model.original_model.config
    windows = oracle.attention_layers(config)
    patterns = [[each[layer].pattern[0] for each in alone] for layer in windows]  # type: ignore[union-attr]
    expected, found = naive(patterns, [*windows.values()]), detector.tables()["sinks_visible"]
    for column in ("importance_visible", "null_visible", "ceiling"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-4, atol=2e-6, err_msg=column)
