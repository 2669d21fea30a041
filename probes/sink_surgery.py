"""What does a model lose when its massive activations, or what its sink hands out, are set to zero or to their mean?

The table of Sun et al. (2024, arXiv 2402.17762, section 3) for any model: massive entries set to zero and to their mean
where they appear, as many entries of median size at the same tokens as the control; and beside it the values of the
sink's key set to zero and to the mean of ordinary tokens, and the key hidden, each with an ordinary key as the control.
Entries, means and controls are taken from one half of the texts and tried on the other. Hiding a key is no removal of
the sink: it can move to the next position. Writes sink_surgery_<model>.{csv,md,html} and, with a browser, a PNG.

    python probes/sink_surgery.py
    python probes/sink_surgery.py model.gguf --out runs
    python probes/sink_surgery.py path/to/llama --text book.txt --absolute 0 --ratio 50 --out runs
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pandas as pd
from head_ablation import describe, halves

from sinklens.detectors.massive_activations import ABSOLUTE, RATIO
from sinklens.errors import InputError
from sinklens.interventions import EditValues, Intervention, MaskKeys, SetActivations
from sinklens.interventions.edit_values import mean_values
from sinklens.interventions.massive_entries import control_rules, massive_entries
from sinklens.interventions.set_activations import mean_activations
from sinklens.models import load
from sinklens.models.tokens import TokenBatch
from sinklens.passes.sequences import choose_sequences
from sinklens.plots import before_after, save_figure
from sinklens.results.files import write_atomically
from sinklens.studies import measure_effects
from sinklens.studies.effects.result import Effects


@dataclass(frozen=True)
class Surgery:
    """What is tried.

    Attributes:
        operations: By name.
        controls: Which of them are the controls of which.
        entries: The massive entries in words, or why there are none.
    """

    operations: dict[str, Intervention]
    controls: dict[str, tuple[str, ...]]
    entries: str


def plan(model: Any, reference: TokenBatch, *, absolute: float, ratio: float, draws: int) -> Surgery:
    """The operations, made from reference texts."""
    ordinary = max(1, int(reference.lengths.min()) // 2)
    operations: dict[str, Intervention] = {}
    controls: dict[str, tuple[str, ...]] = {}
    try:
        found = massive_entries(model, reference, absolute=absolute, ratio=ratio)
        rules = list(found.rules) or [found.rule()]
        entries = in_words(rules)
        entries += f" (found by |h| > {absolute:g} and |h| > {ratio:g} x median)"
        operations["massive entries to 0"] = _together([SetActivations(rule, "zero") for rule in rules])
        means = mean_activations(model, reference, rules)  # of all rules in one pass
        operations["massive entries to mean"] = _together([SetActivations(rule, "mean", means) for rule in rules])
        names = tuple(f"median entries to 0, draw {draw + 1}" for draw in range(draws))
        for draw, name in enumerate(names):
            chosen = control_rules(model, reference, rules, draw=draw)
            operations[name] = _together([SetActivations(where, "zero") for where in chosen])
        controls["massive entries to 0"] = controls["massive entries to mean"] = names
    except InputError as error:
        entries = f"none is changed. {error}"
    values = mean_values(model, reference)
    operations["sink value to 0"] = EditValues(0, "zero")
    operations["sink value to mean"] = EditValues(0, "mean", means=values)
    operations["ordinary value to 0"] = EditValues(ordinary, "zero")
    operations["sink key hidden"] = MaskKeys(0)
    operations["ordinary key hidden"] = MaskKeys(ordinary)
    controls["sink value to 0"] = controls["sink value to mean"] = ("ordinary value to 0",)
    controls["sink key hidden"] = ("ordinary key hidden",)
    return Surgery(operations, controls, entries)


def in_words(rules: Sequence[Any]) -> str:
    """Which entries are set: runs of layers with the same channels, and above which sizes."""
    runs: list[list[Any]] = []
    for rule in rules:
        if runs and runs[-1][-1].dims == rule.dims and runs[-1][-1].layer + 1 == rule.layer:
            runs[-1].append(rule)
        else:
            runs.append([rule])
    found = []
    for run in runs:
        dims, above = run[0].dims, [rule.above for rule in run]
        where = f"layer {run[0].layer}" if len(run) == 1 else f"layers {run[0].layer} to {run[-1].layer}"
        size = f"{above[0]:,.0f}" if len(run) == 1 else f"{min(above):,.0f} to {max(above):,.0f}, layer by layer"
        found.append(f"after {where} channel{'s' * (len(dims) > 1)} {', '.join(map(str, dims))} with |h| above {size}")
    return "; ".join(found)


def _together(parts: list[Any]) -> Intervention:
    together: Intervention = reduce(add, parts)
    return together


def table_of(effects: Effects, surgery: Surgery) -> pd.DataFrame:
    """Loss and perplexity before and after, the change with its interval, and that of the controls."""
    table = effects.summary()
    if "intervention" not in table.columns:
        table = table.reset_index()
    changes = table.set_index("intervention")["delta_loss"]
    rows = table["intervention"]
    spans = [[float(changes[name]) for name in surgery.controls.get(row, ())] for row in rows]
    table["perplexity_before"] = table["clean_loss"].map(_perplexity)
    table["perplexity_after"] = table["loss"].map(_perplexity)
    table["control_low"] = [min(values, default=math.nan) for values in spans]
    table["control_high"] = [max(values, default=math.nan) for values in spans]
    return table


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def sentences(table: pd.DataFrame, surgery: Surgery) -> list[str]:
    """What each operation costs, its controls beside it; numbers of the table and nothing else."""
    found = []
    for row in table.to_dict("records"):
        if row["intervention"] in surgery.controls:
            names = surgery.controls[row["intervention"]]
            low, high = f"{row['control_low']:+z.3f}", f"{row['control_high']:+z.3f}"
            beside = low if low == high else f"{low} to {high}"
            found.append(
                f"{row['intervention']}: loss {row['clean_loss']:.3f} to {row['loss']:.3f}, {_change(row)} nats; its "
                f"control{'s' * (len(names) > 1)} ({names[0].split(', draw')[0]}): {beside}."
            )
    return found


def _change(row: dict[Any, Any]) -> str:
    low, high = row["delta_loss_low"], row["delta_loss_high"]
    interval = "" if math.isnan(low) else f" [{low:+z.3f}, {high:+z.3f}]"
    return f"{row['delta_loss']:+z.3f}{interval}"


def markdown(effects: Effects, surgery: Surgery, name: str, source: str) -> str:
    """The sentences and the table."""
    table, tokens = table_of(effects, surgery), effects.meta["tokens"]
    rows = [["what is set", "loss", "change [95 %]", "perplexity", "KL", "top-1 agreement"]]
    rows.append(["---"] * len(rows[0]))
    first = table.iloc[0]
    rows.append(["nothing", f"{first['clean_loss']:.3f}", "", f"{first['perplexity_before']:.3g}", "0", "1"])
    for row in table.to_dict("records"):
        numbers = [f"{row['loss']:.3f}", _change(row), f"{row['perplexity_after']:.3g}"]
        rows.append([row["intervention"], *numbers, f"{row['kl']:.3g}", f"{row['top1_agreement']:.3f}"])
    parts = [
        f"# Massive entries and sink values of {name}, set to zero and to their mean",
        f"Written by `python probes/sink_surgery.py`. {tokens['n_sequences']} sequences of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens; entries, means and controls come from other sequences: "
        f"{source}. {tokens['bos']['statement']} Loss and KL in nats per token, 95 % intervals over sequences.",
        f"Massive entries: {surgery.entries}{'' if surgery.entries.endswith('.') else '.'}",
        "\n".join(f"- {sentence}" for sentence in sentences(table, surgery)),
        "\n".join("| " + " | ".join(row) + " |" for row in rows),
        "Position 0 is the sink meant. A hidden key is hidden from all later tokens; a sink can move to another "
        "position, so a small cost there does not say that the sink does nothing.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-llama", help="built-in name, directory, GGUF file or hub id")
    parser.add_argument("--absolute", type=float, default=ABSOLUTE, help="|h| of a massive entry")
    parser.add_argument("--ratio", type=float, default=RATIO, help="its |h| in medians of the sequence")
    parser.add_argument("--draws", type=int, default=3, help="controls of median size")
    parser.add_argument("--text", type=Path, help="UTF-8 text; default: a built-in corpus that fits the model")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-sequences", type=int, default=100, help="half for reference, half to measure on")
    parser.add_argument("--name", help="of the model in file names; default: its own")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    model = load(options.model)
    texts, source = None, None
    if options.text is not None:
        texts, source = options.text.read_text("utf-8"), options.text.name
    batch, source = choose_sequences(
        model, texts, max_tokens=options.max_tokens, max_sequences=options.max_sequences, source=source
    )
    reference, measured_on = halves(batch)
    surgery = plan(model, reference, absolute=options.absolute, ratio=options.ratio, draws=options.draws)
    effects = measure_effects(model, surgery.operations, measured_on)
    table = table_of(effects, surgery)
    name = options.name or str(effects.meta["model"]["name"])
    stem = options.out / f"sink_surgery_{name}"
    save_figure(before_after(table, perplexity=True), stem.with_name(f"{stem.name}.png"), table, width=1100)
    write_atomically(stem.with_name(f"{stem.name}.md"), markdown(effects, surgery, describe(effects), source).encode())
    print(
        *sentences(table, surgery), f"Massive entries: {surgery.entries}", f"Wrote {stem}.html, .csv and .md", sep="\n"
    )


if __name__ == "__main__":
    main()
