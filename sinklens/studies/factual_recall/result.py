"""Which heads bring the topic, and which late layer holds the right answer down."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.detectors.wording import layer_runs
from sinklens.evidence.controls import compare_with_controls
from sinklens.results.result import Result
from sinklens.wording import changed

FORMAT = "sinklens-factual-recall"
SDS = 5.0
"""Standard deviations of shuffled topics from which a head is a topic head."""
HEAD_COLUMNS = ("name", "layer", "head", "topic", "low", "high", "shuffled", "sds", "answer", "is_topic", "chosen")
PRUNED_COLUMNS = ("kind", "draw", "heads", "logit_diff", "change", "low", "high")
LAYER_COLUMNS = (
    "layer", "choosing", "answer", "rivals", "total", "low", "high", "attention", "rest", "lens", "skipped",
    "skipped_low", "skipped_high",
)  # fmt: skip


@dataclass(frozen=True)
class FactualRecall(
    Result,
    format=FORMAT,
    title="Factual recall",
    newest=1,
    needs=("layers", "heads", "pruned"),
    header=("settings", "clean", "suppressor"),
):
    """How a model recalls facts such as capitals: chosen on every other fact, judged on the rest.

    Attributes:
        meta: Model, settings; ``clean``: facts given, known and judged, and the answer's mean logit difference and
            log-probability on the judged ones; ``suppressor``: the late layer that takes most from the right answer
            on the facts that choose, or None.
        tables: ``layers``, ``heads`` and ``pruned``.
    """

    @property
    def layers(self) -> pd.DataFrame:
        """One row per layer, at the last token, in logits with the final norm frozen.

        Columns: layer; choosing (``total`` on the facts that choose); on the judged facts: answer and rivals (what the
        layer adds to the right answer and to the other facts' answers, each over the mean of all logits), total
        (answer - rivals) with low and high, attention and rest (its parts); lens (log-probability of the answer if the
        network ended there, nats); skipped (its change when the layer adds nothing at the last token) with
        skipped_low and skipped_high.
        """
        return self.tables["layers"]

    @property
    def heads(self) -> pd.DataFrame:
        """One row per head, on the facts that choose; empty where heads cannot be read by themselves.

        Columns: name, layer, head; topic (what its write adds to the prompt's topic over the other facts' topics,
        logits) with low and high, shuffled (the same with topics exchanged between prompts), sds (how many
        standard deviations of shuffled topics it lies above them); answer (the same for the answers); is_topic (5 sds
        or more and the interval above 0), chosen.
        """
        return self.tables["heads"]

    @property
    def pruned(self) -> pd.DataFrame:
        """One row per set of heads put to their mean output, on the judged facts.

        Columns: kind (topic, random), draw, heads, logit_diff (right answer less another fact's), change, low, high.
        """
        return self.tables["pruned"]

    @property
    def verdict(self) -> list[str]:
        """The topic heads and what they do, then the late layer that takes from the right answer."""
        return recall_words(self.layers, self.heads, self.pruned, self.meta["clean"], self.meta["suppressor"])


def recall_words(
    layers: pd.DataFrame, heads: pd.DataFrame, pruned: pd.DataFrame, clean: dict[str, Any], suppressor: int | None
) -> list[str]:
    """See :attr:`FactualRecall.verdict`."""
    out = [
        f"The model knows {clean['known']} of {clean['given']} facts (its right answer lies above all the others'); "
        f"{clean['judged']} of them judge what the others choose."
    ]
    if len(heads):
        some = heads[heads["is_topic"].astype(bool)]
        text = f"{len(some)} of {len(heads)} heads {'writes' if len(some) == 1 else 'write'} the topic at the last "
        text += "token, beyond topics exchanged between prompts"
        if len(some):
            top = some.sort_values("topic", ascending=False, kind="stable").iloc[0]
            text += (
                f", most of all {top['name']} ({changed(top['topic'], top['low'], top['high'])} logits over "
                f"other topics, exchanged {changed(top['shuffled'])})"
            )
        out.append(f"{text}.")
    rows: list[Any] = [*pruned[pruned["kind"] == "topic"].itertuples()]
    for row in rows:
        others = pruned[pruned["kind"] == "random"]["change"]
        text = (
            f"Without {row.heads} (mean) the right answer leads another by {row.logit_diff:.2f} instead of "
            f"{clean['logit_diff']:.2f} logits (change {changed(row.change, row.low, row.high)})"
        )
        if len(others):
            beside = compare_with_controls(-float(row.change), (-others).tolist())
            text += f"; as many random heads {changed(-beside.mean)}, p = {beside.p:.2g}"
        out.append(f"{text}.")
    out.append(_suppression(layers, suppressor))
    return out


def _suppression(layers: pd.DataFrame, suppressor: int | None) -> str:
    late = layers[layers["layer"] >= late_from(len(layers))]
    begin = f"Late layers ({layer_runs(late['layer'].tolist())}):"
    if suppressor is None:
        return f"{begin} none takes from the right answer on the facts that choose."
    row: Any = layers.set_index("layer").loc[suppressor]
    held = row["high"] < 0
    text = (
        f"{begin} layer {suppressor} takes most from the right answer on the facts that choose; on the judged ones it "
        f"changes its logit by {changed(row['total'], row['low'], row['high'])} against other answers' "
        f"({changed(row['answer'])} and {changed(row['rivals'])} over the mean of all): "
    )
    text += "it holds the right answer down" if held else "the choice does not hold"
    text += ". Left out at the last token, the answer's log-probability changes by "
    text += f"{changed(row['skipped'], row['skipped_low'], row['skipped_high'])} nats"
    others = late[late["layer"] != suppressor]["skipped"]
    return text + (f" (median of the other late layers {changed(others.median())})." if len(others) else ".")


def late_from(n_layers: int) -> int:
    """The first of the last third of the layers.

    >>> late_from(30), late_from(3), late_from(1)
    (20, 2, 0)
    """
    return n_layers - max(1, n_layers // 3)
