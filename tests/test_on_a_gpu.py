"""What users call, on the CPU and on a GPU, real or pretended: the same tables, and few waits for the device."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pandas.api.types import is_float_dtype
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, scan, sweep, tokenize
from sinklens.app.dashboard.bench import open_source
from sinklens.app.dashboard.state import State
from sinklens.attention import AttentionEngine, ReceivedMass
from sinklens.detectors.registry import all_detectors, asked_for
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions import (
    AblateHeads,
    EditValues,
    MaskKeys,
    ScaleKeys,
    SlidingWindow,
    mean_outputs,
    mean_values,
)
from sinklens.interventions.compensated_window import CompensatedWindow
from sinklens.lab.training import train_bb
from sinklens.policies.registry import budgeted, policies
from sinklens.studies import (
    GateSettings,
    compare_policies,
    find_active_dormant,
    find_roles,
    learn_gates,
    make_needles,
    measure_dynamics,
    measure_effects,
    score_needles,
)
from tests import families
from tests.interventions import reference
from tests.interventions.invariants import POS
from tests.pretend_cuda.aside import aside
from tests.studies.dynamics.conftest import SMALL, TEXTS, write_series

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks"),
    pytest.mark.usefixtures("no_gradients"),
]
DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def pairs(zoo: Path) -> Callable[[str], tuple[TransformerBridge, TransformerBridge]]:
    """A tiny model of a family on both devices."""

    @cache
    def pair(name: str) -> tuple[TransformerBridge, TransformerBridge]:
        directory = families.checkpoint(name, zoo)
        here, there = (load(directory, device=device) for device in DEVICES)
        assert next(there.parameters()).device.type == "cuda"
        return here, there

    return pair


Pairs = Callable[[str], tuple[TransformerBridge, TransformerBridge]]


def same(here: pd.DataFrame, there: pd.DataFrame, atol: float = 2e-4) -> None:
    assert list(here.columns) == list(there.columns) and len(here) == len(there)
    for name in here:
        if is_float_dtype(here[name]):
            pd.testing.assert_series_equal(here[name], there[name], atol=atol, rtol=1e-3)
        else:
            assert here[name].astype(str).tolist() == there[name].astype(str).tolist(), name


def same_tables(here: Any, there: Any, atol: float = 2e-4) -> None:
    assert here.tables.keys() == there.tables.keys() and here.tables
    for name, table in here.tables.items():
        same(getattr(table, "frame", table), getattr(there.tables[name], "frame", there.tables[name]), atol)


# ------------------------------------------------------------------ measuring
@pytest.mark.parametrize("name", ["llama", "mistral", "mamba"])
def test_a_scan_with_every_detector(name: str, pairs: Pairs) -> None:
    chosen = [each for each, kind in all_detectors().items() if not asked_for(kind)]
    ids = families.random_ids(batch=3, pos=24)
    lengths = torch.tensor([24, 15, 24])
    mask = (torch.arange(24) < lengths[:, None]).long()
    models = pairs(name)
    with aside():
        able = [each for each in chosen if _able(models[0], each)]
    found = []
    for model in models:
        found.append(scan(model, tokens=ids, attention_mask=mask, detectors=able, maps=2))
    same_tables(*found)
    assert found[0].verdict == found[1].verdict and len(found[0].tables) > (3 if name == "mamba" else 20)


def _able(model: TransformerBridge, detector: str) -> bool:
    """Whether the family has what the detector needs."""
    try:
        scan(model, tokens=families.random_ids(batch=1, pos=24), detectors=detector, maps=0)
    except UnsupportedArchitectureError:
        return False
    return True


METHODS: list[Any] = [
    ScaleKeys((0, 5), 0.3),
    MaskKeys((0, 7), heads=("L0H1", "L1H2")),
    SlidingWindow(5, sinks=2),
    CompensatedWindow(5, 2),
    AblateHeads(("L0H1", "L1H2"), "uniform"),
]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_interventions(name: str, pairs: Pairs) -> None:
    """The others have their own tests marked ``cuda`` beside their CPU tests."""
    here, there = pairs(name)
    ids = families.random_ids(pos=POS)
    methods = [each for each in METHODS if name == "llama" or not isinstance(each, CompensatedWindow)]
    batch = tokenize(here, ids)
    means = AblateHeads(["L0H1"], "mean", mean_outputs(there, batch))  # type: ignore[arg-type]
    for method in [*methods, means, EditValues(0, "mean", means=mean_values(there, batch))]:
        expected = reference.under(here, method, ids)
        found = reference.under(there, method, ids.cuda())
        torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0, msg=lambda text, m=method: f"{m}: {text}")


def test_every_policy(pairs: Pairs) -> None:
    ids = families.random_ids(batch=1, pos=20)
    names = [name for name, kind in policies().items() if budgeted(kind)]
    found = [compare_policies(model, names, tokens=ids, budgets=[0.5], allow_leak=True) for model in pairs("llama")]
    same_tables(*found, atol=1e-3)


# ------------------------------------------------------------------ studies
@pytest.mark.parametrize("approx", [0, 2])
def test_sweeps(approx: int, pairs: Pairs) -> None:
    ids = families.random_ids(batch=3, pos=16)
    method = {"uniform": AblateHeads("all", "uniform")}
    found = [sweep(model, method, tokens=ids, approx=approx) for model in pairs("llama")]
    same(*(each.to_dataframe() for each in found))


def test_needles(pairs: Pairs) -> None:
    here, there = pairs("llama")
    needles = make_needles(here, lengths=[20, 40], depths=(0.0, 0.5), repeats=2, size=2)
    same(*(score_needles(model, needles) for model in (here, there)))


def test_roles(pairs: Pairs) -> None:
    options: Any = {"max_sequences": 4, "max_tokens": 24, "texts": TEXTS["prose"]}
    scores = ("pattern", "sinks", "text")
    same_tables(*(find_roles(model, scores=scores, **options) for model in pairs("llama")))


def test_active_dormant(pairs: Pairs) -> None:
    found = [find_active_dormant(model, TEXTS, max_tokens=24, max_sequences=4) for model in pairs("llama")]
    same(*(each.to_dataframe() for each in found))


def test_effects(pairs: Pairs) -> None:
    ids = families.random_ids(batch=2, pos=20)
    found = [measure_effects(model, {"mask": MaskKeys(0)}, tokenize(model, ids)) for model in pairs("llama")]
    same(*(each.to_dataframe() for each in found))


def test_dynamics(zoo: Path) -> None:
    series = write_series(zoo / "series")
    found = [measure_dynamics(series, TEXTS, steps=[9, 700], loading={"device": device}, **SMALL) for device in DEVICES]
    same_tables(*found)


def test_streaming_split(pairs: Pairs) -> None:
    settings = GateSettings(steps=3, sinks=1, recent=4, min_length=32, max_length=40, value_len=3, batch=2)
    found = []
    with torch.enable_grad():
        for model in pairs("llama"):
            found.append(learn_gates(model, settings))
    same(*(each.to_dataframe() for each in found), atol=1e-3)


def test_lab_training(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"d_model": 8, "seq_len": 12, "batch": 4, "steps": 4, "checkpoint_every": 2}
    losses = []
    with torch.enable_grad():
        for device in DEVICES:
            folder = train_bb(1, tmp_path / device, device=device, **tiny)
            losses.append(scan(load(folder, device="cpu"), tokens=torch.arange(24).view(1, 24) % 20).to_dataframe())
    assert len(losses[0]) == len(losses[1]) > 0  # mixed precision on a GPU: not the same weights


def test_live_dashboard(pairs: Pairs) -> None:
    found = []
    for model in pairs("llama"):
        bench = open_source(model)
        state = State(method="ScaleKeys", fields={"keys": "0", "gamma": "0.25"})
        bench.compute(state, bench.models.names[0], "The king is dead, long live the king. ", "auto", False)
        status = bench.worker.wait(120)
        assert status.error == "", status.error
        found += [bench.census("live-1"), bench.census("live-2")]
    same_tables(found[0], found[2])
    same_tables(found[1], found[3])


# ------------------------------------------------------------------ two devices
def test_statistics_stay_on_the_device_of_their_layer(zoo: Path, pairs: Pairs) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    places |= {"model.layers.1": 1, "model.norm": 1, "lm_head": 1}
    model = load(families.checkpoint("llama", zoo), device_map=places)
    ids = families.random_ids(batch=2, pos=24)
    found: dict[int, torch.device] = {}

    def look(layer: int, _: torch.Tensor, statistics: list[Any]) -> None:
        found[layer] = statistics[0].mass.device
        assert statistics[0].compute()["mass"].device == found[layer]

    with AttentionEngine(model, statistics=[ReceivedMass], on_layer=look):
        model(ids.to("cuda:0"))
    assert found == {0: torch.device("cuda:0"), 1: torch.device("cuda:1")}
    with torch.no_grad():
        same_tables(scan(pairs("llama")[0], tokens=ids), scan(model, tokens=ids))


# ------------------------------------------------------------------ waits


def test_a_scan_waits_for_the_device_by_layer_and_not_by_token(pairs: Pairs) -> None:
    """Twice the tokens, twice the sequences and four times the row blocks: as many waits."""
    from tests.pretend_cuda.counts import counting
    from tests.pretend_cuda.tensor import GpuTensor

    if not isinstance(torch.zeros(1, device="cuda"), GpuTensor):
        pytest.skip("waits are counted on the pretend GPU")
    for name in ("llama", "mistral"):
        model = pairs(name)[1]
        waits = []
        for batch, pos in ((2, 24), (2, 24), (4, 48)):
            ids = families.random_ids(batch=batch, pos=pos)
            with counting() as counts:
                scan(model, tokens=ids, maps=0)
            assert counts.syncs_in("attention/kernel", "attention/statistics", "attention/visibility") == 0, (
                counts.syncs
            )
            waits.append(counts.syncs)
        assert waits[1] == waits[2], f"fewer: {waits[1] - waits[2]}, more: {waits[2] - waits[1]}"
