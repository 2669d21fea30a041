"""What rules cost: a forward pass under a policy beside a pass of the engine that changes nothing.

On the random 6-layer Llama of ``capture.py``, one sequence of T tokens, one thread. The plain pass is the engine's own
(exact attention by blocks of rows, an edit that does nothing), ``fused`` the same model with torch's fused attention.
Times are seconds of processor time, so that they hold on a busy machine; ratios are taken within a round, and the
median over rounds counts. Memory is measured in passes of its own.

Goals: a rule of positions or of the row's own scores at T = 4096 within 1.3 of the plain pass, an eviction loop with
256 keys at T = 2048 within 3 of it, memory growing as T.

    OMP_NUM_THREADS=1 python benchmarks/policies.py --rounds 3 --out benchmarks/policies.csv
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from capture import PeakMemory, make_bridge

from sinklens.attention import AttentionEngine, Block
from sinklens.policies import Policy, make_policy

BY_ROW = (
    "sink_window:sinks=4,recent=252",
    "streaming_llm:sinks=4,recent=251",
    "power_attention",
    "block_top_k",
    "quest:dense_layers=0",
    "top_k:k=256",
)
LOOPS = ("h2o:heavy=128,recent=127", "tova:budget=255", "d2o:heavy=128,recent=127,dense_first=0")


class Nothing:
    """An edit that changes nothing, so that the engine walks the blocks itself."""

    def edit_scores(self, block: Block) -> None:
        """Nothing."""


def contenders(bridge: Any, ids: torch.Tensor, rules: tuple[str, ...]) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""

    def fused() -> None:
        with AttentionEngine(bridge):
            bridge(ids)

    def plain() -> None:
        with AttentionEngine(bridge, edits=[Nothing()]):
            bridge(ids)

    def under(policy: Policy) -> Callable[[], None]:
        def run() -> None:
            with policy(bridge):
                bridge(ids)

        return run

    return {"fused": fused, "plain": plain} | {rule: under(make_policy(rule)) for rule in rules}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", default="4096,2048", help="of the rules by row, and of the loops")
    parser.add_argument("--out", type=Path, help="CSV; default: only print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    bridge = make_bridge("cpu")
    rows: list[dict[str, Any]] = []
    by_row, loops = (int(each) for each in options.lengths.split(","))
    for length, rules, goal in ((loops, LOOPS, 3.0), (by_row, BY_ROW, 1.3)):
        ids = torch.randint(2, 4096, (1, length), generator=torch.Generator().manual_seed(0))
        half = ids[:, : length // 2]
        calls, halves = contenders(bridge, ids, rules), contenders(bridge, half, rules)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(options.rounds + 1):
            for name, call in calls.items():
                began = time.process_time()
                call()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - began)
        for name, call in calls.items():
            extra = []
            for each in (halves[name], call):
                with PeakMemory("cpu") as memory:
                    each()
                extra.append(memory.extra / 2**20)
            ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
            row = {"T": length, "what": name, "cpu_seconds": round(statistics.median(seconds[name]), 3)}
            row |= {"over_plain": round(ratio, 2), "goal": None if name in ("fused", "plain") else goal}
            row |= {"extra_mib": round(extra[1], 1), "extra_mib_at_half": round(extra[0], 1)}
            rows.append(row)
            print(row, flush=True)
    if options.out is not None:
        pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
