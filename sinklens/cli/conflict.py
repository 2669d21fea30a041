"""`sinklens conflict`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options, printing, values
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.errors import InputError

WAYS, SIDES = ("zero", "mean"), ("direct", "path")


def conflict(
    model: options.Model,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='At least four of [{"prompt": TEXT, "context": WORD, "memory": WORD, "unrelated": WORD}, ...]: what '
            "the prompt says, what the model knows, and a third answer. Default: sixteen false capitals.",
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="direct|path",
            help="What a head writes for an answer, or what the answer loses when the head's path to the logits "
            "carries another prompt.",
        ),
    ] = "direct",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Heads of each side that are taken away.")] = 5,
    how: Annotated[str, typer.Option(metavar="zero,mean", help="What is put in place of their output.")] = "zero,mean",
    controls: options.Controls = 10,
    bos: options.Bos = "auto",
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Find heads that argue for what the prompt says, and heads that argue for what the model knows.

    Heads are chosen on every other prompt by what they write for each answer (or by patched paths), and taken away on
    the rest, beside random sets of as many heads.

    For example:

      sinklens conflict path/to/llama --out runs/conflict

      sinklens conflict model.gguf --by path --prompts false-facts.json --top 3 --how zero
    """
    if by not in SIDES:
        raise InputError(f"--by is one of {', '.join(SIDES)}; got {by!r}.")
    ways = values.names(how)
    if not ways or any(way not in WAYS for way in ways):
        raise InputError(f"--how takes some of {', '.join(WAYS)}; got {how!r}.")
    words = ("prompt", "context", "memory", "unrelated")
    given = None if prompts is None else values.records(prompts, words, "--prompts")
    check_out(out, "sinklens-conflict-heads")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.conflict_heads.run import ConflictPrompt, find_conflict_heads

        found = find_conflict_heads(
            bridge,
            None if given is None else [ConflictPrompt(**each) for each in given],
            by=by,  # type: ignore[arg-type]
            top=top,
            ways=ways,
            controls=controls,
            bos=bos,  # type: ignore[arg-type]
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)  # before anything is printed: a closed pipe (| head) must not cost the result
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"], "prompt"))
    printing.say_verdict(found.verdict)
    order = found.heads.sort_values("conflict", key=abs, ascending=False, kind="stable")
    names = ["name", "conflict", "low", "high", "context", "memory", "side"]
    caption = "in logits, at the last token"
    printing.say_rows(order, names, "Heads that take sides", caption, left=["name", "side"], most=16)
    printing.say_saved(saved)
