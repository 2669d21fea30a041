"""The command `sinklens lab train induction`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.lab import options

# Settings and models are imported when the command runs, so that `sinklens --help` stays quick. The defaults below are
# those of `InductionSettings`; a test compares them.


def train_induction_command(
    out: options.Out,
    steps: options.Steps = 2000,
    lr: options.PeakRate = 3e-3,
    weight_decay: options.WeightDecay = 0.01,
    heads: options.Heads = 4,
    kv_heads: Annotated[
        int, typer.Option(help="Heads of keys and values per layer, each read by as many attention heads.")
    ] = 4,
    d_model: options.Width = 128,
    n_words: Annotated[int, typer.Option(help="Ordinary tokens; any of them may be a key.")] = 512,
    value_len: Annotated[int, typer.Option(help="Words of an answer.")] = 8,
    shortest: Annotated[int, typer.Option(help="Tokens of the shortest training sequence.")] = 32,
    short_longest: Annotated[int, typer.Option(help="Tokens of the longest one in the first steps.")] = 96,
    longest: Annotated[int, typer.Option(help="Tokens of the longest one, and the model's context.")] = 512,
    short_share: Annotated[float, typer.Option(help="Share of the steps with short sequences alone.")] = 0.4,
    tokens: Annotated[int, typer.Option(help="Tokens of a step, about.")] = 4096,
    new_weight: Annotated[
        float, typer.Option(help="Weight of the loss on words that nothing announces, beside 1 for the others.")
    ] = 0.1,
    rope_base: options.RopeBase = 10_000.0,
    seed: options.Seed = 0,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Finished model that differs in its seed alone; its figures go into the model card. Repeat it.",
        ),
    ] = None,
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 200,
    restart: options.Restart = False,
) -> None:
    """Train two layers of attention to find needles: retrieval heads, induction heads, previous-token heads.

    Half of the data are needles (random words, then one of them again, which asks for what followed it), half are
    random spans that repeat. Any word may be a key. The report names the heads and says what masking them does.

    The built-in model induction-2l, about five minutes on one CPU core:

        sinklens lab train induction --out my-induction

    Another seed, and its figures in the card of the first:

        sinklens lab train induction --seed 1 --out seed-1

        sinklens lab train induction --out my-induction --beside seed-1

    Interrupted? Give the same command again: it goes on from the last checkpoint and ends with the same weights.
    The folder is a Hugging Face model (README.md, recipe.json and measured.json tell what it is), ready for
    `sinklens scan my-induction`.
    """
    given = locals()
    from rich.console import Console

    from sinklens.lab.induction.report import print_induction_report
    from sinklens.lab.induction.run import train_induction
    from sinklens.lab.induction.settings import InductionSettings
    from sinklens.lab.running import shown

    with shown(out) as progress:
        folder = train_induction(
            out,
            beside=beside or (),
            device=device,
            checkpoint_every=checkpoint_every,
            resume=not restart,
            **options.settings_of(InductionSettings, given),
            progress=progress,
        )
    print_induction_report(folder, Console())
