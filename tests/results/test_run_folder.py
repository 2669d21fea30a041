"""Folders of long runs: parts that come back bit for bit or not at all, and a folder that is nobody else's."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from sinklens.errors import ResultError
from sinklens.results import Result, RunFolder
from sinklens.results.lock import LOCK
from sinklens.results.parts import Part, PartStore
from sinklens.results.run_folder import PLAN

KIND, WORK, SPEC = "sinklens-test", "test", {"texts": {"n": 3}, "seed": 0}


@dataclass(frozen=True)
class Kept(Result, format=KIND, title="Tests", newest=1, needs=()):
    """What a test run leaves."""


VALUES = [0.1, -0.0, math.nan, 5e-324]


def part() -> Part:
    table = pd.DataFrame({"set": [0, 0, 1, 1], "sequence": [0, 2, 0, 2], "loss": VALUES})
    return Part({"losses": table, "none": pd.DataFrame({"x": pd.array([], dtype="Int64")})}, {"note": "é"})


def folder(path: Path, kind: str = KIND) -> RunFolder:
    return RunFolder(path, kind, WORK)


def begun(path: Path) -> RunFolder:
    found = folder(path)
    with found.locked():
        assert found.begin(SPEC) is None
        found.note({"layout": [1, 2]})
        found.save("00000", part().tables)
    return found


# ------------------------------------------------------------------ parts
def test_a_saved_part_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts", "a run")
    assert store.load("3", "key") is None and store.names() == []
    store.save("3", part(), "key")
    again = store.load("3", "key")
    assert again is not None and again.meta == part().meta and store.names() == ["3"]
    assert again.tables["losses"]["loss"].to_numpy().tobytes() == part().tables["losses"]["loss"].to_numpy().tobytes()
    for name, table in part().tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, check_exact=True)
    (file,) = tmp_path.glob("parts/*")
    store.save("3", part(), "key")
    assert [*tmp_path.glob("parts/*")] == [file], "equal parts are equal files"
    store.save("3", Part({}, {}), "key")
    assert len([*tmp_path.glob("parts/*")]) == 1, "a newer one takes the older one's place"


@pytest.mark.parametrize(("identity", "key"), [("a run", "other"), ("another", "key")])
def test_a_part_of_something_else_is_not_taken(identity: str, key: str, tmp_path: Path) -> None:
    PartStore(tmp_path, "a run").save("3", part(), "key")
    warned: list[str] = []
    assert PartStore(tmp_path, identity, warned.append).load("3", key) is None
    assert len(warned) == 1 and "computed again" in warned[0]
    assert not list(tmp_path.iterdir()), "the file that nobody can use is gone"


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_damage_is_noticed(damage: str, tmp_path: Path) -> None:
    store = PartStore(tmp_path, "a run")
    store.save("3", part())
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            content = content[:-1]
        case "one bit":
            content[len(content) // 2] ^= 1
        case "empty":
            content = bytearray()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="Part 3 .* cannot be used .* computed again"):
        assert store.load("3") is None
    store.save("3", part())
    assert store.load("3") is not None


def test_a_full_disk_leaves_no_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResultError, match="No space left"):
        PartStore(tmp_path, "a run").save("3", part())
    assert not list(tmp_path.iterdir())


def test_what_an_interrupted_writing_left_is_removed(tmp_path: Path) -> None:
    store = PartStore(tmp_path, "a run")
    store.save("3", part())
    (tmp_path / ".4-abc.zip.123.tmp").write_bytes(b"half")
    store.clean()
    assert len(list(tmp_path.iterdir())) == 1 and store.load("3") is not None


# ------------------------------------------------------------------ the folder
def test_a_run_goes_on_and_ends(tmp_path: Path) -> None:
    begun(tmp_path)
    again = folder(tmp_path)
    with again.locked():
        assert again.begin(SPEC) == {"layout": [1, 2]}
        again.note({"layout": [1, 2]})
        found = again.load("00000")
        assert found is not None and again.names() == ["00000"]
        again.complete(Kept({"format_version": 1}, found.tables))
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "losses.parquet", "none.parquet"}
    assert again.finished and not (tmp_path / LOCK).exists()
    assert again.begin(SPEC, held=SPEC) is None
    with pytest.raises(ResultError, match="holds another test"):
        again.begin(SPEC, held={})


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"texts": {"n": 4}, "seed": 0}, "texts.n: 3 there, 4 now"),
        ({"texts": {"n": 3}}, "seed: 0 there, none now"),
        ({"texts": {}, "seed": 0, "a": 1, "b": 2}, "and 1 more"),
    ],
)
def test_another_run_is_refused_until_it_starts_anew(spec: dict[str, object], sentence: str, tmp_path: Path) -> None:
    begun(tmp_path)
    other = folder(tmp_path)
    with pytest.raises(ResultError, match=r"holds another test .*--restart") as refused:
        other.begin(spec)
    assert sentence in str(refused.value) and len(list((tmp_path / "parts").iterdir())) == 1
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    assert other.begin(spec, restart=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_other_layouts_do_not_share_parts(tmp_path: Path) -> None:
    begun(tmp_path)
    other = RunFolder(tmp_path, KIND, WORK, lambda text: None)
    other.begin(SPEC)
    other.note({"layout": [2, 2]})
    assert other.load("00000") is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"spec": {}}', "is damaged"), (None, "has format 99")],
)
def test_a_plan_that_cannot_be_used(content: str | None, sentence: str, tmp_path: Path) -> None:
    begun(tmp_path)
    newer = json.dumps(json.loads((tmp_path / PLAN).read_text("utf-8")) | {"format_version": 99})
    (tmp_path / PLAN).write_text(newer if content is None else content, "utf-8")
    with pytest.raises(ResultError, match=rf"{sentence}.*--restart"):
        folder(tmp_path).begin(SPEC)
    assert folder(tmp_path).begin(SPEC, restart=True) is None


def test_only_a_runs_own_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious", "utf-8")
    for restart in (False, True):
        with pytest.raises(ResultError, match="Will not save to"):
            folder(tmp_path).begin(SPEC, restart)
    with pytest.raises(ResultError, match="it is a file"):
        folder(tmp_path / "thesis.tex").check()
    other = tmp_path / "census"
    other.mkdir()
    (other / "result.json").write_text('{"format": "sinklens-census"}')
    with pytest.raises(ResultError, match="it holds a 'sinklens-census'"):
        folder(other).begin(SPEC, restart=True)
    begun(tmp_path / "begun")
    with pytest.raises(ResultError, match="an unfinished run for a 'sinklens-test' lies there"):
        folder(tmp_path / "begun", "sinklens-other").begin(SPEC, restart=True)
    assert (tmp_path / "thesis.tex").read_text("utf-8") == "precious"


def test_a_kill_before_the_plan_leaves_a_usable_folder(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on nowhere\n", "utf-8")
    (tmp_path / f".{PLAN}.77.tmp").write_text("{", "utf-8")
    run = folder(tmp_path)
    with run.locked():
        run.begin(SPEC)
        run.note()
        run.complete(Kept({"format_version": 1}, {}))
    assert {path.name for path in tmp_path.iterdir()} == {"result.json"}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    match = f"Another test works in .*process {os.getpid()} on"
    with folder(tmp_path).locked(), pytest.raises(ResultError, match=match), folder(tmp_path).locked():
        pass
    with folder(tmp_path).locked():
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    import errno

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / LOCK).write_text(f"process 4194305 on {os.uname().nodename}\n")  # above the largest id
    with folder(tmp_path).locked(), pytest.raises(ResultError, match="Another test works"), folder(tmp_path).locked():
        pass
    with folder(tmp_path).locked():
        pass
