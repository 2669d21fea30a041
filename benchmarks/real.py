"""What users call, timed on SmolLM2-135M beside what does the same without sinklens: one row at a time, as it comes.

Scans at four shapes (the default corpus, 100 x 64 tokens in batches of 32, and one text of 512, 1,024 and 2,048
tokens), each beside

- ``sdpa``: the plain Hugging Face forward pass with fused attention, nothing measured;
- ``output_attentions``: the same model with eager attention that returns all T x T patterns;
- ``patterns``: ``TransformerBridge.run_with_cache`` of all patterns.

Then, one round each after a warm-up on a piece, with ``over_plain`` as their ratio to the plain way beside them. Where
the plain way is more than a loop of passes it is written out in ``plain.py``: the same quantities from T x T patterns,
and none of the nulls, intervals, labels, sentences and tables that sinklens gives with them:

- ``ablate``: every head of three layers (of the 30) set to zero alone on 16 x 64 tokens, beside the loop of
  ``run_with_hooks`` over the same heads; ``estimate``: the time it announced over the time it took. The layers are the
  first, the middle and the last but one, so that their share of blocks left to run is that of all 270 heads;
- ``ablate-N``: the same of layer N alone: how it falls with the layer;
- ``needle``: retrieval scores of one prompt of 1,024 tokens with an answer of 32, beside prefill and 32 steps of
  decoding that read attention at each, as the paper's released code does it;
- ``roles``: the usual criteria on 16 texts, 8 repeated random sequences and the needles that sinklens chooses, beside
  the same criteria in plain code on the same tokens;
- ``active-dormant``: every head on 2 x 64 tokens of prose and as many of code, beside the patterns of those texts once
  and the loop of ``run_with_hooks`` over every tenth head, whose time alone counts ten times;
- ``dynamics``: the nine checkpoints of tiny-llama on 20 sequences of prose and as many of code, beside loading each
  with transformers and the same quantities in plain code.

Last the memory of a scan of 8,192 tokens beyond the weights. Rounds are interleaved and ratios are taken within a
round, because machines are noisy; ``cpu`` is the process' own time of the same round. Needs SmolLM2: ``make
real-models``. Rows measured by name replace those of that name in the table and leave the others::

    python benchmarks/real.py --out benchmarks/real.csv
    python benchmarks/real.py --rows ablate,dynamics --out benchmarks/real.csv
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import plain
import torch
from capture import PeakMemory
from needle import ANSWER, decode
from rich.console import Console
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import sinklens
from sinklens.models import load
from sinklens.models.builtin import data_dir
from sinklens.models.quiet import quietly
from sinklens.models.real import real_model_path
from sinklens.models.tokens import TokenBatch, tokenize
from sinklens.passes.corpus import builtin_corpus
from sinklens.passes.repeated_tokens import repeated_tokens
from sinklens.results.show_progress import ShowProgress
from sinklens.studies import make_needles, measure_dynamics, retrieval_scores
from sinklens.studies.active_dormant.run import find_active_dormant
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.head_roles.run import find_roles

LENGTHS = (512, 1024, 2048)
BATCH = 32
LONGEST = 8192
SETTINGS = {"use_cache": False, "logits_to_keep": 1}


class Table:
    """Rows that are printed and written as soon as they are there; old rows of other names stay.

    Args:
        out: The table's file.
        names: What is measured anew.
    """

    def __init__(self, out: Path | None, names: Sequence[str]) -> None:
        self.out = out
        old = pd.read_csv(out) if out is not None and out.is_file() else pd.DataFrame({"row": []})
        self.rows: list[dict[str, Any]] = old[~old["row"].isin(names)].to_dict("records")
        self.where = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": " ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens")),
        }

    def add(self, row: str, **values: Any) -> None:
        """One more row."""
        print(row, ", ".join(f"{name} {value}" for name, value in values.items()), flush=True)
        self.rows.append({"row": row} | values | self.where)
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


def scan_row(name: str, table: Table, bridge: TransformerBridge, rounds: int) -> None:
    """Scans of one shape beside the passes that they replace."""
    length = int(name.removeprefix("scan-"))
    fused, eager = plain_model("sdpa"), plain_model("eager")
    batch = builtin_corpus(bridge).tokens if length == 64 else text_of(bridge, length)
    calls: dict[str, Callable[[], Any]] = {"sdpa": forwards(fused, batch)}
    calls["scan"] = lambda: sinklens.scan(bridge, tokens=batch, batch_size=BATCH)
    if length > 64:
        calls["output_attentions"] = forwards(eager, batch, output_attentions=True)
        calls["patterns"] = lambda: patterns(bridge, batch)
    found = side_by_side(calls, rounds)
    for call, took in found.items():
        over = [
            statistics.median(mine[kind] / plain[kind] for mine, plain in zip(took, found["sdpa"], strict=True))
            for kind in (0, 1)
        ]
        table.add(
            name,
            call=call,
            shape=f"{len(batch)} x {length}",
            seconds=round(statistics.median(wall for wall, _ in took), 3),
            cpu=round(statistics.median(cpu for _, cpu in took), 3),
            over_sdpa=round(over[0], 2),
            cpu_over_sdpa=round(over[1], 2),
        )
    parts = sinklens.scan(bridge, tokens=batch, batch_size=BATCH).meta["seconds_by_part"]
    for part, seconds in parts.items():
        table.add(name, call=f"scan: {part}", shape=f"{len(batch)} x {length}", seconds=round(seconds, 3))


def patterns(bridge: TransformerBridge, batch: TokenBatch) -> None:
    """All T x T patterns, as TransformerLens keeps them."""
    bridge.run_with_cache(batch.ids, names_filter=lambda name: name.endswith("attn.hook_pattern"), **SETTINGS)


def loop(bridge: TransformerBridge, batch: TokenBatch, heads: Sequence[tuple[int, int]]) -> None:
    """The loop that everybody writes: one forward pass with a hook for each head, and its loss."""

    def silence(z: torch.Tensor, hook: Any, head: int) -> torch.Tensor:
        z[:, :, head] = 0
        return z

    for layer, head in heads:
        hook = (f"blocks.{layer}.attn.hook_z", partial(silence, head=head))
        logits = bridge.run_with_hooks(batch.ids, fwd_hooks=[hook])
        cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten())


class Estimate(ShowProgress):
    """Keeps the time that was announced first."""

    announced = float("nan")

    def estimated(self) -> None:
        """Take it down."""
        if self.announced != self.announced:
            self.announced = self.pace.total


def beside(
    table: Table, row: str, shape: str, ours: Callable[[], Any], *plain: tuple[Callable[[], Any], float], **more: Any
) -> float:
    """One round of both; the seconds of ours.

    Args:
        table: Takes a row for each.
        row: Their name.
        shape: What they ran on.
        ours: The call.
        plain: Calls that do the same together, each with how often its time counts.
        more: Further columns.
    """
    found = {"plain": (0.0, 0.0), "sinklens": (0.0, 0.0)}
    for name, call, times in [*(("plain", *each) for each in plain), ("sinklens", ours, 1)]:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        took = time.perf_counter() - wall, time.process_time() - cpu
        found[name] = found[name][0] + times * took[0], found[name][1] + times * took[1]
    for name, (wall, cpu) in found.items():
        ratios = [mine / theirs for mine, theirs in zip((wall, cpu), found["plain"], strict=True)]
        named = {"over_plain": round(ratios[0], 3), "cpu_over_plain": round(ratios[1], 3)}
        table.add(row, call=name, shape=shape, seconds=round(wall, 3), cpu=round(cpu, 3), **named, **more)
    return found["sinklens"][0]


def ablate(table: Table, bridge: TransformerBridge, row: str = "ablate", layers: Sequence[int] = (0, 14, 28)) -> None:
    """Sweeps over heads."""
    batch, told = builtin_corpus(bridge, n_sequences=16).tokens, Estimate(Console(quiet=True))
    heads = [(layer, head) for layer in layers for head in range(9)]
    loop(bridge, batch, heads[:1])
    sinklens.sweep(bridge, tokens=batch, heads=heads[-1:], controls=0)
    took = beside(
        table,
        row,
        f"{len(heads)} heads, 16 x 64",
        lambda: sinklens.sweep(bridge, tokens=batch, heads=heads, controls=0, progress=told),
        (lambda: loop(bridge, batch, heads), 1),
    )
    table.add(row, call="announced", shape="over taken", seconds=told.announced, estimate=told.announced / took)


def needle(table: Table, bridge: TransformerBridge) -> None:
    """Retrieval scores of one long prompt."""
    words: dict[str, Any] = {"depths": (0.5,), "repeats": 1, "size": ANSWER}
    needles, model = make_needles(bridge, lengths=(1024,), **words), plain_model("sdpa")
    ids = torch.tensor([needles.instances[0].ids])
    retrieval_scores(bridge, make_needles(bridge, lengths=(64,), **words))
    decode(model, ids[:, :64], 2)
    beside(table, "needle", "1 x 1024", lambda: retrieval_scores(bridge, needles), (lambda: decode(model, ids), 1))


def roles(table: Table, bridge: TransformerBridge) -> None:
    """The usual criteria."""
    batch, model = builtin_corpus(bridge, n_sequences=16).tokens, plain_model("sdpa")
    probe = repeated_tokens(bridge, block=64, repeats=4, n_sequences=8)
    tried = make_needles(bridge, lengths=[48], depths=[0.5], repeats=4)
    passkeys = make_needles(bridge, "passkey", lengths=[256], depths=[0.1, 0.5, 0.9])
    find_roles(bridge, scores=["text"], max_sequences=2)
    plain.text_roles(bridge, batch.rows(slice(0, 2)))
    beside(
        table,
        "roles",
        f"16 x 64, 8 x {probe.batch.ids.shape[1]}, {len(tried) + len(passkeys)} needles",
        partial(find_roles, bridge, max_sequences=16),
        (lambda: plain.text_roles(bridge, batch), 1),
        (lambda: plain.stripes(bridge, probe), 1),
        (lambda: plain.retrieval(model, [tried, passkeys]), 1),
    )


def active_dormant(table: Table, bridge: TransformerBridge) -> None:
    """Every head judged by what its removal costs."""
    batch = builtin_domains(bridge, n_sequences=2).batch
    heads = [(layer, head) for layer in range(30) for head in range(9)][::10]
    loop(bridge, batch, heads[:1])
    ours = partial(find_active_dormant, bridge, max_tokens=64, max_sequences=2)
    looked, looped = partial(patterns, bridge, batch), partial(loop, bridge, batch, heads)
    beside(table, "active-dormant", f"270 heads, {len(batch)} x 64", ours, (looked, 1), (looped, 10))


def dynamics(table: Table, bridge: TransformerBridge) -> None:
    """A series of checkpoints."""
    folders = sorted((data_dir() / "models" / "tiny-llama" / "checkpoints").iterdir())
    batch = builtin_domains(load("tiny-llama"), n_sequences=20).batch
    measure_dynamics("tiny-llama", max_sequences=2, steps=[0])
    plain.checkpoint(folders[0], batch.rows(slice(0, 2)))
    beside(
        table,
        "dynamics",
        f"{len(folders)} checkpoints, {len(batch)} texts",
        partial(measure_dynamics, "tiny-llama", max_sequences=20),
        (lambda: [plain.checkpoint(folder, batch) for folder in folders], 1),
    )


def memory(table: Table, bridge: TransformerBridge) -> None:
    """Growth of the resident set while 8,192 tokens are scanned."""
    sinklens.scan(bridge, tokens=text_of(bridge, 64))
    with PeakMemory("cpu") as peak:
        sinklens.scan(bridge, tokens=text_of(bridge, LONGEST))
    table.add("memory", call="scan", shape=f"1 x {LONGEST}", extra_mb=round(peak.extra / 1e6))


OTHERS: dict[str, Callable[[Table, TransformerBridge], None]] = {
    "ablate": ablate,
    "needle": needle,
    "roles": roles,
    "active-dormant": active_dormant,
    "dynamics": dynamics,
    "memory": memory,
}
ROWS = (*(f"scan-{length}" for length in (64, *LENGTHS)), *OTHERS)


def layer_of(name: str) -> list[int]:
    """The layer of a row ``ablate-N``; none of another row."""
    number = name.removeprefix("ablate-")
    return [int(number)] if number.isdecimal() and name != number else []


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of a scan after one warm-up")
    parser.add_argument("--rows", default=",".join(ROWS), help="what is measured, joined with commas")
    parser.add_argument("--minutes", type=float, default=9, help="start nothing new after so long")
    parser.add_argument("--out", type=Path, help="write the table as CSV, row by row; rows of other names stay")
    options = parser.parse_args()
    names = options.rows.split(",")
    unknown = [
        name
        for name in names
        if name not in OTHERS and not name.removeprefix("scan-").isdecimal() and not layer_of(name)
    ]
    if unknown:
        parser.error(f"there are no rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    warnings.filterwarnings("ignore")
    logging.disable_progress_bar()
    limit = time.perf_counter() + 60 * options.minutes
    bridge = load(real_model_path("smollm2"))
    table = Table(options.out, names)
    for name in names:
        if time.perf_counter() > limit:
            print(f"No time left for {name}.")
        elif name in OTHERS:
            OTHERS[name](table, bridge)
        elif layers := layer_of(name):
            ablate(table, bridge, name, layers)
        else:
            scan_row(name, table, bridge, options.rounds)


if __name__ == "__main__":
    main()
