"""Sections on attention: heads, positions, threshold, how heads attend, maps."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table, text
from sinklens.app.sections.source import Downloads, not_measured
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


def roles(census: "Census", downloads: Downloads) -> str:
    """How spread out each head's attention is, and the other numbers of every head."""
    heads = census.tables["heads"]
    if heads.empty:
        return '<p class="na">Not applicable: no layer of this model has attention.</p>'
    if "state_norms" in census.tables:
        scatter = figure(census.plot.entropy_scatter(), "fig-entropy")
    else:
        scatter = f'<p class="na">{text(not_measured(census, "sinklens.scan(model)"))}</p>'
    measured = [value for value in _MORE_HEAD_MAPS if value in heads.columns]
    known = [value for value in measured if heads[value].notna().any()]
    unmeasured = [value for value in _MORE_HEAD_MAPS if value not in heads.columns]
    absent = [value for value in measured if value not in known]
    more = [figure(plots.sink_heatmap(census, value=value, hover="value"), f"fig-heads-{value}") for value in known]
    body = (
        "<p>A head that rests on its sink has a low entropy, and a sink with a short key is one of direction, not of "
        "length. What heads do beside that (copying, induction, retrieval) is measured by <code>sinklens roles</code>."
        f"</p>\n{scatter}<details><summary>Head maps ({len(more)})</summary>\n{''.join(more)}</details>\n"
    )
    if absent:
        body += f'<p class="note">Not applicable to this model: {text(", ".join(absent))}.</p>'
    if unmeasured:
        body += f'<p class="note">Not measured in this run: {text(", ".join(unmeasured))}.</p>'
    return body


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
