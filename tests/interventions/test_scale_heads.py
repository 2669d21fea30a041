"""ScaleHeads against what it adds to the attention's output, caches, padding, paths, JSON."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, ScaleHeads
from sinklens.models.architecture import output_weights
from tests.families import boot, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS, PROMPT

SOME = ((0, 1), (0, 2), (1, 3))
TWICE = ScaleHeads(SOME)
LATE = ScaleHeads(SOME, 2.5, from_row=PROMPT - 1)


def test_it_equals_adding_what_the_heads_write_once_more(zoo: Path) -> None:
    """Check 3 of the card: z times alpha is (alpha - 1) z W_O beside the attention's output."""
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    hooks: list[tuple[str, Any]] = []
    for layer in range(len(bridge.blocks)):
        kept: list[Tensor] = []

        def keep(z: Tensor, hook: Any, kept: list[Tensor] = kept) -> None:
            kept[:] = [z]

        def add(out: Tensor, hook: Any, kept: list[Tensor] = kept, layer: int = layer) -> Tensor:
            z, weights = kept[0], output_weights(bridge, layer)
            assert weights is not None
            z = z.reshape(*z.shape[:2], 4, -1)
            for head in (h for at, h in SOME if at == layer):
                out[:, PROMPT - 1 :] += 1.5 * z[:, PROMPT - 1 :, head] @ weights[head]
            return out

        hooks += [(f"blocks.{layer}.attn.hook_z", keep), (f"blocks.{layer}.attn.hook_out", add)]
    with bridge.hooks(fwd_hooks=hooks):
        expected = bridge(ids)
    torch.testing.assert_close(reference.under(bridge, LATE, ids), expected, atol=1e-4, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-2


def test_nothing_is_zero_ablation_and_one_changes_no_bit(zoo: Path) -> None:
    for name in ("llama", "gemma2", "bloom"):
        bridge, ids = boot(name, zoo), random_ids(pos=POS)
        found, zero = (reference.under(bridge, each, ids) for each in (ScaleHeads(SOME, 0), AblateHeads(SOME)))
        torch.testing.assert_close(found, zero, atol=1e-6, rtol=0)
        invariants.check_identity(name, ScaleHeads("all", 1.0), zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "gpt_oss"])
def test_cached_decoding(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, LATE, zoo)


def test_left_padding_does_not_count(zoo: Path) -> None:
    invariants.check_left_padding("llama", ScaleHeads(SOME, from_row=5), zoo)
    invariants.check_padded_decoding("llama", TWICE, TWICE, zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_engine_and_hooks_agree(name: str, zoo: Path) -> None:
    invariants.check_both_paths(name, TWICE, zoo)


@pytest.mark.parametrize("method", [TWICE, LATE], ids=repr)
def test_json(method: ScaleHeads) -> None:
    invariants.check_json(method)


@pytest.mark.parametrize("wrong", [{"factor": -1}, {"factor": True}, {"from_row": -1}, {"heads": []}], ids=str)
def test_fields_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ScaleHeads(**({"heads": "all"} | wrong))
