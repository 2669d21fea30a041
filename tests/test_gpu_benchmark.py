"""The script for a GPU runs from beginning to end without one, at toy sizes."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_script_for_a_gpu_runs(tmp_path: Path) -> None:
    table = tmp_path / "gpu.csv"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry", "--out", str(table), "--rounds", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(row["card"].startswith("no GPU") and row["torch"] for row in rows)
    right = [row for row in rows if row["part"] == "right"]
    with_triton = importlib.util.find_spec("triton") is not None
    checked = [row for row in right if row["note"].startswith("right")]
    assert len(right) == 54 and len(checked) == (45 if with_triton else 27)
    timed = {(row["what"], row["tokens"]) for row in rows if row["part"] == "time" and row["seconds"]}
    assert {"SDPA forward", "block kernel", "TransformerLens patterns"} <= {what for what, _ in timed}
    assert len(timed) == (12 if with_triton else 9)
    assert [row["what"] for row in rows if row["part"] == "plan"] == ["extra pass" if with_triton else "blocks"]
