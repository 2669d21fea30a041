"""What does each KV-cache rule keep of a model's sinks and massive activations, and what does it cost?

Every rule runs at one budget on the same texts: the loss beside full attention, then a census of the changed model.
Where are the sink heads now, on position 0 or on another token? Do the massive activations survive? And do the heads
that lose the most attention tend to be the sink heads of the unchanged model, or those that retrieve (Spearman
correlation over all heads with the importance of position 0 and with the induction score)? Writes
what_policies_keep_<model>.{csv,md,html} and, with a browser, a PNG, to --out.

    python probes/what_policies_keep.py
    python probes/what_policies_keep.py model.gguf --budget 32 --max-tokens 192 --out runs
    python probes/what_policies_keep.py path/to/llama --policies h2o,tova --text book.txt --out runs
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from sinklens.interventions.heads import head_name
from sinklens.models import load
from sinklens.models.tokens import TokenBatch
from sinklens.passes.sequences import choose_sequences
from sinklens.plots import policy_costs, save_figure
from sinklens.policies import Policy, make_policy
from sinklens.results.files import write_atomically
from sinklens.studies import Census, PolicyComparison, compare_policies, pattern_scores, scan

RULES = "full,sink_window:sinks=0,sink_window,streaming_llm,h2o,tova,snap_kv,quest,block_top_k,token_select,top_k"
NEEDED = ("sinks", "massive_activations")


def rules_for(names: list[str], budget: int, length: int) -> dict[str, Policy]:
    """Policies by label, each at the budget; a window without sinks has the whole budget as its window."""
    found: dict[str, Policy] = {}
    for name in names:
        if name == "sink_window:sinks=0":
            found["window without sinks"] = make_policy(f"sink_window:sinks=0,recent={budget}")
        else:
            found[name] = make_policy(name, keys=budget, length=length)
    return found


def sinks_of(census: Census) -> dict[str, Any]:
    """Sink heads of a census: how many, the position that most of them have, and how many have position 0."""
    heads = census.heads.to_dataframe()
    sinks = heads[heads["is_sink"]]
    most = sinks["sink_position"].mode()
    layers = census.layers.to_dataframe()
    return {
        "sink_heads": len(sinks),
        "on_position_0": int((sinks["sink_position"] == 0).sum()),
        "most_on": None if most.empty else int(most.iloc[0]),
        "massive_layers": int((layers["n_massive_ratio"] > 0).sum()),
        "largest": float(layers["max_abs"].max()),
    }


def measure(
    model: Any,
    batch: TokenBatch,
    rules: dict[str, Policy],
    prompt: int,
    budget: int,
    seed: int,
    source: str | None = None,
) -> tuple[PolicyComparison, pd.DataFrame]:
    """The comparison, and one row per rule on what became of sinks and massive activations."""
    compared = compare_policies(model, rules, tokens=batch, prompt=prompt, budgets=[budget], seed=seed, source=source)
    plain = scan(model, tokens=batch, detectors=NEEDED, maps=0)
    heads = plain.heads.to_dataframe()[["layer", "head"]]
    first = plain.sinks.to_dataframe()
    first = first[first["position"] == 0][["layer", "head", "importance"]]
    induction = pattern_scores(model, seed=seed).to_dataframe()[["layer", "head", "induction"]]
    heads = heads.merge(first, how="left").merge(induction, how="left")
    rows = []
    for row in compared.summary.to_dict("records"):
        name = row["policy"]
        census = (
            plain if name == "full" else scan(model, tokens=batch, detectors=NEEDED, maps=0, intervention=rules[name])
        )
        kept = compared.to_dataframe("heads")
        lost = kept[kept["policy"] == name][["layer", "head", "mass_post_hoc"]].merge(heads)
        worst = lost[lost["mass_post_hoc"] < 1 - 1e-6].nsmallest(3, "mass_post_hoc")
        found = {**row, **sinks_of(census)}
        for label, column in (("lost_by_sink", "importance"), ("lost_by_induction", "induction")):
            known = lost.dropna(subset=[column, "mass_post_hoc"])
            varies = float((1 - known["mass_post_hoc"]).max()) > 1e-6  # a rule that drops nothing ranks no head
            found[label] = float(spearmanr(1 - known["mass_post_hoc"], known[column])[0]) if varies else float("nan")
        found["lose_most"] = (
            " ".join(head_name((int(a), int(b))) for a, b in worst[["layer", "head"]].to_numpy()) or "none"
        )
        rows.append(found)
    return compared, pd.DataFrame(rows)


def sentences(table: pd.DataFrame) -> list[str]:
    """What the table says of sinks and massive activations, recomputable from it."""
    found = []
    plain = table[table["policy"] == "full"]
    if not plain.empty:
        row = plain.iloc[0]
        found.append(
            f"With full attention {row['sink_heads']} heads have a sink, {row['on_position_0']} of them on position 0; "
            f"massive activations stand in {row['massive_layers']} layers, the largest entry is {row['largest']:,.0f}."
        )
    for row in table[table["policy"] != "full"].to_dict("records"):
        where = "no head has a sink"
        if row["sink_heads"]:
            most = int(row["most_on"])
            moved = "" if most == 0 else f", most of them on position {most}"
            where = f"{row['sink_heads']} heads have a sink, {row['on_position_0']} of them on position 0{moved}"
        found.append(
            f"{row['policy']}: {where}; massive activations in {row['massive_layers']} layers, largest entry "
            f"{row['largest']:,.0f}; {row['delta_loss']:+.3f} nats a token."
        )
    return found


def markdown(compared: PolicyComparison, table: pd.DataFrame, name: str) -> str:
    """Sentences and table."""
    meta = compared.meta
    stored = meta["model"].get("dequantised_from")
    title = name + (f" (dequantised from {stored})" if stored else "")
    columns = {
        "policy": "policy",
        "kept": "keys a row",
        "delta_loss": "d loss",
        "mass": "attention kept",
        "first_kept": "on the first four",
        "sink_heads": "sink heads",
        "on_position_0": "on position 0",
        "most_on": "most on",
        "massive_layers": "massive layers",
        "largest": "largest entry",
        "lost_by_sink": "lost attention ~ sink",
        "lost_by_induction": "~ induction",
        "lose_most": "heads that lose most",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in table.to_dict("records"):
        cells = {key: _cell(row[key]) for key in columns}
        if row["policy"] != "full" and not pd.isna(row["delta_loss_low"]):
            cells["delta_loss"] += f" [{row['delta_loss_low']:+.3f}, {row['delta_loss_high']:+.3f}]"
        lines.append("| " + " | ".join(cells.values()) + " |")
    tokens, settings = meta["tokens"], meta["settings"]
    parts = [
        f"# What policies keep of {title}",
        f"Written by `python probes/what_policies_keep.py`. {tokens['n_sequences']} sequences of "
        f"{tokens['min_length']} to {tokens['max_length']} tokens: {meta['source']}. {tokens['bos']['statement']} Loss "
        f"and attention on rows from token {settings['prompt']} on, in nats per token, with 95 % intervals over texts; "
        "sinks and massive activations (|h| above 1000 x the median) on all rows. A key that a rule hides from most "
        "later rows cannot be their sink: few sink heads can be arithmetic.",
        "\n".join(f"- {sentence}" for sentence in [*compared.verdict, *sentences(table)]),
        "\n".join(lines),
        "The correlations are Spearman's over all heads: between the attention that a head would lose (on the "
        "unchanged model) and the importance of position 0 there, and its induction score on repeated random tokens.",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "n/a"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-llama", help="built-in name, directory, GGUF file or hub id")
    parser.add_argument("--policies", default=RULES, help="with commas between; 'sinklens policies' lists them")
    parser.add_argument("--budget", type=int, default=32, help="keys a row")
    parser.add_argument("--text", type=Path, help="UTF-8 text; default: a built-in corpus that fits the model")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-sequences", type=int, default=12)
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
    length = int(batch.lengths.max())
    rules = rules_for(options.policies.split(","), options.budget, length)
    prompt = max(1, int(batch.lengths.min()) // 2)
    compared, table = measure(model, batch, rules, prompt, options.budget, options.seed, source)
    name = options.name or str(compared.meta["model"]["name"])
    stem = options.out / f"what_policies_keep_{name}"
    options.out.mkdir(parents=True, exist_ok=True)
    page = markdown(compared, table, name)
    write_atomically(stem.with_suffix(".csv"), table.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(stem.with_suffix(".md"), page.encode())
    save_figure(policy_costs(compared), stem.with_suffix(".png"))
    print(*compared.verdict, *sentences(table), f"Wrote {stem}.csv, .md and .html", sep="\n")


if __name__ == "__main__":
    main()
