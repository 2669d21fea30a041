"""Tokens put into texts: against whole patterns, a planted sink token, none at all, and what cannot change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import open as open_result
from sinklens.errors import InputError
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.studies import Injection, inject_tokens
from sinklens.studies.injection.passes import Place, insert, parse_token
from sinklens.studies.injection.result import injection_words
from sinklens.wording import several
from tests.passes.planted_sink import CHANNEL, SINK, planted_sink, sink_ids
from tests.real_models import real_model


def texts(batch: int = 6, pos: int = 12) -> torch.Tensor:
    """Random tokens without SINK."""
    ids = sink_ids(batch, pos)
    ids[:, 0] = 9
    return ids


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    made = planted_sink()
    with torch.no_grad():  # so large that it stays massive by both criteria
        made.embed.original_component.weight[SINK, CHANNEL] = 4000.0
    return made


@pytest.fixture(scope="module")
def found(model: TransformerBridge) -> Injection:
    return inject_tokens(model, tokens=texts(), token=SINK, places=["start", "middle", "end"], counts=[1, 2], draws=2)


def test_a_planted_sink_token_takes_attention_and_random_ones_do_not(found: Injection) -> None:
    heads = found.heads.set_index(["place", "count", "name"]).sort_index()
    for place in ("start", "middle"):
        for count in (1, 2):
            row = heads.loc[(place, count, "L1H0")]
            assert row["inserted_token"] > 0.9 > 0.3 > row["inserted_random"]
    table = found.summary().set_index(["place", "count", "measure"]).sort_index()
    for place in ("start", "middle"):
        assert table.loc[(place, 1, "inserted"), "low"] > 0
    runs = found.runs[found.runs["kind"] != "clean"]
    assert runs.groupby("kind")["is_massive_inserted"].agg(lambda x: x.astype(bool).mean()).to_dict() == {
        "random": 0.0, "token": 1.0,
    }  # fmt: skip
    assert found.runs[found.runs["kind"] == "clean"]["is_massive_inserted"].isna().all()


def test_nothing_planted_nothing_found_and_the_end_changes_nothing(found: Injection) -> None:
    end = found.runs[(found.runs["place"] == "end") & (found.runs["kind"] != "clean")]
    assert end["change"].abs().max() < 1e-5 and end[["inserted", "first", "sink_first"]].isna().all().all()
    middle = found.runs[(found.runs["place"] == "middle") & (found.runs["kind"] == "token")]
    assert middle["change"].abs().min() > 1e-4
    none = inject_tokens(planted_sink(strength=0), tokens=texts(), token=SINK, places=["middle"], draws=3)
    row = none.summary().set_index("measure").loc["inserted"]
    assert abs(row["difference"]) < 0.05 and not (none.heads["inserted_token"] > 0.3).any()
    assert "0 of 8 heads rest on it (random 0)" in none.verdict[0] and "Massive in 0.00" in none.verdict[0]


@torch.no_grad()
@pytest.mark.parametrize("place", ["start", "middle"])
def test_every_number_equals_whole_patterns_in_loops(model: TransformerBridge, found: Injection, place: str) -> None:
    ids, sequence, k = texts()[2].tolist(), 2, 2
    at = 0 if place == "start" else 6
    longer = [*ids[:at], SINK, SINK, *ids[at:]]
    logits, cache = model.run_with_cache(torch.tensor([longer]))
    first = 2 if at == 0 else 0
    rows = range(at + k + 1, len(longer))
    inserted, to_first, values, first_values = [], [], [], []
    others = [i for i in range(len(longer)) if i not in (first, at, at + 1)]
    for layer in range(2):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0].double()
        for head in range(4):
            inserted.append(sum(float(pattern[head, t, at] + pattern[head, t, at + 1]) for t in rows) / len(rows))
            to_first.append(sum(float(pattern[head, t, first]) for t in rows) / len(rows))
        norms = cache[f"blocks.{layer}.attn.hook_v"][0].double().norm(dim=-1)
        norms = norms if norms.shape[0] == len(longer) else norms.T
        for head in range(2):
            usual = sorted(float(norms[i, head]) for i in others)[(len(others) - 1) // 2]
            values.append(float(norms[at, head] + norms[at + 1, head]) / 2 / usual)
            first_values.append(float(norms[first, head]) / usual)
    streams = [cache[f"blocks.{layer}.hook_out"][0].double().abs() for layer in range(2)]
    massive = max(float(each[at : at + 2].max() / each.flatten().median()) for each in streams)
    loss = [-float(logits[0, t - 1].double().log_softmax(-1)[longer[t]]) for t in rows]
    plain = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    before = [-float(plain[t - 1, ids[t]]) for t in range(at + 1, len(ids))]
    runs = found.runs
    mine = runs[(runs.sequence == sequence) & (runs.place == place) & (runs["count"] == k) & (runs.kind == "token")]
    row = mine.iloc[0]
    expected = {
        "inserted": np.mean(inserted), "first": np.mean(to_first), "value_inserted": np.mean(values),
        "value_first": np.mean(first_values), "loss": np.mean(loss), "change": np.mean(loss) - np.mean(before),
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-4, rel=1e-4), name
    assert row["massive_inserted"] == pytest.approx(massive, rel=1e-3)


@torch.no_grad()
def test_a_new_token_is_the_mean_of_ordinary_ones() -> None:
    model = planted_sink()
    ids = texts(5)
    found = inject_tokens(model, tokens=ids, places=[3], draws=1)
    assert found.meta["settings"]["token"] == "[PAUSE]" and found.meta["settings"]["new"]
    token = parse_token(model, "[PAUSE]", set(ids.flatten().tolist()))
    assert token.new and token.id not in ids
    weights = model.embed.original_component.weight
    weights[token.id] = weights[ordinary_ids(model)].mean(0)
    same = inject_tokens(model, tokens=ids, places=[3], token=token.id, draws=1)
    column = ["inserted", "value_inserted", "massive_inserted", "change"]
    for mine, other in ((found, same),):
        a, b = (each.runs[each.runs["kind"] == "token"][column].to_numpy(float) for each in (mine, other))
        assert a == pytest.approx(b, abs=1e-3, rel=1e-3)


def test_places() -> None:
    ids = torch.arange(5)[None]
    assert insert(ids, Place(2, 2, 5), torch.tensor([[8, 9]])).tolist() == [[0, 1, 8, 9, 2, 3, 4]]
    assert [Place(0, 3, 5).first, Place(1, 3, 5).first] == [3, 0] and Place(2, 2, 5).original == [0, 1, 4, 5, 6]
    assert list(range(7))[Place(5, 2, 5).rows] == [] and list(range(7))[Place(2, 2, 5).rows] == [5, 6]


def test_sentences_files_and_wrong_input(model: TransformerBridge, found: Injection, tmp_path: Path) -> None:
    assert len(found.verdict) == 6
    heads, runs = found.heads, found.runs
    for place, count, text in zip(heads["place"].drop_duplicates().repeat(2), [1, 2] * 3, found.verdict, strict=True):
        assert text.startswith(f"{count} x token {SINK} at {place}")
        some = heads[(heads.place == place) & (heads["count"] == count)]
        these = runs[(runs.place == place) & (runs["count"] == count)]
        change = these[these.kind == "token"]["change"].mean() + 0.0
        assert f"{change:z.3f} nats" in text or place == "end"
        if place == "end":
            assert "no token stands behind" in text
            continue
        sinks = some[some.first_clean > 0.3]
        taken = (sinks.inserted_token > sinks.first_token).sum()
        took = f"takes over {taken} of {several(len(sinks), 'head')} that rested" if len(sinks) else "No head rests"
        resting = int((some.inserted_token > 0.3).sum())
        assert took in text and f"{resting} of 8 heads {'rests' if resting == 1 else 'rest'} on it" in text
        draws = these[these.kind == "random"].groupby("sequence")["inserted"].mean()
        assert f"give it {these[these.kind == 'token']['inserted'].mean():.2f} (random {draws.mean():.2f}," in text
    found.save(tmp_path / "in")
    opened = open_result(tmp_path / "in")
    assert isinstance(opened, Injection) and opened.verdict == injection_words(runs, heads, f"token {SINK}")
    for wrong in (
        {"counts": [0]}, {"draws": 0}, {"places": ["nowhere"]}, {"places": [99]}, {"places": []}, {"token": 9999},
        {"token": "two words"}, {"counts": [60]}, {"tokens": texts(2, 3)},
    ):  # fmt: skip
        with pytest.raises(InputError):
            inject_tokens(model, **{"tokens": texts(2), "token": SINK, **wrong})  # type: ignore[arg-type]


@pytest.mark.real
@pytest.mark.slow
def test_smollm2s_sink_is_a_place_and_no_token() -> None:
    found = inject_tokens(real_model("smollm2"), places=["start", "middle"], max_sequences=6, draws=2)
    table = found.summary().set_index(["place", "measure"])
    for kind in ("token", "random"):
        assert table.loc[("start", "sink_inserted"), kind] > 0.4 > 0.1 > table.loc[("start", "sink_first"), kind]
        assert table.loc[("middle", "sink_inserted"), kind] < 0.05
    assert abs(table.loc[("start", "sink_inserted"), "difference"]) < 0.05
