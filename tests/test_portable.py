"""What another machine may lack: a UTF-8 locale, a wide or colourless terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sinklens.studies import Census

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "sinklens").rglob("*.py"), *(ROOT / "probes").glob("*.py")])
ANOTHER = {
    "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",  # text is ASCII unless a file's encoding is named
    "HOME": "/nonexistent", "TZ": "Pacific/Kiritimati", "COLUMNS": "40", "FORCE_COLOR": "1",
}  # fmt: skip


def test_text_files_name_their_encoding() -> None:
    unnamed = [path.name for path in SOURCES if re.search(r"(?<!\(\.\.\.\))\.read_text\(\)", path.read_text("utf-8"))]
    assert not unnamed, f"read_text('utf-8'), or the locale decides: {unnamed}"


def test_a_scan_works_without_utf_8_and_home(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("naïve café — sink " * 20, "utf-8")
    command = ["scan", "tiny-llama", "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    code = "from sinklens.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ANOTHER}
    done = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert len(Census.load(tmp_path / "out").heads)
