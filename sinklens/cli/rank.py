"""`sinklens rank`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import listed, options, printing, values
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_text
from sinklens.errors import InputError
from sinklens.interventions.heads import parse_heads
from sinklens.models.locate import locate
from sinklens.wording import several


def rank(
    model: options.Model,
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="Documents, a UTF-8 text file each; at least two.", show_default=False
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(metavar="TEXT", help="What is asked about the documents.")] = None,
    gold: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Which document holds the answer, counted from 1.")
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --gold: also measure whether the model uses the document for it."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Some of icr, calibrated, query_attention, infini, infini_weighted, last_token, overlap, place, "
            "random. Default: all.",
        ),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="L5H1,...", help="Sum over these heads alone. Default: all heads.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Put the last document first in the prompt.")] = False,
    intervention: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Rank under a change of the model, as its to_json() wrote it."),
    ] = None,
    bos: options.Bos = "auto",
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Put documents into the order in which a question looks at them.

    Nothing is generated: documents and question are read, and each rule sums the attention from the question to each
    document, beside word overlap, the order of the prompt and a random one. Without files: twenty built-in questions,
    six sentences each.

    For example:

      sinklens rank path/to/llama --out runs/rank

      sinklens rank model.gguf a.txt b.txt c.txt --question "Who broke the jug?" --gold 2 --answer "the cook"

      sinklens rank model.gguf --methods icr,overlap,random --heads L18H6,L16H0
    """
    if bool(documents) != (question is not None) or (documents and len(documents) < 2):
        raise InputError(
            f"Give two or more documents and --question TEXT, or neither for the built-in questions; got "
            f"{several(len(documents or []), 'document')} and {'a' if question is not None else 'no'} question."
        )
    if (gold is not None or answer is not None) and (gold is None or gold > len(documents or [])):
        raise InputError(
            f"--gold is the number of one of the {several(len(documents or []), 'document')}, counted from 1; got "
            f"{gold}."
        )
    texts = [read_text(name) for name in documents or []]
    locate(model)
    chosen = None if methods is None else values.names(methods)
    if chosen is not None:
        listed.check_ranking_methods(chosen)
    if heads is not None:
        parse_heads(heads)
    check_out(out, "sinklens-document-ranking")
    changes = values.interventions([intervention] if intervention else None)
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.document_ranking.methods import METHODS
        from sinklens.studies.document_ranking.prompts import RankingTask
        from sinklens.studies.document_ranking.run import rank_documents

        task = RankingTask(texts, question or "", None if gold is None else gold - 1, answer)
        found = rank_documents(
            bridge,
            tasks=[task] if texts else None,
            methods=[*METHODS] if chosen is None else chosen,
            heads=values.names(heads) if heads is not None else None,
            reverse=reverse,
            intervention=next(iter(changes.values()), None),
            bos=bos,  # type: ignore[arg-type]
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)  # before anything is printed: a closed pipe (| head) must not cost the result
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"], "prompt", where=" of"))
    printing.say_verdict(found.verdict)
    if texts:
        order = found.ranks.pivot(index="document", columns="method", values="rank")[found.meta["settings"]["methods"]]
        rows = [
            [(documents or [])[int(at)], *map(int, row)] for at, row in zip(order.index, order.to_numpy(), strict=True)
        ]
        printing.say_table(["document", *order], rows, "Rank by each rule", "1: first", left=["document"])
    else:
        table = found.summary()
        printing.say_table([*table], table.to_numpy(dtype=object).tolist(), "Right document first", left=["method"])
    printing.say_saved(saved)
