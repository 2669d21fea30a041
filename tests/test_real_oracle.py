"""The numbers of a scan on real language models, against plain transformers without sinklens and TransformerLens."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.builtin import data_dir
from sinklens.models.real import real_model_path
from sinklens.models.tokens import tokenize
from sinklens.studies import Census, scan
from tests.plain_oracle import (
    Plain,
    distance,
    entropy,
    importance,
    lower_median,
    others,
    plain_model,
    run_plain,
    uniform_pattern,
)

pytestmark = pytest.mark.real

EPS = 0.3
# model, tokens, with BOS: both kinds of context, and on Gemma a text longer than its window of 512
CASES = [
    *(("smollm2", length, bos) for length, bos in ((64, True), (64, False), (256, True))),
    ("gemma3", 256, True),
    pytest.param("gemma3", 64, False, marks=pytest.mark.slow),
    pytest.param("gemma3", 600, True, marks=pytest.mark.slow),
]


@pytest.fixture
def bridge(request: pytest.FixtureRequest) -> TransformerBridge:
    model: TransformerBridge = request.getfixturevalue(request.node.callspec.params["name"])
    return model


@cache
def rows_of(name: str, length: int, bos: bool) -> list[list[int]]:
    """Some consecutive pieces of a play, tokenized by the file's own tokenizer; one if they are long."""
    _, tokenizer = plain_model(real_model_path(name))
    text = (data_dir() / "texts" / "shakespeare.txt").read_text()[3000:40_000]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prefix, count = [tokenizer.bos_token_id] if bos else [], 3 if length < 300 else 1
    room = length - len(prefix)
    return [prefix + ids[i * room : (i + 1) * room] for i in range(count)]


@cache
def plain(name: str, length: int, bos: bool) -> Plain:
    model, _ = plain_model(real_model_path(name))
    return run_plain(model, rows_of(name, length, bos))


_censuses: dict[tuple[str, int, bool], Census] = {}


def census_of(bridge: TransformerBridge, name: str, length: int, bos: bool) -> Census:
    key = (name, length, bos)
    if key not in _censuses:
        _censuses[key] = scan(bridge, tokens=rows_of(*key))
    return _censuses[key]


def cube(table: pd.DataFrame, column: str, *axes: str) -> np.ndarray[Any, Any]:
    """A column as an array over axes that the rows enumerate completely."""
    ordered = table.sort_values(list(axes))
    values: np.ndarray[Any, Any] = ordered[column].to_numpy(dtype=float)
    return values.reshape([ordered[axis].nunique() for axis in axes])


def close(ours: Any, expected: torch.Tensor, relative: float = 2e-4, absolute: float = 1e-5) -> None:
    """fp32 kernels of two kinds, thirty blocks deep."""
    np.testing.assert_allclose(ours, expected.numpy(), rtol=relative, atol=absolute)


@pytest.mark.parametrize(("name", "length", "bos"), CASES)
def test_logits_of_the_loaded_model(bridge: TransformerBridge, name: str, length: int, bos: bool) -> None:
    with torch.no_grad():
        ours = bridge(torch.tensor(rows_of(name, length, bos)))
    expected = plain(name, length, bos).logits
    assert (ours - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize(("name", "length", "bos"), CASES)
def test_sinks(bridge: TransformerBridge, name: str, length: int, bos: bool) -> None:
    seen, table = plain(name, length, bos), census_of(bridge, name, length, bos).tables["sinks"]
    alpha = importance(seen.pattern)  # [layer batch head pos]
    null = torch.stack([importance(uniform_pattern(length, window)) for window in seen.windows])
    # positions that too few queries follow are left out of the table
    n_positions = table["position"].nunique()
    assert table["position"].max() == n_positions - 1 and n_positions > 0.8 * length
    alpha, null = alpha[..., :n_positions], null[:, None, :n_positions].expand(-1, alpha.shape[2], -1)
    close(cube(table, "importance", "layer", "head", "position"), alpha.mean(1))
    close(cube(table, "null", "layer", "head", "position"), null)
    close(cube(table, "ratio", "layer", "head", "position"), alpha.mean(1) / null)
    # a share counts: within rounding of the threshold either answer is right
    least, most = (alpha > EPS + 1e-5).double().mean(1), (alpha > EPS - 1e-5).double().mean(1)
    rate = cube(table, "sink_rate", "layer", "head", "position")
    assert (rate >= least.numpy() - 1e-9).all() and (rate <= most.numpy() + 1e-9).all()
    assert (rate > 0).any() == bool(least.any())


@pytest.mark.parametrize(("name", "length", "bos"), CASES)
def test_how_heads_attend(bridge: TransformerBridge, name: str, length: int, bos: bool) -> None:
    seen, heads = plain(name, length, bos), census_of(bridge, name, length, bos).tables["heads"]
    close(cube(heads, "entropy", "layer", "head"), entropy(seen.pattern).mean(1), absolute=1e-4)
    close(cube(heads, "distance", "layer", "head"), distance(seen.pattern).mean(1), absolute=1e-3)
    first = importance(seen.pattern)[..., 0].mean(1)
    close(cube(heads, "importance_first", "layer", "head"), first)
    uniform = torch.stack([entropy(uniform_pattern(length, window)) for window in seen.windows])
    close(cube(heads, "entropy_null", "layer", "head"), uniform[:, None].expand_as(first))


@pytest.mark.parametrize(("name", "length", "bos"), CASES)
def test_value_drains(bridge: TransformerBridge, name: str, length: int, bos: bool) -> None:
    seen, table = plain(name, length, bos), census_of(bridge, name, length, bos).tables["value_drains"]
    group = seen.output_norm.shape[2] // seen.value_norm.shape[2]
    value = seen.value_norm.mean(1).repeat_interleave(group, dim=1)  # a query head's row tells of its KV head
    output = seen.output_norm.mean(1)
    axes = ("layer", "head", "position")
    shown = slice(0, table["position"].nunique())
    close(cube(table, "value_norm", *axes), value[..., shown], 1e-3)
    close(cube(table, "output_norm", *axes), output[..., shown], 1e-3)
    close(cube(table, "drain", *axes), (value / others(value))[..., shown], 1e-3)
    close(cube(table, "drain_wo", *axes), (output / others(output))[..., shown], 1e-3)


@pytest.mark.parametrize(("name", "length", "bos"), CASES)
def test_residual_stream(bridge: TransformerBridge, name: str, length: int, bos: bool) -> None:
    seen, tables = plain(name, length, bos), census_of(bridge, name, length, bos).tables
    norms = seen.hidden.double().norm(dim=-1).mean(1)  # [layer pos]
    residual = tables["residual_norms"]
    close(cube(residual, "resid_norm", "layer", "position"), norms[:, : residual["position"].nunique()], 1e-3)
    magnitude = seen.hidden.abs().double()
    layers = tables["layers"].sort_values("layer")
    assert layers["layer"].tolist() == list(range(-1, len(norms) - 1))
    close(layers["max_abs"].to_numpy(dtype=float), magnitude.amax((-2, -1)).mean(1), 1e-3)
    medians = torch.tensor([[lower_median(one) for one in layer] for layer in magnitude])
    close(layers["median_abs"].to_numpy(dtype=float), medians.mean(1), 1e-3)


@pytest.mark.parametrize(("name", "length", "bos"), CASES)
def test_massive_entries(bridge: TransformerBridge, name: str, length: int, bos: bool) -> None:
    seen, table = plain(name, length, bos), census_of(bridge, name, length, bos).tables["massive"]
    layer, sequence, position, channel = (
        torch.tensor(table[column].to_numpy(dtype=int)) for column in ("layer", "sequence", "position", "channel")
    )
    entries = seen.hidden[layer + 1, sequence, position, channel].double()
    close(table["value"].to_numpy(dtype=float), entries, 1e-3, 1e-4)
    # and none that is larger than the largest listed is missing
    listed = table.assign(size=table["value"].abs()).groupby(["layer", "sequence"])["size"].max().unstack()
    close(listed.sort_index().to_numpy(dtype=float), seen.hidden.abs().amax((-2, -1)), 1e-3)
    sizes = entries.abs()
    clear = (sizes - 100).abs() > 0.1
    assert (table["absolute"].to_numpy(dtype=bool)[clear.numpy()] == (sizes > 100)[clear].numpy()).all()


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(bridge: TransformerBridge, name: str, side: str) -> None:
    # rows of 64 tokens beside one of 96, so that every short one is padded
    short, long = rows_of(name, 64, True), rows_of(name, 256, True)[0][:96]
    ids = torch.full((len(short) + 1, 96), 0)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate([*short, long]):
        at = slice(96 - len(row), 96) if side == "left" else slice(0, len(row))
        ids[index, at], real[index, at] = torch.tensor(row), True
    batch = tokenize(bridge, ids, attention_mask=real)
    census = scan(bridge, tokens=batch, batch_size=len(ids))
    seen = plain(name, 64, True)
    table = census.tables["massive"]
    own = table[table["sequence"] < len(short)]
    listed = own.assign(size=own["value"].abs()).groupby(["layer", "sequence"])["size"].max().unstack()
    close(listed.sort_index().to_numpy(dtype=float), seen.hidden.abs().amax((-2, -1)), 1e-3)
    # attention of the four texts: three known ones and the long one, run alone
    model, _ = plain_model(real_model_path(name))
    alone = run_plain(model, [long])
    first = torch.cat([importance(seen.pattern)[..., 0], importance(alone.pattern)[..., 0]], dim=1).mean(1)
    close(cube(census.tables["heads"], "importance_first", "layer", "head"), first)
