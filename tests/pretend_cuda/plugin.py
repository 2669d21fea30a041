"""Pytest's side of a process that pretends: tells the parent what ran."""

import json
import os
from pathlib import Path

import pytest

_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst outcome of each test."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    """Write the outcomes where ``PRETEND_CUDA_REPORT`` says."""
    where = os.environ.get("PRETEND_CUDA_REPORT")
    if where:
        Path(where).write_text(json.dumps(_outcomes), encoding="utf-8")
