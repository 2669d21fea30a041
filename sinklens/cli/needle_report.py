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
    printing.say_verdict(map(_sentence, result.summary().to_dict("records")))
    _print_filters(result)
    printing.say_verdict(_responses(result))
    _print_heads(result)
    printing.say_verdict(check.verdict if check is not None else [])
    printing.say_notes(meta["warnings"] + (check.meta["warnings"] if check is not None else []))
    printing.say_saved(saved)


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


def _responses(result: Any) -> list[str]:
    """What the unchanged model said to a few prompts: of each length one it answered and one it did not, at most 6."""
    from sinklens.studies.needles.result import CLEAN

    table = result.tables["instances"]
    if "contained" not in table or table["rouge1"].isna().all():
        return []
    answers = result.tables["prompts"].set_index("instance")["answer_text"]
    found = []
    clean = table[table["variant"] == CLEAN]
    for row in clean.groupby(["length", "contained"]).head(1).head(6).to_dict("records"):
        wanted = answers[row["instance"]]
        wanted = "" if wanted != wanted else f", the answer is {wanted!r}"
        right = f"{row['correct'] * row['n_answer']:.0f} of {row['n_answer']} answer tokens right"
        found.append(
            f"{row['length']:,} tokens, depth {row['depth']:.0%}: it says {row['response'].strip()!r}{wanted} "
            f"(ROUGE-1 recall {row['rouge1']:.2f}, {right} when forced)."
        )
    return found


def _print_heads(result: Any) -> None:
    if result.meta["heads"] is None:
        return
    scores = result.heads
    found = result.retrieval_heads()
    n_kept = scores.meta["n_kept"]
    if not n_kept:
        printing.say_verdict([scores.meta["warnings"][-1]])
        return
    printing.say_verdict(
        [
            f"{len(found)} of {len(scores.frame)} heads are retrieval heads (score of at least 0.1 over the {n_kept} "
            f"prompts that the filter {result.keep} keeps; an even draw of keys would score "
            f"{scores.frame['retrieval_null'].iloc[0]:.4f})."
        ]
    )
    if len(found):
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
