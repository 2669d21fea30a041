"""The further detectors in a scan: which run unless told otherwise, and what they leave in the census."""

from functools import wraps
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, scan
from sinklens.capture import capture
from sinklens.detectors.compression import CompressionDetector
from sinklens.detectors.decorrelation import DecorrelationDetector
from sinklens.detectors.secondary_sinks import SecondarySinkDetector
from sinklens.errors import InputError, ResultError
from sinklens.models.load import load
from sinklens.passes.corpus import builtin_corpus
from sinklens.studies.census.run import DETECTORS
from sinklens.studies.census.verdict import describe
from tests import families


def test_cheap_ones_run_and_the_costly_one_is_asked_for(bb3: TransformerBridge, bb3_census: Census) -> None:
    assert {"secondary_sinks", "secondary_windows", "decorrelation"} <= bb3_census.tables.keys()
    assert "compression" not in DETECTORS
    with pytest.raises(ResultError, match="no table 'compression'"):
        _ = bb3_census.compression
    alone = scan(bb3, detectors=["compression"], maps=0)
    assert set(alone.tables) == {"tokens", "profile", "layers", "compression", "compression_sequences"}
    assert alone.verdict == []
    with pytest.raises(InputError, match=r"Unknown detectors entropy; expected some of sinks, .*compression"):
        scan(bb3, detectors=["entropy"])


def test_tables_are_those_of_the_detectors(bb3: TransformerBridge, bb3_census: Census) -> None:
    detectors = SecondarySinkDetector(), DecorrelationDetector(), CompressionDetector()
    capture(bb3, builtin_corpus(bb3).tokens, detectors, batch_size=32)
    secondary, decorrelation, compression = (detector.tables() for detector in detectors)
    pd.testing.assert_frame_equal(bb3_census.tables["secondary_windows"], secondary["secondary_windows"])
    pd.testing.assert_frame_equal(bb3_census.decorrelation.to_dataframe(), decorrelation["decorrelation"], rtol=1e-5)
    found = scan(bb3, detectors=["compression"], batch_size=10).compression.to_dataframe()
    pd.testing.assert_frame_equal(found, compression["compression"], rtol=1e-5)
    # on this model position 0 is long after layer 0 and no valley comes of it
    rows = found.set_index("layer")
    assert rows.loc[0, "first_share"] > 3 * rows.loc[-1, "first_share"]
    assert (rows["entropy"] < rows["entropy_bound"]).all() and (rows["entropy_bound"] <= rows["entropy_null"]).all()
    assert (rows["entropy"] - rows["entropy_others"]).abs().max() < 0.1


def test_a_found_secondary_sink_is_told() -> None:
    row = {
        "sequence": 4, "position": 17, "token": ".", "first_layer": 9, "last_layer": 20, "importance_max": 0.61,
    }  # fmt: skip
    tables = {
        "layers": pd.DataFrame({"layer": [0]}),
        "tokens": pd.DataFrame(),
        "secondary_sinks": pd.DataFrame([row | {"label": "secondary"}, row | {"label": "noise", "sequence": 5}]),
    }
    (sentence,) = describe(tables, {"eps": 0.3})
    assert sentence.startswith("Secondary sinks: 1 token in 1 sequence points")
    assert "'.' at position 17 of sequence 4, after layers 9 to 20, importance 0.61" in sentence


def test_eps_reaches_the_secondary_sinks(bb3: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    made = SecondarySinkDetector.__init__

    @wraps(made)  # whose arguments say which settings it takes
    def note(self: SecondarySinkDetector, *args: object, **options: object) -> None:
        seen.append(options)
        made(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SecondarySinkDetector, "__init__", note)
    scan(bb3, max_sequences=2, eps=0.4, maps=0)
    assert seen == [{"eps": 0.4}]


def test_models_without_attention_have_states_all_the_same(tmp_path: Path) -> None:
    mamba = load(families.build_checkpoint("mamba", tmp_path))
    census = scan(mamba, tokens=families.random_ids(3, 24), detectors=[*DETECTORS, "compression"])
    assert census.compression.to_dataframe()["entropy"].notna().all()
    assert census.decorrelation.to_dataframe()["n_tokens"].tolist() == [3 * 23] * 3
    assert len(census.tables["secondary_windows"]) == 3
    again = Census.load(census.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(again.compression.to_dataframe(), census.compression.to_dataframe())


class Linear8bitLt(torch.nn.Module):
    """As bitsandbytes keeps a weight: codes of the usual shape, and a scale beside them."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = float(plain.weight.abs().max()) / 127
        codes = (plain.weight / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.float() * self.scale)


def test_quantised_layers_say_why_their_drains_are_not_known(tmp_path: Path) -> None:
    network = families.boot_hf("llama", tmp_path)
    for block in network.model.layers[1:]:
        block.self_attn.o_proj = Linear8bitLt(block.self_attn.o_proj)
    tokenizer = families.boot("llama", tmp_path).tokenizer
    model = TransformerBridge.boot_transformers("8bit", hf_model=network, tokenizer=tokenizer, device="cpu")
    census = scan(model, tokens=families.random_ids(2, 20), maps=0)
    layers = len(model.blocks)
    (note,) = (each for each in census.meta["warnings"] if "quantised" in each)
    assert note.startswith(f"|W_O v| is not known in {layers - 1} of {layers} layers") and "(Linear8bitLt)" in note
    drains = census.heads.to_dataframe()
    assert drains["drain"].notna().all()
    assert drains["drain_wo"].isna().equals(drains["layer"] > 0)
    plain = scan(families.boot("llama", tmp_path), tokens=families.random_ids(2, 20), maps=0)
    assert not any("quantised" in each for each in plain.meta["warnings"])
