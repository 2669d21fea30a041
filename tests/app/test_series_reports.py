"""Reports of dynamics and of active-dormant heads: they hold the numbers, escape text, open offline and draw."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sinklens import load
from sinklens.app.active_dormant_report import strongest_contrasts
from sinklens.errors import ResultError
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.studies import ActiveDormant, Dynamics, find_active_dormant, measure_dynamics
from tests import families
from tests.app.browser import Browser
from tests.plots.synthetic import EVIL
from tests.studies.dynamics.conftest import TEXTS, write_series


@pytest.fixture(scope="module")
def dynamics(tmp_path_factory: pytest.TempPathFactory) -> Dynamics:
    series = write_series(tmp_path_factory.mktemp("series") / "run")
    (series / "step-9" / "model.safetensors").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="step-9 is missing"):
        return measure_dynamics(series, TEXTS, max_tokens=24, max_sequences=6)


@pytest.fixture(scope="module")
def found() -> ActiveDormant:
    return find_active_dormant(load("bb-1l"), classes={"trigger": BigramBackcopy().trigger_ids}, max_sequences=20)


@pytest.fixture(scope="module")
def pages(dynamics: Dynamics, found: ActiveDormant, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages") / "deep"
    return {
        "dynamics": dynamics.report(folder / "dynamics.html"),
        "heads": found.report(folder / "heads.html"),
    }


def test_dynamics_tell_everything(dynamics: Dynamics, pages: dict[str, Path]) -> None:
    page = pages["dynamics"].read_text("utf-8")
    assert all(html.escape(sentence) in page for sentence in dynamics.verdict[:-1]) and "step-9 is missing: " in page
    for name in ("training", "training0", "training1", "heads-importance_first", "layers-max_over_median"):
        assert f'id="{name}-data"' in page
    assert all(f'data-table="{name}"' in page for name in dynamics.tables)
    assert all(metric["definition"].split(":")[0][:40] in page for metric in dynamics.meta["metrics"].values())
    assert html.escape(dynamics.meta["tokens"]["bos"]["statement"]) in page
    assert page.count("<tr>") == 1 + len(dynamics.to_dataframe())


def test_active_dormant_heads_tell_everything(found: ActiveDormant, pages: dict[str, Path]) -> None:
    page = pages["heads"].read_text("utf-8")
    assert found.verdict[0] in page and "L0H0" in page and 'id="heads-figure-data"' in page
    assert all(f'data-table="{name}"' in page for name in found.tables)
    row = found.contrasts().iloc[0]
    assert f"{row['delta_difference']:+.3f}" in page and "dormant_mass 0.5" in page
    assert re.search(r"by_mass</td>.*by_ablation", page, re.DOTALL)


def test_markup_in_names_is_text(dynamics: Dynamics, found: ActiveDormant, tmp_path: Path) -> None:
    series = replace(dynamics, meta=dynamics.meta | {"model": dynamics.meta["model"] | {"name": EVIL}})
    named = replace(found, meta=found.meta | {"model": found.meta["model"] | {"name": EVIL}, "source": EVIL})
    for page in (
        series.report(tmp_path / "a.html"),
        named.report(tmp_path / "b.html"),
    ):
        assert EVIL not in page.read_text("utf-8") and "&lt;script&gt;alert(1)" in page.read_text("utf-8")


def test_one_group_has_no_contrast(tmp_path: Path) -> None:
    alone = find_active_dormant(load("bb-1l"), max_sequences=8)
    assert "there is one domain and one token class only" in alone.report(tmp_path / "a.html").read_text("utf-8")


def test_a_series_without_attention(tmp_path: Path) -> None:
    families.build_checkpoint("mamba", tmp_path / "run" / "step-1")
    result = measure_dynamics(tmp_path / "run", TEXTS, max_tokens=24, max_sequences=6)
    page = result.report(tmp_path / "a.html").read_text("utf-8")
    assert "Not applicable: no layer of this model has attention." in page and "layers-max_over_median-data" in page


def test_contrasts_are_ordered_by_what_was_found() -> None:
    table = pd.DataFrame(
        {"active_dormant": [False, True, False], "delta_difference": [-0.9, 0.1, 0.3], "layer": [0, 1, 2]}
    )
    assert strongest_contrasts(table, 2)["layer"].tolist() == [1, 0]


def test_a_place_that_cannot_be_written(dynamics: Dynamics, found: ActiveDormant, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="folder"):
        dynamics.report(tmp_path / "file" / "a.html")
    with pytest.raises(ResultError, match="folder"):
        found.report(tmp_path / "file" / "a.html")


@pytest.mark.browser
def test_they_draw_in_a_browser_and_request_nothing(
    pages: dict[str, Path], requires_chromium: str, tmp_path: Path
) -> None:
    for name, figure in (("dynamics", "training"), ("heads", "heads-figure")):
        with Browser(requires_chromium, tmp_path / name) as browser:
            browser.open(pages[name])
            browser.wait_for(f"document.querySelector('#{figure} .main-svg') !== null")
            assert browser.problems == []
