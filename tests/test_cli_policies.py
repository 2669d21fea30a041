"""`sinklens policies`: every rule in the list, and one explained."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli.program import app
from sinklens.errors import InputError
from sinklens.policies import make_policy, policies
from sinklens.policies.h2o import H2O
from sinklens.policies.sink_window import SinkWindow


def test_the_list_names_every_rule_with_scope_and_source() -> None:
    printed = CliRunner().invoke(app, ["policies"], env={"COLUMNS": "200"}).output
    for name, kind in policies().items():
        assert name in printed and kind.source.split()[0] in printed


def test_one_rule_is_explained() -> None:
    printed = CliRunner().invoke(app, ["policies", "tova"], env={"COLUMNS": "200"}).output
    assert "newest token" in printed and "Scope: causal. Group: layer." in printed
    assert isinstance(CliRunner().invoke(app, ["policies", "tovva"]).exception, InputError)


def test_needles_beside_losses(tmp_path: Path) -> None:
    words = [
        "induction-2l",
        "--policies",
        "sink_window:recent=4,top_k",
        "--budget",
        "8",
        "--max-tokens",
        "24",
        "--needle",
    ]
    more = ["--max-sequences", "2", "--needle-length", "40", "--needle-repeats", "1", "--out", str(tmp_path / "r")]
    done = CliRunner().invoke(app, ["policy", "compare", *words, *more], env={"COLUMNS": "200"})
    assert done.exception is None and "3 prompts of 40 tokens" in done.output
    table = sinklens.open(tmp_path / "r").to_dataframe("needle_summary")
    assert [*table["policy"]] == ["sink_window:recent=4", "top_k 8"] and "mean rank" in done.output


def test_policies_are_made_from_words() -> None:
    assert make_policy("h2o:heavy=3,recent=5") == H2O(3, 5)
    assert make_policy("sink_window", keys=16) == SinkWindow(4, 12)
    assert make_policy("sink_window:budget=0.25", length=64) == SinkWindow(4, 12)
    assert make_policy("h2o:budget=17,prompt=9") == H2O(8, 8, prompt=9)
    for wrong, told in [
        ("h3o", "did you mean h2o"),
        ("h2o:heavi=3", "did you mean heavy"),
        ("h2o:heavy", "name=value"),
        ("h2o:budget=0.1", "share of the text"),
        ("coverage:budget=10", "not set by a number of keys"),
        ("sink_window:recent=0", "whole number from 1"),
    ]:
        with pytest.raises(InputError, match=told):
            make_policy(wrong)
