"""How much a sweep over all heads costs: sinklens beside the loop everyone writes, in one process, as ratios.

On the random 6-layer, 6-head Llama of ``capture.py`` with batch 4, every head is ablated alone and the loss is taken:

- ``loop``: ``TransformerBridge.run_with_hooks`` with a hook on ``hook_z`` for each head, loss only;
- ``sdpa_forwards``: as many plain Hugging Face SDPA forward passes, nothing ablated: what a loop could cost at best;
- ``exact``: ``run_head_sets`` with ``AblateHeads("zero")``: loss, KL and top-1 agreement;
- ``exact_uniform``: the same with ``AblateHeads("uniform")``, which changes attention itself;
- ``approximate``: ``attribute_heads``, one forward and one backward pass.

Rounds are interleaved and ratios are taken within a round. ``largest difference`` is that of the per-sequence losses
from the loop's; ``rank correlation`` is Spearman's between approximate and exact effects, on a random model, where
effects are small (see the README for real models).

    python benchmarks/sweep.py --lengths 256,1024 --rounds 3 --out benchmarks/sweep.csv
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from capture import HEADS, make_bridge, make_model
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy

from sinklens.interventions import AblateHeads
from sinklens.models.tokens import tokenize
from sinklens.passes.attribution import attribute_heads
from sinklens.passes.head_sets import run_head_sets

LAYERS, BATCH = 6, 4
SETS = [[(layer, head)] for layer in range(LAYERS) for head in range(HEADS)]


def losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of every sequence."""
    flat = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(len(ids), -1).mean(1)


def contenders(length: int, device: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; every one is a call without arguments."""
    bridge, sdpa = make_bridge(device), make_model("sdpa", device)
    ids = torch.randint(2, 4096, (BATCH, length), generator=torch.Generator().manual_seed(1))
    batch, ids = tokenize(bridge, ids), ids.to(device)

    def silence(z: Tensor, hook: Any, head: int) -> Tensor:
        z[:, :, head] = 0
        return z

    def loop() -> Tensor:
        found = []
        for [(layer, head)] in SETS:
            hook = (f"blocks.{layer}.attn.hook_z", partial(silence, head=head))
            found.append(losses(bridge.run_with_hooks(ids, fwd_hooks=[hook]), ids))
        return torch.stack(found)

    def forwards() -> Tensor:
        return torch.stack([losses(sdpa(ids, use_cache=False).logits, ids) for _ in SETS])

    return {
        "loop": loop,
        "sdpa_forwards": forwards,
        "exact": lambda: run_head_sets(bridge, batch, AblateHeads("all"), SETS),
        "exact_uniform": lambda: run_head_sets(bridge, batch, AblateHeads("all", "uniform"), SETS),
        "approximate": lambda: attribute_heads(bridge, batch, AblateHeads("all")),
    }


def measure(length: int, device: str, rounds: int) -> list[dict[str, Any]]:
    """Rows of the result table for one sequence length; ratios are medians of ratios within a round."""
    calls = contenders(length, device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    with torch.no_grad():
        for turn in range(rounds + 1):  # the first round warms up
            for name, call in calls.items():
                started = time.perf_counter()
                results[name] = call()
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
    exact = results["exact"].changed["loss"].cpu()
    effect = (exact - results["exact"].clean["loss"].cpu()).mean(1)
    rows = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {"T": length, "what": name, "seconds": round(statistics.median(taken), 2)}
        for base in ("loop", "sdpa_forwards"):
            row[f"time / {base}"] = round(
                statistics.median(a / b for a, b in zip(taken, seconds[base], strict=True)), 3
            )
        if name == "exact":
            row["largest difference"] = float((exact - results["loop"].cpu()).abs().max())
        if name == "approximate":
            row["rank correlation"] = round(
                float(spearmanr(results[name].mean(2).flatten().cpu(), effect).statistic), 3
            )
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="256,1024", help="sequence lengths")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the table as CSV")
    options = parser.parse_args()
    rows = [row for n in options.lengths.split(",") for row in measure(int(n), options.device, options.rounds)]
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {where}")
    if options.out is not None:
        pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
