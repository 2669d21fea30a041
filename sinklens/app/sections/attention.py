"""Sections on attention: heads, positions, threshold, maps, tokens."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table, text
from sinklens.app.sections.source import Downloads
from sinklens.detectors.sink_ranking import by_importance
from sinklens.plots.sink_heatmap import HeadValue
from sinklens.plots.style import head_label

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_MAP_BYTES: Final = 2_500_000
"""Room for attention maps on the page; further ones stay in the saved census."""

_MORE_HEAD_MAPS: Final[tuple[HeadValue, ...]] = (
    "ratio",
    "importance_first",
    "entropy",
    "drain",
    "drain_wo",
    "delta_logit",
    "bos_mass",
    "missing_mass",
)

_HEAD_COLUMNS: Final = {
    "name": "head",
    "sink_position": "key",
    "importance": "importance",
    "null": "null",
    "ratio": "ratio",
    "sink_rate": "sink rate",
    "entropy": "entropy, nats",
    "entropy_null": "its null",
    "delta_logit": "logit margin",
    "drain": "|v| drain",
    "drain_wo": "|W_O v| drain",
    "missing_mass": "missing mass",
}


def sinks(census: "Census", downloads: Downloads) -> str:
    """Which heads have a sink."""
    heads, least = census.tables["heads"], census.meta["settings"].get("min_queries", "enough")
    body = (
        "<p>For every head, its strongest key: the one receiving most "
        f"attention among the keys seen by at least {text(least)} queries. A sink is judged beside its null: "
        "what that key would receive if attention were spread evenly.</p>\n"
        + figure(plots.sink_heatmap(census), "fig-sinks")
    )
    if heads.empty:
        return body + '<p class="na">Not applicable: no layer of this model has attention.</p>'
    measured = [value for value in _MORE_HEAD_MAPS if value in heads.columns]
    known = [value for value in measured if heads[value].notna().any()]
    absent = [value for value in measured if value not in known]
    more = [figure(plots.sink_heatmap(census, value=value, hover="value"), f"fig-heads-{value}") for value in known]
    body += f"<details><summary>More head maps ({len(more)})</summary>\n{''.join(more)}</details>\n"
    if absent:
        body += f'<p class="note">Not applicable to this model: {text(", ".join(absent))}.</p>'
    strongest = by_importance(heads).head(20)
    names = [head_label(int(row["layer"]), int(row["head"])) for row in strongest.to_dict("records")]
    body += html_table(
        strongest.assign(name=names),
        _HEAD_COLUMNS,
        caption=f"The {len(strongest)} heads with the highest importance",
        formats={
            "importance": ".3f",
            "null": ".4f",
            "sink_rate": ".2f",
            "entropy": ".2f",
            "entropy_null": ".2f",
        },
        words=("name",),
    )
    return body + downloads.button("heads") + downloads.button("sinks")


def positions(census: "Census", downloads: Downloads) -> str:
    """Where attention goes."""
    table = census.tables["sinks"]
    long = not table.empty and int(table["position"].max()) > 64
    by_layer = plots.received_mass(census, log_x=long)
    by_head = plots.received_mass(census, by="head", log_x=long)
    return (
        "<p>Attention received by each key position. A sink stands far above "
        "the dashed null; a curve on the null means no preference.</p>\n"
        + figure(by_layer, "fig-received")
        + "<details><summary>The strongest heads, one line each</summary>\n"
        + figure(by_head, "fig-received-heads")
        + "</details>"
    )


def threshold(census: "Census", downloads: Downloads) -> str:
    """Whether the verdict depends on the threshold."""
    fig = plots.eps_sweep(census)
    return (
        "<p>The sink rate counts keys that receive more than eps. A "
        "finding that holds at one eps only is a finding about eps.</p>\n"
        + figure(fig, "fig-eps")
        + downloads.button("eps_sweep")
    )


def maps(census: "Census", downloads: Downloads) -> str:
    """Attention maps that the census kept, while there is room."""
    body = "<p>Every map has the same colours, 0 to 1.</p>\n"
    if not census.maps:
        return body + '<p class="na">Not applicable: the census kept no map.</p>'
    written: list[str] = []
    room = _MAP_BYTES
    for kept in census.maps.values():
        room -= int(kept.values.size) * 16 // 3  # four bytes a cell, as base64
        if room < 0 and written:
            break
        written.append(figure(plots.attention_map(kept, side=280), f"fig-map-{len(written)}"))
    body += f'<div class="pair">{"".join(written)}</div>'
    left = ", ".join(list(census.maps)[len(written) :])
    if left:
        body += f'<p class="note">Left out to keep this file small: {text(left)}; see the saved census.</p>'
    return body


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
