"""Are the strongest sink heads needed, and does the answer depend on how a head is taken away?

The heads with the most attention on position 0 are found on one half of the texts and taken away on the other, all
together, beside the heads with the least and beside random heads of equal count and layers. Zero, mean and uniform
attention stand side by side: they are different questions, and in a sink head with a drained value even attention hands
out what the sink held back. Writes head_ablation_<model>.{csv,md,html} and, with a browser, a PNG, to --out.

    python probes/head_ablation.py
    python probes/head_ablation.py model.gguf --top 20 --out runs
    python probes/head_ablation.py path/to/llama --text book.txt --ways zero,mean --controls 20 --out runs
"""

import argparse
from pathlib import Path

import pandas as pd

from sinklens.interventions.heads import Head
from sinklens.models import load
from sinklens.models.tokens import TokenBatch
from sinklens.passes.sequences import choose_sequences
from sinklens.plots import before_after, save_figure
from sinklens.results.files import write_atomically
from sinklens.studies import Sweep, scan, sweep

STRONG, WEAK = "strongest sinks", "weakest sinks"


def halves(batch: TokenBatch) -> tuple[TokenBatch, TokenBatch]:
    """Every other sequence to choose on, and the rest to measure on."""
    return batch.rows(range(0, len(batch), 2)), batch.rows(range(1, len(batch), 2))


def pick(sinks: pd.DataFrame, count: int) -> dict[str, list[Head]]:
    """The heads with the most and with the least attention on position 0; equal ones in the order of layers.

    Args:
        sinks: One row per head and position, as `census.sinks`.
        count: How many of each.
    """
    first = sinks[sinks["position"] == 0].sort_values(["layer", "head"])
    order = first.sort_values("importance", ascending=False, kind="stable")
    heads = list(zip(order["layer"].astype(int), order["head"].astype(int), strict=True))
    most = min(count, len(heads) // 3)  # as many must be left for the controls
    return {STRONG: heads[:most], WEAK: heads[-most:]}


def take_away(model: object, batch: TokenBatch, ways: list[str], count: int, controls: int, seed: int) -> Sweep:
    """Choose on one half, measure on the other."""
    chosen_on, measured_on = halves(batch)
    census = scan(model, tokens=chosen_on)  # type: ignore[arg-type]
    groups = pick(census.sinks.to_dataframe(), count)
    return sweep(model, ways, tokens=measured_on, groups=groups, controls=controls, seed=seed)  # type: ignore[arg-type]


def markdown(result: Sweep, name: str, source: str) -> str:
    """The sentences and the table."""
    tokens, summary = result.meta["tokens"], result.tables["summary"]
    rows = [["way", "set", "heads", "loss before", "after", "change [95 %]", "random sets", "at least as high"]]
    rows.append(["---"] * len(rows[0]))
    for row in summary[summary["kind"] == "group"].to_dict("records"):
        interval = f" [{row['delta_loss_low']:+z.3f}, {row['delta_loss_high']:+z.3f}]"
        n = 0 if pd.isna(row["control_n"]) else int(row["control_n"])
        own = summary[(summary["control_of"] == row["variant"]) & (summary["intervention"] == row["intervention"])]
        span = f"{own['delta_loss'].min():+z.3f} to {own['delta_loss'].max():+z.3f}" if n else "none"
        reach = f"{round(row['control_p'] * (n + 1)) - 1} of {n}" if n else "n/a"
        change = f"{row['delta_loss']:+z.3f}{'' if pd.isna(row['delta_loss_low']) else interval}"
        levels = [f"{row[name]:.3f}" for name in ("clean_loss", "loss")]
        rows.append([row["intervention"], row["variant"], str(row["k"]), *levels, change, span, reach])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    heads = summary[summary["kind"] == "group"].drop_duplicates("variant")
    named = [f"- {row['variant']}: {row['heads']}" for row in heads.to_dict("records")]
    parts = [
        f"# Sink heads of {name} taken away",
        f"Written by `python probes/head_ablation.py`. {tokens['n_sequences']} sequences of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens that no head was chosen on: {source}. {tokens['bos']['statement']} Changes of "
        "the loss in nats per token, changed minus clean, with 95 % intervals over sequences; random sets: as "
        "many heads of the same layers, lowest to highest.",
        "\n".join(f"- {sentence}" for sentence in result.verdict),
        table,
        "## The heads",
        "\n".join(named),
    ]
    return "\n\n".join(parts) + "\n"


def describe(result: Sweep) -> str:
    """The model's name, and how its weights were stored if that says they are not the original ones."""
    facts = result.meta["model"]
    stored = facts.get("dequantised_from")
    return str(facts["name"]) + (f" (dequantised from {stored})" if stored else "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-llama", help="built-in name, directory, GGUF file or hub id")
    parser.add_argument("--top", type=int, default=4, help="heads in each set; at most a third of all")
    parser.add_argument("--ways", default="zero,mean,uniform", help="of zero, mean, resample, uniform")
    parser.add_argument("--controls", type=int, default=10, help="random sets for each set")
    parser.add_argument("--text", type=Path, help="UTF-8 text; default: a built-in corpus that fits the model")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-sequences", type=int, default=100, help="half to choose on, half to measure on")
    parser.add_argument("--name", help="of the model in file names; default: its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    model = load(options.model)
    texts, source = None, None
    if options.text is not None:
        texts, source = options.text.read_text("utf-8"), options.text.name
    batch, source = choose_sequences(
        model,
        texts,
        max_tokens=options.max_tokens,
        max_sequences=options.max_sequences,
        seed=options.seed,
        source=source,
    )
    ways = [way.strip() for way in options.ways.split(",")]
    result = take_away(model, batch, ways, options.top, options.controls, options.seed)
    name = options.name or str(result.meta["model"]["name"])
    stem = options.out / f"head_ablation_{name}"
    summary = result.tables["summary"]
    figure = before_after(summary[summary["kind"] == "group"])
    table = summary.drop(columns=["layer", "head", "draw", "exact", "note"])
    save_figure(figure, stem.with_name(f"{stem.name}.png"), table, width=1100)
    write_atomically(stem.with_name(f"{stem.name}.md"), markdown(result, describe(result), source).encode())
    print(*result.verdict, f"Wrote {stem}.html, .csv and .md", sep="\n")


if __name__ == "__main__":
    main()
