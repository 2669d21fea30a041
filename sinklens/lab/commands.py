"""The commands of the lab; mounted as `sinklens lab`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.lab import options
from sinklens.lab.induction.commands import train_induction_command
from sinklens.lab.language.settings import LanguageSettings
from sinklens.lab.variants.commands import train_variant_command, variants_command

_LM = LanguageSettings()
app = typer.Typer(no_args_is_help=True, help="Train small models that show how attention sinks emerge.")
_train = typer.Typer(no_args_is_help=True, help="Train one of the lab's models.")
app.add_typer(_train, name="train")
app.command("variants")(variants_command)
_train.command("variant")(train_variant_command)
_train.command("induction", rich_help_panel="Tasks")(train_induction_command)


@_train.command("bb", rich_help_panel="Tasks")
def train_bb_command(
    layers: Annotated[int, typer.Option(help="Transformer layers, one head each.")],
    out: options.Out,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps; if not given, 2000 for 1 layer and 4000 for more.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Constant learning rate; if not given, 0.003 for 1 layer, 0.001 for more, 0.03 for sgd."),
    ] = None,
    d_model: options.WidthOfBoth = 64,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, and the model's context.")] = 64,
    batch: options.Batch = 64,
    seed: options.Seed = 0,
    optimizer: options.Optimizer = "adamw",
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 200,
    restart: options.Restart = False,
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
    given = locals()
    from rich.console import Console

    from sinklens.lab.report import print_report
    from sinklens.lab.running import shown
    from sinklens.lab.settings import BackcopySettings
    from sinklens.lab.training import train_bb

    with shown(out) as progress:
        folder = train_bb(
            out=out,
            **options.settings_of(BackcopySettings, given),
            device=device,
            checkpoint_every=checkpoint_every,
            resume=not restart,
            progress=progress,
        )
    print_report(folder, layers, Console())


@_train.command("lm", rich_help_panel="Tasks")
def train_lm_command(
    out: options.Out,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of domains: each sub-folder with any number of .txt or .py files is one, and so is each such "
            "file beside them. UTF-8. A file SOURCES.md in it goes into the model card.",
        ),
    ] = None,
    python_stdlib: Annotated[
        bool, typer.Option("--python-stdlib", help="Add this Python's own standard library as domain 'code'.")
    ] = False,
    steps: options.Steps = _LM.steps,
    lr: options.PeakRate = _LM.lr,
    weight_decay: options.WeightDecay = _LM.weight_decay,
    layers: options.Layers = _LM.layers,
    heads: options.Heads = _LM.heads,
    d_model: options.Width = _LM.d_model,
    d_mlp: Annotated[int, typer.Option(help="Width of the MLP.")] = _LM.d_mlp,
    rope_base: options.RopeBase = _LM.rope_base,
    vocab: Annotated[int, typer.Option(help="Tokens of the byte-level BPE, at least 257.")] = _LM.vocab,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, BOS included.")] = _LM.seq_len,
    batch: options.Batch = _LM.batch,
    long_len: Annotated[
        int, typer.Option(help="Tokens of a sequence in the long steps, which hold fewer sequences.")
    ] = _LM.long_len,
    long_every: Annotated[int, typer.Option(help="Every so many steps is a long one; 0 for none.")] = _LM.long_every,
    long_from: Annotated[int, typer.Option(help="The first step that may be a long one.")] = _LM.long_from,
    held_out: Annotated[
        float, typer.Option(help="Share of each domain's characters that is measured on and never trained on.")
    ] = _LM.held_out,
    series: Annotated[int, typer.Option(help="Checkpoints to keep, log-spaced, first and last included.")] = _LM.series,
    measure_every: Annotated[int, typer.Option(help="Steps between two rows of the curve.")] = _LM.measure_every,
    seed: options.Seed = _LM.seed,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda (mixed precision).")] = "auto",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints to go on from.")] = 100,
    restart: options.Restart = False,
) -> None:
    """Train a small Llama on natural text until it has an attention sink.

    Every sequence begins with a BOS. A byte-level BPE is trained first, on the same texts; a twentieth of each
    domain's documents is held out, and loss, sink heads and the residual peak at the BOS are followed on it while the
    training runs (curve.csv). Checkpoints at log-spaced steps are kept, from the untrained model on.

    A first look at two domains, about two minutes on one CPU core and too short for a sink:

        sinklens lab train lm --data texts --python-stdlib --steps 200 --out my-lm

    Here texts/prose/ holds .txt files. The built-in tiny-llama, about an hour (the first steps tell):

        sinklens lab train lm --data texts --python-stdlib --out tiny-llama

    Interrupted? Give the same command again: it goes on from the last checkpoint and ends with the same
    weights and the same curve. The folder is a Hugging Face model (README.md, recipe.json and measured.json
    tell what it is), ready for `sinklens scan my-lm`.
    """
    given = locals()
    from rich.console import Console

    from sinklens.lab.language.report import print_language_report
    from sinklens.lab.language.run import train_lm
    from sinklens.lab.running import shown

    with shown(out) as progress:
        folder = train_lm(
            data,
            out,
            python_stdlib=python_stdlib,
            device=device,
            checkpoint_every=checkpoint_every,
            resume=not restart,
            **options.settings_of(LanguageSettings, given, "data"),
            progress=progress,
        )
    print_language_report(folder, Console())
