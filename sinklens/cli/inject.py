"""`sinklens inject`."""

from typing import Annotated

import typer

from sinklens.cli import listed, options, printing, values
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_text
from sinklens.errors import InputError


def inject(
    model: options.Model,
    token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN|ID",
            help="Text of one token, or an id. [PAUSE], where the vocabulary has none, is a new token with the mean "
            "embedding.",
        ),
    ] = "[PAUSE]",
    places: Annotated[
        str, typer.Option(metavar="PLACE,...", help="Of start, second, middle, end, or positions such as 5.")
    ] = "start,second,middle,end",
    counts: Annotated[str, typer.Option(metavar="N,...", help="How many tokens are put in.")] = "1",
    draws: Annotated[int, typer.Option(metavar="N", min=1, help="Sets of random tokens in their place.")] = 3,
    text: options.TextFiles = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 16,
    out: options.Out = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Put tokens into texts and see whether they become the sink, beside as many random tokens in their place.

    Measured on the text's own tokens behind the place: whom they attend to, and their loss.

    For example:

      sinklens inject tiny-llama --places start,middle --counts 1,4

      sinklens inject model.gguf --token "." --places second --text book.txt --max-tokens 64 --out runs/inject
    """
    texts = [read_text(name) for name in text] if text else None
    given = listed.parse_places(values.names(places))
    numbers = values.numbers(counts, int, "--counts", "1,4") or []
    if min(numbers) < 1:
        raise InputError(f"--counts takes numbers from 1 on, such as 1,4; got {counts!r}.")
    check_out(out, "sinklens-injection")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.injection.run import inject_tokens

        found = inject_tokens(
            bridge,
            texts,
            token=int(token) if token.isdecimal() else token,
            places=given,
            counts=numbers,
            draws=draws,
            bos=bos,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            batch_size=8 if batch_size is None else batch_size,
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"]))
    printing.say_verdict(found.verdict)
    names = ["place", "count", "measure", "token", "random", "clean", "difference", "low", "high"]
    title, caption = "What was put in, beside random tokens", "means over sequences"
    printing.say_rows(found.summary(), names, title, caption, left=["place", "measure"])
    printing.say_notes(found.meta["warnings"])
    printing.say_saved(saved)
