"""What `sinklens needle` prints."""

from typing import Any


def print_needles(result: Any, check: Any = None) -> None:
    """Print the grids, how many prompts each filter keeps, some answers, the heads, and the causal check."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.results.provenance import precision

    console = Console()
    meta = result.meta
    model, needles, tokens = meta["model"], meta["needles"], meta["tokens"]
    console.print(
        f"[bold]{escape(model['name'])}[/bold]: {model['architecture']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {precision(model)}; {tokens['n_sequences']} {needles['kind']} needles in "
        f"{escape(needles['source'])}. {escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    grid = result.grid.to_dataframe()
    for name in result.variants:
        shown = grid[grid["variant"] == name]
        table = Table(
            title=f"{escape(name)}: exact match by length (tokens) and depth",
            caption=f"{int(shown['n'].min())} prompts per cell; in brackets the answer's log-probability per token",
        )
        table.add_column("depth", justify="right")
        for length in needles["lengths"]:
            table.add_column(f"{length:,}", justify="right")
        for depth in needles["depths"]:
            cells = shown[shown["depth"] == depth].set_index("length")
            row = [escape(f"{cells.loc[n, 'exact']:.2f} [{cells.loc[n, 'log_prob']:z.2f}]") for n in needles["lengths"]]
            table.add_row(f"{depth:.0%}", *row)
        console.print(table)
    for row in result.summary().to_dict("records"):
        console.print(f"- {escape(_sentence(row))}", highlight=False)
    _print_filters(console, result)
    _print_responses(console, result)
    _print_heads(console, result)
    if check is not None:
        for sentence in check.verdict:
            console.print(f"- {sentence}", highlight=False, markup=False)
    for warning in meta["warnings"] + (check.meta["warnings"] if check is not None else []):
        console.print(f"Note: {escape(warning)}", highlight=False)


def _sentence(row: dict[str, Any]) -> str:
    from sinklens.evidence.bootstrap import MIN_PAIRS

    def shown(name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return f"{row[name]:.2f}" + ("" if low != low else f" [{low:.2f}, {high:.2f}]")

    text = f"{row['variant']}: exact match {shown('exact')} over {row['n']} prompts, "
    text += f"log-probability {shown('log_prob')}"
    if row["repeats"] < MIN_PAIRS:
        text += f" (no intervals: {row['repeats']} repeats, they need {MIN_PAIRS})"
    if row["delta_exact"] == row["delta_exact"]:
        text += f"; change of exact match {shown('delta_exact')}"
    return text + "."


def _print_filters(console: Any, result: Any) -> None:
    """How many prompts count as answered by each filter."""
    from rich.markup import escape
    from rich.table import Table

    counts = result.answered()
    counts = counts[counts["keep"] != "all"]
    names = list(dict.fromkeys(counts["keep"]))
    rules = "; ".join(f"{name}: {counts.loc[counts['keep'] == name, 'rule'].iloc[0]}" for name in names)
    table = Table(title="Prompts answered, by filter", caption=escape(rules))
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
    for variant in result.variants:
        mine = counts[counts["variant"] == variant].set_index("keep")
        table.add_row(escape(variant), *(f"{mine.loc[name, 'n']} of {mine.loc[name, 'of']}" for name in names))
    console.print(table)


def _print_responses(console: Any, result: Any) -> None:
    """What the unchanged model said to a few prompts: of each length one it answered and one it did not, at most 6."""
    from sinklens.studies.needles.result import CLEAN

    table = result.tables["instances"]
    if "contained" not in table or table["rouge1"].isna().all():
        return
    answers = result.tables["prompts"].set_index("instance")["answer_text"]
    clean = table[table["variant"] == CLEAN]
    for row in clean.groupby(["length", "contained"]).head(1).head(6).to_dict("records"):
        wanted = answers[row["instance"]]
        wanted = "" if wanted != wanted else f", the answer is {wanted!r}"
        right = f"{row['correct'] * row['n_answer']:.0f} of {row['n_answer']} answer tokens right"
        console.print(
            f"- {row['length']:,} tokens, depth {row['depth']:.0%}: it says {row['response'].strip()!r}{wanted} "
            f"(ROUGE-1 recall {row['rouge1']:.2f}, {right} when forced).",
            highlight=False,
            markup=False,
        )


def _print_heads(console: Any, result: Any) -> None:
    from rich.table import Table

    if result.meta["heads"] is None:
        return
    scores = result.heads
    found = result.retrieval_heads()
    n_kept, n_heads = scores.meta["n_kept"], len(scores.frame)
    if not n_kept:
        console.print("- " + scores.meta["warnings"][-1], highlight=False, markup=False)
        return
    null = scores.frame["retrieval_null"].iloc[0]
    console.print(
        f"- {len(found)} of {n_heads} heads are retrieval heads (score of at least 0.1 over the {n_kept} prompts that "
        f"the filter {result.keep} keeps; an even draw of keys would score {null:.4f}).",
        highlight=False,
    )
    if len(found):
        table = Table(title="Retrieval heads")
        for column in ("head", "score", "event form", "activation frequency", "band"):
            table.add_column(column, justify="right")
        for row in found.head(20).to_dict("records"):
            numbers = [f"{row[name]:.3f}" for name in ("retrieval", "retrieval_event", "activation_frequency")]
            table.add_row(f"L{row['layer']}H{row['head']}", *numbers, row["retrieval_band"])
        console.print(table)
