"""Censuses out of the ordinary in report and dashboard: whatever is missing is said, and nothing breaks."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch

pytest.importorskip("dash", reason="the dashboard's extra is not installed")

from sinklens.app.dashboard.bench import Bench, open_source
from sinklens.app.dashboard.callbacks.everything import everything_view
from sinklens.app.dashboard.callbacks.grid import grid_view, headline
from sinklens.app.dashboard.callbacks.head import head_view, positions_view
from sinklens.app.dashboard.callbacks.navigate import describe
from sinklens.app.dashboard.callbacks.text import text_view
from sinklens.app.dashboard.callbacks.token import token_view
from sinklens.app.dashboard.state import State
from sinklens.results.header_file import ARRAYS
from sinklens.studies import Census, scan
from tests import families
from tests.plots.synthetic import attentionless_census
from tests.studies.census.test_nonfinite import planted


def _ids(count: int, length: int) -> list[list[int]]:
    return torch.randint(6, 200, (count, length), generator=torch.Generator().manual_seed(0)).tolist()


def _all_nan(folder: Path) -> Census:
    """Every state is NaN."""
    model = families.boot.__wrapped__("llama", folder)
    with torch.no_grad():
        model.original_model.model.embed_tokens.weight.fill_(float("nan"))
    return scan(model, tokens=_ids(2, 24))


def _hybrid(folder: Path) -> Census:
    return scan(families.boot("qwen3_next", folder), tokens=_ids(2, 20))


def _mamba(folder: Path) -> Census:
    return scan(families.boot("mamba", folder), tokens=_ids(2, 20))


MADE: Final[dict[str, Callable[[Path], Census]]] = {
    "one text": lambda _: scan("tiny-llama", tokens=_ids(1, 30)),
    "one short text": lambda _: scan("tiny-llama", tokens=_ids(1, 11)),
    "texts of all lengths": lambda _: scan("tiny-llama", tokens=[[5, 6], *_ids(1, 30), *_ids(1, 12)]),
    "no sinks": lambda _: scan("tiny-llama", tokens=_ids(3, 24), eps=0.99),
    "a head of NaN": lambda folder: scan(planted(folder), tokens=_ids(2, 24)),
    "NaN alone": _all_nan,
    "no attention, made up": lambda _: attentionless_census(),
    "no attention": _mamba,
    "attention in one layer": _hybrid,
    "sinks alone": lambda _: scan("tiny-llama", tokens=_ids(2, 24), detectors=["sinks"]),
    "peaks alone": lambda _: scan("tiny-llama", tokens=_ids(2, 24), detectors=["residual_peaks"]),
    "means alone": lambda _: _means_alone(),
}  # fmt: skip


def _means_alone() -> Census:
    whole = scan("tiny-llama", tokens=_ids(2, 24))
    return Census({**whole.meta, "by_sequence": None}, whole.tables, {})


@cache
def made(name: str, folder: Path) -> Census:
    return MADE[name](folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd")


@pytest.mark.parametrize("name", MADE)
def test_the_report_says_what_is_missing(name: str, folder: Path, tmp_path: Path) -> None:
    census = made(name, folder)
    page = census.report(tmp_path / "report.html").read_text("utf-8")
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    words = re.sub("<[^>]*>", " ", body)
    shown = words[: words.index("Settings")]
    assert not re.search(r"\bnan\b|\bNone\b|\b0 of 0\b|\binf\b", shown), name
    anchors = {*re.findall(r'<section id="([\w-]+)"', body)}
    assert {*re.findall(r'href="#([\w-]+)"', body)} <= anchors
    assert census.verdict[0][:20] in re.sub(r"&#x27;|&#39;", "'", words.replace("&quot;", '"'))


def every_view(bench: Bench, run: str) -> None:
    """All panels for the chosen head, another one, each text, the first and the last token."""
    shown = describe(bench, State(run=run))
    heads = [shown["head"] or "", *[name for name in shown["head-options"] if name != shown["head"]][-1:]]
    assert headline(bench, shown["grid-key"])
    for of in ("texts", "text"):
        for sequence in range(3):
            for head in heads:
                for token in (None, 0, 1, 29, 500):
                    state = State(run=run, head=head, of=of, sequence=sequence, token=token)
                    keys = describe(bench, state)
                    grid_view(bench, keys["grid-key"])
                    for look in ("map", "layer", "lines"):
                        assert head_view(bench, {**keys["head-key"], "look": look}).title
                    positions_view(bench, State.from_mapping(keys["positions-key"]), token)
                    text_view(bench, keys["text-key"])
                    view = token_view(bench, keys["token-key"])
                    assert "nan" not in view.facts.split()
    for score in (each["value"] for each in shown["score-options"]):
        figure, _note, title = grid_view(bench, {**shown["grid-key"], "score": score})
        assert title and (figure.data or figure.layout.annotations)
    for choice in shown["table-options"]:
        drawn, body = everything_view(bench, {"run": run, "table": choice})
        assert drawn is not None or body


@pytest.mark.parametrize("name", MADE)
def test_every_panel_of_the_dashboard_opens(name: str, folder: Path, tmp_path: Path) -> None:
    census = made(name, folder)
    census.save(tmp_path / "saved")
    every_view(open_source(tmp_path), "saved")
    every_view(open_source(census), "live-1")


@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_a_damaged_file_of_texts_is_said_and_the_means_stay(how: str, tmp_path: Path) -> None:
    census = scan("tiny-llama", tokens=_ids(3, 24))
    census.save(tmp_path / "runs" / "whole")
    shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / "broken")
    path = tmp_path / "runs" / "broken" / ARRAYS
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] + (b"" if how == "cut" else b"x" * 40))
    bench = open_source(tmp_path / "runs")
    figure, said, _ = grid_view(bench, describe(bench, State(run="broken"))["grid-key"])
    told = [word for word in (said, *(str(each.text) for each in figure.layout.annotations)) if word]
    assert figure.data or any("missing" in each or "damaged" in each or "cannot be read" in each for each in told)
    for of in ("texts", "text"):
        state = State(run="broken", head="L1H1", of=of, sequence=1, token=3)
        keys: dict[str, Any] = describe(bench, state)
        for view in (head_view(bench, keys["head-key"]), token_view(bench, keys["token-key"])):
            assert view.title
        text_view(bench, keys["text-key"])
        positions_view(bench, state, 3)
    every_view(bench, "whole")


def test_a_header_that_lacks_what_an_older_one_had(tmp_path: Path) -> None:
    census = scan("tiny-llama", tokens=_ids(2, 24))
    for lost in ("metrics", "warnings", "created", "verdict"):
        meta = {name: value for name, value in census.meta.items() if name != lost}
        bench = open_source(replace(census, meta=meta))
        assert grid_view(bench, describe(bench, State())["grid-key"])[0].data
