"""The documentation builds without a warning: no dead link, no docstring that cannot be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    source = tmp_path / "docs"
    source.mkdir()
    for item in (ROOT / "docs").iterdir():  # a copy by links: the build writes pages of its own beside the sources
        if item.name not in ("_build", "generated"):
            (source / item.name).symlink_to(item)
    (tmp_path / "figures").symlink_to(ROOT / "figures")  # pictures of the page on figures
    # conf.py reads the version from the project beside it, so it has to be the real file
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "docs"), str(source), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Attention sinks" in (tmp_path / "html" / "phenomena" / "sinks.html").read_text("utf-8")
