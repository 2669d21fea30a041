"""Which changes of attention, training and data grow a sink, and do the papers' claims hold in small decoders?

Trains every condition of sinklens.lab.emergence with several seeds on Bigram-Backcopy, measures sink, drain, margin,
residual peak and losses, and holds them against the papers' claims. Writes figures/sink_emergence.csv (every figure by
condition, with seeds), sink_emergence.md (claims and conditions), sink_emergence.html and, where Chrome or Chromium is
installed, a PNG. Finished cells are kept in --work and not trained again; interrupted? Give the same command again.

    python probes/sink_emergence.py                  the whole table: about 40 minutes on one CPU thread
    python probes/sink_emergence.py --quick          without the three-layer models: about 18 minutes
    python probes/sink_emergence.py --group mask --seeds 1 --out runs
"""

import argparse
from pathlib import Path

import torch

from sinklens.errors import SinkLensError
from sinklens.lab.emergence import CONDITIONS, choose_conditions, judge, markdown, run_table, summarise
from sinklens.plots import save_figure
from sinklens.plots.sink_emergence import sink_emergence
from sinklens.results.files import write_atomically
from sinklens.results.show_progress import ShowProgress

SETUP = (
    "Every decoder has width 64 and one head a layer, sequences of 64 tokens, and 800 steps of 32 sequences with AdamW "
    "at 3e-3 unless the name says otherwise (no BOS: 1,600 steps; 2 layers: 2,400; 3 layers: 4,000 at 1e-3; SGD at "
    "3e-2). Dormant queries are those that are no triggers."
)
GROUPS = [*dict.fromkeys(condition.group for condition in CONDITIONS.values())]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every condition")
    parser.add_argument("--group", action="append", choices=GROUPS, help="only these conditions; may be repeated")
    parser.add_argument("--condition", action="append", metavar="NAME", help="only these; may be repeated")
    parser.add_argument("--quick", action="store_true", help="leave out the three-layer models")
    parser.add_argument("--work", type=Path, default=Path("runs/sink_emergence"), help="folder of the finished cells")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more hardly help at this size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    groups = options.group or ([g for g in GROUPS if g != "3 layers"] if options.quick else None)
    try:
        conditions = choose_conditions(options.condition, groups if options.condition is None else options.group)
        with ShowProgress() as progress:
            cells = run_table(options.work, conditions, range(options.seeds), progress=progress)
        summary, verdicts = summarise(cells), judge(cells)
        stem = options.out / "sink_emergence"
        made = f"{len(conditions)} conditions x {options.seeds} seeds"
        header = f"Written by `python probes/sink_emergence.py`: {made}. {SETUP}"
        write_atomically(stem.with_suffix(".csv"), summary.to_csv(index=False, float_format="%.5g").encode())
        write_atomically(stem.with_suffix(".md"), markdown(summary, verdicts, header).encode())
        save_figure(sink_emergence(summary), stem.with_suffix(".png"))
    except SinkLensError as error:
        raise SystemExit(f"Error: {error}") from None
    print(verdicts[["statement", "measured", "verdict"]].to_string(index=False))
    print(f"Wrote {stem}.md, .csv and .html")


if __name__ == "__main__":
    main()
