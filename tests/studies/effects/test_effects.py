"""Measures of a change against slow formulas in double precision, and on a model whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens import builtin_corpus, load, tokenize
from sinklens.errors import InputError, ResultError
from sinklens.evidence import effects
from sinklens.evidence.effects import Answers, Reference, predicted_rows, token_losses
from sinklens.evidence.summary import summarise
from sinklens.interventions import AblateHeads, CalibrateSinks, Intervention, MaskKeys, ScaleKeys, SetActivations
from sinklens.interventions.entries import MassiveRule
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.models import TokenBatch
from sinklens.studies.effects.result import Effects
from sinklens.studies.effects.run import measure_effects
from tests import families
from tests.heard import Heard
from tests.ties import margin, same_shares


def batch_of(lengths: list[int], d_vocab: int, seed: int = 0, bos_id: int | None = None) -> TokenBatch:
    """Right-padded random tokens; padding holds id 0."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.randint(0, d_vocab, real.shape, generator=generator) * real
    tokens = tuple(("x",) * length for length in lengths)
    return TokenBatch(ids, real, torch.zeros_like(real), tokens, bos_id, "nobody", "")


def naive(clean: Tensor, changed: Tensor, batch: TokenBatch, answers: Answers | None) -> dict[str, list[float]]:
    """The definitions, one number at a time."""
    out: dict[str, list[float]] = {"loss": [], "kl": [], "top1_agreement": [], "logit_diff": []}
    for b, length in enumerate(batch.lengths.tolist()):
        rows = []
        for t in range(length - 1):
            following = int(batch.ids[b, t + 1])
            if following == batch.bos_id:
                continue
            p, q = clean[b, t].double().log_softmax(-1), changed[b, t].double().log_softmax(-1)
            both = p > -np.inf
            kl = float((p[both].exp() * (p[both] - q[both])).sum())
            rows.append((-float(q[following]), kl, float(q.argmax() == p.argmax())))
        means = np.array(rows).mean(0) if rows else np.full(3, np.nan)
        for name, value in zip(("loss", "kl", "top1_agreement"), means, strict=True):
            out[name].append(float(value))
        where = -1 if answers is None else int(answers.position[b])
        if answers is None or where < 0:
            out["logit_diff"].append(np.nan)
        else:
            row = changed[b, where].double()
            out["logit_diff"].append(float(row[answers.correct[b]] - row[answers.wrong[b]]))
    return out


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([2, 5, 40]),
    st.integers(1, 3),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.booleans(),
)
@settings(max_examples=60)
def test_reference_is_the_definitions(
    lengths: list[int], d_vocab: int, variants: int, seed: int, dtype: torch.dtype, small_pieces: bool
) -> None:
    batch = batch_of(lengths, d_vocab, seed, bos_id=1)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), d_vocab)
    clean = (4 * torch.randn(shape, generator=generator) - 30).to(dtype)
    changed = (4 * torch.randn(variants, *shape, generator=generator) + 50).to(dtype)
    for part in (clean, *changed):
        part[~batch.real] = torch.nan  # what stands at padding is nobody's business
    answers = Answers(
        torch.tensor([length - 2 for length in lengths]),  # -1, none, for a sequence of one token
        torch.zeros(len(lengths), dtype=torch.long),
        torch.full((len(lengths),), d_vocab - 1),
    )
    with pytest.MonkeyPatch.context() as patch:
        if small_pieces:
            patch.setitem(effects._CHUNK, "cpu", 2 * d_vocab)
        reference = Reference(clean, batch, answers)
        found = reference.compare(changed.flatten(0, 1))
    expected = [naive(clean, each, batch, answers) for each in changed]
    for name, values in found.items():
        assert values.shape == (variants, len(lengths)) and values.dtype == torch.float32
        if name == "top1_agreement":
            for each, shares in zip(changed, values, strict=True):
                rows = margin(each.log_softmax(-1, dtype=torch.float32), clean.argmax(-1))
                decisive = torch.minimum(rows, margin(clean)).where(predicted_rows(batch), torch.nan)
                wanted = torch.tensor(naive(clean, each, batch, answers)[name])
                same_shares(shares.double(), wanted.double(), decisive)
            continue
        np.testing.assert_allclose(values, [each[name] for each in expected], atol=3e-5, rtol=1e-5, err_msg=name)
    itself = naive(clean, clean, batch, answers)
    np.testing.assert_allclose(reference.clean["loss"], itself["loss"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(reference.clean["logit_diff"], itself["logit_diff"], atol=1e-5)
    counts = [sum(int(i) != 1 for i in row[1:length]) for row, length in zip(batch.ids, lengths, strict=True)]
    assert reference.clean["n_tokens"].tolist() == counts


def test_no_change_measures_nothing() -> None:
    batch = batch_of([6, 1, 4], 9)
    clean = 3 * torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    found = Reference(clean, batch).compare(clean)
    np.testing.assert_array_equal(found["kl"], [[0, np.nan, 0]])
    np.testing.assert_array_equal(found["top1_agreement"], [[1, np.nan, 1]])
    assert found["logit_diff"].isnan().all()
    moved = Reference(clean, batch).compare(torch.cat([clean + shift for shift in torch.linspace(-90, 90, 40)]))
    assert (moved["kl"][:, [0, 2]] >= 0).all() and (moved["kl"][:, [0, 2]] < 2e-5).all()  # a shift is no change


def test_bos_as_a_target_and_padding_do_not_count() -> None:
    batch = batch_of([5, 3], 7, bos_id=2)
    batch.ids[:] = torch.tensor([[2, 4, 2, 5, 6], [2, 2, 3, 0, 0]])
    expected = [[True, False, True, True, False], [False, True, False, False, False]]
    assert effects.predicted_rows(batch).tolist() == expected
    losses = token_losses(torch.zeros(2, 5, 7), batch)
    assert (~losses.isnan()).tolist() == expected
    np.testing.assert_allclose(losses[0, 0], np.log(7), rtol=1e-6)


def test_token_losses_average_to_the_loss_and_stand_at_the_predicting_row() -> None:
    batch = batch_of([12, 5, 1], 11, bos_id=3)
    logits = torch.randn(3, 12, 11, generator=torch.Generator().manual_seed(1))
    losses = token_losses(logits, batch)
    torch.testing.assert_close(losses.nanmean(1), Reference(logits, batch).clean["loss"], equal_nan=True)
    row = next(t for t in range(4) if int(batch.ids[1, t + 1]) != 3)
    torch.testing.assert_close(losses[1, row], -logits[1, row].log_softmax(-1)[batch.ids[1, row + 1]])


def test_tokens_without_probability_give_no_nan() -> None:
    batch = batch_of([4], 5)
    batch.ids[:] = torch.tensor([[0, 1, 0, 1]])
    clean = torch.zeros(1, 4, 5)
    clean[..., 4] = -torch.inf
    changed = clean.clone()
    changed[..., 0] = 1.0
    reference = Reference(clean, batch)
    np.testing.assert_allclose(reference.compare(changed)["kl"][0], naive(clean, changed, batch, None)["kl"], rtol=1e-5)
    changed[..., 3] = -torch.inf  # what the clean model may say becomes impossible
    assert reference.compare(changed)["kl"][0, 0] > 1e30


def test_with_a_tie_one_of_the_highest_agrees() -> None:
    batch = batch_of([2], 3)
    changed = torch.tensor([[[5.0, 5.0, 1.0]] * 2])
    for top in range(3):
        clean = torch.nn.functional.one_hot(torch.full((1, 2), top), 3).float()
        assert Reference(clean, batch).compare(changed)["top1_agreement"][0, 0] == (top < 2)


def test_what_does_not_fit_is_refused() -> None:
    batch = batch_of([4, 3], 5)
    logits = torch.zeros(2, 4, 5)
    with pytest.raises(InputError, match=r"\[batch pos d_vocab\] of tokens \(2, 4\)"):
        Reference(logits[:, :3], batch)
    with pytest.raises(InputError, match=r"\[variant\*2 4 5\]"):
        Reference(logits, batch).compare(torch.zeros(3, 4, 5))
    with pytest.raises(InputError, match="position 3, and the sequence has 3 tokens"):
        Reference(logits, batch, Answers(torch.tensor([0, 3]), torch.tensor([0, 0]), torch.tensor([1, 1])))
    with pytest.raises(InputError, match="from 0 to 4"):
        Reference(logits, batch, Answers(torch.tensor([0, 0]), torch.tensor([0, 5]), torch.tensor([1, 1])))
    with pytest.raises(InputError, match="one a sequence"):
        Answers(torch.tensor([0.5]), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(InputError, match="2, 1 and 2"):
        Answers(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1, 1]))


# ---------------------------------------------------------------- on models


@pytest.fixture(scope="module")
def bb1() -> TransformerBridge:
    return load("bb-1l", device="cpu")


@pytest.fixture(scope="module")
def measured(bb1: TransformerBridge) -> Effects:
    interventions = {"no attention": AblateHeads("all"), "nothing": ScaleKeys(0, 1.0)}
    return measure_effects(bb1, interventions, builtin_corpus(bb1, n_sequences=40).tokens, batch_size=20)


def test_without_attention_bb1_fails_after_triggers_only(bb1: TransformerBridge, measured: Effects) -> None:
    ids = builtin_corpus(bb1, n_sequences=40).tokens.ids
    triggers = BigramBackcopy().trigger_mask(ids)
    found = measured.by_class({"after triggers": triggers, "elsewhere": ~triggers})
    found = found.set_index(["intervention", "class"])
    after, elsewhere = found.loc[("no attention", "after triggers")], found.loc[("no attention", "elsewhere")]
    assert after["delta_loss"] >= 5 and after["delta_loss_low"] >= 5
    assert abs(elsewhere["delta_loss"]) <= 0.03 and elsewhere["delta_loss_high"] <= 0.03
    assert after["n_tokens"] + elsewhere["n_tokens"] == 40 * 63
    assert (found.loc["nothing"]["delta_loss"] == 0).all()
    with pytest.raises(InputError, match="'x' must be"):
        measured.by_class({"x": triggers[:2]})


def test_what_changes_nothing_changes_no_bit() -> None:
    """Through an edit of scores, of the pattern, and through a hook alone: what is counted beside has no say in it."""
    model = load("tiny-llama", device="cpu")
    changes: dict[str, Intervention] = {
        "scores": ScaleKeys(0, 1.0),
        "pattern": CalibrateSinks("all", beta=1.0),
        "stream": SetActivations(MassiveRule(0, (0,), above=1e30)),
    }
    found = measure_effects(model, changes, builtin_corpus(model, n_sequences=4).tokens)
    assert len(found.sinks_after), "nothing was counted"
    assert (found.table["delta_loss"] == 0).all() and (found.table["kl"] == 0).all()
    for name in changes:
        np.testing.assert_array_equal(found.losses[name], found.losses[""])


def test_summary_is_the_mean_over_sequences(measured: Effects) -> None:
    table, summary = measured.to_dataframe(), measured.summary().set_index("intervention")
    assert list(summary.index) == measured.interventions == ["no attention", "nothing"]
    mine = table[table["intervention"] == "no attention"]
    assert list(mine["sequence"]) == list(range(40))
    row = summary.loc["no attention"]
    assert row["delta_loss"] == pytest.approx(mine["delta_loss"].mean())
    assert row["delta_loss_low"] < row["delta_loss"] < row["delta_loss_high"]
    assert row["n_sequences"] == 40 and row["n_tokens"] == 40 * 63
    assert np.isnan(row["delta_logit_diff"]) and row["note"] == ""
    still = summary.loc["nothing"]
    assert (
        still["top1_agreement_low"] == still["top1_agreement_high"] == 1
        and "all differences are equal" in still["note"]
    )


def test_groups_may_have_missing_names(measured: Effects) -> None:
    table = measured.to_dataframe()
    table["draw"] = pd.array([None] * 40 + [3] * 40, dtype="Int64")
    found = summarise(table, ["intervention", "draw"])
    assert len(found) == 2 and found["draw"].isna().tolist() == [True, False]
    means = measured.summary()
    pd.testing.assert_frame_equal(found.drop(columns="draw"), means[[each for each in found if each != "draw"]])


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_rows_are_those_of_sequences_alone(name: str, tmp_path: Path) -> None:
    model = load(families.build_checkpoint(name, tmp_path), device="cpu")
    ids = families.random_ids(batch=4, pos=20)
    ragged = [ids[0].tolist(), ids[1, :7].tolist(), ids[2].tolist(), ids[3, :1].tolist()]
    answers = Answers(torch.tensor([4, -1, 19, 0]), torch.tensor([7, 8, 9, 10]), torch.tensor([17, 18, 19, 20]))
    change: Intervention = AblateHeads(["L1H2"]) + MaskKeys(0)
    heard = Heard()
    found = measure_effects(
        model, {"a": change, "b": ScaleKeys(0, 3.0)}, tokenize(model, ragged), answers=answers, progress=heard
    )
    assert heard.whole and sum(heard.done) == 4 * 3
    assert list(found.to_dataframe()["sequence"]) == [0, 1, 2, 3] * 2
    table = found.to_dataframe().set_index(["intervention", "sequence"])
    for sequence, row in enumerate(ragged):
        alone = tokenize(model, [row])
        with torch.no_grad():
            clean = model(alone.ids)
            with change(model):
                changed = model(alone.ids)
        expected = naive(clean, changed, alone, answers.rows([sequence]))
        line = table.loc[("a", sequence)]
        for measure, values in expected.items():
            assert line[measure] == pytest.approx(values[0], abs=1e-4, nan_ok=True), measure
        before = naive(clean, clean, alone, answers.rows([sequence]))
        assert line["clean_loss"] == pytest.approx(before["loss"][0], abs=1e-4, nan_ok=True)
        assert line["delta_loss"] == pytest.approx(line["loss"] - line["clean_loss"], abs=1e-12, nan_ok=True)
        assert line["delta_logit_diff"] == pytest.approx(
            expected["logit_diff"][0] - before["logit_diff"][0], abs=1e-4, nan_ok=True
        )
        losses = found.token_losses("a")[sequence]
        assert (~np.isnan(losses)).sum() == len(row) - 1 == line["n_tokens"]
        if len(row) > 1:
            assert np.nanmean(losses) == pytest.approx(line["loss"], abs=1e-5)


@pytest.mark.cuda
def test_effects_are_the_same_on_a_gpu(tmp_path: Path) -> None:
    directory = families.build_checkpoint("llama", tmp_path)
    ids = families.random_ids(batch=5, pos=30)
    answers = Answers(torch.tensor([4, -1, 19, 0, 29]), torch.arange(5), torch.arange(5) + 7)
    tables = []
    for device in ("cpu", "cuda"):
        model = load(directory, device=device)
        found = measure_effects(model, {"a": AblateHeads(["L1H2"])}, tokenize(model, ids), answers=answers)
        tables.append(found.to_dataframe())
    pd.testing.assert_frame_equal(*tables, atol=1e-4)


def test_effects_survive(measured: Effects, tmp_path: Path) -> None:
    directory = measured.save(tmp_path / "effects")
    again = Effects.load(directory)
    assert again.meta == measured.meta
    pd.testing.assert_frame_equal(again.to_dataframe(), measured.to_dataframe())
    pd.testing.assert_frame_equal(again.summary(), measured.summary())
    for name in (None, *measured.interventions):
        np.testing.assert_array_equal(again.token_losses(name), measured.token_losses(name))
    stored = Intervention.from_json(json.dumps(again.meta["interventions"][0]["json"]))
    assert stored == AblateHeads("all")
    with pytest.raises(ResultError, match="expected 'sinklens-effects'"):
        text = (directory / "result.json").read_text("utf-8")
        (directory / "result.json").write_text(text.replace("sinklens-effects", "sinklens-census"))
        Effects.load(directory)


def test_the_model_is_as_before_and_bad_requests_are_refused(bb1: TransformerBridge) -> None:
    batch = builtin_corpus(bb1, n_sequences=2).tokens
    before = bb1(batch.ids)

    def boom(heard: Heard) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        measure_effects(bb1, {"x": MaskKeys(0)}, batch, progress=Heard(boom))
    assert torch.equal(bb1(batch.ids), before)
    with pytest.raises(InputError, match="L0H7 does not exist"):
        measure_effects(bb1, {"x": AblateHeads(["L0H7"])}, batch)
    with pytest.raises(InputError, match="at least one"):
        measure_effects(bb1, {}, batch)
    with pytest.raises(InputError, match="answers for 1 sequence and 2 sequences"):
        one = torch.tensor([1])
        measure_effects(bb1, {"x": MaskKeys(0)}, batch, answers=Answers(one, one, one))
