"""The commands of the lab; mounted as `sinklens lab`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train small models that show how attention sinks emerge.")
_train = typer.Typer(no_args_is_help=True, help="Train one of the lab's models.")
app.add_typer(_train, name="train")


@_train.command("bb", rich_help_panel="Tasks")
def train_bb_command(
    layers: Annotated[int, typer.Option(help="Transformer layers, one head each.")],
    out: Annotated[Path, typer.Option(help="Folder for the model: new, empty, or one this command wrote to.")],
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps; if not given, 2000 for 1 layer and 4000 for more.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Constant learning rate; if not given, 0.003 for 1 layer, 0.001 for more, 0.03 for sgd."),
    ] = None,
    d_model: Annotated[int, typer.Option(help="Width; the MLP is four times as wide.")] = 64,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, and the model's context.")] = 64,
    batch: Annotated[int, typer.Option(help="Sequences per step.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of the data.")] = 0,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 200,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            help="Go on from the checkpoint in the folder and leave a finished model, or start both anew.",
        ),
    ] = True,
) -> None:
    """Train a Bigram-Backcopy model: the smallest transformer with a reliable attention sink.

    The task (Guo et al., arXiv 2410.13835): characters follow each other as in Shakespeare, but after a
    space, an "e" or a "t" the character before it comes back. The head copies at these triggers and rests on
    <s> everywhere else.

    A first look, about half a minute on one CPU core:

        sinklens lab train bb --layers 1 --steps 600 --out my-bb

    The built-in models, about two and ten minutes:

        sinklens lab train bb --layers 1 --seq-len 128 --out bb-1l

        sinklens lab train bb --layers 3 --seq-len 128 --out bb-3l

    Interrupted? Give the same command again: it goes on from the last checkpoint and ends with the same
    weights. The folder is a Hugging Face model (README.md, recipe.json and measured.json tell what it is),
    ready for `sinklens scan my-bb`.
    """
    from rich.console import Console

    from sinklens.lab.report import print_report
    from sinklens.lab.training import train_bb

    folder = train_bb(
        layers,
        out,
        d_model=d_model,
        seq_len=seq_len,
        batch=batch,
        steps=steps,
        lr=lr,
        seed=seed,
        optimizer=optimizer,
        device=device,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    print_report(folder, layers, Console())
