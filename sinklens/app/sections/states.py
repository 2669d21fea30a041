"""Sections on norms: drained values, residual peaks, and states, keys and values by layer and token."""

from typing import TYPE_CHECKING, Final

from sinklens import plots
from sinklens.app.page import figure, html_table, text
from sinklens.app.sections.source import Downloads, not_measured
from sinklens.plots.style import head_label

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_SHOWN: Final = 8
_DRAIN_COLUMNS: Final = {
    "name": "head",
    "sink_position": "key",
    "drain_wo": "|W_O v|, of the others'",
    "drain": "|v|, of the others'",
    "importance": "importance",
}
_PEAK_COLUMNS: Final = {
    "layer": "layer",
    "position": "position",
    "token": "token",
    "n_largest": "sequences where it is the largest",
    "n_peaks": "sequences where it is a peak",
    "n_of": "of sequences",
    "peak_ratio": "× median norm",
}
_PEAKS: Final = "Tokens that are peaks in most sequences, each after the layer where most often ({n} of {total} shown)"


def drains(census: "Census", downloads: Downloads) -> str:
    """How short the values of the heads' sinks are."""
    heads = census.tables["heads"]
    if heads.empty:
        return '<p class="na">Not applicable: no layer of this model has attention.</p>'
    if "drain" not in heads.columns:
        return f'<p class="na">{text(not_measured(census, "sinklens.scan(model)"))}</p>'
    scatter = figure(plots.drain_scatter(census), "fig-drains")
    body = (
        "<p>A sink that takes attention and adds nothing has a short value: below 1 it is shorter than the other "
        f"tokens'.</p>\n{scatter}"
    )
    known = [name for name in ("drain_wo", "drain") if name in heads.columns and heads[name].notna().any()]
    if known and heads["is_sink"].any():
        sinks = heads[heads["is_sink"]].sort_values([known[0], "layer", "head"], kind="stable").head(_SHOWN)
        sinks = sinks.assign(name=[head_label(row["layer"], row["head"]) for row in sinks.to_dict("records")])
        caption = f"The sink heads with the shortest values ({len(sinks)} of {int(heads['is_sink'].sum())} shown)"
        body += html_table(sinks, _DRAIN_COLUMNS, caption=caption, words=("name",))
    if "profile" in census.tables and not census.tables["profile"].empty:
        values = "".join(
            figure(plots.norms_by_token(census, value=value), f"fig-{value}")
            for value in ("value_norm", "wo_value_norm")
        )
        body += (
            "<p>The first sequence, token by token: a drained value is a dark cell.</p>"
            f"<details open><summary>Norms of values</summary>{values}</details>"
        )
    return body + (downloads.button("value_drains") if "value_drains" in census.tables else "")


def peaks(census: "Census", downloads: Downloads) -> str:
    """Residual peaks by layer, and which tokens have them."""
    body, found = figure(plots.residual_peaks(census), "fig-peaks"), census.tables.get("peaks")
    if found is not None and (found["n_peaks"] > 0).any():  # a census made before it has no such table
        order = ["n_peaks", "n_largest", "peak_ratio", "layer", "position", "token"]
        ordered = found.sort_values(order, ascending=[False, False, False, True, True, True])
        each = ordered[ordered["n_peaks"] > 0].drop_duplicates(["position", "token"])
        caption = _PEAKS.format(n=min(_SHOWN, len(each)), total=len(each))
        body += html_table(each.head(_SHOWN), _PEAK_COLUMNS, caption=caption, tokens=("token",))
    if "profile" in census.tables and census.tables["profile"].get("resid_norm") is not None:
        shown = figure(plots.norms_by_token(census, value="resid_norm"), "fig-resid_norm")
        body += f"<p>The first sequence, token by token: a residual peak is a bright column.</p>\n{shown}"
    return f"{body}{downloads.button('layers')}"


def states(census: "Census", downloads: Downloads) -> str:
    """Norms of position 0's states, keys and values against the others'."""
    if "state_norms" not in census.tables:
        return f'<p class="na">{text(not_measured(census, "sinklens.scan(model)"))}</p>'
    return figure(plots.state_norms(census), "fig-states") + downloads.button("state_norms")
