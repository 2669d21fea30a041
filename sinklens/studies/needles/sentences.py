"""What a needle test shows, in sentences: the rates of every variant, the heads that copied, and what was said."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sinklens.detectors.retrieval_bands import RETRIEVAL_HEAD
from sinklens.evidence.bootstrap import MIN_PAIRS
from sinklens.wording import several


def rates(row: Mapping[Any, Any]) -> str:
    """One variant over all lengths and depths, from its row of the summary."""

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


def heads(scores: pd.DataFrame, n_kept: int, keep: str) -> str:
    """How many heads copied the answers that count.

    Args:
        scores: Of every head.
        n_kept: Prompts that count.
        keep: Name of the filter that keeps them.
    """
    found = int((scores["retrieval"] >= RETRIEVAL_HEAD).sum())
    return (
        f"{found} of {several(len(scores), 'head')} {'is a retrieval head' if found == 1 else 'are retrieval heads'} "
        f"(score of at least {RETRIEVAL_HEAD:g} over the {several(n_kept, 'prompt')} that the filter {keep} "
        f"keeps; an even draw of keys would score {scores['retrieval_null'].iloc[0]:.4f})."
    )


def responses(clean: pd.DataFrame, prompts: pd.DataFrame) -> list[str]:
    """What the unchanged model said to a few prompts: of each length one it answered and one it did not, at most 6.

    Args:
        clean: Its rows of the table of instances; nothing is said where nothing was decoded.
        prompts: The table of prompts.
    """
    if "contained" not in clean or clean["rouge1"].isna().all():
        return []
    answers, found = prompts.set_index("instance")["answer_text"], []
    for row in clean.groupby(["length", "contained"]).head(1).head(6).to_dict("records"):
        wanted = answers[row["instance"]]
        wanted = "" if wanted != wanted else f", the answer is {wanted!r}"
        right = f"{row['correct'] * row['n_answer']:.0f} of {row['n_answer']} answer tokens right"
        found.append(
            f"{row['length']:,} tokens, depth {row['depth']:.0%}: it says {row['response'].strip()!r}{wanted} "
            f"(ROUGE-1 recall {row['rouge1']:.2f}, {right} when forced)."
        )
    return found
