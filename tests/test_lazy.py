"""What needs no model starts without torch, and names that are loaded on first use are the names that were meant."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sinklens
from sinklens import cli
from sinklens.cli import ablate_work, listed, needle_work, options
from sinklens.detectors.registry import all_detectors, asked_for, choose_detectors, default_detectors
from sinklens.errors import InputError
from sinklens.interventions.ablate_heads import HOW
from sinklens.models.load import DTYPES
from sinklens.policies import policies
from sinklens.results.result import KINDS
from sinklens.studies.kinds import HOMES
from sinklens.studies.needles import instance
from sinklens.studies.needles.answers import KEEP

QUIET = """
import json, sys
from sinklens.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["sinklens", *words]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code
    heavy = sorted({"torch", "transformers", "transformer_lens"} & sys.modules.keys())
    print("ended", json.dumps([words, status, heavy]))
"""


def ran(*commands: tuple[object, ...]) -> list[tuple[list[str], int, list[str]]]:
    """Commands in turn in one process: words, exit status, and what of the heavy packages was loaded by then."""
    given = json.dumps([[str(word) for word in words] for words in commands])
    done = subprocess.run([sys.executable, "-c", QUIET, given], capture_output=True, text=True, check=False)
    ended = [line.removeprefix("ended ") for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert len(ended) == len(commands), done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in ended]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sinklens.scan("bb-1l", max_sequences=4).save(tmp_path_factory.mktemp("saved") / "census")


FINE = [
    ("--help",), ("--version",), ("models",), ("policies",), ("policies", "h2o"), ("scan", "--help"),
    ("report", "--help"), ("lab", "train", "--help"),
]  # fmt: skip
WRONG = [
    ("nothing",), ("policies", "h3o"), ("report", "/nowhere"), ("roles",),
    ("scan", "bb-1l", "--max-tokens", "many"), ("scan", "bb-1l", "--bos", "maybe"),
    ("scan", "bb-1l", "--dtype", "int8"), ("scan", "/nowhere/model"), ("scan", "bb-1l", "--text", "/nowhere"),
    ("needle", "bb-1l", "--depths", "x"),
    ("needle", "bb-1l", "--kind", "x"), ("needle", "bb-1l", "--keep", "x"), ("ablate", "bb-1l", "--how", "x"),
    ("scan", "bb-1l", "--detectors", "sink"),
    ("ablate", "/nowhere/model"), ("ablate", "bb-1l", "--heads", "first"), ("active-dormant", "bb-1l", "--keys", "x"),
]  # fmt: skip


def test_help_lists_and_mistakes_need_no_torch() -> None:
    for words, status, heavy in ran(*FINE, *WRONG):
        assert not heavy, words
        assert status == (0 if tuple(words) in FINE else 2), words


def test_a_report_needs_no_torch(saved: Path) -> None:
    assert ran(("report", saved)) == [(["report", str(saved)], 0, [])]
    assert (saved / "report.html").stat().st_size > 1e5


def test_what_is_read_from_the_source_is_what_is_loaded() -> None:
    usual = default_detectors()
    known = {name: kind for name, kind in all_detectors().items() if not asked_for(kind)}
    found = listed.detectors()
    assert found is not None and {*found[0]} == {*usual} and {*found[1]} == {*known} - {*usual}
    assert [*listed.policies()] == [*policies()]
    for name, kind in policies().items():
        told = listed.policies()[name]
        assert told.doc == inspect.cleandoc(kind.__doc__ or "")
        assert {each: told.constants[each] for each in ("scope", "group", "source")} == {
            "scope": kind.scope, "group": kind.group, "source": kind.source,
        }  # fmt: skip
    assert tuple(DTYPES) == options.DTYPES and {*options.BOS} == {"auto", "yes", "no"}
    assert {*ablate_work.WAYS} == {*HOW} and instance.KINDS == needle_work.KINDS and KEEP == needle_work.KEEP


def test_an_unknown_detector_is_told_with_those_that_are_near() -> None:
    for wrong in (["sinks", "sink"], [], ["nothing", "like it"]):
        with pytest.raises(InputError) as told:
            listed.check_detectors(wrong)
        with pytest.raises(InputError) as loaded:
            choose_detectors(wrong)
        # detectors of one rank come in the order in which they were loaded
        assert sorted(re.split(r"[ ,]+", str(told.value))) == sorted(re.split(r"[ ,]+", str(loaded.value)))
    listed.check_detectors(["sinks"])


def test_a_scan_says_first_what_it_is_about_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_model(*_: object, **__: object) -> None:
        raise InputError("no further")

    monkeypatch.setattr("sinklens.cli.scan.load_model", load_model)
    monkeypatch.setattr(
        "sys.argv", ["sinklens", "scan", "bb-1l", "--detectors", "sinks,tokens", "--max-sequences", "7"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    told = " ".join(capsys.readouterr().err.split())
    assert told == (
        "Scan of bb-1l: sinks, tokens on at most 7 sequences of built-in texts; nothing is saved (--out DIR saves). "
        "Error: no further"
    )


def test_every_kind_has_its_home_and_nothing_else_is_loaded_for_it() -> None:
    for path in (Path(sinklens.__file__).parent / "studies").rglob("*result.py"):
        importlib.import_module(".".join(path.relative_to(Path(sinklens.__file__).parents[1]).with_suffix("").parts))
    for home in HOMES.values():
        importlib.import_module(home)
    own = {kind: cls.__module__ for kind, cls in KINDS.items() if cls.__module__.startswith("sinklens.")}
    assert own == dict(HOMES)


def test_a_name_wins_over_the_module_of_its_name() -> None:
    module = importlib.import_module("sinklens.models.load")
    package = importlib.import_module("sinklens.models")
    assert isinstance(module, ModuleType) and package.load is module.load and package.load is sinklens.load
    assert {"load", "tokenize"} <= {*dir(package)} and package.tokens.tokenize is package.tokenize
    with pytest.raises(AttributeError, match=r"'sinklens\.models' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from sinklens.models import nothing")
