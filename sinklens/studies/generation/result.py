"""What generated tokens become: sinks, drains and massive entries, by step and by token."""

from dataclasses import dataclass

import pandas as pd

from sinklens.results.result import Result
from sinklens.wording import are, several

FORMAT = "sinklens-generation"


@dataclass(frozen=True)
class Generation(
    Result,
    format=FORMAT,
    title="Sinks while generating",
    newest=1,
    needs=("steps", "tokens"),
    header=("settings", "metrics"),
):
    """A text as it was generated: what each new token attends to, and what became of it.

    Attributes:
        meta: Model, settings, definitions; ``text`` is what was generated.
        tables: ``steps`` and ``tokens``.
    """

    @property
    def steps(self) -> pd.DataFrame:
        """One row per generated token, as its own pass found it.

        Columns: step (from 0), position, token_id, token; mass_first (attention to position 0, mean over heads that see
        it) and n_first (heads that give it more than eps); null (1 over the keys in sight); max_abs with its layer and
        channel and ratio (over the running median magnitude after that layer), is_massive; n_drained_heads (heads whose
        ``|W_O v|`` at this token is below half of the running mean over the tokens before).
        """
        return self.tables["steps"]

    @property
    def tokens(self) -> pd.DataFrame:
        """One row per token, those of the prompt too, at the end.

        Columns: position, token_id, token, generated; importance (attention from itself and all later tokens, mean over
        them and over heads), importance_max and null; n_sink_heads (heads with more than eps; missing where fewer than
        min_queries tokens follow); max_abs, is_massive, n_drained_heads as in ``steps``.
        """
        return self.tables["tokens"]

    @property
    def verdict(self) -> list[str]:
        """Which generated tokens became sinks or massive, and what happened to position 0."""
        return generation_words(self.steps, self.tokens)


def generation_words(steps: pd.DataFrame, tokens: pd.DataFrame) -> list[str]:
    """The sink on position 0 over the steps, then the generated tokens that stand out."""
    if steps.empty:
        return ["Nothing was generated."]
    count = len(steps)
    part = max(1, count // 4)
    first, last = steps["mass_first"].iloc[:part].mean(), steps["mass_first"].iloc[-part:].mean()
    out = []
    if first == first:
        out.append(
            f"{several(count, 'token')} generated; attention to position 0, mean over heads: {first:.2f} in the "
            f"first quarter of the steps, {last:.2f} in the last ({steps['null'].iloc[-1]:.3f} by even attention)."
        )
    new = tokens[tokens["generated"]]
    sinks = new[new["n_sink_heads"].fillna(0) > 0]
    judged = int(new["n_sink_heads"].notna().sum())
    if len(sinks):
        some = several(judged, "generated token")
        text = f"{len(sinks)} of {some} with enough tokens after them {are(len(sinks))} the sink of some head"
        top = sinks.sort_values(["n_sink_heads", "position"], ascending=[False, True]).iloc[0]
        text += (
            f", most of all {top['token']!r} at position {int(top['position'])} "
            f"({several(int(top['n_sink_heads']), 'head')})"
        )
        out.append(f"{text}.")
    elif judged:
        out.append(f"None of {several(judged, 'generated token')} with enough tokens after them is a sink of any head.")
    else:
        out.append("No generated token has enough tokens after it to tell whether it is a sink.")
    massive = new[new["is_massive"].astype(bool)]
    if len(massive):
        top = massive.sort_values(["max_abs", "position"], ascending=[False, True]).iloc[0]
        text = (
            f"{len(massive)} of {several(len(new), 'generated token')} {are(len(massive))} massive, most of "
            f"all {top['token']!r} at position {int(top['position'])} (|h| {top['max_abs']:.4g})"
        )
        if 2 * len(massive) > len(new) > 1:
            text += "; a channel that is large at most tokens tells none of them apart"
        out.append(f"{text}.")
    else:
        out.append(f"None of {several(len(new), 'generated token')} is massive.")
    return out
