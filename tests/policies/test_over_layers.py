"""What is settled over all layers, against numbers that are taken from each layer's own queries and keys."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.policies import LayerMap
from sinklens.policies.d2o import D2O
from sinklens.policies.full import Full
from sinklens.policies.over_layers import d2o_budgets, squeezed_threshold
from sinklens.policies.squeezed import Squeezed
from tests.families import boot, random_ids
from tests.policies.naive import _clusters
from tests.policies.rules import POS, PROMPT
from tests.policies.test_invariants import kept_by
from tests.policies.test_oracle import layers_under


def test_one_threshold_for_all_layers(zoo: Path) -> None:
    bridge, ids, rule = boot("llama", zoo), random_ids(1, POS), Squeezed(0.6, 3, 4)
    found = squeezed_threshold(bridge, ids[:, :PROMPT], rule)
    calls, _ = layers_under(bridge, Full(), ids[:, :PROMPT])
    stop, every = PROMPT - 4, []
    for layer, h in itertools.product(calls, range(calls[0].H)):
        label = _clusters(layer.k[h, :stop], math.ceil(stop / 3))
        members = {c: [i for i in range(stop) if label[i] == c] for c in set(label)}
        for t in range(stop, PROMPT):
            e = {c: math.exp(layer.q[h, t] @ layer.k[h, own].mean(0)) for c, own in members.items()}
            total = sum(len(members[c]) * e[c] for c in e)
            every += [e[label[i]] / total for i in range(stop)]
    expected = sorted(every)[int(0.6 * (len(every) - 1))]
    assert found.threshold == pytest.approx(expected, rel=1e-4) and Intervention.from_json(found.to_json()) == found
    kept = kept_by(Squeezed(0.6, 3, 4, threshold=found.threshold, prompt=PROMPT), bridge, ids).by_head(PROMPT)
    own = kept_by(Squeezed(0.6, 3, 4, prompt=PROMPT), bridge, ids).by_head(PROMPT)
    # each layer's own threshold leaves every layer the same share; one for all does not
    spread = [table.groupby("layer")["kept"].mean().diff().abs().iloc[-1] for table in (kept, own)]
    assert spread[0] > spread[1]
    for wrong in (ids[:, :4], random_ids(2, PROMPT)):
        with pytest.raises(InputError, match="one prompt of more than 4 tokens"):
            squeezed_threshold(bridge, wrong, rule)


def test_budgets_of_layers_by_the_variance_of_what_keys_get(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    found = d2o_budgets(bridge, ids, heavy=0.2, recent=0.1)
    calls, _ = layers_under(bridge, Full(), ids)
    variance = []
    for layer in calls:
        by_head = layer.p.sum(1).var(-1, ddof=1)
        variance.append(((by_head - by_head.min()) / (by_head.max() - by_head.min() + 1e-6)).mean())
    ratio = len(calls) * np.exp(-np.array(variance)) / np.exp(-np.array(variance)).sum()
    assert ratio.sum() == pytest.approx(len(calls))
    expected = {at: D2O(int(POS * r * 0.2), int(POS * r * 0.1)) for at, r in enumerate(ratio)}
    assert found == LayerMap(expected) and len({rule.heavy for rule in expected.values()}) > 1
    with torch.no_grad(), found(bridge):
        assert torch.isfinite(bridge(ids)).all()
    with pytest.raises(InputError, match="shares up to 1"):
        d2o_budgets(bridge, ids, heavy=0)
