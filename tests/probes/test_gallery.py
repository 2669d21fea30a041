"""The gallery's command: the same tables every time, those that are committed, and pages that show all of them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklens import plots
from sinklens.plots.draws import FIGURES as FIGURES_BY_NAME

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures"
QUICK = [
    "sink_heatmap",
    "drain_scatter",
    "massive_map",
    "lifecycle",
    "entropy_scatter",
    "top_magnitudes",
    "token_strip",
]


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "probes"))
    return importlib.import_module("gallery")


def test_rebuilding_gives_the_same_tables(gallery: Any, tmp_path: Path) -> None:
    for name, runs in (("one", None), ("two", tmp_path / "runs")):  # made anew, and kept and read again
        for _ in range(1 if runs is None else 2):
            gallery.build(tmp_path / name, "toys", QUICK, sequences=6, pictures=False, runs=runs)
    written = sorted(path.name for path in (tmp_path / "one").glob("*.csv"))
    assert written == sorted(f"{name}.csv" for name in QUICK)
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert len(pd.read_csv(tmp_path / "one" / name)) > 1
    assert not (tmp_path / "one" / "index.html").exists()  # a part of it leaves the index alone
    assert (tmp_path / "one" / "plotly.min.js").is_file()  # one for all interactive files


@pytest.mark.parametrize("models", ["real", "toys"])
def test_a_committed_page_is_whole(gallery: Any, models: str) -> None:
    folder = FIGURES / gallery.FOLDERS[models]
    page, listed = (folder / "index.html").read_text("utf-8"), (folder / "README.md").read_text("utf-8")
    entries = gallery.entries(models)
    for entry in entries:
        table = folder / f"{entry.name}.csv"
        assert len(pd.read_csv(table)) and f'href="{entry.name}.csv"' in page and f"({entry.name}.csv)" in listed
        assert table.stat().st_size < 150 * 1024
        if entry.name == "token_strip":
            assert "sinklens-strip" in page
            continue
        picture = folder / f"{entry.name}.png"
        assert f'src="{entry.name}.png"' in page and f'href="{entry.name}.html"' in page
        assert 5_000 < picture.stat().st_size <= 150 * 1024, entry.name
    tables = {path.stem for path in folder.glob("*.csv")}
    assert tables == {entry.name for entry in entries} >= {path.stem for path in folder.glob("*.png")}
    other = next(each for each in gallery.FOLDERS.values() if each != folder.name)
    assert f"../{other}/index.html" in page and f"../{other}/README.md" in listed


def test_every_public_figure_stands_on_a_page(gallery: Any) -> None:
    # task scores need the harness, which no lock holds
    drawn = {entry.name for entry in gallery.ENTRIES} - {"massive_map_3d"} | {"task_scores"}
    assert drawn == {name for name in plots.__all__ if name in FIGURES_BY_NAME and FIGURES_BY_NAME[name].of}


def test_the_readmes_pictures_are_of_real_models() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(shown) == 4 and all(path.startswith("figures/gallery/") and (ROOT / path).is_file() for path in shown)


@pytest.mark.slow
def test_the_committed_tables_are_what_the_command_gives(gallery: Any, tmp_path: Path) -> None:
    command = [sys.executable, "probes/gallery.py", "--models", "toys", "--no-pictures", "--out", str(tmp_path)]
    subprocess.run([*command, "--runs", str(tmp_path / "runs")], cwd=ROOT, check=True, capture_output=True)
    folders = tmp_path / "toys", FIGURES / "toys"
    for path in folders[1].glob("*.csv"):
        now, then = (pd.read_csv(folder / path.name, keep_default_na=False) for folder in folders)
        assert list(now.columns) == list(then.columns) and len(now) == len(then), path.name
        for name in then.columns:
            one, other = (pd.to_numeric(table[name], errors="coerce") for table in (now, then))
            pd.testing.assert_series_equal(one, other, rtol=2e-3, atol=2e-4, check_dtype=False)
