"""What holds for every intervention, as checks to call: caches, padding, batches, both paths, JSON."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine
from sinklens.interventions import Intervention
from sinklens.interventions.positions import Positions
from tests.families import boot, padding_mask, random_ids
from tests.interventions import reference

POS = 40
PROMPT = 22
CUTS = (PROMPT, PROMPT + 1, PROMPT + 2, 31, *range(32, POS + 1))
"""Ends of the passes: a prompt, single tokens, several at once; beyond the windows of 16, whose caches drop keys."""


def decoded(
    bridge: TransformerBridge, intervention: Intervention, ids: Tensor, cuts: Sequence[int] = CUTS, **options: Any
) -> Tensor:
    """Logits of passes that go on from a cache."""
    model, cache, parts, start = bridge.original_model, None, [], 0
    mask = options.get("attention_mask")
    with intervention(bridge):
        for stop in cuts:
            if mask is not None:
                positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:stop]
                options = {"attention_mask": mask[:, :stop], "position_ids": positions}
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True, **options)
            cache, start = out.past_key_values, stop
            parts.append(out.logits)
    return torch.cat(parts, 1)


def check_decoding(name: str, told: Intervention, zoo: Path, *, untold: Intervention | None = None) -> None:
    """Cached decoding equals one pass over the whole text; ``untold`` does not know where the prompt ends."""
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    full = reference.under(bridge, told, ids)
    assert float((full - bridge(ids)).abs().max()) > 1e-2
    for method in [told] if untold is None else [told, untold]:
        torch.testing.assert_close(decoded(bridge, method, ids), full, atol=1e-4, rtol=0)


def check_padded_decoding(name: str, method: Intervention, alone: Intervention, zoo: Path) -> None:
    """A left-padded sequence decoded with a cache beside a longer one is that sequence alone, in one pass."""
    bridge, ids, n = boot(name, zoo), random_ids(pos=POS), 7
    found = decoded(bridge, method, ids, attention_mask=padding_mask(2, POS, n, "left"))
    expected = reference.under(bridge, alone, ids[1:, n:])
    torch.testing.assert_close(found[1:, n:], expected, atol=1e-4, rtol=0)


def check_left_padding(name: str, method: Intervention, zoo: Path, *, alone: Intervention | None = None) -> None:
    """Left padding changes nothing, and neither does company in the batch."""
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    padded = reference.under(bridge, method, ids, attention_mask=padding_mask(2, POS, 7, "left"))
    shorter = reference.under(bridge, alone or method, ids[1:, 7:])
    torch.testing.assert_close(padded[1:, 7:], shorter, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded[:1], reference.under(bridge, method, ids[:1]), atol=1e-4, rtol=0)
    assert float((shorter - bridge(ids[1:, 7:])).abs().max()) > 1e-2


def on_path(bridge: TransformerBridge, method: Intervention, path: str, ids: Tensor) -> Tensor:
    """Logits under an intervention on a path of the engine's that one chooses."""
    positions = Positions()
    engine = AttentionEngine(bridge, path=path, edits=method.edits(positions))
    with ExitStack() as stack:
        stack.enter_context(positions.watch(bridge))
        stack.enter_context(bridge.hooks(fwd_hooks=list(method.hooks(positions))))
        stack.enter_context(engine)
        found: Tensor = bridge(ids)
    return found


def check_both_paths(name: str, method: Intervention, zoo: Path) -> None:
    """The engine and the bridge's hooks do the same."""
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    fast, hooks = (on_path(bridge, method, path, ids) for path in ("fast", "fallback"))
    scale = float(fast.abs().max())
    torch.testing.assert_close(fast, hooks, atol=1e-5 * max(1.0, scale), rtol=0)
    assert float((fast - bridge(ids)).abs().max()) > 1e-2


def check_identity(name: str, method: Intervention, zoo: Path) -> None:
    """Not a bit differs from the engine without edits."""
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    path = "fallback" if name == "bloom" else "fast"
    with AttentionEngine(bridge, path=path):
        plain = bridge(ids)
    assert torch.equal(reference.under(bridge, method, ids), plain)


def check_json(method: Intervention) -> None:
    """To JSON and back, and a copy with other heads keeps the rest."""
    assert Intervention.from_json(method.to_json()) == method
    other: Any = replace(method, heads=["L0H1"])  # type: ignore[call-arg]
    assert replace(other, heads=method.heads) == method  # type: ignore[attr-defined]
