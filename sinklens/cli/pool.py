"""`sinklens pool`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import listed, options, printing, values
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working


def pool(
    model: options.Model,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='[{"question": TEXT, "document": TEXT}, ...]; every document is a candidate for every question. '
            "Default: twenty built-in ones.",
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="N,...", help="Layers after which states are pooled. Default: four of them.")
    ] = None,
    poolings: Annotated[
        str, typer.Option(metavar="NAME,...", help="Of mean, last, no_first, sink_free, random.")
    ] = "mean,last,no_first,sink_free,random",
    sink_share: Annotated[
        float, typer.Option(metavar="S", min=0, max=1, help="Share of heads from which a position is a sink.")
    ] = 0.1,
    draws: Annotated[int, typer.Option(metavar="N", min=1, help="Sets of random positions left out.")] = 10,
    bos: options.Bos = "auto",
    out: options.Out = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Compare poolings of a layer as embeddings: does a question find its document, with and without the sink.

    For example:

      sinklens pool tiny-llama --layers 1,3

      sinklens pool model.gguf --pairs questions.json --poolings mean,sink_free,random --out runs/pool
    """
    given = None if pairs is None else values.records(pairs, ("question", "document"), "--pairs")
    chosen = values.numbers(layers, int, "--layers", "7,14")
    named = values.names(poolings)
    listed.check_poolings(named)
    check_out(out, "sinklens-pooling")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.pooling.run import compare_pooling

        found = compare_pooling(
            bridge,
            None if given is None else [(each["question"], each["document"]) for each in given],
            layers=chosen,
            poolings=named,
            sink_share=sink_share,
            draws=draws,
            bos=bos,  # type: ignore[arg-type]
            batch_size=8 if batch_size is None else batch_size,
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"], "text"))
    printing.say_verdict(found.verdict)
    names = ["layer", "pooling", "first", "mrr", "low", "high", "own", "others", "chance"]
    caption = "first, mrr: rank of a question's own document"
    printing.say_rows(found.summary(), names, "Poolings", caption, left=["pooling"])
    printing.say_saved(saved)
