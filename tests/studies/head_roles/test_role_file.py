"""The head-role file: exact round trip, what reads it, and what is said about a damaged one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError, ResultError
from sinklens.interventions import AblateHeads, SlidingWindow
from sinklens.studies import Roles
from sinklens.studies.ablation.ranking_file import read_ranking
from sinklens.studies.head_roles.read_scores import read_scores
from sinklens.studies.head_roles.role_file import RoleFile, role_heads
from tests.studies.head_roles.synthetic import HEADS, KV_HEADS, LAYERS, scores

RETRIEVAL = [math.nan, 0.0, 0.0, 0.1, 0.05, 0.0, 0.1, 0.2, 0.9, 1 / 3, 0.0, 0.0]
MODEL = {"name": "m", "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    parts = {"r": scores(retrieval=RETRIEVAL), "i": scores(induction=[0.0] * 12)}
    return Roles.of(parts, model=MODEL).head_roles().write(tmp_path / "head-roles.json")


def test_round_trip(file: Path, tmp_path: Path) -> None:
    read = RoleFile.read(file)
    assert read.heads("retrieval") == ((0, 3), (1, 2), (1, 3), (2, 0), (2, 1))
    assert read.rules["retrieval"]["rule"] == "retrieval >= 0.1"
    np.testing.assert_array_equal(read.scores.frame["retrieval"], RETRIEVAL)
    assert read.scores.metrics["retrieval"].definition == "what retrieval means"
    assert read.write(tmp_path / "again.json").read_bytes() == file.read_bytes()
    content = json.loads(file.read_text("utf-8"))
    assert content["scores"]["retrieval"][0] == [None, 0.0, 0.0, 0.1]
    assert content["roles"]["retrieval"]["heads"] == ["L0H3", "L1H2", "L1H3", "L2H0", "L2H1"]
    with pytest.raises(InputError, match=r"no role 'echo' in these head roles; there are retrieval, induction"):
        read.heads("echo")
    with pytest.raises(InputError, match=r"No head has the role 'induction' \(induction >= 0.4\)"):
        read.heads("induction")


def test_interventions_commands_and_imports_read_it(file: Path) -> None:
    read = RoleFile.read(file)
    window = SlidingWindow(8, sinks=1, heads=read.heads("retrieval"))
    assert window.heads == read.heads("retrieval")
    assert AblateHeads(read.heads("retrieval"), how="uniform").heads == read.heads("retrieval")
    assert role_heads(str(file), "retrieval") == role_heads(f"{file}:retrieval", "other") == read.heads("retrieval")
    assert role_heads("L0H1,L1H1", "x") is None
    assert read_ranking(f"{file}:retrieval")[:2] == [(2, 0), (2, 1)]
    again = Roles.of({"file": read_scores(file)}, model=MODEL)
    assert again.roles["retrieval"] == read.heads("retrieval")


def test_gates_keep_every_key_where_any_head_of_the_group_has_the_role(file: Path, tmp_path: Path) -> None:
    gates = RoleFile.read(file).gates("retrieval", sink=4, recent=8)
    assert gates.values.tolist() == [[0, 1], [0, 1], [1, 0]]
    path = gates.write(tmp_path / "patterns")
    assert np.loadtxt(path, delimiter="\t").tolist() == [[0, 1], [0, 1], [1, 0]]
    assert json.loads(path.with_name("config.json").read_text("utf-8")) == {"sink_size": 4, "recent_size": 8}


def test_it_fits_the_model_or_says_why_not(file: Path, bb3: TransformerBridge) -> None:
    with pytest.raises(InputError, match=r"of another model \(m\): n_heads 4 instead of 1, n_kv_heads 2 instead of 1"):
        RoleFile.read(file).check(bb3)
    sizes = {"n_layers": 3, "n_heads": 1, "n_kv_heads": 1}
    frame = scores(retrieval=RETRIEVAL).frame
    one = type(scores(retrieval=RETRIEVAL))(frame[frame["head"] == 0], {}, {})
    RoleFile({"name": "b"} | sizes, {"retrieval": ((1, 0),)}, {"retrieval": {}}, one).check(bb3)


def _changed(file: Path, change: Any) -> Path:
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("roles"), "'roles'"),
        (lambda c: c["roles"]["retrieval"].pop("rule"), "'rule'"),
        (lambda c: c["roles"]["retrieval"]["heads"].append("5.1"), "A head is written like"),
        (lambda c: c["roles"]["retrieval"]["heads"].append("L9H0"), "L9H0 in a model of 3 layers x 4 heads"),
        (lambda c: c["scores"]["retrieval"].pop(), "the score retrieval has shape"),
        (lambda c: c["scores"]["retrieval"][0].pop(), "inhomogeneous"),
        (lambda c: c["model"].pop("n_kv_heads"), "n_kv_heads"),
        (lambda c: c.update(scores=3), "no attribute"),
    ],
)
def test_damage_is_named(file: Path, change: Any, sentence: str) -> None:
    with pytest.raises(ResultError, match="are damaged") as caught:
        RoleFile.read(_changed(file, change))
    assert sentence in str(caught.value)


def test_other_files_are_no_head_roles(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="has format 99, this sinklens reads up to 1"):
        RoleFile.read(_changed(file, lambda c: c.update(format_version=99)))
    with pytest.raises(InputError, match="is no head-role file"):
        RoleFile.read(_changed(file, lambda c: c.update(format="x")))
    with pytest.raises(InputError, match="cannot be read"):
        RoleFile.read(tmp_path / "none.json")
