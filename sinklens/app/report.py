"""One self-contained HTML report of a result of any kind: verdict, sections, definitions, provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sinklens.app.drawings import drawings
from sinklens.app.page import callout, document, facts, figure, text
from sinklens.app.parts import Part, drawn_in, linked, other_tables, written
from sinklens.app.sections.source import Downloads
from sinklens.app.study_parts import PARTS
from sinklens.errors import ResultError
from sinklens.results.files import write_atomically
from sinklens.results.provenance import model_words, token_words
from sinklens.results.result import Result

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
    parts = PARTS.get(result.format, ())
    body = [*(_sections(result, parts) if sections is None else sections)]
    body.append(("definitions", "Definitions", _definitions(result, known or {}, downloads)))
    drawn = drawn_in(parts, drawings(result.format))
    verdict = [linked(sentence, parts, drawn) for sentence in result.verdict]
    headline = "".join(f'<p class="headline">{sentence}</p>\n' for sentence in verdict[:1])
    rest = "".join(f"<li>{sentence}</li>" for sentence in verdict[1:])
    kind = f"sinklens {result.title[0].lower()}{result.title[1:]}"
    head = f'<p class="kind">{text(kind)}</p>\n<h1>{text(result.model_name)}</h1>\n{_measured(result)}{headline}'
    head += f'<ul class="verdict">{rest}</ul>' if rest else ""
    return write_page(document(f"{result.model_name}: {kind}", head, body, downloads.data()), path)


def _measured(result: Result) -> str:
    """The model and the texts in a line."""
    model, tokens = result.meta.get("model"), result.meta.get("tokens")
    told = [f"{model_words(model)}."] if model else []
    told += [token_words(tokens)] if tokens else []
    return f'<p class="note">{text(" ".join(told))}</p>\n' if told else ""


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


def _sections(result: Result, parts: Sequence[Part]) -> list[tuple[str, str, str]]:
    """The parts of the kind; every table that none shows is folded at the end."""
    drawn = drawings(result.format)
    figures = drawn_in(parts, drawn)
    out = [(part.anchor, part.title, part.write(result, figures[part.anchor])) for part in parts]
    if not parts and drawn:
        shown = [figure(draw(result), f"figure{place}") for place, draw in enumerate(drawn.values())]
        out.append(("figures", "Figures", "<h2>Figures</h2>\n" + "\n".join(shown)))
    rest = {
        name: written(table, {str(column): str(column) for column in table})
        for name, table in other_tables(result, parts).items()
    }
    if not parts:
        return out + [
            (f"table{at}", name, f"<h2>{text(name)}</h2>\n{rows}") for at, (name, rows) in enumerate(rest.items())
        ]
    folded = [f"<details><summary>{text(name)}</summary>{rows}</details>" for name, rows in rest.items()]
    return out + ([("more", "More tables", "<h2>More tables</h2>\n" + "\n".join(folded))] if folded else [])


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
