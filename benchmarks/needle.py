"""How much it costs to find retrieval heads: one teacher-forced pass beside what is done today, in one process.

Compares, on the random 6-layer Llama of ``capture.py`` with one prompt of T tokens and an answer of 32, the time and
the peak extra memory of

- ``hf_sdpa``: the plain Hugging Face forward pass over prompt and answer with SDPA, nothing measured;
- ``reference``: the procedure of the paper's released code: prefill with SDPA, then token-by-token decoding with eager
  attention that reads every head's strongest key at each step;
- ``generate``: ``generate(output_attentions=True)``, which holds all attention patterns of the prompt;
- ``sinklens``: ``retrieval_scores`` of the prompt.

And on a grid of lengths x depths: ``grid_shared``, where cells keep the beginnings they have in common, and
``grid_alone``, where every prompt runs from its beginning.

Rounds are interleaved and ratios are taken within a round. Memory is measured in rounds of its own (``capture.py``).

    python benchmarks/needle.py --length 4096 --rounds 5 --out benchmarks/needle.csv
"""

import argparse
import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from capture import PeakMemory, make_bridge, make_model
from torch import Tensor

from sinklens.studies import NeedleSet, make_needles, retrieval_scores
from sinklens.studies.needles.run import run_needles

ANSWER = 32
M_MMAP_THRESHOLD = -3
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def decode(model: Any, ids: Tensor, steps: int = ANSWER) -> Tensor:
    """Prefill with SDPA, then decode with eager attention: strongest keys ``[layer head step]``."""
    model.set_attn_implementation("sdpa")
    prefill = model(ids[:, :-1], use_cache=True, logits_to_keep=1)
    cache, token = prefill.past_key_values, ids[:, -1:]
    model.set_attn_implementation("eager")
    found = []
    for _ in range(steps):
        out = model(token, past_key_values=cache, use_cache=True, output_attentions=True)
        found.append(torch.stack([pattern[0, :, -1].argmax(-1) for pattern in out.attentions]))
        token = out.logits[:, -1:].argmax(-1)
    return torch.stack(found, -1)


def contenders(length: int, device: str, bridge: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; every one is a call without arguments."""
    sdpa, reference, eager = make_model("sdpa", device), make_model("sdpa", device), make_model("eager", device)
    for model in (reference, eager):
        model.generation_config.eos_token_id = None  # a random model would stop anywhere
    one = make_needles(bridge, lengths=(length,), depths=(0.5,), repeats=1, size=ANSWER)
    ids = torch.tensor([one.instances[0].ids], device=device)
    fed = torch.tensor([one.instances[0].fed], device=device)
    sizes = (length // 4, length // 2, length)
    grid = make_needles(bridge, lengths=sizes, depths=DEPTHS, repeats=1, size=ANSWER)

    def run(needles: NeedleSet, share: bool) -> dict[int, Any]:
        found: dict[int, Any] = {}
        run_needles(bridge, needles.instances, found.update, share=share)
        return found

    return {
        "hf_sdpa": lambda: sdpa(fed, use_cache=False, logits_to_keep=ANSWER),
        "reference": lambda: decode(reference, ids),
        "generate": lambda: eager.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ANSWER,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        ),
        "sinklens": lambda: retrieval_scores(bridge, one, keep="all"),
        "grid_alone": lambda: run(grid, False),
        "grid_shared": lambda: run(grid, True),
    }


def measure(calls: dict[str, Callable[[], Any]], device: str, rounds: int, phase: str) -> dict[str, list[float]]:
    """Seconds of every round, or bytes of one round, by contender."""
    figures: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(rounds + 1):  # the first round warms up
            for name, call in calls.items():
                with PeakMemory(device) as peak:
                    started = time.perf_counter()
                    result = call()
                    if device.startswith("cuda"):
                        torch.cuda.synchronize()
                    took = time.perf_counter() - started
                    del result
                if turn:
                    figures[name].append(took if phase == "time" else peak.extra)
    return figures


def tabulate(length: int, seconds: dict[str, list[float]], extra: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of the result table; ratios are medians of ratios within a round."""
    rows = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {
            "T": length,
            "answer": ANSWER,
            "what": name,
            "seconds": round(statistics.median(taken), 3),
        }
        bases = ("grid_alone",) if name.startswith("grid") else ("hf_sdpa", "reference", "generate")
        for base in filter(seconds.__contains__, bases):
            ratios = [a / b for a, b in zip(taken, seconds[base], strict=True)]
            row[f"time / {base}"] = round(statistics.median(ratios), 3)
        if extra:
            row["extra_mib"] = round(max(extra[name]) / 2**20, 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="contenders to run, joined with commas; default: all")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--out", type=Path, help="write the table as CSV")
    options = parser.parse_args()
    bridge = make_bridge(options.device)
    calls = contenders(options.length, options.device, bridge)
    wanted = options.only.split(",") if options.only else list(calls)
    calls = {name: call for name, call in calls.items() if name in wanted}
    seconds = measure(calls, options.device, options.rounds, "time")
    extra: dict[str, list[float]] = {}
    if not options.no_memory:
        if not options.device.startswith("cuda"):
            ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 20)  # last: it makes allocation slower
        extra = measure(calls, options.device, 1, "memory")
    rows = tabulate(options.length, seconds, extra)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {where}")
    if options.out is not None:
        pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
