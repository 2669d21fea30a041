"""Memory of whole scans: bounded in one, and none kept from many."""

import ctypes
import gc
import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.capture.record import LayerRecord, ValueNorms
from sinklens.detectors.base import LayerSums
from sinklens.detectors.measure import tables_of
from sinklens.detectors.sinks import SinkDetector
from sinklens.detectors.value_drains import ValueDrainDetector
from sinklens.detectors.visible_sinks import VisibleSinkDetector
from sinklens.models.builtin import data_dir
from sinklens.models.tokens import TokenBatch, tokenize

STATUS = Path("/proc/self/status")
PEAK = Path("/proc/self/clear_refs")
linux = pytest.mark.skipif(not PEAK.exists(), reason="needs Linux's account of a process' memory")


def memory(name: str) -> int:
    """Bytes by Linux's account: ``VmRSS`` now, ``VmHWM`` the most since the last reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text("ascii"))
    assert found is not None
    return 1024 * int(found.group(1))


def settle() -> None:
    """Give back what nobody holds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def test_a_long_text_takes_few_bytes_for_each_head_and_position() -> None:
    """What is held of a text, and the most that its tables take on the way: by far the most of a long scan's memory."""
    n_layers, heads, length = 2, 16, 4096
    generator = torch.Generator().manual_seed(0)
    ids, nobody = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, length, dtype=torch.bool)
    batch = TokenBatch(ids, ~nobody, nobody, [["a"] * length], None, "caller", "")

    def draw(*size: int) -> torch.Tensor:
        return torch.rand(1, *size, generator=generator)

    detectors = [SinkDetector(), VisibleSinkDetector(), ValueDrainDetector()]
    for layer in range(n_layers):
        attention = {
            "mass": draw(heads, length),
            "queries": torch.arange(length, 0, -1)[None].float(),
            "null_mass": draw(length),
            "delta_logit": draw(heads, length),
        }
        values = ValueNorms(draw(heads // 4, length), draw(heads, length))
        for detector in detectors:
            detector.update(LayerRecord(layer, batch, 0, "fast", attention, values))
    rows = n_layers * heads * length
    kept = [sums for detector in detectors for sums in vars(detector).values() if isinstance(sums, LayerSums)]
    held = sum(x.nbytes for sums in kept for by_name in sums.layers.values() for x in by_name.values())
    tracemalloc.start()
    tables = tables_of(detectors, keep=False)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tables["sinks"]) == len(tables["value_drains"]) == rows
    assert held / rows < 40
    assert most / rows < 190
    assert not any(sums.layers for sums in kept)


@linux
@pytest.mark.slow
def test_a_hundred_scans_keep_nothing() -> None:
    model = sinklens.load("induction-2l", device="cpu")
    batch = sinklens.builtin_corpus(model, n_sequences=4).tokens
    held = []
    for count in range(100):
        sinklens.scan(model, tokens=batch)
        if count in (19, 99):  # the first ones fill caches
            settle()
            held.append(memory("VmRSS"))
    assert held[1] - held[0] < 16e6


@linux
@pytest.mark.slow
@pytest.mark.real
def test_a_long_text_needs_no_more_than_its_tables(smollm2: TransformerBridge) -> None:
    text = (data_dir() / "texts" / "shakespeare.txt").read_text("utf-8")
    batch = tokenize(smollm2, text[:80_000], max_tokens=8192, split=False)
    assert batch.ids.shape == (1, 8192)
    sinklens.scan(smollm2, tokens=batch.ids[:, :64])
    settle()
    PEAK.write_text("5", "ascii")  # the peak counts from here on
    before = memory("VmRSS")
    sinklens.scan(smollm2, tokens=batch)
    # 270 heads x 8,192 positions are 2.2 million rows in each of two tables: most of what docs/speed.md states
    assert memory("VmHWM") - before < 0.5e9
