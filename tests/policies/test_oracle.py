"""Every rule beside loops that say it once more, on both layers of a model that the rule has changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from sinklens.attention import FullMap
from sinklens.policies import policies
from tests.families import boot, random_ids
from tests.policies.naive import NAIVE, Layer
from tests.policies.rules import POS, SMALL

ELSEWHERE = {
    "h2o": "test_physical_decoding",
    "tova": "test_physical_decoding",
    "streaming_llm": "test_physical_decoding",
    "keyformer": "test_physical_decoding",
    "d2o": "test_physical_decoding",
    "tidal_decode": "below",
    "shared_pattern": "below",
    "sp_atten": "below",
    "fake_quant": "test_states",
    "low_rank_keys": "test_states",
}


def test_every_rule_has_an_oracle() -> None:
    assert NAIVE.keys() | ELSEWHERE.keys() == policies().keys() and not NAIVE.keys() & ELSEWHERE.keys()


def layers_under(bridge: Any, policy: Any, ids: Tensor) -> tuple[list[Layer], list[np.ndarray]]:
    """What each layer gets and how it attends, both under the policy; the first sequence."""
    calls: list[Layer] = []
    maps: dict[int, np.ndarray] = {}

    class Watch:
        def observe(self, call: Any) -> None:
            group = call.query.shape[1] // call.key.shape[1]
            k, v = (x[0].repeat_interleave(group, 0).double().numpy() for x in (call.key, call.value))
            q = call.query[0].double().numpy() * call.scaling
            calls.append(Layer(q, k, v, call.key.shape[1], call.layer, len(bridge.blocks)))

    def take(layer: int, _: Any, found: Any) -> None:
        maps[layer] = found[0].compute()["full_map"][0].nan_to_num(0).double().numpy()

    with policy(bridge, statistics=[FullMap], observers=[Watch()], on_layer=take):
        bridge(ids)
    return calls, [maps[layer] for layer in sorted(maps)]


@pytest.mark.parametrize("name", NAIVE)
def test_a_rule_attends_as_the_loops_do(name: str, zoo: Path) -> None:
    calls, maps = layers_under(boot("llama", zoo), SMALL[name], random_ids(1, POS))
    for layer, found in zip(calls, maps, strict=True):
        np.testing.assert_allclose(found[:, :POS, :POS], NAIVE[name](layer), atol=2e-5, err_msg=f"layer {layer.number}")
    if name not in ("full", "long_gen"):
        assert np.abs(maps[0] - calls[0].p).max() > 1e-2  # the rule cuts something
