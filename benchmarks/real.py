"""What users call, timed on SmolLM2-135M beside what does the same without sinklens: one row at a time, as it comes.

Scans at four shapes (the default corpus, 100 x 64 tokens in batches of 32, and one text of 512, 1,024 and 2,048
tokens), each beside

- ``sdpa``: the plain Hugging Face forward pass with fused attention, nothing measured;
- ``output_attentions``: the same model with eager attention that returns all T x T patterns;
- ``patterns``: ``TransformerBridge.run_with_cache`` of all patterns.

Rounds are interleaved and ratios are taken within a round, because machines are noisy; ``cpu`` is the process' own time
of the same round. Then other calls while time is left (roles, needles, a sweep over heads, active-dormant heads), and
the memory of a scan of 8,192 tokens beyond the weights. Needs SmolLM2: ``make real-models``.

    python benchmarks/real.py --out benchmarks/real.csv
"""

import argparse
import ctypes
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from capture import M_MMAP_THRESHOLD, PeakMemory
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import sinklens
from sinklens.models import load
from sinklens.models.builtin import data_dir
from sinklens.models.quiet import quietly
from sinklens.models.real import real_model_path
from sinklens.models.tokens import TokenBatch, tokenize
from sinklens.passes.corpus import builtin_corpus
from sinklens.studies import make_needles, retrieval_scores
from sinklens.studies.active_dormant.run import find_active_dormant
from sinklens.studies.head_roles.run import find_roles

LENGTHS = (512, 1024, 2048)
BATCH = 32
LONGEST = 8192
SETTINGS = {"use_cache": False, "logits_to_keep": 1}


class Table:
    """Rows that are printed and written as soon as they are there."""

    def __init__(self, out: Path | None) -> None:
        self.out, self.rows = out, []  # type: ignore[var-annotated]
        self.where = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": " ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens")),
        }

    def add(self, **row: Any) -> None:
        """One more row."""
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        self.rows.append(row | self.where)
        if self.out is not None:
            pd.DataFrame(self.rows).to_csv(self.out, index=False)


def plain_model(attention: str) -> Any:
    """SmolLM2 as transformers runs it, without a bridge."""
    path = real_model_path("smollm2")
    with quietly(is_local=True):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
        )
    return model.eval()


def text_of(model: TransformerBridge, length: int) -> TokenBatch:
    """One text of so many tokens."""
    text = (data_dir() / "texts" / "shakespeare.txt").read_text("utf-8")
    return tokenize(model, text[: 12 * length], max_tokens=length, split=False)


def forwards(model: Any, batch: TokenBatch, **more: Any) -> Callable[[], Any]:
    """Forward passes of all sequences, in the scan's batches."""

    def run() -> None:
        for start in range(0, len(batch), BATCH):
            model(batch.ids[start : start + BATCH], **SETTINGS, **more)

    return run


def side_by_side(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds of every round, after one round to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                found[name].append(took)
    return found


def scans(table: Table, bridge: TransformerBridge, rounds: int, lengths: list[int], limit: float) -> None:
    """Scans beside the passes that they replace."""
    fused, eager = plain_model("sdpa"), plain_model("eager")

    def patterns(batch: TokenBatch) -> None:
        bridge.run_with_cache(batch.ids, names_filter=lambda name: name.endswith("attn.hook_pattern"), **SETTINGS)

    for length in (64, *lengths):
        if time.perf_counter() > limit:
            print(f"No time left for {length} tokens.")
            return
        batch = builtin_corpus(bridge).tokens if length == 64 else text_of(bridge, length)
        calls: dict[str, Callable[[], Any]] = {"sdpa": forwards(fused, batch)}
        calls["scan"] = lambda batch=batch: sinklens.scan(bridge, tokens=batch, batch_size=BATCH)
        if length > 64:
            calls["output_attentions"] = forwards(eager, batch, output_attentions=True)
            calls["patterns"] = lambda batch=batch: patterns(batch)
        found = side_by_side(calls, rounds)
        for name, took in found.items():
            over = [
                statistics.median(mine[kind] / plain[kind] for mine, plain in zip(took, found["sdpa"], strict=True))
                for kind in (0, 1)
            ]
            table.add(
                call=name,
                shape=f"{len(batch)} x {length}",
                seconds=round(statistics.median(wall for wall, _ in took), 3),
                cpu=round(statistics.median(cpu for _, cpu in took), 3),
                over_sdpa=round(over[0], 2),
                cpu_over_sdpa=round(over[1], 2),
            )
        parts = sinklens.scan(bridge, tokens=batch, batch_size=BATCH).meta["seconds_by_part"]
        for part, seconds in parts.items():
            table.add(call=f"scan: {part}", shape=f"{len(batch)} x {length}", seconds=round(seconds, 3))


def others(table: Table, bridge: TransformerBridge, limit: float) -> None:
    """One run each of what else is called, as far as time allows."""
    texts = builtin_corpus(bridge, n_sequences=16).tokens
    calls: dict[str, Callable[[], Any]] = {
        "roles, 16 texts": lambda: find_roles(bridge, max_sequences=16),
        "retrieval scores, 1,024 tokens": lambda: retrieval_scores(
            bridge, make_needles(bridge, lengths=(1024,), depths=(0.5,), repeats=1)
        ),
        "sweep of layer 18, 16 x 64": lambda: sinklens.sweep(
            bridge, tokens=texts, heads=[f"L18H{head}" for head in range(9)]
        ),
        "active-dormant, 16 texts": lambda: find_active_dormant(bridge, max_tokens=64, max_sequences=16),
    }
    for name, call in calls.items():
        if time.perf_counter() > limit:
            print(f"No time left for {name}.")
            return
        started = time.perf_counter()
        call()
        table.add(call=name, shape="SmolLM2", seconds=round(time.perf_counter() - started, 2))


def peak(table: Table, bridge: TransformerBridge) -> None:
    """Growth of the resident set while 8,192 tokens are scanned."""
    sinklens.scan(bridge, tokens=text_of(bridge, 64))
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 20)  # see capture.py; it makes allocation slower
    with PeakMemory("cpu") as memory:
        sinklens.scan(bridge, tokens=text_of(bridge, LONGEST))
    table.add(call="scan", shape=f"1 x {LONGEST}", extra_mb=round(memory.extra / 1e6))


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one warm-up")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="of the single texts")
    parser.add_argument("--minutes", type=float, default=9, help="start nothing new after so long")
    parser.add_argument("--only-scans", action="store_true", help="leave out the other calls and the memory")
    parser.add_argument("--out", type=Path, help="write the table as CSV, row by row")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    limit = time.perf_counter() + 60 * options.minutes
    bridge = load(real_model_path("smollm2"))
    table = Table(options.out)
    scans(table, bridge, options.rounds, [int(length) for length in options.lengths.split(",") if length], limit)
    if not options.only_scans:
        others(table, bridge, limit)
        if time.perf_counter() < limit:
            peak(table, bridge)


if __name__ == "__main__":
    main()
