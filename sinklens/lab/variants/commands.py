"""The commands about attention variants: `sinklens lab variants` and `sinklens lab train variant`."""

from typing import Annotated

import typer

from sinklens.lab import options

# Settings and models are imported when a command runs, so that `sinklens --help` stays quick. The defaults below are
# those of `VariantSettings`; a test compares them.


def variants_command() -> None:
    """List the attention variants: formula, what rows sum to, what is learned, and the paper.

    s_ij is the score q_i.k_j / sqrt(d); sums run over the keys that query i sees. Where row sums are "free",
    attention metrics read proxy scores: shares of the row's sum.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.lab.variants.catalogue import VARIANTS

    table = Table(title="Attention variants", title_justify="left")
    table.add_column("name", no_wrap=True)
    for column in ("weight of key j for query i", "rows sum to", "learns besides", "source"):
        table.add_column(column, overflow="fold")
    for variant in VARIANTS.values():
        learned = ", ".join(name.replace("_", " ") for name in variant.learns) or "-"
        table.add_row(variant.name, escape(variant.formula), variant.row_sum, learned, variant.source)
    Console().print(table)


def train_variant_command(
    out: options.Out,
    attention: Annotated[str, typer.Option(help="Name of the variant; see sinklens lab variants.")] = "softmax",
    task: Annotated[str, typer.Option(help="backcopy or needle (which needs --seq-len 67).")] = "backcopy",
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Begin sequences with a BOS (backcopy).")] = True,
    triggers: Annotated[
        str | None, typer.Option(help="Trigger characters (backcopy); if not given, the three most frequent.")
    ] = None,
    layers: options.Layers = 1,
    heads: options.Heads = 1,
    d_model: options.WidthOfBoth = 64,
    mlp: Annotated[bool, typer.Option("--mlp/--no-mlp", help="Whether layers have an MLP.")] = True,
    norm: Annotated[str, typer.Option(help="layer or rms.")] = "layer",
    positions: Annotated[str, typer.Option(help="learned, rope, alibi or none.")] = "learned",
    window: Annotated[int | None, typer.Option(help="Keys a query sees, its own included; all if not given.")] = None,
    prefix: Annotated[int, typer.Option(help="First positions that every query sees.")] = 0,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, and the context.")] = 64,
    batch: options.Batch = 64,
    steps: options.Steps = 600,
    lr: Annotated[float, typer.Option(help="Constant learning rate; 0.03 suits sgd.")] = 3e-3,
    optimizer: options.Optimizer = "adamw",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 200,
    restart: options.Restart = False,
) -> None:
    """Train a small decoder with any attention variant, and say what became of its sink.

    Half a minute on one CPU core, ReLU attention, then a learned key in data without a BOS:

        sinklens lab train variant --attention relu --out my-relu

        sinklens lab train variant --attention k-bias --no-bos --out my-k-bias

    The folder holds weights, recipe and figures of the lab's own decoder, not a Hugging Face model:
    sinklens.lab.variants.load_variant reads it.
    """
    given = locals()
    from rich.console import Console

    from sinklens.lab.running import shown
    from sinklens.lab.variants.publish import train_variant
    from sinklens.lab.variants.report import print_variant
    from sinklens.lab.variants.settings import VariantSettings

    settings = VariantSettings(**options.settings_of(VariantSettings, given))
    with shown(out) as progress:
        folder = train_variant(
            out, settings, device=device, checkpoint_every=checkpoint_every, resume=not restart, progress=progress
        )
    print_variant(folder, Console())
