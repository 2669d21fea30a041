"""`sinklens needle`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.needle_report import print_needles
from sinklens.cli.needle_work import WAYS, Work
from sinklens.cli.texts import read_text
from sinklens.errors import InputError

NEEDLE, CHANGES, RUNNING = "Needles", "Before and after a change", "Running"
MORE = 24
"""Tokens decoded beyond the longest answer: a chat model begins with words of the question."""


def needle(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            metavar="random|passkey|json|natural",
            help="Random tokens after a key (any model); words after 'the third passkey to the vault'; a sentence "
            "under a random JSON key; a sentence with a question.",
            rich_help_panel=NEEDLE,
        ),
    ] = "random",
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Prompt lengths in tokens. Default: the longest that fits (at most 2,048), and 1/2, 1/4, 1/8 of it.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    depths: Annotated[
        str,
        typer.Option(
            metavar="D,...", help="Where in the haystack, 0 = its start, 1 = its end.", rich_help_panel=NEEDLE
        ),
    ] = "0,0.25,0.5,0.75,1",
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Prompts of each length and depth.", rich_help_panel=NEEDLE)
    ] = 10,
    size: Annotated[
        int,
        typer.Option(metavar="K", help="Tokens of a random needle, words of a passkey.", rich_help_panel=NEEDLE),
    ] = 8,
    shots: Annotated[
        int,
        typer.Option(metavar="N", help="Entries shown again before the question, for json.", rich_help_panel=NEEDLE),
    ] = 3,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", metavar="FILE|-", help="The haystack. Default: an excerpt of Shakespeare.", rich_help_panel=NEEDLE
        ),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(
            "--needle",
            metavar="SENTENCE",
            help="A natural needle of your own; needs the next two.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is asked about it.", rich_help_panel=NEEDLE)
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="The answer, as it stands in the needle.", rich_help_panel=NEEDLE),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="The tokenizer's chat template, or plain text. Default: chat where there is a template.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    sentence: Annotated[
        bool | None,
        typer.Option(
            "--sentence/--words",
            help="For natural: the complete sentence is the answer, as chat models give it, or its last words after "
            "'Answer:'. Default: the sentence in a chat.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="exact|contained|share|rouge|all",
            help="Prompts that count as answered for the heads' scores. Default: rouge where text is decoded, exact "
            "for random tokens, else share. All are counted.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Prepend a BOS: auto does what the model's tokenizer does.",
            rich_help_panel=NEEDLE,
        ),
    ] = "auto",
    ablate: Annotated[
        str | None,
        typer.Option(
            metavar="L1H0,...|top:K",
            help="Run everything again with these heads ablated; top:K takes the K strongest retrieval heads found.",
            rich_help_panel=CHANGES,
        ),
    ] = None,
    how: Annotated[
        str,
        typer.Option(
            metavar="zero,mean,uniform",
            help="Output 0, the head's mean output, or even attention (what papers on retrieval heads call masking): "
            "some of these, side by side.",
            rich_help_panel=CHANGES,
        ),
    ] = "zero,mean,uniform",
    controls: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Beside --ablate, mask N random sets of as many heads, and N of equal own harm, on 12 of the prompts "
            "and on plain text; 0 = none. With N sets no p below 1/(N + 1) can come out.",
            rich_help_panel=CHANGES,
        ),
    ] = 10,
    intervention: Annotated[
        list[Path] | None,
        typer.Option(
            "--intervention",
            metavar="FILE.json",
            help="Run everything again under any other, as its to_json() wrote it; repeat for more.",
            rich_help_panel=CHANGES,
        ),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Decode N tokens of every prompt, to read what the model says; 0 = none. Default: 24 more than the "
            "longest answer has for needles in text, none for random tokens.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Work and save here; without it only print.", rich_help_panel=RUNNING),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart",
            help="Go on in DIR, or throw away what another test left there.",
            rich_help_panel=RUNNING,
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.", rich_help_panel=RUNNING)] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: as the checkpoint is stored.", rich_help_panel=RUNNING
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of needles, haystacks and bootstrap.", rich_help_panel=RUNNING)] = 0,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run modelling code that comes with the checkpoint.", rich_help_panel=RUNNING
        ),
    ] = False,
) -> None:
    """Hide a needle in a haystack at many lengths and depths, see whether the model finds it and which heads copy it.

    One teacher-forced pass per prompt: exact match is that of greedy decoding, and every head's retrieval score (how
    much of the answer it attends to while the model copies it) comes from the same pass.

    With --ablate the grid is measured first and stays whatever happens later: then the heads are masked in three ways,
    side by side, and beside random sets of heads.

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens needle induction-2l --lengths 64,128,256

      sinklens needle path/to/llama --kind natural --lengths 1000,2000,4000 --out runs/needle

      sinklens needle path/to/llama --kind passkey --ablate top:10 --out runs/masked

      sinklens needle path/to/llama --kind natural --needle "The red key lies under the third stone." --question "Where
      does the red key lie?" --answer "under the third stone" --text book.txt
    """
    from rich.console import Console

    console = Console(stderr=True)
    words = {
        "lengths": _numbers(lengths, int, "--lengths", "64,128"),
        "depths": _numbers(depths, float, "--depths", "0,0.5,1"),
        "questions": _own_question(own, question, answer, kind),
        "text": None if text is None else read_text(text),
        "source": text,
        "repeats": repeats,
        "size": size,
        "shots": shots,
        "template": {None: "auto", True: "chat", False: "plain"}[chat] if kind != "random" else "plain",
        "sentence": sentence,
        "bos": bos,
        "seed": seed,
    }
    ways = _check_ablation(ablate, how, controls)
    if chat and kind == "random":
        raise InputError("Random tokens have no chat; --chat goes with --kind passkey, json or natural.")
    if out is not None:
        from sinklens.results import RunFolder
        from sinklens.studies.needles.result import FORMAT, WORK

        RunFolder(out, FORMAT, WORK).check()  # before the work, not after it
    with console.status(f"Loading {model} ..."):
        from sinklens.models import load
        from sinklens.studies.needles import make_needles

        bridge = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        needles = make_needles(bridge, kind, **words)  # type: ignore[arg-type]
    changes = _changes(intervention)
    if generate is None:
        generate = 0 if kind == "random" else MORE + max(len(each.answer) for each in needles.instances)
    options = {"generate": generate, "keep": keep, "seed": seed, "out": out}
    work = Work(console, bridge, needles, changes, options)
    try:
        work.grid(restart=not resume)
        failure = work.ablate(ablate, ways, controls, bos) if ablate is not None else None
    except KeyboardInterrupt:
        kept = "nothing was saved" if out is None else f"finished prompts are in {out}; the same command goes on"
        typer.echo(f"Interrupted; {kept}.", err=True)
        if work.result is None:
            raise typer.Exit(130) from None
        failure = typer.Exit(130)
    saved = "Nothing was saved; add --out DIR for tables and the figure."
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the figure
        saved = _save(work, out)
    print_needles(work.result, work.check)
    typer.echo(saved)
    if failure is not None:
        raise failure


def _numbers(text: str | None, kind: Any, option: str, example: str) -> Any:
    if text is None:
        return None
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes numbers such as {example}; got {text!r}.") from None


def _own_question(needle: str | None, question: str | None, answer: str | None, kind: str) -> Any:
    given = [part for part in (needle, question, answer) if part is not None]
    if not given:
        return None
    if len(given) < 3 or kind != "natural":
        raise InputError("A needle of your own takes --kind natural and all of --needle, --question and --answer.")
    from sinklens.studies.needles import Question

    return [Question.about(*given)]


def _check_ablation(ablate: str | None, how: str, controls: int) -> list[str]:
    ways = [way.strip() for way in how.split(",") if way.strip()]
    if not ways or any(way not in WAYS for way in ways):
        raise InputError(
            f"--how takes some of {', '.join(WAYS)}, got {how!r}; other ways go through --intervention FILE.json."
        )
    if controls < 0:
        raise InputError(f"--controls is a number of random sets, 0 for none; got {controls}.")
    if ablate is not None and ablate.startswith("top:") and not (ablate[4:].isdecimal() and int(ablate[4:])):
        raise InputError(f"--ablate top:K takes a number of heads from 1 on, such as top:5; got {ablate!r}.")
    return [way for way in WAYS if way in ways]


def _changes(files: list[Path] | None) -> dict[str, Any]:
    from sinklens.interventions import Intervention

    found: dict[str, Any] = {}
    for path in files or []:
        try:
            found[path.stem] = Intervention.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The intervention {path} cannot be read: {error}.") from error
    return found


def _save(work: Work, out: Path) -> str:
    from sinklens.plots import save_figure
    from sinklens.plots.needle_grid import needle_grid as figure

    result = work.result
    grid = result.grid.to_dataframe()
    names = result.variants[1:] or [None]
    for number, name in enumerate(names):
        path = out / f"needle_grid{'' if number == 0 else f'-{number + 1}'}.html"
        save_figure(figure(grid, variant=name), path, grid, provenance=result.meta)
    lines = [f"Figure: {out / 'needle_grid.html'}", f"Tables: {out}"]
    if work.check is not None:
        work.check.save(out / "causal")
        lines.insert(1, f"Causal check: {out / 'causal'}")
    return "\n".join(lines)
