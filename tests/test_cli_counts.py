"""One of something is told in the singular, and tables say what they leave out: commands on small models."""

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.wording import several

NOUNS = (
    "layer head sequence text token prompt part channel document key pair set block entry query checkpoint needle "
    "control step word number position episode weight kind task model domain criterion row condition"
)
PLURALS = "|".join(several(2, noun)[2:] for noun in NOUNS.split())
WRONG = re.compile(rf"(?<![\w.,/-])1 (?:[a-zA-Z-]+ ){{0,2}}?(?:{PLURALS})\b(?! of| a )")
ONE = ("--max-sequences", 1, "--max-tokens", 16)


def printed(*words: object) -> str:
    ran = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "300"})
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.output.split())


@pytest.mark.parametrize(
    "words",
    [
        ("scan", "bb-1l", *ONE),
        ("extreme", "bb-1l", "--absolute", 0, "--ratio", 2, *ONE),
        ("extreme", "bb-1l", *ONE),
        ("why", "bb-1l", "--top", 1, "--controls", 1, *ONE),
        ("why", "tiny-llama", "--massive", "--controls", 1, *ONE),
        ("follow", "tiny-llama", "a", "--tokens", 1),
        ("active-dormant", "bb-1l", *ONE),
        ("paths", "induction-2l", "--receivers", "L1H0.k", "--senders", "L0H0", "--heads", "L0H0", "--controls", 1),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_one_is_told_in_the_singular(words: tuple[object, ...]) -> None:
    told = printed(*words)
    assert not WRONG.findall(told), WRONG.findall(told)


def test_the_pattern_finds_what_it_should() -> None:
    assert WRONG.search("in 1 parts") and WRONG.search("1 random sets") and WRONG.search("of 1 KV heads,")
    assert not WRONG.search("1 part") and not WRONG.search("11 parts") and not WRONG.search("0.1 parts")


def test_extreme_tokens_that_are_none_have_no_table(tmp_path: Path) -> None:
    told = printed("extreme", "tiny-llama", "--absolute", 1e9, *ONE)
    assert "None of 16 tokens in 1 sequence is extreme." in told and "Channels" not in told


def test_a_table_that_is_cut_says_so_and_goes_by_layer() -> None:
    from sinklens.studies import find_extreme_tokens

    told = printed("extreme", "tiny-llama", "--absolute", 0, "--ratio", 5, *ONE)
    count = len(find_extreme_tokens("tiny-llama", ratio=5, absolute=0, max_sequences=1, max_tokens=16).channels)
    assert count > 20 and f"Channels by layer (20 of {count})" in told
    rows = [
        tuple(map(int, pair)) for pair in re.findall(r"\u2502 +(\d+) \u2502 +(\d+) \u2502 +\d+ \u2502 +[\d.]+", told)
    ]
    assert len(rows) == 20 and rows == sorted(rows)


def test_no_sentence_can_say_minus_zero() -> None:
    """A change that rounds to nothing is +0.000: every signed number of fixed length in the code says so."""
    signed = re.compile(r"\+(?!z).*[f%]$")
    for path in Path(sinklens.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                spec = ast.unparse(node.format_spec)[2:-1]
                assert not signed.match(spec), f"{path}:{node.lineno} {spec}"
    assert signed.match("+.3f") and not signed.match("+z.3f")
