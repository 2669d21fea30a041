"""Scans of texts by domain: what each head does on each, the differences, and how texts get their domain."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, scan, tokenize
from sinklens.cli.texts import read_texts
from sinklens.errors import InputError, ResultError
from sinklens.evidence.two_sample import difference_intervals
from sinklens.interventions import AblateHeads
from sinklens.models.builtin import data_dir
from sinklens.passes.corpus import builtin_corpus
from sinklens.studies.census.domains import Domains, choose_domains, join_batches
from sinklens.studies.census.verdict import describe
from tests import families, oracle


@pytest.fixture(scope="module")
def texts(bb3: TransformerBridge) -> dict[str, list[str]]:
    """The model's own task, and plain prose whose triggers copy nothing."""
    prose = (data_dir() / "texts" / "shakespeare.txt").read_text("utf-8")
    task = ["".join(row[1:]) for row in builtin_corpus(bb3, n_sequences=20).tokens.tokens]
    return {"task": task, "prose": [prose[start : start + 63] for start in range(0, 1890, 63)]}


@pytest.fixture(scope="module")
def census(bb3: TransformerBridge, texts: dict[str, list[str]]) -> Census:
    return scan(bb3, texts, maps=0)


# ------------------------------------------------------------------ the table
def test_each_domain_has_the_numbers_of_a_scan_of_its_own(
    bb3: TransformerBridge, texts: dict[str, list[str]], census: Census
) -> None:
    table = census.domains.to_dataframe()
    assert len(table) == 3 * 2 and census.meta["tokens"]["domains"]["prose"]["n_sequences"] == 30
    for name, own in texts.items():
        heads = scan(bb3, own, maps=0).heads.to_dataframe()
        rows = table[table["domain"] == name].reset_index(drop=True)
        for measure in ("importance_first", "sink_rate_first", "null_first"):
            np.testing.assert_allclose(rows[measure], heads[measure], atol=1e-6)
        assert rows["n_sequences"].eq(len(own)).all()
        # all queries but the first: what bos_mass says without the 1 of query 0
        np.testing.assert_allclose(rows["mass_first"], (64 * heads["bos_mass"] - 1) / 63, atol=1e-5)


def test_differences_are_between_sequences_of_one_domain_and_the_rest(census: Census, bb3: TransformerBridge) -> None:
    table = census.domains.to_dataframe()
    sequences = census.tokens.to_dataframe().groupby("sequence")["domain"].first()
    assert sequences.tolist() == ["task"] * 20 + ["prose"] * 30
    ids = torch.tensor(census.tokens.to_dataframe()["token_id"].to_numpy()).view(50, 64)
    alpha = np.stack([p.pattern[:, 0, :, 0].mean(-1).numpy() for p in oracle.full_patterns(bb3, ids) if p], axis=1)
    expected = difference_intervals(alpha[:20], alpha[20:])
    rows = table[table["domain"] == "task"]
    np.testing.assert_allclose(rows["importance_first_difference"], expected.value, atol=1e-5)
    np.testing.assert_allclose(rows["importance_first_difference_low"], expected.low, atol=1e-3)
    np.testing.assert_allclose(rows["importance_first_difference_high"], expected.high, atol=1e-3)
    other = table[table["domain"] == "prose"]
    np.testing.assert_allclose(other["importance_first_difference"], -expected.value, atol=1e-5)
    rates = (alpha > 0.3).astype(float)
    np.testing.assert_allclose(rows["sink_rate_first_difference"], rates[:20].mean(0) - rates[20:].mean(0), atol=1e-9)


def test_the_verdict_names_the_head_that_differs_most(census: Census) -> None:
    (sentence,) = (each for each in census.verdict if each.startswith("By domain"))
    table = census.domains.to_dataframe()
    top = table.loc[table["importance_first_difference"].idxmax()]
    assert (
        f"most L{top['layer']}H{top['head']}: importance {top['importance_first']:.2f} on {top['domain']}" in sentence
    )
    counts = table.groupby("domain")["is_sink_first"].sum()
    assert f"a sink for {counts['task']} on task, {counts['prose']} on prose of 3 heads" in sentence


def test_equal_domains_do_not_differ(bb3: TransformerBridge) -> None:
    corpus = builtin_corpus(bb3, n_sequences=30).tokens
    same = scan(bb3, {"one": corpus, "two": corpus}, maps=0)
    table = same.domains.to_dataframe()
    assert table["importance_first_difference"].abs().max() < 1e-9
    low, high = table["importance_first_difference_low"], table["importance_first_difference_high"]
    assert ((low < 0) & (high > 0)).all()
    assert "0 give it more or less attention on one than on the rest" in " ".join(same.verdict)


def test_it_is_saved_loaded_and_reported(census: Census, tmp_path: Path) -> None:
    again = Census.load(census.save(tmp_path / "census"))
    pd.testing.assert_frame_equal(again.domains.to_dataframe(), census.domains.to_dataframe())
    assert again.tokens.to_dataframe()["domain"].tolist() == census.tokens.to_dataframe()["domain"].tolist()
    assert census.report(tmp_path / "report.html").stat().st_size > 1e6


def test_without_domains_there_is_no_table(bb3_census: Census) -> None:
    assert "domain" not in bb3_census.tokens.to_dataframe() and "domains" not in bb3_census.meta["tokens"]
    with pytest.raises(ResultError, match="its texts had no domains"):
        _ = bb3_census.domains


# ------------------------------------------------------------------ what can go wrong
def test_short_sequences_are_left_out_with_their_domain(tiny: TransformerBridge) -> None:
    ids = families.random_ids(8, 30).tolist()
    found = scan(tiny, {"a": tokenize(tiny, [ids[0][:4], *ids[1:6]]), "b": tokenize(tiny, ids[6:])}, maps=0)
    assert found.meta["tokens"]["domains"] == {
        "a": {"n_sequences": 5, "n_tokens": 150, "min_length": 30, "max_length": 30},
        "b": {"n_sequences": 2, "n_tokens": 60, "min_length": 30, "max_length": 30},
    }
    assert found.tokens.to_dataframe().groupby("domain")["sequence"].nunique().to_dict() == {"a": 5, "b": 2}
    assert found.domains.to_dataframe()["importance_first_difference_low"].isna().all()
    assert any("b: fewer than 5 sequences" in note for note in found.meta["warnings"])
    assert any("cannot be compared" in sentence for sentence in found.verdict)
    with pytest.raises(InputError, match="No sequence of the domain b is long enough"):
        scan(tiny, {"a": tokenize(tiny, ids), "b": tokenize(tiny, [ids[0][:4]])})


def test_other_lengths_are_noted(tiny: TransformerBridge) -> None:
    ids = families.random_ids(12, 40).tolist()
    found = scan(tiny, {"long": tokenize(tiny, ids[:6]), "short": tokenize(tiny, [r[:20] for r in ids[6:]])}, maps=0)
    assert any("long 40, short 20" in note for note in found.meta["warnings"])


def test_a_learned_sink_takes_its_share_of_the_first_query(tmp_path: Path) -> None:
    from sinklens import load

    model = load(families.build_checkpoint("gpt_oss", tmp_path))
    ids = families.random_ids(6, 24)
    table = scan(model, {"a": tokenize(model, ids)}, maps=0).domains.to_dataframe()
    for layer, each in enumerate(oracle.full_patterns(model, ids)):
        assert each is not None
        expected = each.pattern[:, :, 1:, 0].mean((0, 2)).numpy()
        np.testing.assert_allclose(table[table["layer"] == layer]["mass_first"], expected, atol=1e-5)


def test_one_domain_or_no_attention_has_nothing_to_compare(tiny: TransformerBridge, tmp_path: Path) -> None:
    from sinklens import load

    single = scan(tiny, {"all": tokenize(tiny, families.random_ids(6, 30))}, maps=0)
    assert single.domains.to_dataframe()["mass_first_difference"].isna().all()
    assert not any("domain" in sentence for sentence in single.verdict)
    mamba = load(families.build_checkpoint("mamba", tmp_path))
    ids = tokenize(mamba, families.random_ids(6, 30))
    none = scan(mamba, {"a": ids, "b": ids})
    assert none.domains.to_dataframe().empty and "mass_first_difference_low" in none.domains.to_dataframe()
    none.save(tmp_path / "saved")


def test_inputs_that_cannot_be_used(tiny: TransformerBridge) -> None:
    for wrong in ({}, {" ": "some text"}):
        with pytest.raises(InputError, match="Expected texts by domain"):
            scan(tiny, wrong)
    with pytest.raises(InputError, match="not both"):
        scan(tiny, {"a": "text"}, tokens=[[1] * 20])


def test_an_intervention_and_domains_go_together(bb3: TransformerBridge, texts: dict[str, list[str]]) -> None:
    found = scan(bb3, texts, maps=0, intervention=AblateHeads(["L1H0"], how="uniform"))
    rows = found.domains.to_dataframe().set_index(["layer", "domain"])
    assert rows.loc[(1, "task"), "importance_first"] == pytest.approx(rows.loc[(1, "task"), "null_first"], rel=1e-4)


# ------------------------------------------------------------------ batches
def test_joined_batches_keep_tokens_padding_and_provenance(tiny: TransformerBridge) -> None:
    ids = families.random_ids(3, 20).tolist()
    one, two = tokenize(tiny, [ids[0], ids[1][:7]]), tokenize(tiny, [[0, *ids[2], 9]])
    joined = join_batches([one, two])
    assert joined.ids.shape == (3, 22) and joined.lengths.tolist() == [20, 7, 22]
    assert joined.tokens == one.tokens + two.tokens and joined.bos_added_by == "nobody"
    assert joined.statement.count("Ids were given by the caller") == 2
    for row, batch, index in ((0, one, 0), (1, one, 1), (2, two, 0)):
        length = int(batch.lengths[index])
        assert torch.equal(joined.ids[row, :length], batch.ids[index, :length])
        assert not joined.real[row, length:].any() and not joined.special[row, length:].any()
    assert join_batches([two, two]).bos_added_by == "caller"


def test_at_most_so_many_sequences_of_each_domain(bb3: TransformerBridge, texts: dict[str, list[str]]) -> None:
    domains = choose_domains(bb3, texts, max_sequences=7)
    assert domains.of == ("task",) * 7 + ("prose",) * 7 and domains.names == ("task", "prose")
    assert isinstance(domains.rows([0, 8]), Domains) and domains.rows([0, 8]).of == ("task", "prose")


def test_describing_needs_no_domains() -> None:
    tables = {"layers": pd.DataFrame({"layer": []}), "tokens": pd.DataFrame()}
    assert describe(tables, {"eps": 0.3}) == []


# ------------------------------------------------------------------ the command line
def test_texts_with_and_without_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"a.txt": "one", "b.txt": "two", "x=y.txt": "three", "x=a.txt": "four"}.items():
        Path(name).write_text(content)
    assert read_texts(["a.txt", "b.txt"]) == ["one", "two"]
    assert read_texts(["code=a.txt", "prose=b.txt", "code=b.txt"]) == {"code": ["one", "two"], "prose": ["two"]}
    assert read_texts(["x=y.txt"]) == ["three"]  # a file of that name wins
    assert read_texts(["x=a.txt", "a.txt"]) == ["four", "one"]
    assert read_texts([" my notes =a.txt"]) == {"my notes": ["one"]}
    assert read_texts([f"{tmp_path}/x=y.txt"]) == ["three"]
    with pytest.raises(InputError, match=r"b\.txt has none"):
        read_texts(["code=a.txt", "b.txt"])
    with pytest.raises(InputError, match=r"no text file missing\.txt"):
        read_texts(["code=missing.txt"])
    with pytest.raises(InputError, match=r"no text file .*dir/q=r\.txt"):
        read_texts(["dir/q=r.txt"])  # a path, and no domain


def test_the_command_compares_domains(
    tmp_path: Path, texts: dict[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinklens import cli

    words = ["sinklens", "scan", "bb-3l", "--max-tokens", "64", "--out", str(tmp_path / "out"), "--max-sequences", "12"]
    for name, rows in texts.items():
        (tmp_path / f"{name}.txt").write_text("".join(rows))
        words += ["--text", f"{name}={tmp_path / name}.txt"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "By domain: position 0 is a sink for" in " ".join(capsys.readouterr().out.split())
    table = Census.load(tmp_path / "out").domains.to_dataframe()
    assert set(table["domain"]) == {"task", "prose"} and table["n_sequences"].eq(12).all()
    assert not math.isnan(table["importance_first_difference_low"].iloc[0])
