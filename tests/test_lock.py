"""The lock holds every version of the constraints, with hashes, and what installs by it takes no other file."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "locked.py"
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    found: dict[str, str] = runpy.run_path(str(SCRIPT))["locked"]((ROOT / "requirements.lock").read_text("utf-8"))
    return found


def test_the_lock_has_the_versions_of_the_constraints(entries: dict[str, str]) -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    canonical = runpy.run_path(str(SCRIPT))["canonical"]
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pinned = {canonical(name): version for name, version in pins.items()}
    assert {name: re.split(r"[ ;\\]", entry.split("==")[1])[0] for name, entry in entries.items()} == pinned


def test_every_entry_has_hashes_and_nothing_else(entries: dict[str, str]) -> None:
    for name, entry in entries.items():
        first, *others = entry.split(" \\\n")
        assert re.fullmatch(r"[A-Za-z0-9._\-]+==[^ ;]+( ; .+)?", first), name
        assert others and all(HASH.fullmatch(each.strip()) for each in others), name


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """pip itself refuses it: what the script writes is a complete list, so nothing goes unchecked."""
    wheel = tmp_path / "liar-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not the file that was meant")
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(f"liar==1.0 --hash=sha256:{'0' * 64}\n")
    options = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "there"), "--isolated"]
    command = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", *options, "-r", str(wanted)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0 and "DO NOT MATCH THE HASHES" in found.stderr
    assert not (tmp_path / "there").exists()
