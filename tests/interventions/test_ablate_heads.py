"""Outputs put in a head's place: means over a text or by position, another prompt's, in batches and with a cache."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention, mean_outputs
from sinklens.interventions.head_outputs import prompt_outputs
from sinklens.models.tokens import TokenBatch, tokenize
from tests.families import FAMILIES, boot, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS

NAMES = ["llama", "gemma2", "gpt2", "opt", "bloom", "deepseek_v3"]
SOME = ((0, 1), (0, 2), (1, 3))
LENGTHS = (40, 20, 33, 5)


def texts(bridge: TransformerBridge) -> TokenBatch:
    ids = random_ids(batch=len(LENGTHS), pos=max(LENGTHS), seed=5)
    return tokenize(bridge, [row[:n].tolist() for row, n in zip(ids, LENGTHS, strict=True)])


def outputs_by_hooks(bridge: TransformerBridge, name: str, ids: Tensor, layer: int) -> Tensor:
    """z [batch pos head d_value] of one layer."""
    kept: list[Tensor] = []
    with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", lambda z, hook: kept.append(z.clone()))]):
        bridge(ids)
    return kept[0].flatten(2).unflatten(2, (4, FAMILIES[name].d_value)).double()


def with_outputs(bridge: TransformerBridge, name: str, ids: Tensor, outputs: dict[str, Any]) -> Tensor:
    """Logits with hook_z overwritten by outputs that hold for these positions."""

    def write(z: Tensor, hook: Any, layer: int) -> Tensor:
        z, shape = z.clone(), z.shape
        heads = z.flatten(2).unflatten(2, (4, FAMILIES[name].d_value))
        for head in range(4):
            if f"L{layer}H{head}" in outputs:
                heads[:, :, head] = torch.tensor(outputs[f"L{layer}H{head}"])[: z.shape[1]]
        return heads.reshape(shape)

    hooks = [
        (f"blocks.{n}.attn.hook_z", lambda z, hook, layer=n: write(z, hook, layer))
        for n in FAMILIES[name].attention_layers
    ]
    with bridge.hooks(fwd_hooks=hooks):
        found: Tensor = bridge(ids)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_means_by_position(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = texts(bridge)
    found = mean_outputs(bridge, batch, per_position=True, heads=SOME)
    assert sorted(found) == ["L0H1", "L0H2", "L1H3"]
    for layer, head in SOME:
        z = outputs_by_hooks(bridge, name, batch.ids, layer)[:, :, head]
        for position in (0, 4, 5, 19, 20, 32, 39):
            having = [sequence for sequence, n in enumerate(LENGTHS) if position < n]
            mean = torch.tensor(found[f"L{layer}H{head}"][position]).double()
            torch.testing.assert_close(mean, z[having, position].mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_references_in_pieces(name: str, per_position: bool, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = texts(bridge)
    whole = mean_outputs(bridge, batch, per_position=per_position)
    for batch_size in (1, 3):
        pieces = mean_outputs(bridge, batch, per_position=per_position, batch_size=batch_size)
        assert pieces.keys() == whole.keys()
        for head in whole:
            torch.testing.assert_close(torch.tensor(pieces[head]), torch.tensor(whole[head]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_resampled_heads_put_out_what_they_did_elsewhere(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    prompt = tokenize(bridge, random_ids(batch=1, pos=POS + 3, seed=8))
    outputs = prompt_outputs(bridge, prompt, heads=SOME)  # type: ignore[arg-type]
    z = outputs_by_hooks(bridge, name, prompt.ids, 1)[0, :, 3]
    torch.testing.assert_close(torch.tensor(outputs["L1H3"]).double(), z, atol=1e-5, rtol=1e-5)
    found = reference.under(bridge, AblateHeads(SOME, "resample", outputs), ids)
    torch.testing.assert_close(found, with_outputs(bridge, name, ids, outputs), atol=5e-5, rtol=0)
    assert float((found - bridge(ids)).abs().max()) > 1e-3
    mean = AblateHeads(SOME, "mean", outputs)
    assert torch.equal(reference.under(bridge, mean, ids), found)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_a_prompt_resampled_from_itself_is_unchanged(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=POS)
    outputs = prompt_outputs(bridge, tokenize(bridge, ids))
    found = reference.under(bridge, AblateHeads("all", "resample", outputs), ids)
    torch.testing.assert_close(found, bridge(ids), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
def test_positions_with_caches_and_left_padding(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    outputs = prompt_outputs(bridge, tokenize(bridge, random_ids(batch=1, pos=POS, seed=8)), heads=SOME)  # type: ignore[arg-type]
    method = AblateHeads(SOME, "resample", outputs)
    invariants.check_decoding(name, method, zoo)
    invariants.check_left_padding(name, method, zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_engine_and_hooks_agree(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    outputs = prompt_outputs(bridge, tokenize(bridge, random_ids(batch=1, pos=POS, seed=8)), heads=SOME)  # type: ignore[arg-type]
    invariants.check_both_paths(name, AblateHeads(SOME, "resample", outputs), zoo)


def test_texts_longer_than_the_reference_are_refused(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    outputs = prompt_outputs(bridge, tokenize(bridge, random_ids(batch=1, pos=POS - 1)))
    method = AblateHeads(["L1H0"], "resample", outputs)  # type: ignore[arg-type]
    assert reference.under(bridge, method, ids[:, :-1]).isfinite().all()
    for problem in (lambda: reference.under(bridge, method, ids), lambda: invariants.decoded(bridge, method, ids)):
        with pytest.raises(InputError, match="The text has 40 tokens and the outputs of L1H0 end after 39 positions"):
            problem()


def test_a_prompt_is_one_sequence_and_a_batch_is_not_empty(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="Expected one prompt to resample from, got 2"):
        prompt_outputs(bridge, tokenize(bridge, random_ids()))
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        mean_outputs(bridge, tokenize(bridge, random_ids()), batch_size=0)
    with pytest.raises(InputError, match="L7H0 does not exist"):
        mean_outputs(bridge, tokenize(bridge, random_ids()), heads=["L7H0"])  # type: ignore[arg-type]


def test_outputs_go_to_json_and_are_shared_by_copies() -> None:
    by_position = {"L0H1": [[0.5, -1.25], [2.0, 3.0]], "L1H0": torch.ones(2, 2)}
    for how, outputs in (("resample", by_position), ("mean", by_position), ("mean", {"L0H1": [1.0], "L1H0": [0.1]})):
        method = AblateHeads(["L0H1"], how, outputs)  # type: ignore[arg-type]
        assert Intervention.from_json(method.to_json()) == method
        other: Any = replace(method, heads=["L1H0"])  # type: ignore[arg-type]
        assert other.outputs is method.outputs
        assert pickle.loads(pickle.dumps(method)) == method
        tensor = other.outputs.tensor("L0H1", torch.zeros(1))
        assert method.outputs.tensor("L0H1", torch.zeros(3)) is tensor  # type: ignore[union-attr]
    assert '"outputs": {"L0H1": [[0.5, -1.25]' in AblateHeads("all", "mean", by_position).to_json()


@pytest.mark.parametrize(
    ("how", "outputs"),
    [
        ("resample", None),
        ("resample", {"L0H0": [1.0, 2.0]}),
        ("uniform", {"L0H0": [1.0]}),
        ("mean", {"L0H0": [[1.0], [float("inf")]]}),
        ("mean", {"L0H0": [[1.0], [1.0, 2.0]]}),
        ("mean", {"L0H0": [[[1.0]]]}),
        ("mean", {"L0H0": []}),
    ],
)
def test_outputs_that_are_none(how: Any, outputs: Any) -> None:
    with pytest.raises(InputError):
        AblateHeads(["L0H0"], how, outputs)  # type: ignore[arg-type]
