"""`sinklens span`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli import options, printing
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.errors import InputError
from sinklens.models.reading import named_json


def span(
    model: options.Model,
    tasks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='At least four of [{"documents": [TEXT, ...], "question": TEXT, "gold": N, "answer": TEXT}, ...], '
            "gold the right document, counted from 1. Default: twenty built-in questions among six sentences each.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Heads that are steered through.")] = 20,
    alpha: Annotated[
        float, typer.Option(metavar="A", min=0, help="Factor on attention to the rest of the prompt in these heads.")
    ] = 0.01,
    controls: options.Controls = 5,
    bos: options.Bos = "auto",
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Find heads that depend on the document with the answer, and emphasise it through them.

    Heads are chosen on every other question and judged on the rest, beside random heads, all heads and another
    document.

    For example:

      sinklens span path/to/llama --top 20 --out runs/span

      sinklens span model.gguf --tasks questions.json --top 8 --controls 10
    """
    given = None if tasks is None else read_tasks(tasks)
    check_out(out, "sinklens-span-heads")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.document_ranking.prompts import RankingTask
        from sinklens.studies.span_heads.run import find_span_heads

        found = find_span_heads(
            bridge,
            None if given is None else [RankingTask(**each | {"gold": each["gold"] - 1}) for each in given],
            top=top,
            alpha=alpha,
            controls=controls,
            bos=bos,  # type: ignore[arg-type]
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"], "prompt", where=" of"))
    printing.say_verdict(found.verdict)
    names = ["name", "dependence", "other", "excess", "low", "high", "outlier", "chosen"]
    best = found.heads.sort_values("excess", ascending=False, kind="stable")
    caption = "|z(with) - z(without)|"
    printing.say_rows(best, names, "Heads that depend on the document", caption, left=["name"], most=16)
    names = ["kind", "change", "low", "high", "n"]
    caption = "change of its log-probability, nats a token"
    printing.say_rows(found.summary(), names, "The answer, steered", caption, left=["kind"])
    printing.say_saved(saved)


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """What a file of questions holds, in its own words and of the right form.

    Raises:
        InputError: A file that cannot be read, or holds something else.
    """
    form = '{"documents": [TEXT, ...], "question": TEXT, "gold": N, "answer": TEXT}'
    found = named_json(path, "The file of --tasks")
    if not isinstance(found, list) or not found:
        raise InputError(f"--tasks takes a JSON list of {form}; {path} holds none.")
    for number, each in enumerate(found):
        named = isinstance(each, dict) and {*each} == {"documents", "question", "gold", "answer"}
        given = each if named and isinstance(each["documents"], list) else {"documents": [None]}
        documents, gold = given["documents"], given.get("gold")
        if not all(isinstance(text, str) and text for text in (*documents, given.get("question"), given.get("answer"))):
            raise InputError(f"--tasks takes a JSON list of {form}; entry {number} of {path} is another.")
        if type(gold) is not int or not 1 <= gold <= len(documents):
            raise InputError(
                f"gold is the number of the right document, from 1 to {len(documents)}; entry {number} of {path} has "
                f"{gold!r}."
            )
    return found
