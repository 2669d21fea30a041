"""Sections on kinds: which strings and classes of tokens are sinks, and how heads differ between kinds of text."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table, text
from sinklens.app.sections.source import Downloads
from sinklens.plots.style import head_label

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_COLUMNS: Final = {
    "name": "token",
    "occurrence": "occurrence",
    "n_tokens": "tokens",
    "token_share": "share of all tokens (null)",
    "n_sinks": "sink tokens",
    "sink_rate": "rate",
    "sink_share": "share of sink tokens",
    "sink_heads_median": "heads, median",
    "n_massive_absolute": "> 100",
    "n_massive_ratio": "> 1000 × median",
    "drained_heads_median": "drained heads, median",
}
_SHOWN: Final = 15
_DOMAINS: Final = {
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


def token_types(census: "Census", downloads: Downloads) -> str:
    """Classes of tokens, and the token strings that are most often sinks."""
    table = census.tables["token_types"]
    classes, named = table[table["by"] == "class"], table[table["by"] == "token"].head(_SHOWN)
    intro = (
        "<p>A sink token is a sink for at least 5 % of the heads. Compare its share of the sink tokens with its share "
        "of all tokens: position 0 (start) stands by itself, the others are compared with one another.</p>\n"
    )
    body = figure(plots.token_types(census), "fig-token-types")
    body += html_table(classes, _COLUMNS | {"name": "class"}, caption="By class", words=("name", "occurrence"))
    total = int((table["by"] == "token").sum())
    if not total:
        body += '<p class="na">No token comes twice and none stands out, so none is listed by name.</p>'
        return intro + body + downloads.button("token_types")
    caption = f"By token, {len(named)} of {total}, the most sink tokens first"
    body += html_table(named, _COLUMNS, caption=caption, words=("occurrence",), tokens=("name",))
    return intro + body + downloads.button("token_types")


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
    # two domains mirror each other
    once = (table["domain"] == table["domain"].iloc[0]) | (table["domain"].nunique() > 2)
    differing = table[((low > 0) | (high < 0)) & once].copy()
    differing["name"] = [head_label(row["layer"], row["head"]) for row in differing.to_dict("records")]
    size = differing["importance_first_difference"].abs()
    largest = differing.assign(size=size).sort_values("size", ascending=False, kind="stable").head(20)
    caption = "Largest differences whose interval excludes 0 (5 % of all would by chance)"
    listing = html_table(largest, _DOMAINS, caption=caption, words=("name", "domain")) if len(largest) else ""
    return f"<p>Position 0 is a sink for {text(counts)}.</p>\n{body}{listing}{downloads.button('domains')}"


def token_strips(census: "Census", downloads: Downloads) -> str:
    """Tokens coloured by what they receive."""
    table = census.tables["tokens"]
    sequences = sorted(int(s) for s in table["sequence"].unique())
    if not sequences:
        return '<p class="na">Not applicable: no token was recorded.</p>'
    body = (
        "<p>Attention received, mean over all heads. Hover over a token for its "
        "numbers.</p>\n"
        f'<div class="strip">{plots.token_strip(census, sequences[0])}</div>'
    )
    for sequence in sequences[1:3]:
        strip = plots.token_strip(census, sequence, limit=300)
        body += f'<details><summary>Sequence {sequence}</summary><div class="strip">{strip}</div></details>'
    return body + downloads.button("tokens")
