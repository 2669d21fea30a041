"""`sinklens why`."""

from typing import Annotated, Any

import typer

from sinklens.cli import options, printing
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_text
from sinklens.errors import InputError
from sinklens.interventions.heads import parse_heads

SHOWN = {
    "name": "head",
    "importance": "importance",
    "margin": "margin",
    "channel": "channel",
    "channel_share": "its share",
    "component": "written by",
    "component_share": "its share ",
    "mass": "mass",
    "mass_without": "without",
    "n_channels": "n channels",
    "random_lost": "random lost",
    "p": "p",
    "kind": "kind",
    "value_ratio": "value ratio",
}
SOURCES = {
    "channel": "channel",
    "appears": "from",
    "leaves_after": "to",
    "token": "token",
    "value": "value",
    "writer": "written by",
    "writer_share": "its share",
    "weight": "weight",
    "weight_of_writer": "of writer",
}


def why(
    model: options.ModelOrDefault = "tiny-llama",
    heads: Annotated[
        str | None,
        typer.Option(metavar="L5H1,...", help="Heads to explain. Default: the strongest sink heads on the texts."),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many of the strongest.")] = 10,
    position: Annotated[int, typer.Option(metavar="N", min=0, help="The key that they attend to, from 0.")] = 0,
    massive: Annotated[
        bool,
        typer.Option(
            "--massive", help="Explain massive activations instead: the layer and the weight that write them."
        ),
    ] = False,
    experts: Annotated[
        bool, typer.Option("--experts", help="Of a mixture of experts: the experts that make massive activations.")
    ] = False,
    donors: Annotated[
        bool,
        typer.Option(
            help="Also exchange values at the key (or put weights, or experts, to zero), which takes the most time."
        ),
    ] = True,
    controls: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Random sets of as many channels (or weights, or experts) beside the named ones."
        ),
    ] = 10,
    text: options.TextFiles = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 32,
    out: options.Out = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Say why heads sink: which channel makes them prefer the key, who wrote it, and what the sink does.

    The margin of the key before the softmax is split exactly: by residual channel, by writer (embedding, heads, MLPs,
    biases), by rotary band. Each named channel is taken out of its head, beside random ones.

    For example:

      sinklens why tiny-llama --out runs/why

      sinklens why model.gguf --heads L18H8,L17H3 --no-donors

      sinklens why path/to/llama --top 20 --text book.txt --max-tokens 128

      sinklens why path/to/llama --massive --out runs/massive
    """
    texts = [read_text(name) for name in text] if text else None
    if massive and experts:
        raise InputError("Explain one thing at a time: --massive or --experts.")
    if heads is not None:
        parse_heads(heads)
    kind = f"sinklens-{'massive-sources' if massive else 'super-experts' if experts else 'sink-causes'}"
    check_out(out, kind)
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        shared: dict[str, Any] = {"controls": controls, "bos": bos, "max_tokens": max_tokens, "seed": seed}
        shared |= {"max_sequences": max_sequences, "progress": progress}
        shared["batch_size"] = 8 if batch_size is None else batch_size
        if experts:
            from sinklens.studies.super_experts.run import find_super_experts

            found: Any = find_super_experts(bridge, texts, effects=donors, **shared)
        elif massive:
            from sinklens.studies.massive_sources.run import trace_massive

            found = trace_massive(bridge, texts, effects=donors, **shared)
        else:
            from sinklens.studies.sink_causes.run import explain_sinks

            chosen = heads.split(",") if heads else None
            found = explain_sinks(bridge, texts, heads=chosen, top=top, position=position, donors=donors, **shared)
    saved = save_in(out, found)  # before anything is printed: a closed pipe (| head) must not cost the result
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"]))
    printing.say_verdict(found.verdict)
    if experts:
        names = ["layer", "expert", "a", "n_tokens", "forms", "is_super", "is_super_code"]
        caption = "a: largest output before the router's weight; expert -1: shared"
        printing.say_rows(found.experts, names, "Experts", caption, most=12)
    elif massive:
        printing.say_rows(found.sources, SOURCES, "Massive activations", left=["token", "written by", "weight"])
    else:
        caption = "shares in logits; mass: attention to the key, with and without the fewest channels that halve it"
        printing.say_rows(found.heads, SHOWN, "Why heads sink", caption, left=["head", "written by", "kind"])
    printing.say_notes(found.meta["warnings"])
    printing.say_saved(saved)
