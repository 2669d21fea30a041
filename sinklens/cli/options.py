"""Options that several commands share: one name, one meaning, one help."""

from pathlib import Path
from typing import Annotated

import typer

TEXTS, RUNNING = "Texts", "Running"
"""Panels of the help."""

_NAMED = "Built-in name (see 'sinklens models'), Hugging Face directory, GGUF file, or hub id."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_NAMED)]
ModelOrDefault = Annotated[str, typer.Argument(metavar="[MODEL]", help=_NAMED)]
ModelOrNone = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=_NAMED)]

TextFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="FILE|-",
        help="UTF-8 text file, or - for standard input; repeat for more. Without it: a built-in corpus that fits the "
        "model.",
        rich_help_panel=TEXTS,
    ),
]
DomainTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="[DOMAIN=]FILE|-",
        help="UTF-8 text file, or - for standard input; repeat for more. With domains, as in prose=book.txt and "
        "code=script.py, heads are compared between them. Without it: built-in texts that fit the model.",
        rich_help_panel=TEXTS,
    ),
]
Bos = Annotated[
    str,
    typer.Option(
        metavar="auto|yes|no",
        help="Prepend a BOS: auto does what the model's tokenizer does.",
        rich_help_panel=TEXTS,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens per sequence, BOS included; longer texts are cut into several. Default: the model's context (64 "
        "for built-in texts, as in published sink rates).",
        rich_help_panel=TEXTS,
    ),
]
MaxSequences = Annotated[
    int,
    typer.Option(metavar="N", help="Use at most this many sequences (of each domain).", rich_help_panel=TEXTS),
]
Threshold = Annotated[
    float, typer.Option(metavar="EPS", help="Importance from which a key is a sink, for the sink rate.")
]
Controls = Annotated[int, typer.Option(metavar="N", help="Random sets of as many heads, beside every tested set.")]
Interventions = Annotated[
    list[Path] | None,
    typer.Option(
        "--intervention", metavar="FILE.json", help="Any other change, as its to_json() wrote it; repeat for more."
    ),
]

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Save tables, figure and report here; without it only print.", rich_help_panel=RUNNING
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Replace what another or an unfinished run left in DIR, instead of going on from there.",
        rich_help_panel=RUNNING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Sequences per forward pass. Default: what fits the memory.", rich_help_panel=RUNNING
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.", rich_help_panel=RUNNING)]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. Default: as the checkpoint is stored.", rich_help_panel=RUNNING),
]
Seed = Annotated[
    int, typer.Option(help="Of everything that is drawn: texts, random sets, intervals.", rich_help_panel=RUNNING)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run modelling code that comes with the checkpoint.", rich_help_panel=RUNNING
    ),
]
