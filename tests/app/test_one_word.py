"""A layer is called a layer wherever it is read: verdicts, definitions, errors, helps, reports, titles, panels."""

import ast
import re
from pathlib import Path

import sinklens

PACKAGE = Path(sinklens.__file__).parent
ANOTHER = (  # of rows and keys, of queries of a policy, of repeated tokens
    "attention/", "policies/", "lab/induction/", "lab/variants/", "lab/tasks/", "detectors/repeats.py",
    "detectors/induction.py", "detectors/duplicate_token.py", "passes/repeated_tokens.py", "studies/head_scores/",
)  # fmt: skip
"""Where a block is another thing than a layer."""
HOOK = re.compile(r"\bblocks?\\?\.|inline-block")
"""Names of hooks and of styles stay what others call them."""


def sentences(path: Path) -> list[str]:
    """What a module says: its strings without docstrings and names, a formatted one without what it is filled with."""
    tree = ast.parse(path.read_text("utf-8"))
    docs = [
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if text not in docs and not text.isidentifier()]


MODULES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if not path.relative_to(PACKAGE).as_posix().startswith(ANOTHER)
]


def test_no_sentence_calls_a_layer_a_block() -> None:
    said = {
        path.relative_to(PACKAGE).as_posix(): text
        for path in MODULES
        for text in sentences(path)
        if re.search(r"\b[Bb]locks?\b", HOOK.sub("", text))
    }
    assert not said


def test_such_a_sentence_would_be_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""Of a block."""\nsaid = f"after block {1}"\nhook = "blocks.0.hook_in"\nname = "block"\n')
    assert {*sentences(module)} == {"after block ", "blocks.0.hook_in"}
