"""`sinklens near-far`."""

from typing import Annotated

import typer

from sinklens.cli import options, printing
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_text
from sinklens.interventions.heads import parse_heads


def near_far(
    model: options.Model,
    heads: Annotated[list[str], typer.Argument(metavar="HEAD...", help="Heads such as L0H0, restricted together.")],
    window: Annotated[
        int, typer.Option(metavar="N", min=1, help="Near are the last N keys, a query's own with them.")
    ] = 16,
    sinks: Annotated[int, typer.Option(metavar="N", min=1, help="First keys that are always seen.")] = 1,
    controls: options.Controls = 10,
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
    """Let heads see near keys alone, then far ones alone: what each costs, beside random heads.

    Where a head looks is not what it needs. The first keys stay visible, so that no cost is that of a lost sink.

    For example:

      sinklens near-far induction-2l L0H0 --window 4

      sinklens near-far model.gguf L18H6 L17H3 --window 32 --text book.txt --max-tokens 256 --out runs/near-far
    """
    parse_heads(heads)
    texts = [read_text(name) for name in text] if text else None
    check_out(out, "sinklens-near-far")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.near_far.run import near_far_costs

        found = near_far_costs(
            bridge,
            heads,
            texts,
            window=window,
            sinks=sinks,
            controls=controls,
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
    names = ["sees", "kind", "heads", "cost", "low", "high", "loss"]
    order = found.costs.sort_values(["sees", "kind"], ascending=False, kind="stable")
    printing.say_rows(order, names, "Rise of the loss", "in nats per token", left=names[:3], most=24)
    printing.say_notes(found.meta["warnings"])
    printing.say_saved(saved)
