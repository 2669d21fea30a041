"""What needs no model starts without torch, and names that are loaded on first use are the names that were meant."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sinklens
from sinklens.results.result import KINDS
from sinklens.studies.kinds import HOMES

QUIET = """
import sys
from sinklens.cli import main
sys.argv = ["sinklens", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print("status", end.code)
print("heavy", sorted({"torch", "transformers", "transformer_lens"} & sys.modules.keys()))
"""


def ran(*words: object) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", QUIET, *map(str, words)], capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sinklens.scan("bb-1l", max_sequences=4).save(tmp_path_factory.mktemp("saved") / "census")


@pytest.mark.parametrize(
    "words",
    [
        ("--help",), ("--version",), ("models",), ("report", "--help"), ("lab", "train", "--help"), ("nothing",),
        ("scan", "bb-1l", "--max-tokens", "many"), ("report", "/nowhere"), ("needle", "bb-1l", "--depths", "x"),
    ],
)  # fmt: skip
def test_help_lists_and_mistakes_need_no_torch(words: tuple[str, ...]) -> None:
    out, err = ran(*words)
    assert out.endswith("heavy []\n"), out[-200:] + err[-2000:]


def test_a_report_needs_no_torch(saved: Path) -> None:
    out, err = ran("report", saved)
    assert "status 0" in out and out.endswith("heavy []\n"), out[-200:] + err[-2000:]
    assert (saved / "report.html").stat().st_size > 1e5


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
