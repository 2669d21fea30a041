"""Norms as the architecture wrote them: the same bits, hooks still fire, watched norms and others stay."""

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge.generalized_components import NormalizationBridge

from sinklens.capture.plain_norms import plain_norms
from sinklens.models import load
from tests.attention.test_engine import state
from tests.families import boot, checkpoint, random_ids

IDS = random_ids(2, 12)


def norms_of(bridge: torch.nn.Module) -> list[NormalizationBridge]:
    return [part for part in bridge.modules() if isinstance(part, NormalizationBridge)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "native"), [("llama", True), ("gemma3", True), ("gpt2", False), ("qwen3", True)])
def test_no_bit_changes_and_all_is_as_before(name: str, native: bool, dtype: torch.dtype, zoo: Path) -> None:
    bridge = boot(name, zoo)
    if dtype == torch.bfloat16:
        bridge = load(checkpoint(name, zoo), dtype=dtype)
    with torch.no_grad():
        expected, _ = bridge.run_with_cache(IDS)
        before = state(bridge)
        with plain_norms(bridge):
            found, cache = bridge.run_with_cache(
                IDS, names_filter=lambda hook: hook.endswith(("ln1.hook_in", "ln1.hook_out"))
            )
            changed = [norm for norm in norms_of(bridge) if "forward" in norm.__dict__]
            assert bool(changed) is native  # the bridge of GPT-2 computes norms of its own
    assert torch.equal(found, expected) and cache
    assert state(bridge) == before and not any("forward" in norm.__dict__ for norm in norms_of(bridge))


def test_a_watched_norm_computes_what_is_watched_and_takes_the_edit(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    seen: list[torch.Tensor] = []

    def double(scale: torch.Tensor, hook: object) -> torch.Tensor:
        seen.append(scale)
        return 2 * scale

    edit = [("blocks.1.ln1.hook_scale", double)]
    with torch.no_grad(), pytest.warns(UserWarning, match="edited"):
        expected = bridge.run_with_hooks(IDS, fwd_hooks=edit)
        with bridge.hooks(fwd_hooks=edit), plain_norms(bridge):
            found = bridge(IDS)
            assert "forward" not in bridge.blocks[1].ln1.__dict__ and "forward" in bridge.blocks[0].ln1.__dict__
    assert len(seen) == 2 and torch.equal(found, expected)


def test_an_exception_leaves_the_norms_as_they_were(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(ZeroDivisionError), plain_norms(bridge):
        _ = 1 / 0
    assert not any("forward" in norm.__dict__ for norm in norms_of(bridge))
