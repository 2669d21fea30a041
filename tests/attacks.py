"""Commands in forked processes that have everything imported, so that hundreds of them can be killed in minutes."""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

import sinklens
from sinklens import cli
from sinklens.errors import SinkLensError

LM = {
    "layers": 1, "heads": 2, "d-model": 16, "d-mlp": 16, "vocab": 300, "seq-len": 12, "batch-size": 4, "long-every": 0,
    "steps": 12, "series": 4, "measure-every": 4, "checkpoint-every": 2,
}  # fmt: skip
SMALL = ("--max-tokens", "24", "--max-sequences", "6")


def commands(series: Path, texts: Path) -> dict[str, list[str]]:
    """Small runs of what works for hours elsewhere; each writes what ``--out`` names."""
    return {
        "scan": ["scan", "bb-1l", *SMALL],
        "ablate": ["ablate", "bb-1l", *SMALL, "--batch-size", "2"],
        "needle": ["needle", "bb-1l", "--lengths", "40,80", "--repeats", "3", "--depths", "0,1"],
        "roles": ["roles", "bb-3l", "--scores", "sinks,pattern", *SMALL],
        "dynamics": ["dynamics", str(series), *SMALL],
        "active-dormant": ["active-dormant", "bb-1l", *SMALL],
        "lab train lm": ["lab", "train", "lm", "--data", str(texts), *(f"--{name}={n}" for name, n in LM.items())],
    }


def begin(words: Sequence[str], out: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start a command in a child process; its id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with log.open("w") as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        torch.set_num_threads(1)
        before()
        sys.argv = ["sinklens", *words, "--out", str(out)]
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        # whatever a full disk refuses here: a child that went on would run the rest of the tests a second time
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a child; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int, after: float) -> bool:
    """SIGKILL after so many seconds; False if the child was done before."""
    stop = time.monotonic() + after
    while time.monotonic() < stop:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def small_disk(most: int) -> Callable[[], None]:
    """For :func:`begin`: no file of the child may grow beyond so many bytes."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return limit


def contents(out: Path) -> dict[str, Any]:
    """What a run found, without when and how fast."""
    if (out / "model.safetensors").is_file():
        weights = {str(path.relative_to(out)): load_file(path) for path in sorted(out.rglob("model.safetensors"))}
        return {"weights": weights, "curve": (out / "measured.json").read_text("utf-8")}
    found = sinklens.open(out)
    return {"tables": dict(found.tables), "verdict": json.dumps(found.meta.get("verdict"))}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs found the same."""
    if one.keys() != other.keys():
        return False
    if "weights" in one:
        pairs = [(each, other["weights"].get(name)) for name, each in one["weights"].items()]
        return all(
            b is not None and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
            for a, b in pairs
        )
    left, right = one["tables"], other["tables"]
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return False
    for name in one:
        a, b = one[name], other[name]
        if pd.api.types.is_float_dtype(a.dtype):
            if "second" not in str(name) and not np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True):
                return False
        elif not a.equals(b):
            return False
    return True


def whole_or_nothing(out: Path) -> None:
    """Fail where something lies in the place of a result that claims to be one and cannot be read."""
    if (out / "result.json").is_file() or (out / "model.safetensors").is_file():
        try:
            contents(out)
        except SinkLensError as error:
            raise AssertionError(f"{out} is half-written: {error}") from error
