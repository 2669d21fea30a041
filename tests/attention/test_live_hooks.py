"""Which hooks can be edited is found out by trying, and agrees with what was measured by hand for every family."""

import pytest
import torch
from typer.testing import CliRunner

from sinklens.attention.live_hooks import live_hooks
from sinklens.cli import app
from sinklens.passes.describe import describe_model
from tests.families import FAMILIES, boot, random_ids

EXPECTED = {"live": True, "pattern": False, "none": None}


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_of_scores_and_patterns(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = boot(name, tmp_path_factory.mktemp("zoo"))
    before = {where: len(point.fwd_hooks) for where, point in model.hook_dict.items()}
    found = live_hooks(model)
    assert found["hook_attn_scores"] is EXPECTED[FAMILIES[name].scores]
    assert found["hook_pattern"] is EXPECTED[FAMILIES[name].scores]
    assert {where: len(point.fwd_hooks) for where, point in model.hook_dict.items()} == before


def test_a_dropped_edit_changes_no_logit(tmp_path_factory: pytest.TempPathFactory) -> None:
    dropped = next(name for name, family in FAMILIES.items() if family.scores == "pattern")
    model = boot(dropped, tmp_path_factory.mktemp("zoo"))
    ids = random_ids(1, 20)
    with torch.no_grad():
        plain = model(ids)
        zero = model.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda value, hook: value * 0)])
    assert torch.equal(plain, zero)
    said = describe_model(model)["hooks"]
    assert "edits are DROPPED in silence: hook_attn_scores (use MaskKeys, ScaleKeys), hook_pattern" in said


def test_the_command_describes_a_model() -> None:
    shown = CliRunner().invoke(app, ["models", "bb-1l"])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.stdout.split())
    for said in (
        "architecture",
        "1 layer x 1 head",
        "float32 on",
        "fast: layer 0",
        "the tokenizer prepends it",
        "hooks",
    ):
        assert said in words
