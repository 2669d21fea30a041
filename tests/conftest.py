"""What holds for every test: no network, few threads, no deadlines, and a reason for every skip."""

import os

# Read when transformers and torch are imported, and inherited by the commands that tests start.
if os.environ.get("SINKLENS_NETWORK") != "1":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# A deadline would make a busy machine fail tests; CI draws the same examples every time.
hypothesis.settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_CHROMIUM = "no Chrome or Chromium on this machine (looked at BROWSER_PATH and the PATH)"


Command = Callable[..., tuple[int, str, str]]


@cache
def chromium() -> str | None:
    """Path of a Chrome or Chromium, or None."""
    candidates = (os.environ.get("BROWSER_PATH"), *CHROMIUM_NAMES)
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def requires_chromium() -> str:
    """Path of a Chrome or Chromium; a test that asks for it is skipped where there is none."""
    path = chromium()
    if path is None:
        pytest.skip(NO_CHROMIUM)
    return path


@pytest.fixture(scope="session")
def smollm2() -> "TransformerBridge":
    """SmolLM2-135M-Instruct, dequantised from Q4_1; a test that asks for it carries the marker `real`."""
    from tests.real_models import real_model

    return real_model("smollm2")


@pytest.fixture(scope="session")
def gemma3() -> "TransformerBridge":
    """Gemma-3-270M, dequantised from Q4_K_M; a test that asks for it carries the marker `real`."""
    from tests.real_models import real_model

    return real_model("gemma3")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny checkpoints of this session lie; :func:`tests.families.boot` shares its models by it."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint for commands, which no test holds in memory."""
    from tests.families import build_checkpoint

    return build_checkpoint("llama", tmp_path_factory.mktemp("cli") / "llama")


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """For a test that computes with models and keeps no graph."""
    with torch.no_grad():
        yield


@pytest.fixture
def sinklens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: its exit status, and what it printed on either stream with all white space as single spaces."""
    from sinklens import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sinklens", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, " ".join(out.split()), " ".join(err.split())

    return run


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips marked tests whose requirement this machine lacks, and says which."""
    online = os.environ.get("SINKLENS_NETWORK") == "1"
    absent = {
        "cuda": None if torch.cuda.is_available() else "no NVIDIA GPU (tests/pretend_cuda runs it on a pretend one)",
        "browser": None if chromium() else NO_CHROMIUM,
        "network": None if online else "needs the Hugging Face hub: set SINKLENS_NETWORK=1",
    }
    # the longest tests begin first, so that no worker is left with one of them at the end
    items.sort(key=lambda item: item.get_closest_marker("long") is None and item.path.suffix != ".ipynb")
    for item in items:
        if item.get_closest_marker("real"):  # one process loads a real model, not all of them (xdist's loadgroup)
            named = f"{item.nodeid} {getattr(item, 'fixturenames', ())}"
            item.add_marker(pytest.mark.xdist_group("gemma3" if "gemma3" in named else "smollm2"))
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what ran on the pretend GPU."""
    for report in terminalreporter.getreports("passed"):
        for name, value in getattr(report, "user_properties", ()):
            if name == "pretend GPU":
                terminalreporter.write_line(f"on a {name}: {value}")
