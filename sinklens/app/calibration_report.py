"""One self-contained HTML report of a calibration."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sinklens.app.page import callout, document, facts, figure, html_table, text
from sinklens.app.report import write_page
from sinklens.app.sections.source import Downloads
from sinklens.plots.calibration import calibration as calibration_figure
from sinklens.results.provenance import precision

if TYPE_CHECKING:
    from sinklens.studies.calibration.result import Calibration

_REPORT = {
    "variant": "variant", "heads": "heads", "n": "prompts", "accuracy": "accuracy", "accuracy_low": "low",
    "accuracy_high": "high", "valid_rate": "valid answers", "valid_rate_low": "low", "valid_rate_high": "high",
    "accuracy_given_valid": "accuracy among valid", "accuracy_given_valid_low": "low",
    "accuracy_given_valid_high": "high", "accuracy_gain": "change of accuracy", "accuracy_gain_low": "low",
    "accuracy_gain_high": "high",
}  # fmt: skip
_SEARCH = {
    "stage": "stage", "heads": "heads", "gamma": "gamma", "accuracy": "accuracy", "valid_rate": "valid answers",
    "accuracy_given_valid": "accuracy among valid", "entropy": "entropy", "gain": "gain", "kept": "kept",
}  # fmt: skip


def write_calibration_report(calibration: "Calibration", path: str | Path) -> Path:
    """Write a calibration as one HTML file that opens offline: the held-out figures, the search, the definitions.

    Args:
        calibration: What ``choose_gamma`` or ``filter_heads`` returned.
        path: File to write; missing folders are made.

    Returns:
        The path written.

    Raises:
        ResultError: when the file cannot be written.
    """
    report, name = calibration.report(), calibration.meta["model"]["name"]
    downloads = Downloads({"report": report, "search": calibration.search, "answers": calibration.answers})
    caption = "On prompts that nothing was chosen on; low and high: 95 % intervals over prompts"
    held_out = (
        f"<h2>On held-out prompts</h2>\n{figure(calibration_figure(report), 'answers')}\n"
        f"{html_table(report, _REPORT, caption=caption, words=('variant', 'heads'))}"
    )
    search = calibration.search.sort_values(["stage", "gain"], ascending=[True, False], kind="stable")
    searched = (
        f"<h2>How it was chosen</h2>\n"
        f"{html_table(search, _SEARCH, caption='On the prompts chosen on', words=('stage', 'heads'))}"
    )
    sections = [
        ("report", "Held out", held_out),
        ("search", "Search", searched),
        ("definitions", "Definitions", _definitions(calibration, downloads)),
    ]
    head = (
        f'<p class="kind">sinklens calibration</p>\n<h1>{text(name)}</h1>\n'
        f'<p class="headline">{text(calibration.verdict)}</p>'
    )
    return write_page(document(f"{name}: sinklens calibration", head, sections, downloads.data()), Path(path))


def _definitions(calibration: "Calibration", downloads: Downloads) -> str:
    meta = calibration.meta
    tokens, model, split = meta["tokens"], meta["model"], meta["split"]
    known = {
        "model": f"{model['architecture']}, {model['n_layers']} layers x {model['n_heads']} heads, {precision(model)}",
        "prompts": f"{tokens['n_sequences']} of {tokens['min_length']} to {tokens['max_length']} tokens: "
        f"{len(split['search'])} chosen on, {len(split['report'])} reported on",
        "BOS": tokens["bos"]["statement"],
        "method": f"{meta['method']}, {json.dumps(meta['settings'])}",
        "chosen": "nothing" if meta["chosen"] is None else json.dumps(meta["chosen"]),
    }
    known |= {name: metric["definition"] for name, metric in meta["metrics"].items()}
    notes = callout([str(note) for note in meta["notes"]], warning=True)
    return f"<h2>Definitions and provenance</h2>\n{notes}\n{facts(known)}\n{downloads.buttons()}"
