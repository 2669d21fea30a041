"""`sinklens span`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli import options, printing
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.errors import InputError


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
        from sinklens.studies.span_heads.run import find_span_heads

        found = find_span_heads(
            bridge,
            given,
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
    best = found.heads.sort_values("excess", ascending=False, kind="stable").head(16)
    rows = [[row[name] for name in names] for row in best.to_dict("records")]
    printing.say_table(
        names, rows, "Heads that depend on the document", "|z(with) - z(without)|", left=["name"], of=len(found.heads)
    )
    names = ["kind", "change", "low", "high", "n"]
    rows = [[row[name] for name in names] for row in found.summary().to_dict("records")]
    printing.say_table(names, rows, "The answer, steered", "change of its log-probability, nats a token", left=["kind"])
    printing.say_saved(saved)


def _listed(documents: Any) -> list[Any]:
    if not isinstance(documents, list):
        raise TypeError(f"documents is {documents!r}")
    return documents


def read_tasks(path: Path) -> list[Any]:
    """Ranking tasks from a JSON file.

    Raises:
        InputError: A file that cannot be read, or holds something else.
    """
    from sinklens.models.reading import read_json
    from sinklens.studies.document_ranking.prompts import RankingTask

    try:
        return [
            RankingTask(
                [str(text) for text in _listed(each["documents"])],
                str(each["question"]),
                int(each["gold"]) - 1,
                str(each["answer"]),
            )
            for each in read_json(path)
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f'--tasks takes a JSON list of {{"documents": [TEXT, ...], "question": TEXT, "gold": N, "answer": TEXT}}; '
            f"{path} cannot be read as one ({error!r})."
        ) from error
