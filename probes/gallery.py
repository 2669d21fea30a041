"""What do the figures of the field look like, on real language models and on the built-in ones?

Draws every published kind of figure that sinklens offers and writes for each one a PNG, the table behind it, an
interactive HTML file, and a page with all of them: figures/gallery from SmolLM2-135M and Gemma-3-270M, figures/toys
from the built-in models. Runs are kept in figures/runs, so that a second call draws alone; the same command gives the
same tables.

    python probes/gallery.py                          both pages; the real models need about ten minutes, the toys two
    python probes/gallery.py --models toys --only drain_scatter sink_share
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch
from gallery_figures import ENTRIES, Entry
from gallery_page import PAGES, html_page, markdown
from gallery_runs import FIGURES, Real, Runs, Toys

from sinklens.errors import SinkLensError
from sinklens.models.real import real_model_path
from sinklens.plots.save_figure import Saving, save_figures
from sinklens.results.files import write_atomically

DIGITS = 6
"""Significant digits in the tables: beyond them machines differ."""
LARGEST = 145 * 1024
"""Bytes of a picture; the repository keeps them all."""
SETS: dict[str, type[Runs]] = {"real": Real, "toys": Toys}
FOLDERS = {"real": "gallery", "toys": "toys"}


def entries(models: str) -> list[Entry]:
    """The figures of a page."""
    return [entry for entry in ENTRIES if models in entry.of]


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with as many digits as every machine gives."""
    floats = table.select_dtypes("floating").columns
    return table.assign(**{name: table[name].map(lambda x: float(f"{x:.{DIGITS}g}")) for name in floats})


def build(
    out: Path, models: str = "toys", only: list[str] | None = None, sequences: int = 50, pictures: bool = True,
    runs: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Write a page, or some of its figures; its index is written with the whole of it alone.

    Args:
        out: Folder.
        models: "real" or "toys".
        only: Names of figures.
        sequences: Texts of 64 tokens.
        pictures: Whether PNGs are written.
        runs: Folder in which the runs are kept.
    """
    made, written, saving, strips = SETS[models](sequences, runs), [], [], {}
    for entry in entries(models):
        if only and entry.name not in only:
            continue
        print(f"{entry.name}: {entry.title}", file=sys.stderr, flush=True)
        figure, table = entry.draw(made)
        if isinstance(figure, str):
            strips[entry.name] = figure
            text = rounded(table).to_csv(index=False, lineterminator="\n")
            written.append(write_atomically(out / f"{entry.name}.csv", text.encode()))
            continue
        path = out / f"{entry.name}.{'png' if pictures else 'html'}"
        saving.append(Saving(figure, path, rounded(table), scale=entry.scale, shared_js=True))
    written += save_figures(saving)
    large = [
        one for one in saving if pictures and one.file("png").is_file() and one.file("png").stat().st_size > LARGEST
    ]
    save_figures([replace(one, scale=one.scale * smaller(one.file("png"))) for one in large])
    if not only:
        shown = entries(models)
        written.append(write_atomically(out / "index.html", html_page(shown, strips, PAGES[models]).encode()))
        written.append(write_atomically(out / "README.md", markdown(shown, strips, PAGES[models]).encode()))
    return written


def smaller(picture: Path) -> float:
    """By how much a picture has to shrink to be small enough; a PNG shrinks a little less than its area."""
    return 0.85 * float((LARGEST / picture.stat().st_size) ** 0.8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--models", choices=[*SETS], help="one page alone")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--sequences", type=int, default=50, help="texts of 64 tokens")
    parser.add_argument("--no-pictures", action="store_true", help="tables and HTML alone")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the pages' folders")
    parser.add_argument("--runs", type=Path, default=FIGURES / "runs", help="folder in which runs are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for models in [options.models] if options.models else SETS:
        out = options.out / FOLDERS[models]
        try:
            if models == "real":
                [real_model_path(name) for name in ("smollm2", "gemma3")]
            written = build(
                out, models, options.only, options.sequences, not options.no_pictures, options.runs / models
            )
        except SinkLensError as error:
            if models == "real" and not options.models:
                print(f"{out} stays as it is: {error}", file=sys.stderr)
                continue
            raise SystemExit(f"Error: {error}") from None
        print(f"Wrote {len(written)} files to {out}")


if __name__ == "__main__":
    main()
