"""Options that every training command of the lab has, and the settings that they make."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path, typer.Option(help="Folder for the model: new, empty, or one this command wrote to.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
PeakRate = Annotated[float, typer.Option(help="Peak learning rate.")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay of the matrices.")]
Layers = Annotated[int, typer.Option(help="Transformer layers.")]
Heads = Annotated[int, typer.Option(help="Attention heads per layer.")]
Width = Annotated[int, typer.Option(help="Width.")]
WidthOfBoth = Annotated[int, typer.Option(help="Width; the MLP is four times as wide.")]
RopeBase = Annotated[float, typer.Option(help="Base of the rotary position frequencies.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Sequences per step.")]
Optimizer = Annotated[str, typer.Option(help="adamw or sgd.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights and of the data.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between two checkpoints.")]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Begin anew, instead of going on from the checkpoint or leaving a finished model as it is."
    ),
]


def settings_of(kind: type, given: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The options of a command (its ``locals()``) that are settings of a training: those called like a field."""
    return {field.name: given[field.name] for field in fields(kind) if field.name in given and field.name not in but}
