"""What do the figures of the field look like, on real language models and on the built-in ones?

Draws every published kind of figure that sinklens offers and writes for each one a PNG, the table behind it, an
interactive HTML file, and a page with all of them: figures/gallery from SmolLM2-135M and Gemma-3-270M, figures/toys
from the built-in models. Runs are kept in figures/runs, so that a second call draws alone, and one that was stopped
goes on where it was; the same command gives the same tables.

    python probes/gallery.py                          both pages; the real models need about ten minutes, the toys two
    python probes/gallery.py --models toys --only drain_scatter sink_share
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch
from gallery_figures import ENTRIES as SCANNED
from gallery_figures import Entry
from gallery_page import PAGES, html_page, markdown
from gallery_runs import FIGURES, Real, Runs, Toys
from gallery_studies import STUDIES

from sinklens.errors import SinkLensError
from sinklens.models.real import real_model_path
from sinklens.plots.save_figure import Saving, save_figures
from sinklens.results.files import write_atomically

ENTRIES = [*SCANNED, *STUDIES]
DIGITS = 6
"""Significant digits in the tables: beyond them machines differ."""
BATCH = 8
"""Figures after which a call that is stopped has not to draw again what it drew."""
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
    made, written, strips = SETS[models](sequences, runs), [], {}
    chosen = [entry for entry in entries(models) if not only or entry.name in only]
    begun = None if only or runs is None else runs / f"drawn-{'pictures' if pictures else 'tables'}.json"
    done = set(json.loads(begun.read_text("utf-8"))) if begun is not None and begun.is_file() else set()
    if done:
        print(f"{len(done)} figures were drawn before this was stopped; going on.", file=sys.stderr)
    for entries_of in (chosen[at : at + BATCH] for at in range(0, len(chosen), BATCH)):
        saving: list[Saving] = []
        for entry in entries_of:
            if entry.name in done:
                continue
            figure, table = entry.draw(made)
            if isinstance(figure, str):  # quick, and the page needs it: never left out
                strips[entry.name] = figure
                text = rounded(table).to_csv(index=False, lineterminator="\n")
                written.append(write_atomically(out / f"{entry.name}.csv", text.encode()))
                continue
            path = out / f"{entry.name}.{'png' if pictures else 'html'}"
            saving.append(Saving(figure, path, rounded(table), scale=entry.scale, shared_js=True))
        written += save_figures(saving)
        large = [one for one in saving if pictures and is_large(one.file("png"))]
        save_figures([replace(one, scale=one.scale * smaller(one.file("png"))) for one in large])
        done |= {one.stem.name for one in saving}
        if begun is not None:
            write_atomically(begun, json.dumps(sorted(done)).encode())
        print(f"{models}: {len(done) + len(strips)} of {len(chosen)} figures", file=sys.stderr, flush=True)
    if not only:
        shown = entries(models)
        written.append(write_atomically(out / "index.html", html_page(shown, strips, PAGES[models]).encode()))
        written.append(write_atomically(out / "README.md", markdown(shown, strips, PAGES[models]).encode()))
    if begun is not None:
        begun.unlink(missing_ok=True)
    return written


def is_large(picture: Path) -> bool:
    """Whether the repository would not keep it."""
    return picture.is_file() and picture.stat().st_size > LARGEST


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
