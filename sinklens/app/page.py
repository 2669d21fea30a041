"""Pieces of the report page: figures, tables and their downloads as escaped, self-contained HTML."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from sinklens.plots.style import CONFIG, number, visible_text

_CSP: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'none'; base-uri 'none'; form-action 'none'"
)
"""Forbids every request; Plotly needs its inline script and styles, and images for its PNG button."""

NOT_APPLICABLE: Final = '<span class="na">n/a</span>'


def text(value: object) -> str:
    """Escape anything for HTML text or a quoted attribute; unpaired surrogates become visible escapes."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"), quote=True)


def cell(value: object, spec: str = "") -> str:
    """Write a table cell; None and NaN are "n/a", never 0.

    >>> cell(0.12345), cell(float("nan")), cell(True), cell(1234567)
    ('0.123', '<span class="na">n/a</span>', 'yes', '1,234,567')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return NOT_APPLICABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return number(value, spec) if isinstance(value, float) else text(value)


def figure(fig: go.Figure, name: str) -> str:
    """Embed a figure as data that the page's script draws; `name` must be unique on the page.

    A figure without traces only says why there is nothing to draw; that becomes a paragraph.
    """
    title = html.unescape(str(fig.layout.title.text or name).split("<br>")[0])
    if not fig.data:
        why = html.unescape(str(fig.layout.annotations[0].text).replace("<br>", " "))
        return f'<p class="na">{text(title)}. {text(why)}</p>'
    data: str = plotly.io.to_json(fig, validate=False)
    height = int(fig.layout.height or 450)
    return (
        f'<div class="frame"><div class="figure" id="{name}" style="height:{height}px" role="figure" '
        f'aria-label="{text(title)}"></div></div>\n{script_data(f"{name}-data", data)}'
    )


def script_data(name: str, json_text: str) -> str:
    r"""Put JSON into the page so that no string inside it can end the element.

    `<`, `>` and `&` stand only inside JSON strings, where `\u003c` means the same.
    """
    safe = json_text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def html_table(
    rows: pd.DataFrame,
    columns: Mapping[str, str],
    *,
    caption: str = "",
    formats: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
    tokens: Sequence[str] = (),
) -> str:
    """Write a DataFrame as an HTML table.

    Args:
        rows: Rows to write, all of them.
        columns: Column name to heading, in order; columns that `rows` lacks are left out.
        caption: Plain text above the table.
        formats: Column name to format of its floats; otherwise each column has one precision, see
            :func:`column_format`.
        words: Columns set flush left.
        tokens: Columns with token strings, written with visible white space.
    """
    present = {name: heading for name, heading in columns.items() if name in rows.columns}
    formats = {name: column_format(rows[name]) for name in present} | dict(formats or {})
    kinds = {name: "token" if name in tokens else "text" if name in words else "" for name in present}
    head = "".join(
        f'<th scope="col"{" class=text" if kinds[name] else ""}>{text(heading)}</th>'
        for name, heading in present.items()
    )
    body = []
    for record in rows[list(present)].to_dict("records"):
        cells = []
        for name, kind in kinds.items():
            value = record[name]
            if kind == "token" and isinstance(value, str):
                shown = text(visible_text(value))
            else:
                shown = cell(value, formats[name])
            cells.append(f'<td class="{kind}">{shown}</td>' if kind else f"<td>{shown}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def column_format(values: "pd.Series[Any]") -> str:
    """Return the format of a column's floats: as many decimals for all as give its median three digits.

    A column of whole numbers has none. Small values get the decimals that they need to differ from 0, and where that
    would take more than six, as in a column over many decades, every number has three digits of its own.

    >>> (
    ...     column_format(pd.Series([0.5, 12.25])),
    ...     column_format(pd.Series([2.0, 4000.0])),
    ...     column_format(pd.Series([1e-9, 1.0])),
    ... )
    (',.2f', ',.0f', '.3g')
    """
    if not pd.api.types.is_float_dtype(values):
        return ""
    sizes = values.abs().replace([math.inf], math.nan).dropna()
    sizes = sizes[sizes > 0]
    if sizes.empty or (sizes % 1 == 0).all():
        return ",.0f"
    decimals = max(0, 2 - math.floor(math.log10(float(sizes.median()))))
    needed = -math.floor(math.log10(float(sizes.min())))
    if needed > 6 or decimals > 6:
        return ".3g"
    return f",.{max(decimals, needed, 0)}f"


def facts(pairs: Mapping[str, object]) -> str:
    """Write label and value pairs as a definition list; None and NaN values are "n/a"."""
    items = "".join(f"<div><dt>{text(key)}</dt><dd>{cell(value)}</dd></div>" for key, value in pairs.items())
    return f'<dl class="facts">{items}</dl>'


def callout(sentences: Sequence[str], *, warning: bool = False) -> str:
    """Write sentences into a box; nothing when there are none."""
    if not sentences:
        return ""
    body = text(sentences[0])
    if len(sentences) > 1:
        body = f"<ul>{''.join(f'<li>{text(sentence)}</li>' for sentence in sentences)}</ul>"
    return f'<div class="callout{" warn" if warning else ""}">{body}</div>'


def document(title: str, header: str, sections: Sequence[tuple[str, str, str]], data: Sequence[str]) -> str:
    """Assemble the page, plotly.js inlined once.

    Args:
        title: Plain text.
        header: HTML above the navigation.
        sections: Anchor, label in the navigation (plain text) and HTML of every section.
        data: Elements that hold data and show nothing.
    """
    assets = files("sinklens.app") / "assets"
    return Template((assets / "report.html").read_text("utf-8")).substitute(
        policy=_CSP,
        title=text(title),
        style=(assets / "report.css").read_text("utf-8"),
        header=header,
        links="".join(f'<a href="#{anchor}">{text(label)}</a>' for anchor, label, _ in sections),
        sections="\n".join(f'<section id="{anchor}">\n{body}\n</section>' for anchor, _, body in sections),
        data="\n".join([*data, script_data("plot-config", json.dumps(CONFIG))]),
        plotly=get_plotlyjs(),
        script=(assets / "report.js").read_text("utf-8"),
    )
