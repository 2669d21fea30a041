"""The report's first screen: what was found, each sentence with its section, and four numbers."""

import math
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from sinklens.app.page import callout, text
from sinklens.plots.style import number
from sinklens.results.provenance import model_words, token_words

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census


_SAID_IN: Final[dict[str, tuple[str, ...]]] = {
    "sinks": ("Position ", "No attention sink", "Attention sinks", "No verdict on attention", "By layer",
              "Out of reach", "Hard to reach", "Per query"),
    "roles": ("Virtual sink", "Output gates"),
    "drains": ("Value-state", "No value-state"),
    "peaks": ("Residual peak", "No residual peak", "Mild residual peak", "Growth", "Elsewhere", "Single tokens"),
    "massive": ("Massive", "No massive", "Not token-specific", "A sequence's largest"),
    "types": ("After position 0",),
    "secondary": ("Secondary sinks",),
    "domains": ("By domain", "The domains"),
}  # fmt: skip
"""How the sentences of a section begin."""

_SHOWN_FROM: Final = {
    "sinks": "heads", "roles": "heads", "drains": "heads", "peaks": "residual_norms", "massive": "massive",
    "types": "token_types", "secondary": "secondary_sinks", "domains": "domains",
}  # fmt: skip
"""A table without which the section has no figure."""


def header(census: "Census") -> str:
    """Write the verdict in words, and four numbers."""
    meta = census.meta
    verdict = [str(sentence) for sentence in meta["verdict"]] or ["No verdict was recorded."]
    rest = "".join(f"<li>{_linked(sentence, census)}</li>" for sentence in verdict[1:])
    tiles = "".join(f'<div class="tile"><b>{text(n)}</b><span>{text(what)}</span></div>' for n, what in _tiles(census))
    return (
        f'<p class="kind">sinklens census of extreme tokens</p>\n<h1>{text(meta["model"]["name"])}</h1>\n'
        f'<p class="note">{text(model_words(meta["model"]))}. {text(token_words(meta["tokens"]))}</p>\n'
        f'<p class="headline">{_linked(verdict[0], census)}</p>\n'
        + (f'<ul class="verdict">{rest}</ul>\n' if rest else "")
        + callout(list(meta["warnings"]), warning=True)
        + f'<div class="tiles">{tiles}</div>'
    )


def section_of(sentence: str) -> str | None:
    """The section that shows what a sentence of the verdict says; None for one that no section shows.

    >>> section_of("Value-state drain in 3 of 6 sink heads.")
    'drains'
    """
    return next((anchor for anchor, beginnings in _SAID_IN.items() if sentence.startswith(beginnings)), None)


def _linked(sentence: str, census: "Census") -> str:
    """A sentence with a link to its section, if the report has it."""
    anchor = section_of(sentence)
    words = text(sentence)
    if anchor is None or _SHOWN_FROM[anchor] not in census.tables:
        return words
    return f'{words} <a class="see" href="#{anchor}">Figure</a>'


def _tiles(census: "Census") -> list[tuple[str, str]]:
    """Number and meaning; what the scan did not measure has no tile, what is not applicable says so."""
    layers, settings = census.tables["layers"], census.meta["settings"]
    tiles = []
    heads = census.tables.get("heads")
    if heads is not None and heads.empty:
        tiles.append(("n/a", "sink heads: not applicable, the model has no attention"))
        tiles.append(("n/a", "sink rate at position 0: not applicable"))
    elif heads is not None:
        rule = f"sink rate at least {settings.get('sink_head_rate', '?')}"
        if "sink_head_ratio" in settings:
            rule += f" and {number(settings['sink_head_ratio'])} × the null"
        tiles.append((f"{int(heads['is_sink'].sum()):,} of {len(heads):,}", f"heads are sink heads ({rule})"))
        rate = number(float(heads["sink_rate_first"].mean()))
        tiles.append((rate, f"sink rate at position 0, mean over heads (eps {settings.get('eps', '?')})"))
    peak = _largest(layers, "resid_ratio")
    if peak is not None:
        label = f"largest residual norm of position 0 relative to the others, {_at(peak)}"
        tiles.append((f"{number(peak['resid_ratio'])} ×", label))
    top = _largest(layers, "max_abs")
    if top is not None:
        ratio = float(top["max_over_median"])
        times = "" if math.isnan(ratio) else f", {number(ratio)} × the median"
        tiles.append((number(top["max_abs"]), f"largest hidden-state entry |h|, {_at(top)}{times}"))
    return tiles


def _largest(layers: pd.DataFrame, column: str) -> dict[str, Any] | None:
    if column not in layers.columns or layers[column].isna().all():
        return None
    best = layers.dropna(subset=[column]).sort_values(column, kind="stable").iloc[-1]
    return {str(key): value for key, value in best.items()}


def _at(row: dict[str, Any]) -> str:
    return "at the embedding" if row["layer"] < 0 else f"after layer {int(row['layer'])}"
