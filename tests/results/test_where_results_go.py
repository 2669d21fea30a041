"""Where results go: decided before the run, in one sentence; nothing is replaced that is not sinklens' own."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinklens.errors import ResultError
from sinklens.results import Result, RunFolder
from sinklens.results.commit import NEW, is_ours
from sinklens.results.files import write_atomically
from sinklens.results.header_file import ARRAYS, HEADER
from sinklens.results.place import check_writable

KIND = "sinklens-placed"


@dataclass(frozen=True)
class Placed(Result, format=KIND, title="Placed", newest=1, needs=("rows",)):
    """A small result."""


def made(number: int) -> Placed:
    rows = pd.DataFrame({"layer": [0, 1], "value": [number, number + 0.5]})
    extra = {"old": rows} if number == 1 else {"new": rows}  # a table that the other one does not have
    return Placed({"settings": {"number": number}}, {"rows": rows, **extra}, {"maps": np.full(3, number)})


def number_in(directory: Path) -> int:
    found = Placed.load(directory)
    number = int(found.meta["settings"]["number"])
    assert found.tables["rows"]["value"][0] == number and found.arrays["maps"].tolist() == [number] * 3
    assert set(found.tables) == {"rows", "old" if number == 1 else "new"}
    return number


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# ------------------------------------------------------------------ places
def test_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        made(number).save(".")
        assert number_in(Path(".")) == number and Path.cwd() == tmp_path and os.path.samefile(".", tmp_path)
    (tmp_path / "thesis").mkdir()
    monkeypatch.chdir(tmp_path / "thesis")
    Path("thesis.tex").write_text("precious")
    with pytest.raises(ResultError, match="it exists and holds no"):
        check_writable(Path("."), KIND)


def test_a_link_stays_and_its_directory_gets_the_result(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "runs"
    link.symlink_to("disk")
    for number in (1, 2):
        made(number).save(link)
        assert link.is_symlink() and number_in(tmp_path / "disk") == number
    folder = RunFolder(link, KIND, "test")
    folder.check()
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dangling", r"it is a link to nowhere, which is not there"),
        ("loop", r"Too many levels|choose another place"),
        ("n" * 300, r"has 300 bytes, and at most 200"),
        ("a" * 250 + "/inside", r"has 250 bytes, and at most 200"),
        ("file", r"it is a file; name a directory"),
        ("file/below", r"Not a directory|is a file"),
        ("pipe", r"it is no directory"),
        ("null\0byte", r"null"),
    ],
)
def test_places_that_cannot_be(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("precious")
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    attacks: list[Callable[[], Any]] = [
        lambda: check_writable(tmp_path / name, KIND),
        lambda: made(1).save(tmp_path / name),
        lambda: RunFolder(tmp_path / name, KIND, "test").check(),
    ]
    for attack in attacks:
        with pytest.raises(ResultError, match=sentence) as error:
            attack()
        assert "\n" not in str(error.value)
    assert names(tmp_path) == before and (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["pipe", "dangling", "folder", "n" * 300])
def test_a_file_is_written_over_a_regular_file_alone(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    with pytest.raises(ResultError, match="Cannot save to"):
        write_atomically(tmp_path / name, b"x")
    assert names(tmp_path) == before and not (tmp_path / "pipe").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_devices_stay_devices() -> None:
    with pytest.raises(ResultError, match="it is no regular file"):
        write_atomically("/dev/full", b"x")
    assert Path("/dev/full").is_char_device()


def test_a_link_to_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    write_atomically(tmp_path / "link.html", b"new")
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "real.html").read_text() == "new"


# ------------------------------------------------------------------ whose files
def test_the_users_own_files_stay(tmp_path: Path) -> None:
    out = made(1).save(tmp_path / "out")
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    (out / "mine.parquet").write_text("mine too")
    (out / "new.parquet").write_text("mine as well")  # the name of a table that is to come
    with pytest.warns(
        UserWarning, match=r"new\.parquet was not of the result that lay there; it is new\.parquet\.own1"
    ):
        made(2).save(out)
    assert number_in(out) == 2 and not (out / "old.parquet").exists()
    assert (out / "mine.parquet").read_text() == "mine too" and (out / "notes" / "mine.txt").read_text() == "mine"
    assert (out / "new.parquet.own1").read_text() == "mine as well"


@pytest.mark.parametrize("content", ["{", "", '{"name": "a package"}', '{"format": "other-program"}'])
def test_a_header_of_another_program_is_not_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / HEADER).write_text(content)
    with pytest.raises(ResultError, match="Will not save"):
        made(1).save(tmp_path)
    assert (tmp_path / HEADER).read_text() == content and names(tmp_path) == {HEADER}


def test_a_damaged_result_of_the_same_kind_is_made_again(tmp_path: Path) -> None:
    out = made(1).save(tmp_path / "out")
    text = (out / HEADER).read_text()
    (out / HEADER).write_text(text[: len(text) // 2])
    made(2).save(out)
    assert number_in(out) == 2


def test_a_header_cannot_have_other_files_deleted(tmp_path: Path) -> None:
    out = made(1).save(tmp_path / "out")
    (out / "mine.txt").write_text("mine")
    (tmp_path / "outside.parquet").write_text("mine")
    text = (out / HEADER).read_text()
    (out / HEADER).write_text(text.replace("old.parquet", "mine.txt"))
    RunFolder(out, KIND, "test").clear()
    (out / HEADER).write_text(text.replace("old.parquet", "../outside.parquet"))
    made(2).save(out)
    assert (out / "mine.txt").exists() and (tmp_path / "outside.parquet").exists() and number_in(out) == 2


# ------------------------------------------------------------------ kills and full disks
STEPS = ("rename", "replace", "rmdir", "unlink", "mkdir")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run work in a process that dies before its ``step``-th change of a folder; whether it did."""
    child = os.fork()
    if child == 0:
        done = 0

        def deadly(real: Callable[..., object]) -> Callable[..., object]:
            def change(*args: object, **options: object) -> object:
                nonlocal done
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return real(*args, **options)

            return change

        for name in STEPS:
            setattr(os, name, deadly(getattr(os, name)))
        warnings.simplefilter("ignore")
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads
        yield


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("reader", ["load", "save", "run"])
def test_a_kill_at_any_step_leaves_the_old_result_or_the_new(reader: str, tmp_path: Path) -> None:
    step, ends, said = 0, set(), set()
    while True:
        out = made(1).save(tmp_path / str(step))
        (out / "mine.txt").write_text("mine")
        died = killed_at(step, partial(made(2).save, out))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            match reader:
                case "load":
                    ends.add(number_in(out))
                case "save":
                    check_writable(out, KIND)
                    assert not [name for name in names(out) if is_ours(name)], "found, and finished or removed"
                    ends.add(number_in(out))
                    made(2).save(out)
                    assert number_in(out) == 2
                case "run":
                    RunFolder(out, KIND, "test").check()
                    ends.add(number_in(out))
        said |= {str(each.message).split(str(out))[0] for each in caught}
        assert (out / "mine.txt").read_text() == "mine"
        if not died:
            break
        step += 1
    assert step > 5 and ends == {1, 2}
    wanted = {"Saving to "} if reader == "load" else {"Saving to ", "An interrupted saving had left half a result in "}
    assert said == wanted, "what was found is said"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.usefixtures("quiet")
def test_a_kill_during_the_first_saving_leaves_a_place_to_save(tmp_path: Path) -> None:
    step = 0
    while killed_at(step, partial(made(2).save, tmp_path / str(step))):
        out = tmp_path / str(step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if out.exists() and not (out / HEADER).exists() and not (out / NEW).exists():
                with pytest.raises(ResultError, match=r"holds no result\.json"):
                    Placed.load(out)
            made(1).save(out)
        assert number_in(out) == 1 and names(out) == {HEADER, ARRAYS, "rows.parquet", "old.parquet"}
        step += 1
    assert step > 3


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made(1).save(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    for place in (out, tmp_path / "other"):
        with pytest.raises(ResultError, match=r"No space left on device.*what was there before is untouched"):
            made(2).save(place)
    monkeypatch.undo()
    assert number_in(out) == 1 and names(tmp_path) == {"out"}
    assert names(out) == {HEADER, ARRAYS, "rows.parquet", "old.parquet"}


def test_a_place_that_cannot_be_written_is_said_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made(1).save(tmp_path / "out")
    later = made(2).save(tmp_path / "later")
    later.rename(out / NEW)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(ResultError, match=r"was interrupted and cannot be finished there .Permission denied"):
        Placed.load(out)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="it is finished now"):
        assert number_in(out) == 2
