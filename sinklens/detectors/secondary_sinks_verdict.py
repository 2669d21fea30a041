"""Secondary sinks in words."""

import pandas as pd

from sinklens.wording import several


def describe_secondary(table: pd.DataFrame) -> list[str]:
    """Only where there are some: most models and short texts have none."""
    found = table[table["label"] == "secondary"]
    if found.empty:
        return []
    order = ["importance_max", "sequence", "position"]
    top = found.sort_values(order, ascending=[False, True, True]).iloc[0]
    names = found["token"].value_counts()
    name = min(names[names == names.max()].index)
    many, sequences = len(found) > 1, found["sequence"].nunique()
    often = f"; {names.max()} of them {'are' if names.max() > 1 else 'is'} {name!r}" if names.max() > 2 else ""
    return [
        f"Secondary sinks: {several(len(found), 'token')} in {several(sequences, 'sequence')} "
        f"point{'' if many else 's'} along the BOS (or the first token that stands for it) for part of its life and "
        f"{'are' if many else 'is'} attended to{often}. The strongest is {top['token']!r} at position "
        f"{int(top['position'])} of sequence {int(top['sequence'])}, after layers {int(top['first_layer'])} to "
        f"{int(top['last_layer'])}, importance {top['importance_max']:.2f}."
    ]
