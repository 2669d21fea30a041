"""Section on domains: how heads differ between kinds of text."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table, text
from sinklens.app.sections.source import Downloads
from sinklens.plots.style import head_label

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_COLUMNS: Final = {
    "name": "head",
    "domain": "domain",
    "importance_first": "importance",
    "null_first": "null",
    "sink_rate_first": "sink rate",
    "mass_first": "attention of later queries",
    "is_sink_first": "sink",
    "importance_first_difference": "importance, against the rest",
    "importance_first_difference_low": "low",
    "importance_first_difference_high": "high",
}


def domains(census: "Census", downloads: Downloads) -> str:
    """How heads attend to position 0 on each domain."""
    table = census.tables["domains"]
    body = figure(plots.domain_differences(census), "fig-domains")
    if table.empty:
        return body
    n_heads = len(table[["layer", "head"]].drop_duplicates())
    counts = ", ".join(
        f"{int(rows['is_sink_first'].sum())} of {n_heads} heads on {name}"
        for name, rows in table.groupby("domain", sort=False)
    )
    low, high = table["importance_first_difference_low"], table["importance_first_difference_high"]
    once = (table["domain"] == table["domain"].iloc[0]) | (
        table["domain"].nunique() > 2
    )  # two domains mirror each other
    differing = table[((low > 0) | (high < 0)) & once].copy()
    differing["name"] = [head_label(row["layer"], row["head"]) for row in differing.to_dict("records")]
    size = differing["importance_first_difference"].abs()
    largest = differing.assign(size=size).sort_values("size", ascending=False, kind="stable").head(20)
    caption = "Largest differences whose interval excludes 0 (5 % of all would by chance)"
    listing = html_table(largest, _COLUMNS, caption=caption, words=("name", "domain")) if len(largest) else ""
    return f"<p>Position 0 is a sink for {text(counts)}.</p>\n{body}{listing}{downloads.button('domains')}"
