"""The probe on released tables, on small files of our own making."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from sinklens.studies.head_roles.gates_file import Gates
from sinklens.studies.head_roles.retrieval_file import RetrievalRuns
from tests.studies.head_roles.synthetic import gates_file, retrieval_file

PROBE = Path(__file__).parents[1] / "probes" / "compare_released_heads.py"


@pytest.fixture(scope="module")
def probe() -> Any:
    spec = importlib.util.spec_from_file_location("compare_released_heads", PROBE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_table_says_what_the_files_say(probe: Any, tmp_path: Path) -> None:
    runs, gates = RetrievalRuns.read(retrieval_file(tmp_path)), Gates.read(gates_file(tmp_path, name="g.tsv"))
    roles = probe.compare(runs, gates, None)
    rows = dict(probe.facts(runs, gates, roles))
    table = runs.scores().frame
    assert rows["kept runs"] == "7" and rows["gates"].startswith("3 x 2, mean ")
    assert rows["heads with score >= 0.1"] == f"{(table['retrieval'] >= 0.1).sum()} of 12"
    assert rows["highest"].startswith(
        "{:.0f}-{:.0f} ".format(*table.nlargest(1, "retrieval").iloc[0][["layer", "head"]])
    )
    assert re.match(r"\d of \d and \d, of 6 KV heads", rows["labelled by both"])
    assert "top 50 %" in rows["gates labelled"]
    assert "top 20 %" in dict(probe.facts(runs, gates, probe.compare(runs, gates, 0.2)))["gates labelled"]
