"""When do sinks, value drains and residual peaks come about in training, and in which order?

Measures every checkpoint of a series on the same tokens. Writes figures/sink_dynamics.{csv,md,html} and, with a
browser, a PNG.

    python probes/sink_dynamics.py
    python probes/sink_dynamics.py EleutherAI/pythia-160m --steps 0,64,512,1000,4000,16000,143000 --out runs
"""

import argparse
from pathlib import Path

import pandas as pd

from sinklens.plots import dynamics, save_figure
from sinklens.results.files import write_atomically
from sinklens.results.show_progress import ShowProgress
from sinklens.studies import Dynamics, measure_dynamics
from sinklens.studies.dynamics.series import find_series

COLUMNS = {
    "step": "step",
    "importance_first": "attention to position 0, mean head",
    "importance_first_max": "strongest head",
    "null_first": "if uniform",
    "n_sink_heads": "heads with a sink",
    "delta_logit": "logit margin",
    "drain_wo": "value norm / others",
    "max_over_median": "max / median",
    "resid_ratio": "residual norm / others",
}
ONSETS = {
    "max_over_median": "residual peak (largest |h| over the median)",
    "drain_wo": "value drain (|W_O v|, mean head)",
    "importance_first_max": "attention of the strongest head to position 0",
    "importance_first": "attention of the mean head to position 0",
}


def onsets(steps: pd.DataFrame) -> pd.DataFrame:
    """Between which two checkpoints each figure has gone half of its way from the first to the last one."""
    rows = []
    for column, name in ONSETS.items():
        values = steps[column].to_numpy()
        done = (values - values[0]) / (values[-1] - values[0])
        place = int((done >= 0.5).argmax())
        before, after = steps["step"].iloc[[place - 1, place]]
        rows.append((name, values[0], values[-1], f"{int(before):,} to {int(after):,}"))
    return pd.DataFrame(rows, columns=["what", "first", "last", "half of it is there between steps"])


def markdown(found: Dynamics) -> str:
    """Verdict, order and table."""
    steps = found.to_dataframe()
    table = steps[steps["domain"] == found.domains[0]]
    losses = steps[steps["domain"] != "all"].pivot(index="step", columns="domain", values="loss")
    shown = table[[*COLUMNS]].rename(columns=COLUMNS)
    for domain in losses:
        shown[f"loss, {domain}"] = losses[domain].to_numpy()
    tokens = found.meta["tokens"]
    lines = [
        f"# How extreme tokens come about in {Path(found.meta['series']['name']).name}",
        "",
        f"Written by `python probes/sink_dynamics.py`. {tokens['n_sequences']} sequences of {tokens['max_length']} "
        f"tokens, the same for every checkpoint: {tokens['source']}. {tokens['bos']['statement']}",
        "",
        *(f"- {sentence}" for sentence in found.verdict),
        "",
        "## In which order",
        "",
        _markdown(onsets(table)),
        "",
        "## Every checkpoint",
        "",
        _markdown(shown),
        "",
        *(f"- `{name}` v{each['version']}: {each['definition']}" for name, each in found.meta["metrics"].items()),
    ]
    return "\n".join(lines) + "\n"


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="?", default="tiny-llama", help="what `sinklens dynamics` takes")
    parser.add_argument("--steps", help="only these, such as 0,512,1000")
    parser.add_argument("--max-sequences", type=int, default=100, help="of each domain")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    steps = None if options.steps is None else [int(step) for step in options.steps.split(",")]
    series = find_series(options.series, steps=steps)
    found = measure_dynamics(series, max_sequences=options.max_sequences, progress=ShowProgress())
    stem = options.out / "sink_dynamics"
    figure = dynamics(found.to_dataframe(), found.heads())
    save_figure(figure, stem.with_suffix(".png"), found, width=1250)
    write_atomically(stem.with_suffix(".md"), markdown(found).encode())
    print(*found.verdict, f"Wrote {stem}.html, .csv and .md", sep="\n")


if __name__ == "__main__":
    main()
