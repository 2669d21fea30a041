"""Options that several commands share: one name, one meaning, one help."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.errors import InputError
from sinklens.studies.ablation.executor_name import check_executor


def panel(name: str) -> Callable[..., Any]:
    """What declares an option that stands in a panel of the help: ``typer.Option`` with its name."""
    return partial(typer.Option, rich_help_panel=name)


def _bos(value: str) -> str:
    if value not in BOS:
        raise InputError(f'bos must be "auto", "yes" or "no", got {value!r}.')
    return value


def _dtype(value: str | None) -> str | None:
    if value is not None and value not in DTYPES:
        raise InputError(f"Unknown dtype {value!r}; expected one of {', '.join(DTYPES)}.")
    return value


def _device(value: str) -> str:
    kind, colon, number = value.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal() and number != "{i}"):
        raise InputError(f'Unknown device {value!r}; expected "auto", "cpu", "cuda" or "cuda:N".')
    return value


def counted(name: str, least: int = 1) -> Callable[[int | None], int | None]:
    """What refuses a number that is too small, in the words of the function that would refuse it."""

    def check(value: int | None) -> int | None:
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}, got {value}.")
        return value

    return check


def _threshold(value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"eps must lie between 0 and 1, got {value!r}.")
    return value


def _executor(value: str) -> str:
    check_executor(value)
    return value


BOS = ("auto", "yes", "no")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
"""Kinds of devices that torch may have; whether it has one here only torch knows."""
DTYPES = ("float32", "bfloat16", "float16")
"""What :func:`sinklens.load` takes, known here without torch."""

in_texts, in_running = panel("Texts"), panel("Running")

_NAMED = "Built-in name (see 'sinklens models'), Hugging Face directory, GGUF file, or hub id."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_NAMED)]
ModelOrDefault = Annotated[str, typer.Argument(metavar="[MODEL]", help=_NAMED)]
ModelOrNone = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=_NAMED)]

TextFiles = Annotated[
    list[str] | None,
    in_texts(
        "--text",
        metavar="FILE|-",
        help="UTF-8 text file, or - for standard input; repeat for more. Without it: a built-in corpus that fits the "
        "model.",
    ),
]
DomainTexts = Annotated[
    list[str] | None,
    in_texts(
        "--text",
        metavar="[DOMAIN=]FILE|-",
        help="UTF-8 text file, or - for standard input; repeat for more. With domains, as in prose=book.txt and "
        "code=script.py, heads are compared between them. Without it: built-in texts that fit the model.",
    ),
]
Bos = Annotated[
    str,
    in_texts(metavar="auto|yes|no", callback=_bos, help="Prepend a BOS: auto does what the model's tokenizer does."),
]
MaxTokens = Annotated[
    int | None,
    in_texts(
        metavar="N",
        callback=counted("max_tokens"),
        help="Tokens per sequence, BOS included; longer texts are cut into several. Default: the model's context (64 "
        "for built-in texts, as in published sink rates).",
    ),
]
MaxSequences = Annotated[
    int,
    in_texts(metavar="N", callback=counted("max_sequences"), help="Use at most this many sequences (of each domain)."),
]
Threshold = Annotated[
    float,
    typer.Option(metavar="EPS", callback=_threshold, help="Importance from which a key is a sink, for the sink rate."),
]
Controls = Annotated[
    int,
    typer.Option(
        metavar="N", callback=counted("controls", 0), help="Random sets of as many heads, beside every tested set."
    ),
]
Interventions = Annotated[
    list[Path] | None,
    typer.Option(
        "--intervention", metavar="FILE.json", help="Any other change, as its to_json() wrote it; repeat for more."
    ),
]

Out = Annotated[
    Path | None, in_running(metavar="DIR", help="Save tables, figure and report here; without it only print.")
]
Restart = Annotated[
    bool,
    in_running(
        "--restart", help="Replace what another or an unfinished run left in DIR, instead of going on from there."
    ),
]
BatchSize = Annotated[
    int | None,
    in_running(
        metavar="N",
        callback=counted("batch_size"),
        help="Sequences per forward pass. Default: what fits the memory.",
    ),
]
Executor = Annotated[
    str,
    in_running(
        metavar="serial|processes:N|tcp://HOST:PORT",
        callback=_executor,
        help="This process, N local ones (with --device cuda:{i} a GPU each), or the scheduler of a Dask cluster.",
    ),
]
Device = Annotated[str, in_running(callback=_device, help="auto, cpu, cuda, cuda:N.")]
Dtype = Annotated[
    str | None, in_running(callback=_dtype, help="float32, bfloat16 or float16. Default: as the checkpoint is stored.")
]
Seed = Annotated[int, in_running(min=0, help="Of everything that is drawn: texts, random sets, intervals.")]
TrustRemoteCode = Annotated[
    bool, in_running("--trust-remote-code", help="Run modelling code that comes with the checkpoint.")
]
