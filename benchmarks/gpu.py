"""The GPU path on an NVIDIA card: is it right, and what does measuring cost beside the forward pass?

Needs sinklens and what it needs itself (torch built for CUDA, with triton, transformers, transformer_lens), and for the
first part pytest; nothing is loaded from a network. In order, within ten minutes:

1. the tests marked ``cuda``, where the checkout's ``tests/`` and pytest are at hand;
2. every standard statistic of the extra pass and of the block kernel on the card, beside the block kernel on the CPU,
   at small sizes: grouped heads, windows, soft caps, learned sinks, padding, a cache, three precisions;
3. the table: a model of the shape of Llama-3-8B with random bf16 weights (nothing is downloaded), at 8k, 32k and 128k
   tokens: the forward pass with SDPA, the extra pass, the block kernel, TransformerLens' patterns where they fit.
   Seconds (the median of some runs), peak memory beyond the weights, and how often the host waits for the card.

Every line is written to the table as soon as it is known; what would take longer than the time that is left is named
and left out.

    python benchmarks/gpu.py --out benchmarks/gpu.csv
    python benchmarks/gpu.py --dry        # toy sizes, on a CPU too: shows that the script runs, claims nothing
"""

import argparse
import csv
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sliding_window_causal_mask_function

from sinklens.attention import AttentionCall, AttentionEngine, plan_for
from sinklens.attention.extra_pass import attend_with_pass, form_for, usable
from sinklens.attention.kernel import attend
from sinklens.attention.masks import LazyMask
from sinklens.capture.run import standard_statistics
from sinklens.models.as_bridge import as_bridge
from sinklens.models.tokens import as_batch

ROOT = Path(__file__).parents[1]
COLUMNS = ("card", "torch", "triton", "part", "tokens", "what", "seconds", "of_sdpa", "peak_gib", "waits", "note")
LENGTHS = (8192, 32768, 131072)
LIMITS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest deviation of a statistic, of one plus its size, in fp32 and with inputs rounded to half precision."""


@dataclass
class Table:
    """Rows that are printed and written as they come."""

    path: Path | None
    facts: dict[str, str]
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **values: Any) -> None:
        """Print and write one row."""
        row = dict.fromkeys(COLUMNS, "") | self.facts | values
        self.rows.append(row)
        print(
            "  ".join(f"{value}" for name, value in row.items() if value != "" and name not in self.facts), flush=True
        )
        if self.path is not None:
            with self.path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)

    @property
    def left(self) -> float:
        """Seconds until the run should be over."""
        return self.ends - time.monotonic()


def facts(device: torch.device) -> dict[str, str]:
    """Card and versions."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU ({platform.machine()} CPU)"
    found = importlib.util.find_spec("triton")
    version = "none"
    if found is not None:
        import triton

        version = triton.__version__
    return {"card": card, "torch": torch.__version__, "triton": version}


# ------------------------------------------------------------------ 1: the tests
def run_tests(table: Table, dry: bool) -> None:
    """The tests marked cuda, in a process of their own."""
    say = partial(table.add, part="tests", what="pytest -m cuda")
    if dry:
        return say(note="left out")
    if not (ROOT / "tests").is_dir() or importlib.util.find_spec("pytest") is None:
        return say(note="left out: no tests or no pytest here")
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda and not slow", "-p", "no:cacheprovider", "--tb=line"]
    try:
        more = [*command, *map(str, files), str(ROOT / "tests/attention/test_extra_pass.py")]
        done = subprocess.run(more, cwd=ROOT, capture_output=True, text=True, timeout=max(30, min(200, table.left / 3)))
    except subprocess.TimeoutExpired:
        return say(note="stopped: a third of the time was over")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(*lines, sep="\n")
    last = next((line for line in reversed(done.stdout.splitlines()) if "passed" in line or "failed" in line), "")
    return say(note=last.strip("= ") or done.stderr[-200:])


# ------------------------------------------------------------------ 2: right or wrong
def calls(dtype: torch.dtype, toy: bool) -> Iterator[tuple[str, AttentionCall]]:
    """Calls on the CPU that together use everything that shapes scores."""
    pos = 40 if toy else 1000
    generator = torch.Generator().manual_seed(0)

    def call(heads: int = 4, kv: int = 2, q: int = pos, width: int = 64, **more: Any) -> AttentionCall:
        tensors = [torch.randn(2, h, n, width, generator=generator) for h, n in ((heads, q), (kv, pos), (kv, pos))]
        query, key, value = ((1.5 * x).to(dtype) for x in tensors)
        return AttentionCall(0, query, key, value, width**-0.5, **more)

    def window(size: int, padding: Tensor | None = None, q: int = pos) -> LazyMask:
        function = sliding_window_causal_mask_function(size)
        arguments = dict(batch_size=2, q_length=q, kv_length=pos, q_offset=pos - q, kv_offset=0, device="cpu")
        return LazyMask(arguments | {"mask_function": function, "attention_mask": padding, "local_size": size})

    padding = torch.ones(2, pos, dtype=torch.bool)
    padding[1, : pos // 3] = False
    yield "grouped heads", call()
    yield "one KV head, width 128", call(kv=1, width=128)
    yield "no groups, width 256", call(kv=4, width=256)
    yield "window", call(mask=window(pos // 4))
    yield "soft cap", call(soft_cap=5.0)
    yield "learned sinks", call(sink_logits=torch.tensor([1.0, -20.0, 8.0, 2.0]))
    yield "left padding", call(mask=window(pos // 4, padding), real=padding)
    yield "cache", call(q=pos // 5, mask=window(pos // 4, q=pos // 5))
    yield "every key", call(causal=False)


def moved(call: AttentionCall, device: torch.device) -> AttentionCall:
    """A call on another device."""
    found: dict[str, Any] = {}
    for name in ("query", "key", "value", "sink_logits", "real"):
        value = getattr(call, name)
        found[name] = None if value is None else value.to(device)
    if isinstance(call.mask, LazyMask):
        padding = call.mask.arguments["attention_mask"]
        padding = None if padding is None else padding.to(device)
        found["mask"] = LazyMask(call.mask.arguments | {"device": device, "attention_mask": padding})
    return replace(call, **found)


def measured(call: AttentionCall, kernel: str) -> dict[str, Tensor]:
    """All standard statistics and the output of one call."""
    pos = call.shape.k_pos
    batch = as_batch_like(call.shape.batch, pos)
    made = [make(call.shape) for make in standard_statistics(batch, maps=range(call.shape.batch))]
    if kernel == "blocks":
        output = attend(call, made)
    else:
        form = form_for(call, made, ())
        if isinstance(form, str):
            raise ValueError(form)
        output = attend_with_pass(call, form, made)
    found = {name: value.cpu() for each in made for name, value in each.compute().items()}
    return found | {"output": output.float().cpu().masked_fill(~real_of(call)[:, None, :, None].cpu(), 0)}


def real_of(call: AttentionCall) -> Tensor:
    """Rows that are no padding."""
    every = torch.ones(call.shape.batch, call.shape.q_pos, dtype=torch.bool, device=call.query.device)
    return every if call.real is None else call.real


def as_batch_like(batch: int, pos: int) -> Any:
    """Tokens with two key sets, of which nothing but the sets is read."""
    positions = torch.arange(pos).expand(batch, -1)
    return type("Tokens", (), {"special": positions % 7 == 0, "bos": positions == 0})()


def deviation(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest deviation, of one plus the size; infinite where one is a number and the other none."""
    worst = 0.0
    for name, expected in right.items():
        if name == "top_key":  # near ties; the weights are compared
            continue
        value = found[name]
        if not torch.equal(value.isnan(), expected.isnan()):
            return float("inf")
        worst = max(worst, float(((value - expected).abs() / (1 + expected.abs())).nan_to_num().max()))
    return worst


def check(table: Table, device: torch.device, toy: bool) -> None:
    """Both kernels on the card beside the block kernel on the CPU."""
    reason = usable(device)
    for dtype, limit in LIMITS.items():
        for name, call in calls(dtype, toy):
            right = measured(call, "blocks")
            for kernel in ("blocks", "extra pass"):
                say = partial(table.add, part="right", tokens=call.shape.k_pos, what=f"{kernel}, {name}, {dtype}")
                if kernel == "extra pass" and (reason or (device.type == "cpu" and dtype == torch.bfloat16)):
                    say(note=f"left out: {reason or 'the interpreter has no bfloat16'}")
                    continue
                try:
                    gap = deviation(measured(moved(call, device), kernel), right)
                    say(note=f"{'right' if gap <= limit else 'WRONG'}: deviates by {gap:.1e} (limit {limit:.0e})")
                except Exception as error:
                    say(note=f"WRONG: {type(error).__name__}: {str(error)[:150]}")


# ------------------------------------------------------------------ 3: the table
def make_model(device: torch.device, layers: int, toy: bool) -> LlamaForCausalLM:
    """The shape of Llama-3-8B with random weights in bf16, made where it runs."""
    sizes = dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)
    if toy:
        sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
    config = LlamaConfig(
        **sizes,
        vocab_size=256 if toy else 128256,
        num_hidden_layers=layers,
        max_position_embeddings=131072,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if toy else torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def contenders(model: LlamaForCausalLM, bridge: TransformerBridge, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    batch = as_batch(bridge, ids)
    factories = standard_statistics(batch, maps=(0,))

    def engine(kernel: Any) -> None:
        with AttentionEngine(bridge, statistics=factories, on_layer=lambda *_: None, kernel=kernel):
            bridge(ids, return_type=None, use_cache=False, logits_to_keep=1)

    def patterns() -> None:
        hooks = [(lambda name: name.endswith("hook_pattern"), lambda pattern, hook: None)]
        bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type=None, use_cache=False, logits_to_keep=1)

    return {
        "SDPA forward": lambda: model(ids, use_cache=False, logits_to_keep=1),
        "extra pass": partial(engine, "extra pass"),
        "block kernel": partial(engine, "blocks"),
        "TransformerLens patterns": patterns,
    }


def once(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds and peak GiB beyond what was held."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started, float("nan")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held, started = torch.cuda.memory_allocated(device), time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started, (torch.cuda.max_memory_allocated(device) - held) / 2**30


def waits(run: Callable[[], Any], device: torch.device) -> int | str:
    """How often the host waited for the card."""
    if device.type != "cuda":
        return ""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


GROWTH = {"SDPA forward": 9.0, "extra pass": 11.0, "block kernel": 16.0, "TransformerLens patterns": 16.0}
"""How much longer four times the tokens take at most, from one length to the next."""


def compare(table: Table, device: torch.device, lengths: tuple[int, ...], layers: int, rounds: int, toy: bool) -> None:
    """Seconds, memory and waits of every contender at every length, the cheap ones first."""
    model = make_model(device, layers, toy)
    bridge = as_bridge(model)
    kernel, reason = plan_for(bridge).kernel, plan_for(bridge).kernel_reason
    table.add(part="plan", what=kernel, note=reason)
    last: dict[str, float] = {}
    sdpa: dict[int, float] = {}
    with torch.no_grad():
        for names in (("SDPA forward", "extra pass"), ("block kernel",), ("TransformerLens patterns",)):
            for length in lengths:
                generator = torch.Generator().manual_seed(length)
                ids = torch.randint(0, model.config.vocab_size, (1, length), generator=generator).to(device)
                runs = contenders(model, bridge, ids)
                for name in names:
                    say = partial(table.add, part="time", tokens=length, what=name)
                    if name == "extra pass" and kernel != "extra pass":
                        say(note=f"left out: {reason}")
                        continue
                    if name == "TransformerLens patterns" and not fits_patterns(model, length, device):
                        say(note="left out: T x T patterns of a layer do not fit")
                        continue
                    expected = last.get(name, 0.0) * GROWTH[name]
                    if expected > table.left:
                        say(note=f"left out: would take about {expected:.0f} s, {table.left:.0f} s are left")
                        continue
                    try:
                        row = timed(runs[name], device, rounds, table.left)
                    except torch.OutOfMemoryError:
                        say(note="out of memory")
                        torch.cuda.empty_cache()
                        continue
                    last[name] = row["seconds"]
                    if name == "SDPA forward":
                        sdpa[length] = row["seconds"]
                    of = round(row["seconds"] / sdpa[length], 3) if length in sdpa else ""
                    say(**row | {"seconds": round(row["seconds"], 4)}, of_sdpa=of)


def timed(run: Callable[[], Any], device: torch.device, rounds: int, left: float) -> dict[str, Any]:
    """A first run that also compiles and counts waits, then as many as there is time for, at most ``rounds``."""
    started = time.perf_counter()
    counted = waits(run, device)
    once_seconds = time.perf_counter() - started
    if once_seconds > left / 4:
        seconds, peak = once(run, device) if once_seconds < left / 2 else (once_seconds, float("nan"))
        return {"seconds": seconds, "peak_gib": round(peak, 2), "waits": counted, "note": "one run"}
    found = [once(run, device) for _ in range(rounds)]
    return {
        "seconds": statistics.median(seconds for seconds, _ in found),
        "peak_gib": round(max(peak for _, peak in found), 2),
        "waits": counted,
        "note": f"{rounds} runs",
    }


def fits_patterns(model: LlamaForCausalLM, length: int, device: torch.device) -> bool:
    """Whether eager attention's scores, mask and weights of one layer fit."""
    needed = 10 * model.config.num_attention_heads * length * length
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2 << 30
    return needed < 0.8 * free


def main() -> None:
    """Run all three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the table goes (CSV); printed in any case")
    parser.add_argument("--dry", action="store_true", help="toy sizes, on a CPU too; the figures mean nothing")
    parser.add_argument("--device", default="cuda", help="which card")
    parser.add_argument("--layers", type=int, default=32, help="fewer take less time and memory; ratios stay alike")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9.5, help="when the run should be over")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    chosen = parser.parse_args()
    device = torch.device("cpu" if chosen.dry and not torch.cuda.is_available() else chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This needs an NVIDIA GPU that torch can use; --dry runs toy sizes on a CPU.")
    table = Table(chosen.out, facts(device), time.monotonic() + 60 * chosen.minutes)
    print(
        *(f"{name}: {value}" for name, value in table.facts.items()),
        f"transformers: {transformers.__version__}",
        sep="\n",
    )
    run_tests(table, chosen.dry or chosen.no_tests)
    with torch.no_grad():
        check(table, device, chosen.dry)
    lengths = (32, 64, 128) if chosen.dry else LENGTHS
    compare(table, device, lengths, 2 if chosen.dry else chosen.layers, chosen.rounds, chosen.dry)
    wrong = [row["what"] for row in table.rows if row["note"].startswith("WRONG")]
    print("Wrong: " + "; ".join(wrong) if wrong else "Nothing was wrong.")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
