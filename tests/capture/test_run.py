"""What a capture records: every layer once and in order, no padding, whatever the batch, nothing T x T."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import FullMap, KeySetMass, PooledMap, ReceivedMass, plan_for
from sinklens.capture import LayerRecord, capture
from sinklens.capture.run import standard_statistics
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.tokens import TokenBatch, tokenize
from tests import oracle
from tests.attention.test_engine import unchanged
from tests.families import BOS, BROKEN, FAMILIES, HEADS, boot, boot_hf, random_ids
from tests.heard import Heard

pytestmark = pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")

LENGTHS = (40, 17, 29, 40, 5)
D_MODEL = 32
WITH_ATTENTION = [name for name, family in FAMILIES.items() if family.attention_layers]
SOME = ("llama", "gpt2", "gpt_oss", "deepseek_v3", "qwen3_next", "bloom", "gptj", "mamba")


def tokens(bridge: TransformerBridge, lengths: tuple[int, ...] = LENGTHS) -> TokenBatch:
    ids = random_ids(len(lengths), max(lengths))
    ids[0, 0] = ids[1, 0] = BOS
    return tokenize(bridge, [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)])


class Keep:
    """A consumer that keeps everything."""

    def __init__(self) -> None:
        self.records: list[LayerRecord] = []

    def update(self, record: LayerRecord) -> None:
        self.records.append(record)


class Boom(Exception):
    """Raised by a test in the middle of a run."""


class BoomAt:
    def __init__(self, layer: int) -> None:
        self.layer = layer

    def update(self, record: LayerRecord) -> None:
        if record.layer == self.layer:
            raise Boom


# ------------------------------------------------------------------ what arrives, and when
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_once_and_in_order(name: str, zoo: Path) -> None:
    bridge, family = boot(name, zoo), FAMILIES[name]
    batch, heard, first, second = tokens(bridge), Heard(), Keep(), Keep()
    with unchanged(bridge):
        assert capture(bridge, batch, [first, second], batch_size=2, progress=heard) == []
    assert [id(r) for r in first.records] == [id(r) for r in second.records]
    layers = list(range(-1, family.n_layers))
    assert [r.layer for r in first.records] == layers * 3
    assert [r.first_sequence for r in first.records] == [s for s in (0, 2, 4) for _ in layers]
    assert [len(r.batch) for r in first.records] == heard.done == [n for n in (2, 2, 1) for _ in layers]
    assert [r.batch.ids.shape[1] for r in first.records][:: len(layers)] == [40, 40, 5]
    path = plan_for(bridge).path
    for record in first.records:
        attends = record.layer in family.attention_layers
        assert record.path == (path if attends else "none")
        assert bool(record.attention) == attends == (record.values is not None)
        assert record.residual is not None


@pytest.mark.parametrize("name", SOME)
def test_no_record_holds_a_map(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    for record in capture(bridge, tokens(bridge), batch_size=5):
        pos = record.batch.ids.shape[1]
        tensors = {**record.attention}
        for part in (record.values, record.residual):
            tensors |= {} if part is None else dataclasses.asdict(part)
        for key, value in tensors.items():
            if value is not None:
                assert list(value.shape).count(pos) <= 1, key
                assert value.numel() <= 5 * max(HEADS, D_MODEL) * pos, key


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):  # views and expanded tensors hold no memory of their own
                self.size = max(self.size, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gemma2", "bloom"])
def test_no_tensor_is_as_large_as_one_map(name: str, zoo: Path) -> None:
    bridge, pos = boot(name, zoo), 1024
    short = tokens(bridge, (5, 5)).rows([0])
    ids = random_ids(1, pos)
    whole = torch.ones_like(ids, dtype=torch.bool)
    batch = dataclasses.replace(short, ids=ids, real=whole, special=~whole, tokens=(("x",) * pos,))
    plan_for(bridge)
    with Largest() as largest:
        capture(bridge, batch, [Keep()])
    if FAMILIES[name].path == "fast":
        assert largest.size < pos * pos
    else:  # the bridge makes the pattern of all heads itself
        assert largest.size >= HEADS * pos * pos


def test_standard_statistics_name_only_sets_that_exist(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    batch = tokens(bridge)

    def names(rows: TokenBatch) -> set[str]:
        found = [f for f in standard_statistics(rows) if isinstance(f, partial) and f.func is KeySetMass]
        return set(found[0].keywords["sets"]) if found else set()

    assert names(batch) == {"bos", "special"}
    assert names(batch.rows([2, 3])) == set()
    maps = [f for f in standard_statistics(batch, maps=(1,)) if isinstance(f, partial) and f.func is PooledMap]
    assert len(maps) == 1


def test_statistics_of_the_caller(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    calls: list[tuple[int, int]] = []

    def statistics(rows: TokenBatch, start: int) -> list[Any]:
        calls.append((len(rows), start))
        return [ReceivedMass, FullMap] if start == 0 else []

    records = capture(bridge, tokens(bridge), batch_size=3, statistics=statistics)
    assert calls == [(3, 0), (2, 3)]
    assert set(records[1].attention) == {"mass", "queries", "null_mass", "full_map"}
    assert records[4].attention == {}
    assert records[4].values is not None


# ------------------------------------------------------------------ the numbers
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_values_equal_the_weights(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = tokens(bridge)
    expected = oracle.value_norms(boot_hf(name, zoo), batch.ids, batch.real)
    for record in capture(bridge, batch, batch_size=5):
        if record.values is None:
            continue
        right = expected[record.layer]
        assert right is not None
        real = batch.real[:, None]
        for found, wanted in ((record.values.value, right.norm), (record.values.output, right.wo_norm)):
            assert found is not None
            wanted = wanted.transpose(1, 2).masked_fill(~real, 0)
            assert wanted.max() > 0.1
            found = found.double().masked_fill(~real, 0)
            torch.testing.assert_close(found, wanted, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_residuals_are_those_between_the_blocks(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = tokens(bridge)
    seen: dict[int, Tensor] = {}

    def keep(hidden: Tensor, hook: Any, layer: int) -> None:
        seen[layer] = hidden.double()

    hooks = [("blocks.0.hook_in", partial(keep, layer=-1))]
    hooks += [(f"blocks.{layer}.hook_out", partial(keep, layer=layer)) for layer in range(len(bridge.blocks))]
    with bridge.hooks(fwd_hooks=hooks):
        bridge(batch.ids)
    for record in capture(bridge, batch, batch_size=5, top_k=3):
        hidden, found = seen[record.layer], record.residual
        assert found is not None
        norm = hidden.norm(dim=-1).masked_fill(~batch.real, math.nan)
        torch.testing.assert_close(found.norm.double(), norm, atol=2e-5, rtol=2e-5, equal_nan=True)
        for b, length in enumerate(LENGTHS):
            entries = hidden[b, :length].abs()
            torch.testing.assert_close(
                found.top_value[b].abs().double(), entries.flatten().topk(3).values, atol=2e-5, rtol=2e-5
            )
            where = hidden[b, found.top_position[b], found.top_channel[b]]
            torch.testing.assert_close(found.top_value[b].double(), where, atol=2e-5, rtol=2e-5)
            assert found.median[b].item() == pytest.approx(entries.median().item(), abs=2e-5, rel=1e-4)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_batch_size_changes_nothing(name: str, batch_size: int, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = tokens(bridge)
    together = {r.layer: r for r in capture(bridge, batch, batch_size=5)}
    for record in capture(bridge, batch, batch_size=batch_size):
        whole = together[record.layer]
        n, pos = record.batch.ids.shape
        rows = slice(record.first_sequence, record.first_sequence + n)
        assert torch.equal(whole.real[rows, :pos], record.real)
        pairs = {key: (value, whole.attention[key]) for key, value in record.attention.items()}
        for part in ("values", "residual"):
            mine, theirs = getattr(record, part), getattr(whole, part)
            if mine is not None:
                fields = [f.name for f in dataclasses.fields(mine)]
                pairs |= {f"{part}.{f}": (getattr(mine, f), getattr(theirs, f)) for f in fields}
        assert pairs
        for key, (mine, theirs) in pairs.items():
            theirs = theirs[rows]
            if mine.shape[-1] == pos:  # per token: positions beyond a sequence's length hold no meaning
                theirs = theirs[..., :pos]
                shape = (n, *[1] * (mine.ndim - 2), pos)
                mine, theirs = (x.double().masked_fill(~record.real.view(shape), 0) for x in (mine, theirs))
            if key == "top_key":
                assert (mine != theirs).sum() <= 1  # two keys of equal weight
                continue
            torch.testing.assert_close(mine, theirs, atol=3e-5, rtol=3e-5, equal_nan=True, msg=key)


def test_padding_is_left_out(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    batch = tokens(bridge, (40, 9))
    for record in capture(bridge, batch, batch_size=2):
        assert record.residual is not None
        assert record.residual.norm[1, 9:].isnan().all()
        if record.attention:
            assert record.attention["mass"][1].sum(-1).tolist() == pytest.approx([9.0] * HEADS, abs=1e-4)
            assert record.attention["queries"][1].tolist() == [*range(9, 0, -1), *[0] * 31]
            assert record.attention["entropy"][1, :, 9:].isnan().all()
            assert (record.attention["top_key"][1, :, 9:] == -1).all()
            assert record.attention["mass_bos"][0].isfinite().all()


# ------------------------------------------------------------------ when something goes wrong
@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gptj", "mamba"])
def test_a_consumer_that_raises(name: str, layer: int, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch, before = tokens(bridge), Keep()
    with unchanged(bridge), pytest.raises(Boom):
        capture(bridge, batch, [before, BoomAt(layer)], batch_size=2)
    assert [r.layer for r in before.records] == list(range(-1, layer + 1))


def test_progress_that_raises(zoo: Path) -> None:
    def stop(heard: Heard) -> None:
        raise KeyboardInterrupt

    bridge = boot("llama", zoo)
    with unchanged(bridge), pytest.raises(KeyboardInterrupt):
        capture(bridge, tokens(bridge), progress=Heard(stop))


def test_gradients_stay_as_they_were(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with torch.enable_grad():
        records = capture(bridge, tokens(bridge))
        assert torch.is_grad_enabled()
    assert not any(value.requires_grad for record in records for value in record.attention.values())


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_that_means_nothing(batch_size: int, zoo: Path) -> None:
    bridge = boot("llama", zoo)
    with pytest.raises(InputError, match="batch_size"):
        capture(bridge, tokens(bridge), batch_size=batch_size)


@pytest.mark.parametrize("name", BROKEN)
def test_a_bridge_that_is_wrong_gives_no_numbers(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with pytest.raises(UnsupportedArchitectureError):
        capture(bridge, tokens(bridge))
