"""What `sinklens calibrate` saves and prints."""

from pathlib import Path
from typing import Any

from sinklens.cli import printing


def save_calibration(result: Any, out: Path) -> list[str]:
    """Figure and report; the lines that say where they are."""
    from sinklens.plots import calibration as calibration_figure

    printing.save_picture(calibration_figure(result.summary()), out / "calibration.png", result.summary(), width=900)
    return [f"Report: {result.report(out / 'report.html')}", f"Tables: {out}"]


def print_calibration(result: Any, saved: list[str]) -> None:
    """The sentences, what was chosen, and what it is worth on other prompts."""
    meta = result.meta
    where = f", {len(meta['split']['search'])} of them chosen on, from"
    printing.say_model(meta["model"], printing.sequences(meta["tokens"], "prompts", where=where))
    printing.say_verdict(result.verdict)
    if result.intervention is not None:
        more = len(result.heads) - 12
        chosen = ",".join(result.heads[:12]) + (f" and {more} more" if more > 0 else "")
        gamma = meta["chosen"].get("gamma")
        printing.say_verdict([f"Chosen: {chosen}{'' if gamma is None else f', gamma {gamma:g}'}."])
    report = result.summary()
    rows = []
    for row in report[(report["variant"] != "tuned") | (report["heads"] != "")].to_dict("records"):
        shares = [_span(row, name, ".3f") for name in ("accuracy", "valid_rate", "accuracy_given_valid")]
        change = "" if row["variant"] == "unchanged" else _span(row, "accuracy_gain", "+z.3f")
        rows.append([row["variant"], *shares, change])
    printing.say_table(
        ["variant", "accuracy", "valid answers", "accuracy among valid", "change"],
        rows,
        "On held-out prompts",
        "shares with 95 % intervals over prompts; change: of accuracy, paired over prompts",
        left=["variant"],
    )
    printing.say_saved(saved)


def _span(row: dict[str, Any], name: str, spec: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value != value:
        return "n/a"
    return f"{value:{spec}}" if low != low else f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"
