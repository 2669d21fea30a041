"""ACT, VAR, PASTA and outputs in a head's place: in half precision, and on a GPU where there is one."""

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.interventions import AblateHeads, CalibrateSinks, Intervention, RedistributeAttention, SteerAttention
from sinklens.interventions.head_outputs import prompt_outputs
from sinklens.models.tokens import tokenize
from tests.families import boot, checkpoint, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS

METHODS = [
    CalibrateSinks(alpha=2.0),
    CalibrateSinks(alpha=1.5, sinks_from="prompt"),
    RedistributeAttention(
        range(5, 15), sink_dims=(3, 17), tau=1.6, rho=0.3, min_mass=0.1, first_layer=0, spare_last=False
    ),
    RedistributeAttention(range(5, 15), sinks=(0, 6), rho=0.0, min_mass=0.0, first_layer=0, spare_last=False),
    SteerAttention(range(5, 12), alpha=0.05),
]
NAMES = ["past", "prompt", "dims", "sinks", "steer"]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_half_precision_follows_single(name: str, method: Intervention, zoo: Path) -> None:
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cpu", dtype=torch.bfloat16).eval()
    logits = reference.under(bridge, method, random_ids(pos=POS))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    # thresholds amplify rounding, so only the rows' sums can be held to a bound
    for pattern in reference.patterns(bridge, random_ids(pos=POS), method).values():
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), atol=0.02, rtol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_on_a_gpu(name: str, zoo: Path) -> None:
    ids, cpu = random_ids(pos=POS), boot(name, zoo)
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cuda", dtype=torch.float32).eval()
    outputs = prompt_outputs(bridge, tokenize(bridge, random_ids(batch=1, pos=POS, seed=8)))
    resample = AblateHeads(["L0H1", "L1H2"], "resample", outputs)  # type: ignore[arg-type]
    for method in [*METHODS, resample]:
        expected = reference.under(cpu, method, ids)
        torch.testing.assert_close(reference.under(bridge, method, ids.cuda()).cpu(), expected, atol=2e-3, rtol=0)
        found = invariants.decoded(bridge, method, ids.cuda(), (POS,)).cpu()
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
