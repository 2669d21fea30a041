"""The documentation says what the code does: every page's code runs, and nothing public is without a page."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import sinklens
import sinklens.interventions as interventions
from sinklens import studies
from sinklens.interventions import Intervention
from sinklens.interventions.base import Composition
from sinklens.models.builtin import builtin_models
from sinklens.policies import policies

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
SHAPE = ["What it is", "When to use it", "The call", "How to read it", "Traps", "Source"]
IN_SHAPE = [p for folder in ("phenomena", "interventions") for p in sorted((DOCS / folder).glob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_every_page_runs(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name_of(page), "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in IN_SHAPE if p.stem != "index"], ids=name_of)
def test_pages_of_one_kind_have_one_shape(page):
    assert re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE) == SHAPE


def test_every_metric_is_defined_on_some_page():
    pytest.importorskip("docutils")
    definitions = importlib.import_module("metric_directive").definitions
    shown = set(re.findall(r"```\{metric\} (\S+)", "\n".join(p.read_text("utf-8") for p in PAGES)))
    assert shown == set(definitions())


def test_every_intervention_has_a_page():
    classes = {
        name
        for name in interventions.__all__
        if isinstance(thing := getattr(interventions, name), type) and issubclass(thing, Intervention)
    } - {Intervention.__name__, Composition.__name__}
    titles = {p.read_text("utf-8").splitlines()[0].removeprefix("# ") for p in (DOCS / "interventions").glob("*.md")}
    assert classes <= titles


@pytest.mark.parametrize("folder", ["phenomena", "interventions", "policies", "studies"])
def test_every_page_is_in_its_contents(folder):
    listed = (DOCS / folder / "index.md").read_text("utf-8")
    for page in (DOCS / folder).glob("*.md"):
        assert page.stem == "index" or re.search(rf"^({page.stem}|\*)$", listed, re.MULTILINE), page.stem


def test_every_policy_stands_on_a_page_and_beside_a_paper() -> None:
    pages = {p.stem: p.read_text("utf-8") for p in (DOCS / "policies").glob("*.md")}
    papers = pages.pop("papers")
    for name in policies():
        assert any(f"| `{name}` |" in text for text in pages.values()), name
        assert f"`{name}`" in papers or name in ("full", "top_k"), name


def test_the_count_of_papers_is_that_of_the_table() -> None:
    text = (DOCS / "policies" / "papers.md").read_text("utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    papers = [name for paper, _ in rows for name in paper.split(", ")]
    named = {name for _, rules in rows for name in re.findall(r"`(\w+)`", rules)} & policies().keys()
    counted = re.search(r"(\d+) of them, by (\d+) rules", text)
    assert counted and [int(n) for n in counted.groups()] == [len(papers), len(named)]


def test_every_figure_has_a_row_with_a_picture():
    """The page shows the registry: names, what they show, input and call; a picture of each is committed."""
    pytest.importorskip("docutils")
    directive = importlib.import_module("figure_directive")
    from sinklens import plots
    from sinklens.plots.draws import FIGURES

    rows = {name: rest for name, *rest in directive.rows()}
    assert set(rows) == {name for name in FIGURES if FIGURES[name].of} <= {*plots.__all__}
    for name, (shows, of, call) in rows.items():
        assert shows[0].isupper() and of and call.endswith(f".plot.{name}()"), name
        if name not in ("token_strip", "task_scores"):  # HTML, and scores that need the harness
            assert (DOCS / directive.picture(name)).resolve().stat().st_size <= 150 * 1024, name
    assert "```{figures}" in (DOCS / "plots.md").read_text("utf-8")


def test_models_in_examples_can_be_loaded() -> None:
    """What stands in quotes where a model is asked for is built in, or a place or hub id of the reader's own."""
    public = {name: getattr(home, name) for home in (sinklens, studies) for name in home.__all__}
    takes = [
        n for n, f in public.items() if inspect.isfunction(f) and "model" in [*inspect.signature(f).parameters][:1]
    ]
    assert {"scan", "sweep", "rank_documents"} <= {*takes}
    call = re.compile(rf"(?:(?<![.\w])|sinklens\.)(?:load|{'|'.join(takes)})\(\s*\"([^\"\n]+)\"")
    code = Path(sinklens.__file__).parent.rglob("*.py")
    texts = [path.read_text("utf-8") for path in [DOCS.parent / "README.md", *PAGES, *code]]
    named = {name for text in texts for name in call.findall(text)}
    assert len(named) > 3
    assert not {n for n in named - {*builtin_models()} if "/" not in n and not n.endswith(".gguf")}
