import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dash", reason="the dashboard's extra is not installed")

from flask.testing import FlaskClient

from sinklens.app.dashboard.bench import Bench, open_source
from sinklens.app.dashboard.build import build_app
from sinklens.models import load
from sinklens.studies import Census, Sweep, scan, sweep
from tests.app.dashboard.screen import Screen, opened
from tests.plots.synthetic import synthetic_census


@pytest.fixture(scope="session")
def census() -> Census:
    return synthetic_census()


@pytest.fixture(scope="session")
def small_census() -> Census:
    return scan(load("tiny-llama"), max_sequences=3)


@pytest.fixture(scope="session")
def small_sweep() -> Sweep:
    return sweep("bb-3l", ["zero"], ranking="own", top=[1], max_sequences=6)


@pytest.fixture(scope="session")
def saved(census: Census, small_census: Census, small_sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: a made-up census, a real one, a sweep, and one that is damaged."""
    root = tmp_path_factory.mktemp("runs")
    census.save(root / "made-up")
    small_census.save(root / "tiny")
    small_sweep.save(root / "sweeps" / "zero")
    shutil.copytree(root / "made-up", root / "broken")
    heads = root / "broken" / "heads.parquet"
    heads.write_bytes(heads.read_bytes()[:-7] + b"garbage")
    return root


@pytest.fixture
def bench(saved: Path) -> Bench:
    return open_source(saved)


@pytest.fixture(scope="module")
def app(saved: Path) -> Any:
    return build_app(saved)


@pytest.fixture
def client(app: Any) -> FlaskClient:
    return app.server.test_client()  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def chrome(requires_chromium: str) -> Iterator[Any]:
    """One browser for all tests."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=requires_chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def screen(chrome: Any, address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Screen]:
    yield from opened(chrome, address, tmp_path, request)
