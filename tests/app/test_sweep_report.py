"""The report of a sweep: its figures hold the sweep's numbers, text is escaped, and it opens offline."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sinklens import cli
from sinklens.errors import ResultError
from sinklens.studies import Sweep, sweep


@pytest.fixture(scope="module")
def swept() -> Sweep:
    return sweep("bb-3l", ["zero", "uniform"], ranking="own", top=[1], max_sequences=8)


def test_it_holds_every_intervention_and_its_numbers(swept: Sweep, tmp_path: Path) -> None:
    page = swept.report(tmp_path / "deep" / "report.html").read_text("utf-8")
    for sentence in swept.verdict:
        assert sentence in page
    for place, label in enumerate(["zero", "uniform"]):
        assert f"<h2>{label}</h2>" in page
        data = re.search(rf'id="heads{place}-data">(.*?)</script>', page)
        assert data is not None
        shown = json.loads(data[1])["data"][0]["z"]
        assert f'id="top{place}-data"' in page and f'id="tested{place}-data"' in page
        drawn = swept.summary.to_dataframe().query("kind == 'head' and intervention == @label").set_index("layer")
        assert _decoded(shown)[:, 0].tolist() == pytest.approx(drawn["delta_loss"].sort_index().tolist(), rel=1e-5)
    assert 'data-table="summary"' in page and 'data-table="effects"' in page


def test_markup_in_a_name_is_text(swept: Sweep, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    named = replace(swept, meta={**swept.meta, "model": {**swept.meta["model"], "name": evil}})
    page = named.report(tmp_path / "report.html").read_text("utf-8")
    assert evil not in page and "&lt;img src=x" in page


def test_the_command_writes_it_and_report_writes_it_again(
    swept: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept.save(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["sinklens", "report", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    assert "sinklens sweep of head ablations" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_place_that_cannot_be_written(swept: Sweep, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="folder"):
        swept.report(tmp_path / "file" / "report.html")


def _decoded(values: dict[str, str]) -> np.ndarray:
    """Plotly's typed array as numpy's."""
    raw = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return raw.reshape([int(n) for n in values["shape"].split(",")])
