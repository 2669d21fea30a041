"""The section on kinds of tokens: which strings and classes are sinks, massive or drained."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table
from sinklens.app.sections.source import Downloads

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
    caption = f"By token, {len(named)} of {total}, the most sink tokens first"
    body += html_table(named, _COLUMNS, caption=caption, words=("occurrence",), tokens=("name",))
    return intro + body + downloads.button("token_types")
