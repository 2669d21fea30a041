"""The detector contract: a class of your own in a measurement, a scan, a saved census and the command line."""

import copy
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

import sinklens.detectors.registry as registry
from sinklens import Census, scan
from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.cli import listed
from sinklens.cli.program import app
from sinklens.detectors import METRICS, Detector, Metric, measure, register
from sinklens.detectors.sinks import SinkDetector
from sinklens.errors import InputError, ResultError, UnsupportedArchitectureError
from sinklens.models.load import load
from sinklens.models.tokens import tokenize
from tests import families


class KeyNormPeak(Detector):
    """How long the longest key of each layer is, and where it stands."""

    name = "key_norm_peak"
    needs = ("keys",)
    metrics = (Metric("key_norm", 1, "Largest |k| of any token and head of a layer.", "test"),)

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def update(self, record: LayerRecord) -> None:
        if record.keys is None:
            return
        norms = record.keys.float().norm(dim=-1).amax(1).cpu().masked_fill(~record.real.cpu(), 0)
        position = int(norms.argmax()) % norms.shape[1]
        self.rows.append({"layer": record.layer, "key_norm": norms.max().item(), "position": position})

    def merge(self, other: Self) -> None:
        self.rows += other.rows

    def tables(self) -> dict[str, pd.DataFrame]:
        largest = pd.DataFrame(self.rows).sort_values("key_norm").groupby("layer").tail(1).sort_values("layer")
        return {
            "key_norms": largest.reset_index(drop=True),
            "layers": largest[["layer", "key_norm"]].rename(columns={"key_norm": "key_norm_max"}),
        }

    def verdict(self, tables: Any, settings: Any) -> list[str]:
        top = tables["key_norms"].nlargest(1, "key_norm").iloc[0]
        return [f"The longest key stands at position {int(top['position'])} of layer {int(top['layer'])}."]


class HalvesOnly(KeyNormPeak):
    """Needs what no record has."""

    name = "halves_only"
    needs = ("logits",)


class Point:
    """An entry point, as importlib.metadata gives it."""

    def __init__(self, kind: Any) -> None:
        self.name, self.value, self.kind = "key_norm_peak", "package.module:KeyNormPeak", kind

    def load(self) -> Any:
        return self.kind


@pytest.fixture(scope="module")
def bb3() -> TransformerBridge:
    return load("bb-3l")


def expected(model: TransformerBridge, batch: Any) -> list[float]:
    """The largest norm of the cached keys, after rotation and norms."""
    held: dict[int, float] = {}

    class Keep:
        needs = ("keys",)

        def update(self, record: LayerRecord) -> None:
            if record.keys is not None:
                real = record.keys.transpose(1, 2)[record.real]
                held[record.layer] = max(held.get(record.layer, 0.0), float((real**2).sum(-1).max() ** 0.5))

    capture(model, batch, [Keep()], batch_size=3)
    return [held[layer] for layer in sorted(held)]


def test_a_detector_of_your_own_goes_through_a_scan_and_is_saved_with_it(
    bb3: TransformerBridge, tmp_path: Path
) -> None:
    mine, batch = KeyNormPeak(), tokenize(bb3, families.random_ids(6, 24) % 60)
    census = scan(bb3, tokens=batch, detectors=[mine, "sinks"], maps=0)
    table = census.tables["key_norms"]
    assert table["key_norm"].tolist() == pytest.approx(expected(bb3, batch), rel=1e-5)
    assert census.tables["layers"]["key_norm_max"].iloc[1:].tolist() == table["key_norm"].tolist()
    assert census.meta["settings"]["detectors"] == ["key_norm_peak", "sinks"]
    assert census.meta["metrics"]["key_norm"]["definition"].startswith("Largest |k|")
    assert "sink_score" in census.meta["metrics"] and "residual_peak" not in census.meta["metrics"]
    assert any(sentence.startswith("The longest key stands at") for sentence in census.verdict)
    assert mine.rows == []  # a copy ran: the next scan begins anew
    again = Census.load(census.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(again.tables["key_norms"], table)
    assert again.verdict == census.verdict
    pd.testing.assert_frame_equal(again.key_norms.to_dataframe(), table)  # every table is an attribute
    assert "key_norms" in dir(again) and {"sinks", "heads", "massive_activations"} <= {*dir(copy.deepcopy(again))}
    with pytest.raises(ResultError, match="no table 'massive': it was made with the detectors key_norm_peak, sinks"):
        _ = again.massive_activations
    assert not hasattr(again, "no_such_table")
    pd.testing.assert_frame_equal(measure(bb3, batch, mine).to_dataframe("key_norms"), table, rtol=1e-5)


def test_a_package_registers_one_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (registry, listed):  # where classes are loaded, and where names are checked without loading any
        monkeypatch.setattr(module, "entry_points", lambda group: [Point(KeyNormPeak)] if group else [])
    runner = CliRunner()
    done = runner.invoke(
        app,
        ["scan", "bb-1l", "--max-sequences", "4", "--detectors", "key_norm_peak,sinks", "--out", str(tmp_path / "a")],
    )
    assert done.exit_code == 0, done.output
    assert "The longest key stands at position" in done.output
    assert len(Census.load(tmp_path / "a").tables["key_norms"]) == 1
    assert "key_norm_peak" in runner.invoke(app, ["scan", "--help"], terminal_width=200).output
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(dict)])
    with pytest.raises(InputError, match="names no detector class"):
        registry.all_detectors()


def test_what_is_not_there_is_refused_with_what_is_near(bb3: TransformerBridge) -> None:
    with pytest.raises(InputError, match=r"Unknown detectors sink; expected some of sinks, .*Did you mean sinks"):
        scan(bb3, detectors="sink")
    with pytest.raises(InputError, match=r"\(none\)"):
        measure(bb3, [[0, 1, 2]], [])
    with pytest.raises(InputError, match="Detector objects"):
        scan(bb3, detectors=[3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="Two detectors are called 'sinks'"):
        measure(bb3, [[0, 1, 2]], ["sinks", SinkDetector()])


def test_a_need_that_cannot_be_met_is_refused(bb3: TransformerBridge, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="HalvesOnly asks for 'logits'"):
        measure(bb3, families.random_ids(2, 12) % 60, HalvesOnly())
    alibi = load(families.build_checkpoint("bloom", tmp_path))
    with pytest.raises(UnsupportedArchitectureError, match="KeyNormPeak needs the keys"):
        scan(alibi, tokens=families.random_ids(2, 20), detectors=KeyNormPeak(), maps=0)


def test_two_that_give_one_table_are_refused(bb3: TransformerBridge) -> None:
    class Again(KeyNormPeak):
        name = "again"

    with pytest.raises(InputError, match="'key_norms' that another detector"):
        measure(bb3, families.random_ids(2, 12) % 60, [KeyNormPeak(), Again()])


def test_names_are_taken_once() -> None:
    with pytest.raises(InputError, match="needs a name of its own"):

        @register
        class Sinks(KeyNormPeak):
            name = "sinks"


def test_one_without_a_merge_says_so(bb3: TransformerBridge) -> None:
    class Plain(Detector):
        name = "plain"

        def update(self, record: LayerRecord) -> None:
            pass

        def tables(self) -> dict[str, pd.DataFrame]:
            return {"plain": pd.DataFrame({"layer": [0]})}

    assert list(measure(bb3, families.random_ids(2, 12) % 60, Plain()).tables) == ["plain"]
    with pytest.raises(InputError, match=r"Plain defines no merge\(\)"):
        Plain().merge(Plain())


def test_lists_derive_from_the_registry() -> None:
    kinds = registry.built_in_detectors()
    assert registry.default_detectors() == (
        "sinks", "value_drains", "residual_peaks", "massive_activations", "secondary_sinks", "decorrelation",
        "channel_profile", "lifecycle", "state_norms",
    )  # fmt: skip
    assert list(METRICS) == list(dict.fromkeys(metric for kind in kinds.values() for metric in kind.metrics))
    assert all(kind.name == name and (kind.__doc__ or "").strip() for name, kind in kinds.items())
