"""One self-contained HTML report of a result of any kind: verdict, sections, definitions, provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sinklens.app.drawings import drawings
from sinklens.app.page import callout, document, facts, figure, html_table, text
from sinklens.app.sections.source import Downloads
from sinklens.errors import ResultError
from sinklens.results.files import write_atomically
from sinklens.results.provenance import model_words, token_words
from sinklens.results.result import Result

_SHOWN = 50

Sections = Sequence[tuple[str, str, str]]
"""Anchor, label in the navigation and HTML of each section."""


def write_report(
    result: Result,
    path: Path,
    sections: Sections | None = None,
    known: Mapping[str, object] | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write a result as one HTML file that opens offline; see :meth:`~sinklens.results.Result.report`.

    Args:
        result: What a run left.
        path: File to write; missing folders are made.
        sections: What is special about the kind; default: its figures and its tables.
        known: Facts beside those about the model, the texts and the definitions.
        tables: What the page lets its reader save; default: all tables of the result.

    Raises:
        ResultError: The file cannot be written.
    """
    downloads = Downloads(result.tables if tables is None else tables)
    body = [*(_figures_and_tables(result) if sections is None else sections)]
    body.append(("definitions", "Definitions", _definitions(result, known or {}, downloads)))
    headline = "".join(f'<p class="headline">{text(sentence)}</p>\n' for sentence in result.verdict[:1])
    rest = "".join(f"<li>{text(sentence)}</li>" for sentence in result.verdict[1:])
    kind = f"sinklens {result.title[0].lower()}{result.title[1:]}"
    head = f'<p class="kind">{text(kind)}</p>\n<h1>{text(result.model_name)}</h1>\n{headline}'
    head += f'<ul class="verdict">{rest}</ul>' if rest else ""
    return write_page(document(f"{result.model_name}: {kind}", head, body, downloads.data()), path)


def write_page(page: str, target: Path) -> Path:
    """Write a page under its name once it is complete; missing folders are made.

    Raises:
        ResultError: when the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"Expected a folder at {target.parent}, but {error.strerror or error}.") from error
    return write_atomically(target, page.encode("utf-8", "backslashreplace"))


def _figures_and_tables(result: Result) -> list[tuple[str, str, str]]:
    out = []
    drawn = [
        figure(draw(result.tables), f"figure{place}") for place, draw in enumerate(drawings(result.format).values())
    ]
    if drawn:
        out.append(("figures", "Figures", "<h2>Figures</h2>\n" + "\n".join(drawn)))
    for place, (name, table) in enumerate(result.tables.items()):
        caption = f"{min(_SHOWN, len(table)):,} of {len(table):,} rows"
        words = [str(column) for column in table if not pd.api.types.is_numeric_dtype(table[column])]
        columns = {str(column): str(column) for column in table}
        shown = html_table(table.head(_SHOWN), columns, caption=caption, words=words)
        out.append((f"table{place}", name, f"<h2>{text(name)}</h2>\n{shown}"))
    return out


def _definitions(result: Result, known: Mapping[str, object], downloads: Downloads) -> str:
    meta = result.meta
    told: dict[str, object] = {"model": model_words(meta["model"])} if meta.get("model") else {}
    told |= {"texts": token_words(meta["tokens"])} if meta.get("tokens") else {}
    told |= known
    told |= {name: metric["definition"] for name, metric in meta.get("metrics", {}).items()}
    if "created" in meta:
        told["made"] = f"{meta['created']} with sinklens {meta.get('sinklens_version')}"
    notes = callout([str(note) for note in [*meta.get("warnings", ()), *meta.get("notes", ())]], warning=True)
    return f"<h2>Definitions and provenance</h2>\n{notes}\n{facts(told)}\n{downloads.buttons()}"
