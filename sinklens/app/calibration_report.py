"""One self-contained HTML report of a calibration."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sinklens.app.page import figure, html_table
from sinklens.app.report import write_report
from sinklens.plots.calibration import calibration as calibration_figure

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


def write_calibration_report(calibration: "Calibration", path: Path) -> Path:
    """Write a calibration: the held-out figures, the search, the definitions."""
    summary, meta = calibration.summary(), calibration.meta
    caption = "On prompts that nothing was chosen on; low and high: 95 % intervals over prompts"
    held_out = (
        f"<h2>On held-out prompts</h2>\n{figure(calibration_figure(summary), 'answers')}\n"
        f"{html_table(summary, _REPORT, caption=caption, words=('variant', 'heads'))}"
    )
    search = calibration.search.sort_values(["stage", "gain"], ascending=[True, False], kind="stable")
    searched = (
        f"<h2>How it was chosen</h2>\n"
        f"{html_table(search, _SEARCH, caption='On the prompts chosen on', words=('stage', 'heads'))}"
    )
    split = meta["split"]
    known = {
        "prompts": f"{len(split['search'])} chosen on, {len(split['report'])} reported on",
        "method": f"{meta['method']}, {json.dumps(meta['settings'])}",
        "chosen": "nothing" if meta["chosen"] is None else json.dumps(meta["chosen"]),
    }
    sections = [("report", "Held out", held_out), ("search", "Search", searched)]
    return write_report(calibration, path, sections, known, {"report": summary, **calibration.tables})
