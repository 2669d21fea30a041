"""`sinklens paths`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options, printing, values
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.interventions.heads import parse_heads
from sinklens.studies.path_patching.receiver import receiver_parts


def paths(
    model: options.Model,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='Pairs of prompts: [{"clean": TEXT, "corrupted": TEXT, "correct": WORD, "wrong": WORD}, ...], all of '
            "one length in tokens. Default: random tokens and the first of them again, which asks for induction.",
        ),
    ] = None,
    receivers: Annotated[
        str,
        typer.Option(metavar="L5H1.k,...", help="What receives: .q, .k or .v of a head, or logits (the direct path)."),
    ] = "logits",
    senders: Annotated[
        str | None, typer.Option(metavar="L0H2,...", help="Heads that send. Default: all before a receiver.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(metavar="L0H2,...", help="A set to patch as a whole, both ways: is it needed, is it enough."),
    ] = None,
    controls: options.Controls = 10,
    freeze_mlps: Annotated[
        bool, typer.Option("--freeze-mlps", help="Hold MLPs as well; otherwise a path may go through them.")
    ] = False,
    bos: options.Bos = "auto",
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Patch the paths between heads: who hands whom what tells two prompts apart.

    Each sender works as in the corrupted prompt, all other heads as in the clean one, and only the receiver gets it.
    0: nothing is handed over, 1: all that tells the prompts apart.

    For example:

      sinklens paths induction-2l --receivers L1H0.k,logits --heads L0H0 --out runs/paths

      sinklens paths model.gguf --prompts pairs.json --receivers L18H6.k --senders L16H0,L17H8
    """
    received = values.names(receivers)
    for name in received:
        receiver_parts(name)
    for named in (senders, heads):
        if named is not None:
            parse_heads(named)
    given = (
        None if prompts is None else values.records(prompts, ("clean", "corrupted", "correct", "wrong"), "--prompts")
    )
    check_out(out, "sinklens-path-patching")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.path_patching.prompts import repeated_prompts, text_prompts
        from sinklens.studies.path_patching.run import patch_paths

        if given is None:
            pairs = repeated_prompts(bridge, bos=bos, seed=seed)  # type: ignore[arg-type]
        else:
            texts = [(each["clean"], each["corrupted"], each["correct"], each["wrong"]) for each in given]
            pairs = text_prompts(bridge, texts, bos=bos)  # type: ignore[arg-type]
        found = patch_paths(
            bridge,
            *pairs,
            receivers=received,
            senders=None if senders is None else values.names(senders),
            heads=None if heads is None else values.names(heads),
            controls=controls,
            freeze_mlps=freeze_mlps,
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)  # before anything is printed: a closed pipe (| head) must not cost the result
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"]))
    printing.say_verdict(found.verdict)
    names = ["sender", "receiver", "effect", "low", "high"]
    caption = "share of what tells the prompts apart"
    printing.say_rows(found.paths, names, "Largest paths", caption, left=names[:2], most=20)
    printing.say_saved(saved)
