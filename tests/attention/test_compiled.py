"""Compiled code where numba is not there, may not compile, cannot keep what it made, or shares its files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinklens.attention import compiled

pytestmark = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")

ROOT = Path(__file__).parents[2]
SETS = """
import json, numpy as np
from sinklens.attention import compiled
def sets():
    block = np.random.default_rng(0).random((4, 5, 9), dtype=np.float32)
    mass = np.empty((4, 5), np.float32)
    compiled.set_block(block, 4, 2, np.array([0, 3, 8, 1]), np.array([3, 4]), mass)
    return mass.tolist()
"""
CAUSAL = """
import json, numpy as np
from sinklens.attention import compiled
scores = 3 * np.random.default_rng(0).standard_normal((2, 40, 60), dtype=np.float32)
columns = [np.zeros((2, 60), np.float32) for _ in range(2)]
weight, by_row = np.ones((1, 40), np.float32), np.empty((5, 2, 40), np.float32)
compiled.causal_block(scores, 20, 0, 2, weight, weight, np.arange(59, -1, -1, dtype=np.float32), *columns, by_row)
print(json.dumps([each.tolist() for each in (scores, *columns, by_row)]))
"""


def sets_expected() -> np.ndarray:
    block = np.random.default_rng(0).random((4, 5, 9), dtype=np.float32)
    members = ([0, 3, 8], [0, 3, 8], [1], [1])
    rows = [[sum(block[h, r, k] for k in members[h] if k <= 4 + r) for r in range(5)] for h in range(4)]
    return np.array(rows)


def start(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Code in a fresh process that keeps what it compiles in a folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    settings = {**kept, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> Any:
    """What it printed."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out)


def test_a_processor_without_wide_registers_gets_the_same_numbers(tmp_path: Path) -> None:
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    mine, other = (end(start(CAUSAL, tmp_path, **more)) for more in ({}, plain))
    scores = 3 * np.random.default_rng(0).standard_normal((2, 40, 60), dtype=np.float32).astype(float)
    hidden = np.arange(60)[None] > np.arange(20, 60)[:, None]
    weights = np.where(hidden, 0, np.exp(scores))
    totals = weights.sum(-1)
    weights /= totals[..., None]
    back = np.arange(20, 60)[:, None] - np.arange(60)[None]
    seen = np.where(hidden, 0, scores)
    means = (weights * seen).sum(-1), (weights * back).sum(-1)
    sums = np.stack([np.log(totals), *means, seen.sum(-1), weights.max(-1)])
    for found in (mine, other):
        for value, expected in zip(found, (weights, weights.sum(1), seen.sum(1), sums), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
        assert np.array_equal(np.max(found[0], -1), found[3][4])  # to the bit, or its key would not be found


MISSING = "import sys; sys.modules['numba'] = None"
FORBIDDEN = "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'"


@pytest.mark.parametrize("before", [MISSING, FORBIDDEN])
def test_without_numba_or_its_compiler_torch_measures(before: str, tmp_path: Path) -> None:
    code = f"{before}\nfrom sinklens.attention import compiled\nprint('true' if compiled.available() else 'false')"
    assert end(start(code, tmp_path)) is False


NO_PLACE = "from numba.core import caching; caching.CacheImpl._locator_classes = []"
GONE = """
import shutil, os
folder = os.environ["NUMBA_CACHE_DIR"]
shutil.rmtree(folder)
open(folder, "w").close()  # nothing can be written there now, not by root either
"""


@pytest.mark.parametrize("code", [f"{NO_PLACE}\n{SETS}", f"{SETS}\n{GONE}"], ids=["no folder", "folder lost"])
def test_what_cannot_be_kept_is_compiled_all_the_same(code: str, tmp_path: Path) -> None:
    found = end(start(f"{code}\nprint(json.dumps([sets(), sets()]))", tmp_path / "cache"))
    np.testing.assert_allclose(found, [sets_expected()] * 2, rtol=1e-6)


@pytest.mark.parametrize("damaged", ["*.nbi", "*.nbc"])
def test_damaged_files_are_not_believed(damaged: str, tmp_path: Path) -> None:
    """Two processes that begin at once share their files; a third takes them; one that finds them damaged does not."""
    code = f"{SETS}\nprint(json.dumps(sets()))"
    for process in [start(code, tmp_path), start(code, tmp_path)]:
        np.testing.assert_allclose(end(process), sets_expected(), rtol=1e-6)
    hits = f"{SETS}\nsets()\nprint(len(compiled.set_block._run.stats.cache_hits))"
    assert end(start(hits, tmp_path)) == 1
    files = [*tmp_path.rglob(damaged)]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    np.testing.assert_allclose(end(start(code, tmp_path)), sets_expected(), rtol=1e-6)


FORK = """
import os, threading
from numba.core.compiler_lock import global_compiler_lock
def compiling():
    free = global_compiler_lock._lock.acquire(blocking=False)
    if free:
        global_compiler_lock._lock.release()
    return not free
thread = threading.Thread(target=sets)
thread.start()
while thread.is_alive() and not compiling():
    pass
child = os.fork()
if child == 0:
    os._exit(0 if np.isfinite(sets()).all() else 1)
thread.join()
_, status = os.waitpid(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), sets()]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_while_another_thread_compiles_does_not_wait_for_ever(tmp_path: Path) -> None:
    code, found = end(start(f"{SETS}\n{FORK}", tmp_path))
    assert code == 0
    np.testing.assert_allclose(found, sets_expected(), rtol=1e-6)
