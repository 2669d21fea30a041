"""The gallery's index, as a page and as Markdown; `probes/gallery.py` writes it."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;margin:2rem auto;max-width:1180px;padding:0 1rem}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:1.5rem}
article{border:1px solid #e4e7eb;border-radius:6px;padding:.8rem}
article.wide{grid-column:1/-1}
img{width:100%;height:240px;object-fit:contain;object-position:top left}
h2{font-size:1.05rem;margin:.4rem 0 .2rem}p{margin:.2rem 0 .5rem;color:#52606d}
"""


class Page(NamedTuple):
    """What a page says about itself, as plain text.

    Attributes:
        title: Over it.
        words: What its figures show, with the source of the weights.
        other: Folder and title of the other page.
    """

    title: str
    words: str
    other: tuple[str, str]


PAGES = {
    "real": Page(
        "Gallery",
        "The figures that sinklens draws, on SmolLM2-135M-Instruct (Apache-2.0) and, in the sink share, Gemma-3-270M "
        "(Gemma Terms of Use), both dequantised from Q4: 50 texts of 64 tokens, without a BOS for SmolLM2. The weights "
        "are not part of the repository (make real-models).",
        ("toys", "the built-in models"),
    ),
    "toys": Page(
        "Gallery of the built-in models",
        "The same figures on the models that come with sinklens: tiny-llama, and where it says so others.",
        ("gallery", "real language models"),
    ),
}


class Described(Protocol):
    """What the index says about a figure."""

    @property
    def name(self) -> str:
        """Of its files."""

    @property
    def title(self) -> str:
        """What it shows."""

    @property
    def read(self) -> str:
        """How to read it, one sentence."""


def html_page(entries: Sequence[Described], strips: Mapping[str, str], page: Page) -> str:
    """The page: thumbnails, titles, how to read them, and links.

    Args:
        entries: The figures, in order.
        strips: HTML of those that are no Plotly figures, by name.
        page: What it says about itself.
    """
    cards = []
    for entry in entries:
        words = f"<h2>{html.escape(entry.title)}</h2><p>{html.escape(entry.read)}</p>"
        table = f'<a href="{entry.name}.csv">table</a>'
        if entry.name in strips:
            cards.append(f'<article class="wide">{words}{strips[entry.name]}<p>{table}</p></article>')
            continue
        image = f'<img loading="lazy" src="{entry.name}.png" alt="{html.escape(entry.title)}">'
        links = f'{table} · <a href="{entry.name}.html">interactive</a>'
        cards.append(f'<article><a href="{entry.name}.png">{image}</a>{words}<p>{links}</p></article>')
    folder, other = page.other
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>sinklens: {page.title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>'
        f"<h1>{page.title}</h1>\n"
        f"<p>{html.escape(page.words)} Written by <code>make figures</code>, which also writes the interactive files "
        f'(one plotly.min.js beside them). See also <a href="../{folder}/index.html">{other}</a>.</p>\n<main>\n'
        + "\n".join(cards)
        + "\n</main></body></html>\n"
    )


def markdown(entries: Sequence[Described], strips: Mapping[str, str], page: Page) -> str:
    """The same as a table for readers of the repository."""
    folder, other = page.other
    lines = [
        f"# {page.title}",
        "",
        *textwrap.wrap(page.words, 118),
        "",
        "Written by `make figures`, which also writes the interactive HTML files; `index.html` is a page with all of",
        f"them. See also [{other}](../{folder}/README.md).",
        "",
        "| figure | how to read it | table |",
        "|---|---|---|",
    ]
    for entry in entries:
        target = "index.html" if entry.name in strips else f"{entry.name}.png"
        lines.append(f"| [{entry.title}]({target}) | {entry.read.replace('|h|', 'abs(h)')} | [csv]({entry.name}.csv) |")
    return "\n".join(lines) + "\n"
