"""``{metric} name``: the definition of a metric as the code has it, so that a page cannot drift from the numbers."""

import importlib
import pkgutil
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


def definitions() -> dict[str, str]:
    """Every metric's name with its definition, version and source in one paragraph."""
    import sinklens.detectors
    import sinklens.studies
    from sinklens.detectors.base import Metric

    found = {}
    for package in (sinklens.detectors, sinklens.studies):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            held = vars(importlib.import_module(info.name)).values()
            metrics = [thing for thing in held if isinstance(thing, Metric)]
            found |= {m.name: f"{m.definition} (version {m.version}; {m.source})" for m in metrics}
    return found


class MetricDirective(Directive):
    """Shows a metric's definition."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, object]] = {}

    def run(self) -> list[nodes.Node]:
        """The definition as a quoted paragraph, or an error that names the metrics there are."""
        known = definitions()
        name = self.arguments[0]
        if name not in known:
            raise self.error(f"There is no metric {name!r}; there are {', '.join(sorted(known))}.")
        body = nodes.paragraph()
        body += nodes.literal(text=name)
        body += nodes.Text(f": {known[name]}")
        return [nodes.block_quote("", body)]


def setup(app: Sphinx) -> dict[str, object]:
    """Register the directive."""
    app.add_directive("metric", MetricDirective)
    return {"version": "1", "parallel_read_safe": True}
