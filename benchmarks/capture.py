"""How much measuring costs: sinklens' capture beside what people use today, in one process, as ratios.

Compares, on a random 6-layer Llama (d_model 384, 6 heads) with batch 1, the time and the peak extra memory of

- ``hf_sdpa``: the plain Hugging Face forward pass with SDPA, nothing measured;
- ``hf_attentions``: the same model with eager attention and ``output_attentions=True``;
- ``run_with_cache``: ``TransformerBridge.run_with_cache`` of all attention patterns;
- ``sinklens``: ``sinklens.capture`` with every statistic and detector of ``sinklens.scan``.

Rounds are interleaved (a b c d a b c d ...) and ratios are taken within a round, because machines are noisy. Memory is
the growth of the resident set sampled every 2 ms (CPU) or torch's peak allocation (CUDA).

    python benchmarks/capture.py --lengths 1024,4096,8192 --only-sinklens 16384 --out benchmarks/capture.csv
"""

import argparse
import ctypes
import gc
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sinklens.capture import capture, standard_statistics
from sinklens.detectors import (
    AttentionSummaryDetector,
    MassiveActivationDetector,
    ResidualPeakDetector,
    SinkDetector,
    ValueDrainDetector,
)
from sinklens.experiments.joins import Example, TokenJoin
from sinklens.models import load
from sinklens.models.tokens import TokenBatch, tokenize

HEADS = 6


def make_model(attention: str, device: str) -> LlamaForCausalLM:
    """A random Llama with seeded weights, the same for every implementation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=32768,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval().to(device)


def make_bridge(device: str) -> TransformerBridge:
    """The same model as a bridge; its tokenizer (one word per id) is never used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocabulary = {"<s>": 0, "</s>": 1} | {f"t{i}": i for i in range(2, 4096)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="</s>")), bos_token="<s>", eos_token="</s>"
    )
    with tempfile.TemporaryDirectory() as directory:
        make_model("eager", "cpu").save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return load(directory, device=device)


class PeakMemory:
    """Peak growth of memory inside ``with``, in bytes."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.extra = 0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed pages back, so that they count again when reused
        self.before = self.peak = _resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, _resident())
            time.sleep(0.002)

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.extra = torch.cuda.max_memory_allocated() - self.before
            return
        self.running = False
        self.thread.join()
        self.extra = max(self.peak, _resident()) - self.before


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def contenders(device: str, batch: TokenBatch, bridge: TransformerBridge) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; every one is a call without arguments."""
    sdpa, eager = make_model("sdpa", device), make_model("eager", device)
    ids = batch.ids.to(device)

    def everything() -> list[Any]:
        return [
            SinkDetector(),
            AttentionSummaryDetector(),
            ValueDrainDetector(),
            MassiveActivationDetector(),
            ResidualPeakDetector(),
            TokenJoin(batch.lengths, 0.3, 10),
            Example(),
        ]

    return {
        "hf_sdpa": lambda: sdpa(ids, use_cache=False, logits_to_keep=1),
        "hf_attentions": lambda: eager(ids, use_cache=False, logits_to_keep=1, output_attentions=True),
        "run_with_cache": lambda: bridge.run_with_cache(
            ids, names_filter=lambda name: name.endswith("attn.hook_pattern"), use_cache=False, logits_to_keep=1
        ),
        "sinklens": lambda: capture(
            bridge, batch, everything(), statistics=lambda rows, start: standard_statistics(rows, maps=(0,))
        ),
    }


def measure(length: int, device: str, rounds: int, only_ours: bool, limit_gib: float) -> list[dict[str, Any]]:
    """Rows of the result table for one sequence length."""
    bridge = make_bridge(device)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 4096, (1, length), generator=generator)
    batch = tokenize(bridge, ids)
    calls = contenders(device, batch, bridge)
    needs = {"hf_attentions": 6 * HEADS * 4 * length**2, "run_with_cache": 6 * HEADS * 4 * length**2}
    skipped = {name for name, size in needs.items() if only_ours or size > limit_gib * 2**30}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    memory: dict[str, int] = {}
    with torch.no_grad():
        for turn in range(rounds + 1):  # the first round warms up and measures memory
            for name, call in calls.items():
                if name in skipped:
                    continue
                with PeakMemory(device) as peak:
                    started = time.perf_counter()
                    result = call()
                    if device.startswith("cuda"):
                        torch.cuda.synchronize()
                    took = time.perf_counter() - started
                    del result
                if turn:
                    seconds[name].append(took)
                memory[name] = max(memory.get(name, 0), peak.extra)
    rows = []
    for name in calls:
        row: dict[str, Any] = {"T": length, "what": name}
        if name in skipped:
            row["note"] = f"skipped: needs about {needs[name] / 2**30:.0f} GiB"
        else:
            row["seconds"] = round(statistics.median(seconds[name]), 3)
            row["extra_mib"] = round(memory[name] / 2**20, 1)
            for base in ("hf_sdpa", "run_with_cache"):
                if base not in skipped:
                    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
                    row[f"time / {base}"] = round(statistics.median(ratios), 2)
                    row[f"memory / {base}"] = round(memory[name] / max(1, memory[base]), 3)
        rows.append(row)
        print({k: v for k, v in row.items() if v == v}, flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,4096,8192", help="sequence lengths for all contenders")
    parser.add_argument("--only-sinklens", default="16384", help="lengths without the T x T contenders")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit-gib", type=float, default=12, help="skip a contender whose patterns need more")
    parser.add_argument("--out", type=Path, help="write the table as CSV and Markdown")
    options = parser.parse_args()
    rows = []
    for length in [int(n) for n in options.lengths.split(",") if n]:
        rows += measure(length, options.device, options.rounds, False, options.limit_gib)
    for length in [int(n) for n in options.only_sinklens.split(",") if n]:
        rows += measure(length, options.device, options.rounds, True, options.limit_gib)
    table = pd.DataFrame(rows)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {where}")
    if options.out is not None:
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
