"""Published formats: exact round trips, numbers against the naive reading, and a readable sentence for every damage."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sinklens.errors import InputError
from sinklens.studies import Roles
from sinklens.studies.ablation.ranking_file import read_ranking
from sinklens.studies.head_roles.gates_file import Gates
from sinklens.studies.head_roles.read_scores import read_all, read_scores
from sinklens.studies.head_roles.retrieval_file import RetrievalRuns
from tests.studies.head_roles.synthetic import (
    HEADS,
    KV_HEADS,
    LAYERS,
    RUNS,
    gates,
    gates_file,
    retrieval_file,
    runs,
)
from tests.studies.head_roles.synthetic import scores as made

REFERENCE = os.environ.get("SINKLENS_REFERENCE")
released = pytest.mark.skipif(REFERENCE is None, reason="set SINKLENS_REFERENCE to a folder with the released tables")


def test_retrieval_scores_are_means_over_runs(tmp_path: Path) -> None:
    path = retrieval_file(tmp_path)
    read = RetrievalRuns.read(path)
    assert read.shape == (LAYERS, HEADS) and read.n_runs == RUNS
    table = read.scores().to_dataframe()
    for row in table.to_dict("records"):
        values = runs()[f"{row['layer']}-{row['head']}"]
        assert row["retrieval"] == pytest.approx(sum(values) / RUNS)
        assert row["activation_frequency"] == sum(value > 0 for value in values) / RUNS
        mean = row["retrieval"]
        name = ">=0.5" if mean >= 0.5 else "0.1-0.5" if mean >= 0.1 else "0-0.1" if mean else "0"
        assert row["retrieval_band"] == name and row["n_runs"] == RUNS
    assert table["retrieval_band"].nunique() > 2, "the made file has heads of several bands"
    assert read.write(tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "cannot be read"),
        ("{}", "holds no head: in the original code that is what a model leaves that answers no needle"),
        ("[1]", "got a list"),
        ('{"0-0": 1}', "got '0-0': 1"),
        ('{"L0H0": [1]}', "got 'L0H0'"),
        ('{"0-0": [1], "00-0": [1]}', "holds L0H0 twice"),
        ('{"0-0": [1], "1-1": [1]}', "has 2 heads, expected 2 layers x 2: L0H1 is missing"),
        ('{"0-0": [1, 0], "0-1": [1]}', "got 1 to 2 scores"),
        ('{"0-0": [], "0-1": []}', "got 0 to 0 scores"),
        ('{"0-0": ["1"]}', "L0H0 has '1'"),
        ('{"0-0": [-0.5]}', "L0H0 has -0.5"),
        ('{"0-0": [NaN]}', "L0H0 has nan"),
        ('{"0-0": [true]}', "L0H0 has True"),
    ],
)
def test_damaged_retrieval_files(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        RetrievalRuns.read(path)
    assert sentence in str(caught.value) and "scores.json" in str(caught.value)


def test_gates_come_out_as_they_were_and_as_the_authors_load_them(tmp_path: Path) -> None:
    path = gates_file(tmp_path)
    (tmp_path / "config.json").write_text('{"sink_size": 32, "recent_size": 100, "more": 1}')
    read = Gates.read(tmp_path)
    assert (read.sink, read.recent) == (32, 100) and read.name == tmp_path.name
    np.testing.assert_array_equal(read.values, gates())
    written = read.write(tmp_path / "out")
    assert written.read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8")) == {"sink_size": 32, "recent_size": 100}
    loaded = np.clip(np.loadtxt(written, dtype=float, delimiter="\t"), 0, 1)
    spread = read.scores(HEADS).frame["streaming_gate"].to_numpy().reshape(LAYERS, HEADS)
    np.testing.assert_array_equal(spread, loaded.repeat(HEADS // KV_HEADS, 1))
    alone = gates_file(tmp_path / "out", name="llama.tsv")
    (tmp_path / "out" / "config.json").write_text('{"model_type": "llama"}')
    assert (Gates.read(alone).sink, Gates.read(alone).name) == (None, "llama")
    written = Gates.read(alone).write(tmp_path / "b").with_name("config.json").read_text("utf-8")
    assert json.loads(written)["sink_size"] == 64


def test_gates_of_scores(tmp_path: Path) -> None:
    read = Gates.read(gates_file(tmp_path))
    again = Gates.of(read.scores(HEADS))
    np.testing.assert_array_equal(again.values, read.values.clip(0, 1))
    with pytest.raises(InputError, match="no score 'other'"):
        Gates.of(read.scores(HEADS), "other")
    partly = made(streaming_gate=[float("nan")] + [1.0] * 11)
    with pytest.raises(InputError, match="Not every KV head"):
        Gates.of(partly)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("1\t2\n1\n", "1 gates in layer 1 and 2 in layer 0"),
        ("1\tx\n", "layer 0: expected numbers between tabs"),
        ("1\tnan\n", "must be finite numbers"),
        ("layer\thead\n", "expected numbers"),
    ],
)
def test_damaged_gates(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "gates.tsv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        Gates.read(path)
    assert sentence in str(caught.value)


def test_wrong_numbers_of_heads_are_refused(tmp_path: Path) -> None:
    retrieval, duo = str(retrieval_file(tmp_path)), str(gates_file(tmp_path, name="duo.tsv"))
    with pytest.raises(InputError, match="2 KV heads in a layer, which do not divide 3 heads"):
        read_scores(duo, n_heads=3)
    parts = read_all([duo, retrieval])
    assert list(parts) == ["model-a", "duo"] and len(parts["duo"].frame) == LAYERS * HEADS
    assert read_all([retrieval], sizes=(LAYERS, HEADS, KV_HEADS)).keys() == {"model-a"}
    for sizes in ((LAYERS + 1, HEADS, KV_HEADS), (LAYERS, HEADS + 1, KV_HEADS)):
        with pytest.raises(InputError, match="give a table of the same model"):
            read_all([retrieval], sizes=sizes)
    with pytest.raises(InputError, match="give a table of the same model"):
        read_all([duo], sizes=(LAYERS, HEADS, HEADS))
    small = tmp_path / "small.json"
    small.write_text('{"0-0": [1], "0-1": [0]}')
    with pytest.raises(InputError, match="small is of 1 layers x 2 heads and model-a of 3 x 4"):
        read_all([retrieval, str(small)])
    with pytest.raises(InputError, match="Two files are called"):
        read_all([f"a={retrieval}", f"a={retrieval}"])
    assert list(read_all([f"a={retrieval}", f"b={retrieval}"])) == ["a", "b"]


def test_what_is_no_score_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_scores(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"holds no full_attention_heads.tsv"):
        read_scores(tmp_path)
    (tmp_path / "a.csv").write_text("layer,head,x\n0,0,1\n")
    with pytest.raises(InputError, match="of no known kind"):
        read_scores(tmp_path / "a.csv")


def test_published_scores_rank_heads_for_a_sweep(tmp_path: Path) -> None:
    path = retrieval_file(tmp_path)
    order = read_ranking(str(path))
    table = RetrievalRuns.read(path).scores().frame
    assert order[0] == tuple(table.loc[table["retrieval"].idxmax(), ["layer", "head"]])
    assert len(order) == LAYERS * HEADS and read_ranking(f"{path}:-retrieval")[-1] == order[0]
    with pytest.raises(InputError, match=r"name no heads; make head-roles.json of it with"):
        read_ranking(str(gates_file(tmp_path)))
    roles = Roles.of(read_all([str(path), f"duo={gates_file(tmp_path)}"]))
    roles.save(tmp_path / "roles")
    assert read_ranking(f"{tmp_path / 'roles'}:retrieval") == order == roles.ranking("retrieval")
    with pytest.raises(InputError, match="several columns to rank by"):
        read_ranking(str(tmp_path / "roles"))


@released
def test_released_llama_tables() -> None:
    """Card facts: 586 kept runs, 33 and 6 of 1,024 heads, the ten highest, and the agreement with DuoAttention."""
    folder = Path(str(REFERENCE))
    path = folder / "retrieval_head_scores" / "llama-2-7b-80k.json"
    read = RetrievalRuns.read(path)
    assert read.n_runs == 586 and read.shape == (32, 32)
    table = read.scores().frame
    assert (table["retrieval"] >= 0.1).sum() == 33 and (table["retrieval"] >= 0.5).sum() == 6
    top = table.nlargest(10, "retrieval")
    assert [f"{r.layer}-{r.head} {r.retrieval:.3f}" for r in top.itertuples()] == [
        "16-19 0.943", "11-15 0.920", "8-26 0.800", "6-9 0.618", "7-12 0.614", "17-22 0.557", "11-2 0.459",
        "6-16 0.437", "19-15 0.420", "21-30 0.400",
    ]  # fmt: skip
    gate_path = folder / "duo_attention_gates" / "Llama-2-7B-32K-Instruct.tsv"
    row = Roles.of({"r": read.scores(), "d": Gates.read(gate_path).scores()}).agreement().iloc[0]
    assert (row["n_first"], row["n_second"], row["n_both"]) == (33, 258, 29)  # 258 and not 256: ties at the quantile
    assert round(row["both_chance"], 2) == 8.31 and round(row["spearman"], 2) == 0.46


@released
def test_released_mistral_tables_over_kv_heads() -> None:
    folder = Path(str(REFERENCE))
    read = RetrievalRuns.read(folder / "retrieval_head_scores" / "Mistral-7B-v0.2-hf.json")
    assert read.n_runs == 362
    gate = Gates.read(folder / "duo_attention_gates" / "Mistral-7B-Instruct-v0.2.tsv")
    parts = {"r": read.scores(), "d": gate.scores(32)}
    row = Roles.of(parts).agreement().iloc[0]
    assert row["unit"] == "kv_head" and (row["n_first"], row["n_second"], row["n_both"]) == (31, 130, 26)
    assert round(row["spearman"], 2) == 0.51


@released
def test_released_files_come_out_byte_for_byte(tmp_path: Path) -> None:
    paths = [*Path(str(REFERENCE)).rglob("*.json")]
    assert paths
    for path in paths:
        assert RetrievalRuns.read(path).write(tmp_path / path.name).read_bytes() == path.read_bytes()
    for path in Path(str(REFERENCE)).rglob("*.tsv"):
        assert Gates.read(path).write(tmp_path / path.stem).read_bytes() == path.read_bytes()
