"""How much of a cache is kept: the formula against counted keys, and bytes against the formula."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.studies.streaming_split.kv_budget import kv_budget, measure_kv_bytes
from tests.families import boot, random_ids


@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 5), st.integers(0, 8), st.integers(0, 20), st.booleans())
def test_entries_are_those_one_counts(n: int, full: int, streaming: int, sinks: int, recent: int, token: bool) -> None:
    """Card duoattention, check 5, and card razorattention, check 5: ``r + (1 - r)(L + N_0 + 1) / N``."""
    found = kv_budget(n, full, streaming, sinks=sinks, recent=recent, compensation=token)
    held = {key for key in range(n) if key < sinks or key >= n - recent}
    entries = len(held) + (token and len(held) < n)
    assert found.kept == full * n + streaming * entries and found.full == n * (full + streaming)
    if sinks + recent + 1 < n:
        share = full / (full + streaming)
        assert found.fraction == pytest.approx(share + (1 - share) * (recent + sinks + token) / n)


@pytest.mark.parametrize("compensation", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek_v3"])
def test_bytes_follow_the_formula(name: str, compensation: bool, tmp_path: Path) -> None:
    bridge = boot(name, tmp_path)
    with torch.no_grad():
        kv_heads = {"llama": 2}.get(name, 4)
        streaming = [(0, 1), (1, 0)]
        options = {"sinks": 2, "recent": 5, "compensation": compensation}
        found = measure_kv_bytes(bridge, random_ids(batch=2, pos=30), streaming, **options)  # type: ignore[arg-type]
    expected = kv_budget(30, 2 * kv_heads - 2, 2, **options)  # type: ignore[arg-type]
    assert found.fraction == pytest.approx(expected.fraction)
    if name == "llama":
        assert found.full == 2 * 2 * 30 * 2 * (8 + 8) * 4  # layers, sequences, tokens, KV heads, keys and values, fp32


def test_what_is_refused(tmp_path: Path) -> None:
    for wrong in ((0, 1, 1), (5, 0, 0), (5, -1, 3)):
        with pytest.raises(InputError, match="Expected a text and some KV heads"):
            kv_budget(*wrong, sinks=1, recent=2)
    with pytest.warns(UserWarning), pytest.raises(UnsupportedArchitectureError, match="fast path"):
        measure_kv_bytes(boot("bloom", tmp_path), random_ids(), [], sinks=1, recent=2)
