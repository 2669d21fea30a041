"""The Triton kernels without a GPU: in the interpreter against the oracle, and compiled to machine code."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pretend_cuda.stubs import why_not

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.long
def test_the_kernels_equal_the_oracle_in_the_interpreter(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    clean |= {"PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), clean.get("PYTHONPATH")) if p)}
    clean |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    runner = ["pytest"] if why_not() else ["tests.pretend_cuda"]  # there also with tensors of a GPU
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "--tb=short", "--basetemp", str(tmp_path / "child")]
    command = [sys.executable, "-m", *runner, *options, "tests/attention/test_extra_pass.py"]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, (done.stdout[-8000:] + done.stderr)[-9000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


POINTERS = {"Keys": "*i8", "Spared": "*i8", "Limits": "*i32", "Slot": "*i32", "TopKey": "*i32"}
NUMBERS = {"scale": "fp32", "cap": "fp32"}
PLAIN: dict[str, Any] = dict(
    GROUP=4, HT=4, D=128, BD=128, BQ=16, BN=64, CELL=64, CQ=16, CN=64, PLAIN=True, SETS=2, SP=2, CAUSAL=True,
    HAS_WINDOW=False, HAS_CAP=False, HAS_KEYS=False, HAS_SHIFT=False, SPARE_SELF=False, HAS_LIMITS=False, ROWS=True,
    KEYS=True, MARGIN=True, PREC="tf32",
)  # fmt: skip
SHAPED = PLAIN | dict.fromkeys(("HAS_WINDOW", "HAS_CAP", "HAS_KEYS", "HAS_SHIFT", "SPARE_SELF", "HAS_LIMITS"), True)


@needs_triton
@pytest.mark.parametrize(
    ("name", "constants", "dtype", "capability"),
    [
        ("stats_of_lse", PLAIN, "bf16", 90),
        ("stats_of_lse", SHAPED | {"PLAIN": False, "HT": 1, "GROUP": 3, "BQ": 64, "CQ": 64, "D": 80}, "fp16", 80),
        ("stats_of_keys", SHAPED, "bf16", 90),
    ],
)
def test_the_kernels_compile(name: str, constants: dict[str, Any], dtype: str, capability: int, tmp_path: Path) -> None:
    """To machine code, with shared memory that the smallest such GPU has; no GPU is needed for that."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter replaces the compiler")
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sinklens.attention import triton_kernel

    kernel = getattr(triton_kernel, name)
    signature = {}
    for argument in kernel.arg_names:
        kind = POINTERS.get(argument) or NUMBERS.get(argument)
        if argument in constants:
            kind = "constexpr"
        elif argument in ("Q", "K"):
            kind = f"*{dtype}"
        signature[argument] = kind or ("*fp32" if argument[0].isupper() and argument not in "BH" else "i32")
    used = {(kernel.arg_names.index(key),): value for key, value in constants.items() if key in kernel.arg_names}
    built = build(ASTSource(kernel, signature, used), target=GPUTarget("cuda", capability, 32))
    assert built.asm["cubin"] and built.metadata.shared <= 99 * 1024
    assert ".local" not in built.asm["ptx"]  # nothing spills
