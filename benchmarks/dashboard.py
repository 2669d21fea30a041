"""How long the dashboard keeps a person waiting: a census of 32 x 32 heads and 4,096 tokens, browser included.

A made-up census of that size is saved through ``Census.save``. ``sinklens dashboard`` serves it in a process of its
own and a headless Chromium with an empty cache asks for it. Times run from the request, or from the click, until the
browser has drawn what belongs to it (the figure's SVG is there and two frames have passed):

- ``first view, new server``: the first request after the server says that it is ready;
- ``first view``: the same in a fresh browser profile, the server running;
- ``head``, ``other head``, ``token``, ``other token``, ``score``, ``map of a head``, ``log colours``, ``lines``,
  ``arrow keys``, ``compare``: the clicks after it, the first of them as soon as the first view stands.

The first view stands when the grid, the map of the strongest head, its numbers and the coloured text are drawn: what
a window of 1280 x 800 shows.

``page weight`` is everything that was sent for the first view, uncompressed. ``work`` is the processor time that server
and browser together spent: on a machine that is busy with something else, one waits longer than they work.

    python benchmarks/dashboard.py --rounds 5 --out benchmarks/dashboard.csv
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sinklens.detectors.sink_ranking import by_importance
from sinklens.studies.census.result import AttentionMap, Census

LAYERS, HEADS, LENGTH = 32, 32, 4096
PROMISED = {"first view": 2.0, "click": 0.5, "page weight": 8.0}


def big_census(seed: int = 0) -> Census:
    """A census as `sinklens scan` would make it of one text of 4,096 tokens, with plausible numbers."""
    rng = np.random.default_rng(seed)
    layer, head, position = np.indices((LAYERS, HEADS, LENGTH), dtype=np.int64).reshape(3, -1)
    null = np.tile(1 / np.arange(1, LENGTH + 1), LAYERS * HEADS)
    importance = (null * rng.lognormal(0, 0.5, len(null))).astype(np.float32).astype(float)
    sink = rng.random((LAYERS, HEADS)) < 0.4
    importance[position == 0] = np.where(sink, 0.7, 0.05).ravel()
    grid = {"layer": layer, "head": head, "position": position}
    shared = {"n_sequences": np.ones(len(null), dtype=np.int64)}
    sinks = pd.DataFrame(
        grid
        | {"importance": importance, "sink_rate": (importance > 0.3).astype(float), "null": null}
        | {"ratio": importance / null, "delta_logit": rng.normal(size=len(null)).astype(np.float32).astype(float)}
        | shared
    )
    norm = rng.lognormal(0, 0.2, len(null)).astype(np.float32).astype(float)
    drains = pd.DataFrame(
        {"layer": layer, "head": head, "kv_head": head // 4, "position": position, "value_norm": norm, "drain": norm}
        | {"output_norm": norm * 0.8, "drain_wo": norm}
        | shared
    )
    first = sinks[sinks["position"] == 0].drop(columns=["position", "n_sequences"])
    heads = first.assign(sink_position=0, is_sink=sink.ravel(), kv_head=first["head"] // 4, drain=0.1, drain_wo=0.1)
    heads = heads.assign(
        importance_first=heads["importance"],
        null_first=heads["null"],
        sink_rate_first=heads["sink_rate"],
        entropy=rng.random(len(heads)) * 7,
        entropy_null=7.3,
        distance=rng.random(len(heads)) * 500,
    ).reset_index(drop=True)
    words = [f" word{i % 700}" for i in range(LENGTH)]
    rows, columns = np.indices((LAYERS + 1, LENGTH)).reshape(2, -1)
    norms = np.where(columns == 0, 800.0, 10 + rows + rng.random(len(rows)))
    profile = pd.DataFrame(
        {"layer": rows - 1, "position": columns, "token": np.array(words)[columns], "resid_norm": norms}
    )
    profile = profile.assign(value_norm=1.0, wo_value_norm=1.0, received=0.01)
    tokens = pd.DataFrame(
        {
            "sequence": 0,
            "position": range(LENGTH),
            "token_id": range(LENGTH),
            "token": words,
            "is_special": False,
            "is_bos": np.arange(LENGTH) == 0,
            "n_sink_heads": np.where(np.arange(LENGTH) == 0, float(sink.sum()), 0.0),
            "received": 1 / np.arange(1, LENGTH + 1),
            "peak_ratio": 1.0,
            "is_massive_absolute": np.arange(LENGTH) == 0,
            "is_massive_ratio": False,
        }
    )
    massive = pd.DataFrame({"sequence": 0, "layer": range(-1, LAYERS), "position": 0, "token": words[0], "channel": 7})
    massive = massive.assign(value=500.0, median=0.5, ratio=1000.0, absolute=True, relative=False)
    tables = {"tokens": tokens, "profile": profile, "sinks": sinks, "value_drains": drains, "heads": heads}
    tables |= {"massive": massive, "residual_norms": profile[["layer", "position", "resid_norm"]].assign(n_sequences=1)}
    tables["layers"] = pd.DataFrame({"layer": range(-1, LAYERS), "attention": "fast"})
    by_sequence = {
        "importance": importance.reshape(LAYERS, HEADS, LENGTH).transpose(2, 0, 1),
        "null": np.repeat(1 / np.arange(1, LENGTH + 1), LAYERS).reshape(LENGTH, LAYERS),
        "value_norm": norm.reshape(LAYERS, HEADS, LENGTH)[:, ::4].transpose(2, 0, 1),
        "output_norm": 0.8 * norm.reshape(LAYERS, HEADS, LENGTH).transpose(2, 0, 1),
        "resid_norm": norms.reshape(LAYERS + 1, LENGTH).T,
        "top_weight": rng.random((LENGTH, LAYERS, HEADS)),
        "entropy": rng.random((1, LAYERS, HEADS)) * 7,
        "distance": rng.random((1, LAYERS, HEADS)) * 500,
    }
    by_sequence = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in by_sequence.items()}
    by_sequence["top_key"] = rng.integers(
        0, np.arange(1, LENGTH + 1)[:, None, None], (LENGTH, LAYERS, HEADS), np.uint32
    )
    cells = np.where(np.tri(128, dtype=bool), rng.random((128, 128)), np.nan).astype(np.float32)
    shown = by_importance(heads).iloc[0]
    named = {(i, i) for i in range(5)} | {(int(shown["layer"]), int(shown["head"]))}
    maps = {f"L{i}H{j}": AttentionMap(i, j, cells, LENGTH // 128, LENGTH, words, "made up") for i, j in sorted(named)}
    model = {"name": "made-up", "path": "", "architecture": "made up", "n_layers": LAYERS, "n_heads": HEADS}
    meta = {
        "sinklens_version": "benchmark",
        "created": "",
        "model": model | {"n_kv_heads": 8, "d_vocab": LENGTH, "dtype": "float32", "device": "cpu"},
        "tokens": {
            "n_sequences": 1,
            "n_tokens": LENGTH,
            "min_length": LENGTH,
            "max_length": LENGTH,
            "source": "made up",
        }
        | {"bos": {"statement": "Made-up tokens."}, "skipped": []},
        "metrics": {},
        "settings": {"detectors": ["sinks"], "eps": 0.3},
        "intervention": None,
        "warnings": [],
        "verdict": ["A made-up census."],
        "seconds": 0.0,
    }
    return Census.of(meta, tables, maps, {f"by_sequence.{name}": each for name, each in by_sequence.items()})


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server in a process of its own."""
    command = [sys.executable, "-m", "sinklens.cli", "dashboard", str(folder), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        yield line[line.index("http://") :].split()[0]
    finally:
        process.terminate()
        process.wait(20)


def work() -> float:
    """Processor seconds of all processes that descend from this one (server, browser, driver) and still run."""
    spent, parent = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        number = int(stat.parent.name)
        parent[number] = int(fields[1])
        spent[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    for _ in range(8):
        ours |= {number for number, above in parent.items() if above in ours}
    return sum(spent[number] for number in ours - {os.getpid()})


class Visitor:
    """A browser that notes how long each step takes."""

    def __init__(self, browser: Any, address: str) -> None:
        self.address = address
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.page = self.context.new_page()
        self.weight = 0
        self.page.on("response", self._weigh)
        self.seconds: dict[str, float] = {}
        self.work: dict[str, float] = {}

    def _weigh(self, response: Any) -> None:
        self.weight += int(response.headers.get("content-length", 0))

    def until(self, condition: str) -> None:
        """Wait until the page is in a state and has painted it."""
        end = time.monotonic() + 60
        while not self.page.evaluate(f"() => Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"never became true: {condition}")
            time.sleep(0.02)
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def timed(self, what: str, act: Any, condition: str) -> None:
        """Act, wait, and note the time."""
        before, started = work(), time.perf_counter()
        act()
        self.until(condition)
        self.seconds[what] = time.perf_counter() - started
        self.work[what] = work() - before

    def cell(self, column: int, row: int) -> None:
        """Click a head."""
        place = self.page.evaluate(
            "([x, y]) => { const p = document.querySelector('#grid .js-plotly-plot'), l = p._fullLayout,"
            "b = p.getBoundingClientRect(); return [b.left + l.xaxis._offset + l.xaxis.d2p(x),"
            "b.top + l.yaxis._offset + l.yaxis.d2p(y)]; }",
            [column, row],
        )
        self.page.mouse.move(*place)
        self.page.mouse.click(*place)

    def choose(self, name: str, text: str) -> None:
        """Choose an option of a dropdown."""
        self.page.click(f"#{name}")
        self.page.locator(".dash-dropdown-option", has_text=text).first.click()


def visit(browser: Any, address: str, first: str) -> tuple[dict[str, float], dict[str, float], float]:
    """One person's visit: seconds and processor seconds by step, and megabytes until the first view stood."""
    visitor = Visitor(browser, address)
    page = visitor.page
    drawn = (
        "document.querySelector('#grid .heatmaplayer image') && document.querySelector('#map .heatmaplayer image') && "
        "document.querySelector('#head-facts tr') && document.querySelector('#strip .light, #strip .dark')"
    )
    visitor.timed(first, lambda: page.goto(address + "?run=a"), drawn)
    weight = visitor.weight / 1e6

    def head(name: str) -> str:
        text = "document.querySelector('#{}').textContent".format
        return (
            f"{text('head-title')} === '{name}' && {text('positions-title')}.startsWith('{name}') && "
            "!document.querySelector('#positions-card').hidden && "
            f"document.querySelector('#positions .scatterlayer path') && location.search.includes('{name}')"
        )

    visitor.timed("head", lambda: visitor.cell(3, 3), head("L3H3"))
    visitor.timed("other head", lambda: visitor.cell(20, 17), head("L17H20"))
    visitor.timed("token", lambda: page.click("#strip [data-position='5']"), _token(5))
    visitor.timed("other token", lambda: page.click("#strip [data-position='9']"), _token(9))
    visitor.timed(
        "score",
        lambda: visitor.choose("score", "Entropy"),
        "document.querySelector('#grid-title').textContent === 'Entropy' && "
        "document.querySelector('#grid .js-plotly-plot').data[0].colorbar.title.text.includes('nats')",
    )
    visitor.timed("map of a head", lambda: visitor.cell(2, 2), head("L2H2") + _map(0, 1))
    visitor.timed("log colours", lambda: page.locator("#log label").click(), "true" + _map(-3, 0))
    visitor.timed("lines", lambda: page.locator("#look label", has_text="lines").click(), _LINES)
    page.focus("#grid-keys")
    visitor.timed("arrow keys", lambda: page.keyboard.press("ArrowDown"), head("L3H2"))
    visitor.timed(
        "compare",
        lambda: visitor.choose("compare", "b · census"),
        "document.querySelectorAll('#pair .heatmaplayer image').length === 3",
    )
    visitor.context.close()
    return visitor.seconds, visitor.work, weight


_LINES = "document.querySelectorAll('#lines text').length > 50 && document.querySelector('#lines line')"


def _token(position: int) -> str:
    return (
        f"document.querySelector('#token-title').textContent.startsWith('Token {position}:') && document.querySelector("
        "'#token-heads .heatmaplayer image')"
    )


def _map(low: int, high: int) -> str:
    plot = "document.querySelector('#map .js-plotly-plot')"
    return f" && {plot}.data.length && {plot}.data[0].zmin === {low} && {plot}.data[0].zmax === {high}"


def main() -> None:
    """Command line."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, help="write the table as CSV")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        big_census().save(Path(folder) / "a")
        big_census(1).save(Path(folder) / "b")
        for turn in range(options.rounds):
            browser = play.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
            with served(Path(folder)) as address:
                for first in ("first view, new server", "first view"):
                    taken, worked, weight = visit(browser, address, first)
                    for what in taken:
                        name = what if "view" in what or first == "first view" else f"{what}, new server"
                        seconds[name].append(taken[what])
                        spent[name].append(worked[what])
                    seconds["page weight"].append(weight)
            browser.close()
            print(f"round {turn + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
    rows = []
    for what, each in seconds.items():
        kind = "page weight" if what == "page weight" else "first view" if "view" in what else "click"
        row = {"what": what, "unit": "MB" if kind == "page weight" else "s", "median": statistics.median(each)}
        row |= {"best": min(each), "worst": max(each), "promised": PROMISED[kind], "rounds": len(each)}
        rows.append(row | {"work, s": statistics.median(spent[what]) if spent[what] else None})
    table = pd.DataFrame(rows).round(2)
    print(table.to_string(index=False))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()}")
    if options.out is not None:
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
