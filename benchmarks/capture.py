"""How much measuring costs: a scan with its defaults beside what people use today, in one process, as ratios.

Compares, on a random 6-layer Llama (d_model 384, 6 heads) with batch 1, the time and the peak extra memory of

- ``hf_sdpa``: the plain Hugging Face forward pass with SDPA, nothing measured;
- ``hf_attentions``: the same model with eager attention and ``output_attentions=True``;
- ``run_with_cache``: ``TransformerBridge.run_with_cache`` of all attention patterns;
- ``sinklens``: ``sinklens.scan`` with its defaults, tables and sentences included.

Rounds are interleaved (a b c d a b c d ...) and ratios are taken within a round, because machines are noisy; ``cpu`` is
the process' own time, which is what to read on a busy machine with ``OMP_NUM_THREADS=1``. Memory is the growth of the
resident set, sampled every 2 ms, from what is left when the C library has given back all that is free (CPU), or torch's
peak allocation (CUDA).

Every round and every row is printed as it comes, and the table is written anew with each length; the defaults take less
than ten minutes on two idle cores, and no length is begun after nine.

    python benchmarks/capture.py --out benchmarks/capture.csv
"""

import argparse
import ctypes
import gc
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sinklens
from sinklens.models import load
from sinklens.models.tokens import TokenBatch, tokenize

HEADS = 6
PATTERNS = ("hf_attentions", "run_with_cache")
NAMES = ("hf_sdpa", *PATTERNS, "sinklens")


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

    return {
        "hf_sdpa": lambda: sdpa(ids, use_cache=False, logits_to_keep=1),
        "hf_attentions": lambda: eager(ids, use_cache=False, logits_to_keep=1, output_attentions=True),
        "run_with_cache": lambda: bridge.run_with_cache(
            ids, names_filter=lambda name: name.endswith("attn.hook_pattern"), use_cache=False, logits_to_keep=1
        ),
        "sinklens": lambda: sinklens.scan(bridge, tokens=batch),
    }


class Round(NamedTuple):
    """What one call took.

    Attributes:
        seconds: By the clock.
        cpu: Processor seconds of this process.
        extra: Peak growth of memory in bytes.
    """

    seconds: float
    cpu: float
    extra: int


def measure(length: int, device: str, rounds: int, names: Sequence[str]) -> dict[str, list[Round]]:
    """Every round by contender, for one sequence length."""
    bridge = make_bridge(device)
    ids = torch.randint(2, 4096, (1, length), generator=torch.Generator().manual_seed(1))
    calls = contenders(device, tokenize(bridge, ids), bridge)
    found: dict[str, list[Round]] = {name: [] for name in names}
    with torch.no_grad():
        for turn in range(rounds + 1):  # the first round warms up
            for name in names:
                with PeakMemory(device) as peak:
                    started, used = time.perf_counter(), time.process_time()
                    result = calls[name]()
                    if device.startswith("cuda"):
                        torch.cuda.synchronize()
                    took, cpu = time.perf_counter() - started, time.process_time() - used
                    del result
                if turn:
                    found[name].append(Round(took, cpu, peak.extra))
                    print(f"T={length} {name}: {took:.3f} s, cpu {cpu:.3f} s, {peak.extra / 2**20:.1f} MiB", flush=True)
    return found


def tabulate(length: int, found: dict[str, list[Round]]) -> list[dict[str, Any]]:
    """Rows of the result table for one sequence length; ratios of time are medians of ratios within a round."""
    rows = []
    for name in NAMES:
        row: dict[str, Any] = {"T": length, "what": name}
        if name in found:
            mine = found[name]
            row["seconds"] = round(statistics.median(each.seconds for each in mine), 3)
            row["cpu"] = round(statistics.median(each.cpu for each in mine), 3)
            row["extra_mib"] = round(max(each.extra for each in mine) / 2**20, 1)
            for base in ("hf_sdpa", "run_with_cache"):
                if base in found:
                    pairs = [*zip(mine, found[base], strict=True)]
                    row[f"time / {base}"] = round(statistics.median(a.seconds / b.seconds for a, b in pairs), 2)
                    row[f"cpu / {base}"] = round(statistics.median(a.cpu / b.cpu for a, b in pairs), 2)
                    row[f"memory / {base}"] = round(
                        max(each.extra for each in mine) / max(each.extra for each in found[base]), 3
                    )
        elif found:
            row["note"] = f"skipped: needs about {pattern_bytes(length) / 2**30:.0f} GiB or too long"
        else:
            row["note"] = "skipped: no time left"
        rows.append(row)
        print(row, flush=True)
    return rows


def pattern_bytes(length: int) -> int:
    """Size of all attention patterns together."""
    return 6 * HEADS * 4 * length**2


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,4096", help="sequence lengths for all contenders")
    parser.add_argument("--only-sinklens", default="8192,16384", help="lengths without the T x T contenders")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit-gib", type=float, default=12, help="skip a contender whose patterns need more")
    parser.add_argument("--minutes", type=float, default=9, help="begin no length after so long")
    parser.add_argument("--out", type=Path, help="write the table as CSV")
    options = parser.parse_args()
    lengths = [int(n) for n in options.lengths.split(",") if n]
    alone = [int(n) for n in options.only_sinklens.split(",") if n]
    limit, rows = time.perf_counter() + 60 * options.minutes, []
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {where}")
    for length in dict.fromkeys([*lengths, *alone]):
        skip = length in alone or pattern_bytes(length) > options.limit_gib * 2**30
        names = [name for name in NAMES if not (skip and name in PATTERNS)]
        late = time.perf_counter() > limit
        rows += tabulate(length, {} if late else measure(length, options.device, options.rounds, names))
        if options.out is not None:
            pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
