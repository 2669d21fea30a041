"""Tokens of a sequence coloured by the attention they receive, as HTML."""

import html
import math
from typing import Final

import pandas as pd
import plotly.colors

from sinklens.errors import InputError
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.style import (
    INK,
    MISSING,
    MONO,
    MUTED,
    SANS,
    SEQUENTIAL,
    number,
    require_columns,
    visible_text,
)
from sinklens.wording import several

_STOPS: Final = 32
_SPAN: Final = 1e4


@draws(CENSUS, needs={"tokens": ("sequence", "position")}, settings={"min_queries": "settings.min_queries"})
def token_strip(tokens: pd.DataFrame, sequence: int = 0, *, limit: int = 600, min_queries: int = 10) -> str:
    """Write one sequence as HTML, every token coloured by its received attention.

    Colours are logarithmic from the smallest to the largest importance of the sequence, because a sink
    receives hundreds of times what others do; they span at most a factor of 10,000, and the legend says "≤"
    when smaller ones are clipped. Grey are tokens without a number and those seen by fewer than
    `min_queries` queries, whose importance rests on a handful of rows. A tooltip gives position, id,
    importance and what else the table knows. White space is written visibly (`·`, `⏎`) and every character is
    escaped: no token can become markup. The HTML carries its styles inline and no script; in a notebook use
    `IPython.display.HTML`.

    Args:
        tokens: A census, or one row per sequence and position with `sequence`, `position`, `token`, `received`; the
            other columns of a census's tokens table go into the tooltip when present.
        sequence: Which sequence.
        limit: Tokens written; a longer sequence is cut and the strip says so.
        min_queries: Fewest queries that a coloured token is seen by; default: the census's own number.

    Raises:
        InputError: when the table has no such sequence.
    """
    require_columns(tokens, ("sequence", "position", "token", "received"), "token_strip")
    rows = tokens[tokens["sequence"] == sequence].sort_values("position")
    if rows.empty:
        have = sorted(int(s) for s in tokens["sequence"].unique())
        raise InputError(f"token_strip found no sequence {sequence}; the table has {have[:10]}.")
    flag = "is_massive_absolute"
    if flag in rows and rows[flag].mean() >= 0.5:  # what is true of most tokens says nothing about one of them
        rows = rows.drop(columns=flag)
    judged = rows["received"].where(int(rows["position"].max()) + 1 - rows["position"] >= min_queries)
    high = float(judged.max()) if judged.max() > 0 else 1.0
    low = max(float(judged[judged > 0].min()) if judged.max() > 0 else 1.0, high / _SPAN)
    colours = plotly.colors.sample_colorscale(SEQUENTIAL, [i / (_STOPS - 1) for i in range(_STOPS)], colortype="tuple")
    spans = []
    for record, received in zip(rows.head(limit).to_dict("records"), judged, strict=False):
        if math.isnan(received):
            back, ink = MISSING, INK
        else:
            place = math.log(max(received, low) / low) / math.log(high / low) if high > low else 0.0
            back, ink = _hex(colours[round(place * (_STOPS - 1))])
        text = html.escape(visible_text(str(record["token"])))
        tip = html.escape(_tooltip({str(key): item for key, item in record.items()}))
        spans.append(f'<span title="{tip}" style="background:{back};color:{ink}">{text}</span>')
        if "\n" in str(record["token"]):
            spans.append("<br>")
    stops = ",".join(_hex(colour)[0] for colour in colours[::3])
    least = f"≤ {number(low)}" if (judged < low).any() else number(low)
    grey = f"; grey: seen by fewer than {min_queries} queries, or no attention" if judged.isna().any() else ""
    cut = f". First {limit:,} of {len(rows):,} tokens" if len(rows) > limit else ""
    legend = (
        f'<div style="font:12px {SANS};color:{MUTED};margin-bottom:8px">'
        "mean attention per query, log colours: "
        f'{least} <span style="display:inline-block;width:120px;height:10px;'
        f'background:linear-gradient(90deg,{stops})"></span> {number(high)}{grey}{cut}.</div>'
    )
    style = (
        "<style>.sinklens-strip span{padding:2px 1px;margin:1px;border-radius:3px;display:inline-block;"
        "unicode-bidi:isolate;white-space:pre}</style>"
    )
    body = f'<div class="sinklens-strip" style="font:14px/1.7 {MONO}">{"".join(spans)}</div>'
    return f"{style}{legend}{body}"


def _hex(colour: tuple[float, float, float]) -> tuple[str, str]:
    """Return the colour as #rrggbb and the ink, black or white, that can be read on it."""
    r, g, b = colour
    light = 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 > 0.18
    return f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}", "#000" if light else "#fff"


def _tooltip(record: dict[str, object]) -> str:
    lines = [f"position {record['position']}: {visible_text(str(record['token']))}"]
    if "token_id" in record:
        lines.append(f"id {record['token_id']}")
    lines.append(f"importance {number(float(str(record['received'])), '.4g')}")
    if "n_sink_heads" in record:
        heads = float(str(record["n_sink_heads"]))
        lines.append(f"sink of {'n/a' if heads != heads else several(int(heads), 'head')}")
    if "peak_ratio" in record:
        lines.append(f"residual peak {number(float(str(record['peak_ratio'])))} x median")
    flags = {
        "is_bos": "BOS",
        "is_special": "special",
        "is_massive_absolute": "|h| over the absolute threshold",
    }
    lines += [name for key, name in flags.items() if record.get(key)]
    return "\n".join(lines)
