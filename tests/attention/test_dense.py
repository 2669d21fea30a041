"""The vectorised reference equals the oracle's loops, so that long sequences can be held to it."""

import torch

from tests import oracle
from tests.attention import dense


def test_statistics_equal_the_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, 3, 13, 13, generator=generator, dtype=torch.float64)
    real = torch.ones(2, 13)
    real[1, :4] = 0
    visible = oracle.visible_keys(real, 5)
    pattern = dense.pattern(scores, visible, torch.tensor([0.5, -1.0, 3.0]))
    keys = torch.arange(13).expand(2, -1) % 3 == 0
    key, weight = oracle.top_key(pattern, visible)
    expected = {
        "mass": oracle.received_mass(pattern, visible),
        "queries": oracle.visible_queries(visible),
        "null_mass": oracle.null_mass(visible),
        "entropy": oracle.entropy(pattern, visible),
        "distance": oracle.distance(pattern, visible),
        "top_key": key,
        "top_weight": weight,
        "mass_third": oracle.mass_on(pattern, visible, keys),
        "missing_mass": oracle.missing_mass(pattern, visible),
        "delta_logit": oracle.margins(pattern, visible, scores),
        "pooled_map": oracle.pooled_map(pattern, visible, 1),
    }
    found = dense.statistics(pattern, scores, visible, {"third": keys})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-12, equal_nan=True, msg=name)
    from_pattern = dense.statistics(pattern, None, visible)["delta_logit"]
    torch.testing.assert_close(from_pattern, expected["delta_logit"], atol=1e-10, rtol=0, equal_nan=True)


def test_cells() -> None:
    assert [dense.cell_of(n) for n in (1, 127, 128, 129, 256, 257, 300)] == [1, 1, 1, 2, 2, 4, 4]


def test_windows() -> None:
    assert torch.equal(dense.causal(9, 9, 4), oracle.visible_keys(torch.ones(1, 9), 4))
    assert torch.equal(dense.causal(3, 9), oracle.visible_keys(torch.ones(1, 9), None)[:, 6:])
