"""``{figures}``: one row for each registered figure, from the registry itself, so that the page cannot drift."""

from collections.abc import Iterable
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

PICTURES = Path(__file__).parents[2] / "figures"
FOLDERS = ("gallery", "toys")
HEADINGS = ("figure", "what it shows", "its input", "the call")


def picture(name: str) -> str | None:
    """Path of a figure's picture from the documentation: of a real model, or else of a built-in one."""
    found = (folder for folder in FOLDERS if (PICTURES / folder / f"{name}.png").is_file())
    return next((f"../figures/{folder}/{name}.png" for folder in found), None)


def rows() -> list[tuple[str, str, str, str]]:
    """Name, what it shows, from which result, and the whole call, of every figure that draws a result."""
    import sinklens.plots
    from sinklens.plots.draws import FIGURES, MADE_BY

    assert sinklens.plots  # its figures register themselves
    return [
        (name, figure.shows, " or ".join(MADE_BY[kind][0] for kind in figure.of), figure.call)
        for name, figure in sorted(FIGURES.items())
        if figure.of
    ]


class FiguresDirective(Directive):
    """Shows the table of all figures."""

    def run(self) -> list[nodes.Node]:
        """One row a figure: its name and picture, what it shows, its input, the call."""
        table, group = nodes.table(), nodes.tgroup(cols=len(HEADINGS))
        for width in (34, 28, 10, 28):
            group += nodes.colspec(colwidth=width)
        head, body = nodes.thead(), nodes.tbody()
        head += _row([nodes.paragraph(text=heading)] for heading in HEADINGS)
        for name, shows, of, call in rows():
            first: list[nodes.Node] = [nodes.paragraph("", "", nodes.literal(text=name))]
            if (path := picture(name)) is not None:
                first.append(nodes.image(uri=path, alt=f"{name}: {shows}"))
            code = nodes.paragraph("", "", nodes.literal(text=call))
            body += _row([first, [nodes.paragraph(text=shows)], [nodes.paragraph(text=of)], [code]])
        group += [head, body]
        table += group
        return [table]


def _row(cells: Iterable[nodes.Node | list[nodes.Node]]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += cell
        row += entry
    return row


def setup(app: Sphinx) -> dict[str, object]:
    """Register the directive."""
    app.add_directive("figures", FiguresDirective)
    return {"version": "1", "parallel_read_safe": True}
