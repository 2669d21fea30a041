"""Every test marked ``cuda`` on the pretend GPU, in processes of their own, on machines without a real one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.pretend_cuda.stubs import why_not

ROOT = Path(__file__).parents[2]
MARK = "mark.cuda"
LONG = "tests/test_on_a_gpu.py"
"""Takes as long as all others together, so that it has a process of its own."""
KERNELS = "tests/attention/test_extra_pass.py"
"""Needs Triton's interpreter: ``test_triton.py`` starts it."""


def marked_files() -> list[str]:
    """Test files that mark something ``cuda``, without importing them."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    found = {str(path.relative_to(ROOT)) for path in files if MARK in path.read_text("utf-8")}
    return sorted(found - {KERNELS})


@pytest.mark.long
@pytest.mark.parametrize("part", ["whole studies", "all others"])
def test_the_gpu_tests_pass_on_a_pretend_gpu(
    part: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: its tests run on it")
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    files = [name for name in marked_files() if (name == LONG) == (part == "whole studies")]
    report = tmp_path / "report.json"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    clean |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PRETEND_CUDA_REPORT": str(report)}
    options = ["-m", "cuda and not slow and not real", "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    options += ["--basetemp", str(tmp_path / "child"), "--tb=short"]
    command = [sys.executable, "-m", "tests.pretend_cuda", "--devices", "2", *options, *files]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, (done.stdout[-12000:] + done.stderr)[-14000:]
    outcomes: dict[str, str] = json.loads(report.read_text("utf-8"))
    ran = {name for name, outcome in outcomes.items() if outcome == "passed"}
    assert {name.split("::")[0] for name in ran} == set(files)  # no file is left out
    by_file = {name: sum(each.startswith(f"{name}::") for each in ran) for name in files}
    record_property("pretend GPU", ", ".join(f"{name} {count}" for name, count in by_file.items()))
