"""What `sinklens needle` prints."""

from typing import Any

from sinklens.cli import printing


def print_needles(result: Any, check: Any, saved: list[str]) -> None:
    """Print the grids, how many prompts each filter keeps, some answers, the heads, and the causal check."""
    meta = result.meta
    needles, tokens = meta["needles"], meta["tokens"]
    where = f"{tokens['n_sequences']} {needles['kind']} needles in {needles['source']}. {tokens['bos']['statement']}"
    printing.say_model(meta["model"], where)
    grid = result.grid.to_dataframe()
    for name in result.variants:
        shown = grid[grid["variant"] == name]
        rows = []
        for depth in needles["depths"]:
            cells = shown[shown["depth"] == depth].set_index("length")
            spans = [f"{cells.loc[n, 'exact']:.2f} [{cells.loc[n, 'log_prob']:z.2f}]" for n in needles["lengths"]]
            rows.append([f"{depth:.0%}", *spans])
        printing.say_table(
            ["depth", *(f"{length:,}" for length in needles["lengths"])],
            rows,
            f"{name}: exact match by length (tokens) and depth",
            f"{int(shown['n'].min())} prompts per cell; in brackets the answer's log-probability per token",
        )
    printing.say_verdict(result.verdict)
    _print_filters(result)
    _print_heads(result)
    printing.say_verdict(check.verdict if check is not None else [])
    printing.say_notes(meta["warnings"] + (check.meta["warnings"] if check is not None else []))
    printing.say_saved(saved)


def _print_filters(result: Any) -> None:
    """How many prompts count as answered by each filter."""
    counts = result.answered()
    counts = counts[counts["keep"] != "all"]
    names = list(dict.fromkeys(counts["keep"]))
    rules = "; ".join(f"{name}: {counts.loc[counts['keep'] == name, 'rule'].iloc[0]}" for name in names)
    rows = []
    for variant in result.variants:
        mine = counts[counts["variant"] == variant].set_index("keep")
        rows.append([variant, *(f"{mine.loc[name, 'n']} of {mine.loc[name, 'of']}" for name in names)])
    printing.say_table(["model", *names], rows, "Prompts answered, by filter", rules, left=["model"])


def _print_heads(result: Any) -> None:
    """The retrieval heads, the strongest first."""
    found = None if result.meta["heads"] is None else result.retrieval_heads()
    if found is not None and len(found):
        rows = [
            [
                f"L{row['layer']}H{row['head']}",
                *(f"{row[name]:.3f}" for name in ("retrieval", "retrieval_event", "activation_frequency")),
                row["retrieval_band"],
            ]
            for row in found.head(20).to_dict("records")
        ]
        columns = ["head", "score", "event form", "activation frequency", "band"]
        printing.say_table(columns, rows, "Retrieval heads", left=["head"])
