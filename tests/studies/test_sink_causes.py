"""Why heads sink: the study on a planted cause, without one, and its sentences against its tables."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

from sinklens import open as open_result
from sinklens import plots
from sinklens.cli.program import app
from sinklens.errors import InputError
from sinklens.interventions import EditValues
from sinklens.interventions.edit_values import donor_values
from sinklens.models.tokens import as_batch
from sinklens.studies import SinkCauses, explain_sinks
from sinklens.wording import several
from tests.passes.planted_sink import CHANNEL, HEAD, planted_sink, sink_ids
from tests.real_models import real_model


@pytest.fixture(scope="module")
def causes() -> SinkCauses:
    return explain_sinks(planted_sink(value=3.0), tokens=sink_ids(6))


def test_the_study_names_the_planted_cause(causes: SinkCauses) -> None:
    top = causes.heads.iloc[0]
    assert (top["layer"], top["head"], top["channel"], top["component"]) == (*HEAD, CHANNEL, "embedding")
    assert (top["n_channels"], top["channels"], top["channels_share"]) == (1, str(CHANNEL), top["channel_share"])
    assert top["mass_lost"] == top["one_lost"] > 0.5 > top["random_lost_most"] and top["p"] == pytest.approx(1 / 11)
    assert top["margin_low"] <= top["margin"] <= top["margin_high"] and top["gap"] < 1e-4
    assert top["kind"] == "broadcast" and top["n_events"] == 6
    for name, kind in (("channels", "channel"), ("components", "component")):
        table = causes.tables[name]
        sums = table.groupby(["layer", "head", "side"])["share"].sum()
        for row in causes.heads.itertuples():
            for side in ("key", "query"):
                assert sums[row.layer, row.head, side] == pytest.approx(row.margin, abs=1e-4), kind
    pairs = causes.pairs.groupby(["layer", "head"])["share"].sum()
    bands = causes.bands.groupby(["layer", "head"])["share"].sum()
    for row in causes.heads.itertuples():
        assert pairs[row.layer, row.head] == pytest.approx(row.margin, abs=1e-4)
        assert bands[row.layer, row.head] == pytest.approx(row.margin, abs=1e-4)


def test_values_of_the_sink_are_exchanged_beside_other_positions(causes: SinkCauses) -> None:
    donors = causes.donors
    assert set(donors["edit"]) == {"zero", "ordinary"}  # every text begins with one token: there is no donor
    assert any("no donor" in note for note in causes.meta["warnings"])
    assert set(donors[donors["place"] == "sink"]["position"]) == {0}
    assert (donors[donors["place"] == "control"]["position"] > 0).all() and (donors["place"] == "control").any()
    changed = sink_ids(6)
    changed[3, 0] = 9
    mixed = explain_sinks(planted_sink(), tokens=changed, heads=["L1H0"], controls=0)
    assert "donor" in set(mixed.donors["edit"]) and mixed.heads["p"].isna().all()


def test_its_sentences_say_what_its_tables_say(causes: SinkCauses) -> None:
    together, first = causes.verdict[0], causes.verdict[1]
    heads = causes.heads
    half = sum(1 for lost in heads["mass_lost"] if lost >= 0.5)
    one = sum(1 for lost in heads["one_lost"] if lost >= 0.5)
    assert f"largest channel {one} of {len(heads)} lose" in together
    assert f"without up to {several(heads['n_channels'].max(), 'channel')} {half};" in together
    row = heads.sort_values("importance", ascending=False).iloc[0]
    assert first.startswith(f"L{row.layer}H{row['head']} looks at position 0 because channel {row.channel} ")
    assert f"{row.channel_share:+.1f} of the {row.margin:+.1f} logits" in first
    assert f"from {row.mass:.2f} to {row.mass_without:.2f}" in first
    zero = causes.donors.query("place == 'sink' and edit == 'zero'")["delta_loss"].mean()
    assert f"set to zero {zero:+z.3f}" in causes.verdict[-1]


def test_without_a_sink_it_says_so(tmp_path: Path) -> None:
    nothing = explain_sinks(planted_sink(strength=0), tokens=sink_ids(5), donors=False)
    assert nothing.heads.empty and "No head was explained" in nothing.verdict[0]
    nothing.save(tmp_path / "none")
    assert open_result(tmp_path / "none").verdict == nothing.verdict  # type: ignore[arg-type]
    assert plots.sink_causes(nothing).layout.annotations[0].text.startswith("Not applicable")
    for wrong in ({"top": 0}, {"position": 40}, {"heads": "all"}, {"heads": ["L9H0"]}):
        with pytest.raises(InputError):
            explain_sinks(planted_sink(), tokens=sink_ids(2), donors=False, **wrong)  # type: ignore[arg-type]


def test_it_is_saved_opened_and_drawn_by_the_command(tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        app, ["why", "bb-1l", "--top", "2", "--max-sequences", "5", "--no-donors", "--out", str(tmp_path / "why")]
    )
    assert ran.exit_code == 0, ran.output
    found = open_result(tmp_path / "why")
    assert isinstance(found, SinkCauses)
    assert found.verdict[0] in " ".join(line.strip() for line in ran.output.splitlines()).replace("- ", "", 1)
    assert (tmp_path / "why" / "report.html").is_file()


@torch.no_grad()
def test_a_donor_is_the_value_of_another_token(causes: SinkCauses) -> None:
    model: TransformerBridge = planted_sink()
    ids = sink_ids(1)
    own = donor_values(model, as_batch(model, ids))
    clean = model(ids)
    with EditValues(0, "donor", means=own)(model):
        assert torch.allclose(model(ids), clean, atol=1e-5)  # its own value changes nothing
    other = ids.clone()
    other[0, 0] = 9
    given = EditValues(0, "donor", kv_heads=["L1KV0"], means=donor_values(model, as_batch(model, other)))
    with given(model):
        assert not torch.allclose(model(ids), clean, atol=1e-3)
    assert EditValues.from_json(given.to_json()) == given
    with pytest.raises(InputError, match="one prompt"):
        donor_values(model, as_batch(model, sink_ids(2)))
    with pytest.raises(InputError, match="donor"):
        EditValues(0, "donor")


@pytest.mark.real
@pytest.mark.slow
def test_channel_247_makes_smollm2s_strongest_sinks() -> None:
    found = explain_sinks(real_model("smollm2"), max_sequences=16, donors=False)
    heads = found.heads
    assert len(heads) == 10 and (heads["gap"] < 1e-4).all() and (heads["channel"] == 247).all()
    assert (heads["n_channels"] <= 4).all() and (heads["random_lost_most"] < 0.1).all()
    assert (heads["mass_lost"] >= 0.5).all() and (heads["random_lost_most"] < heads["mass_lost"]).all()
    assert isinstance(found.tables["channels"], pd.DataFrame)
