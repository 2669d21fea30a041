import shutil
from pathlib import Path

import pytest

from sinklens.app.dashboard.bench import Bench, open_source
from sinklens.app.dashboard.folder import ResultFolder
from sinklens.errors import ResultError
from sinklens.results.header_file import HEADER


def test_it_lists_what_lies_in_it(saved: Path) -> None:
    entries = {entry.name: entry for entry in ResultFolder(saved).entries()}
    assert set(entries) == {"broken", "made-up", "sweeps/zero", "tiny"}
    assert entries["tiny"].label == "tiny · census of tiny-llama" and entries["tiny"].kind == "sinklens-census"
    assert [entry.name for entry in ResultFolder(saved / "tiny").entries()] == ["."]
    assert ResultFolder(saved).path("sweeps/zero") == (saved / "sweeps" / "zero").resolve()


def test_nothing_outside_of_it_is_opened(saved: Path, tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    shutil.copytree(saved / "tiny", outside)
    shutil.copytree(saved / "tiny", root / "inside")
    (root / "link").symlink_to(outside, target_is_directory=True)
    (root / "half").mkdir()
    (root / "half" / HEADER).symlink_to(outside / HEADER)
    folder = ResultFolder(root)
    assert [entry.name for entry in folder.entries() if entry.name == "link"] == []
    for name in ("../outside", str(outside), "link", "half", "inside/../../outside", "..", "inside\x00"):
        with pytest.raises(ResultError, match=r"outside the opened folder|no such result"):
            folder.path(name)
    for name in ("", "inside/nothing", "nothing"):
        with pytest.raises(ResultError, match="no result"):
            folder.path(name)


def test_a_linked_table_is_not_read(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "tiny", tmp_path / "run")
    table = tmp_path / "run" / "heads.parquet"
    table.rename(tmp_path / "elsewhere.parquet")
    table.symlink_to(tmp_path / "elsewhere.parquet")
    run = Bench(ResultFolder(tmp_path / "run"), None).run(".")  # type: ignore[arg-type]
    with pytest.raises(ResultError, match="incomplete"):
        run.tables.frame("heads")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="holds no saved result"):
        ResultFolder(tmp_path)
    with pytest.raises(ResultError, match="There is no folder"):
        ResultFolder(tmp_path / "none")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing/here", "runs/models/nothing"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(ResultError, match="There is no"):
        open_source(name)
