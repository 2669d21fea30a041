"""`sinklens extreme`."""

from typing import Annotated

import typer

from sinklens.cli import options, printing
from sinklens.cli.place import check_out
from sinklens.cli.running import working
from sinklens.cli.texts import read_text

SHOWN = 20


def extreme(
    model: options.ModelOrDefault = "tiny-llama",
    absolute: Annotated[
        float, typer.Option(metavar="N", min=0, help="Bound on |h| of an extreme entry; 0 leaves it out.")
    ] = 100.0,
    ratio: Annotated[
        float, typer.Option(metavar="N", min=0, help="Bound in medians of the sequence; 0 leaves it out.")
    ] = 300.0,
    text: options.TextFiles = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: Annotated[
        int | None,
        options.in_texts(metavar="N", min=1, help="Draw at most this many sequences. Default: all of texts."),
    ] = None,
    out: options.Out = None,
    restart: options.Restart = False,
    executor: options.Executor = "serial",
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Find a corpus' extreme tokens: a mask, and channels with thresholds for every layer.

    For training sparse autoencoders (which tokens to leave out) and quantisation (what to protect). With --out a killed
    search goes on where it stopped; arrays.safetensors then holds mask and lengths, the Parquet tables the rest.

    For example:

      sinklens extreme tiny-llama --absolute 0 --ratio 50

      sinklens extreme path/to/llama --text corpus.txt --max-tokens 256 --executor processes:2 --out runs/extreme
    """
    from sinklens.models.locate import locate
    from sinklens.studies.extreme_tokens.result import FORMAT, WORK

    texts = [read_text(name) for name in text] if text else None
    locate(model)
    check_out(out, FORMAT, WORK)
    with working(out, "finished parts") as progress:
        with progress.console.status(f"Loading {model} ..."):
            from sinklens.studies.extreme_tokens.run import find_extreme_tokens

        found = find_extreme_tokens(
            model,
            texts,
            absolute=absolute,
            ratio=ratio,
            bos=bos,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            out=out,
            restart=restart,
            executor=executor,
            loading={"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
            batch_size=32 if batch_size is None else batch_size,
            seed=seed,
            progress=progress,
        )
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"]))
    printing.say_verdict(found.verdict)
    top = found.channels.sort_values(["n_tokens", "peak"], ascending=False).head(SHOWN)
    names = ["layer", "channel", "n_tokens", "token_share", "value", "peak", "threshold"]
    top = top.sort_values(["layer", "channel"])
    caption = "value: signed mean; threshold: the smallest magnitude that counted"
    if len(found.channels) > SHOWN:
        caption += "; shown are those at most tokens, all are in the tables (--out DIR)"
    printing.say_rows(top, names, "Channels by layer", caption, of=len(found.channels))
    printing.say_notes(found.meta["warnings"])
    printing.say_saved([] if out is None else [f"Tables and mask: {out}"], found.meta["seconds"])
