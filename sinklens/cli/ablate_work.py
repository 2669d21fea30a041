"""What `sinklens ablate` runs and prints."""

import math
import sys
from pathlib import Path
from typing import Any

from sinklens.cli.running import DryRun, Timed
from sinklens.cli.texts import read_text
from sinklens.cli.values import interventions, names, pairs
from sinklens.errors import InputError
from sinklens.interventions.heads import parse_heads
from sinklens.models.locate import locate
from sinklens.results.show_progress import ShowProgress

WAYS = ("zero", "uniform", "mean", "resample")
"""What ``AblateHeads`` does to heads, known here without torch."""
METRICS = {"loss": "delta_loss", "kl": "kl", "top1": "top1_agreement", "logit_diff": "delta_logit_diff"}
_MEANING = {
    "delta_loss": "delta loss: changed minus clean, nats",
    "kl": "KL: from the clean predictions, nats",
    "top1_agreement": "top-1: share of the clean first choices kept",
    "delta_logit_diff": "delta logit diff: changed minus clean",
}


def positive(gammas: list[float] | None) -> list[float] | None:
    """Factors of attention, refused where one is none.

    Raises:
        InputError: One is not above 0.
    """
    for gamma in gammas or []:
        if not 0 < gamma < math.inf:
            raise InputError(f"gamma must be a finite number above 0, got {gamma!r}; to hide keys use MaskKeys.")
    return gammas


def asked_metrics(text: str) -> list[str]:
    """Columns of the table that --metric names."""
    chosen = names(text)
    unknown = [name for name in chosen if name not in METRICS]
    if unknown or not chosen:
        raise InputError(f"Unknown metric {', '.join(unknown) or '(none)'}; expected some of {', '.join(METRICS)}.")
    return [METRICS[name] for name in dict.fromkeys(chosen)]


def check_asked(model: str, heads: str | None, how: list[str] | None) -> None:
    """Refuse a model that is not there, and heads and ways that cannot be read, before torch is loaded.

    Raises:
        SinkLensError: Naming what is wrong.
    """
    locate(model)
    for way in (way.strip() for words in how or [] for way in words.split(",")):
        if way not in WAYS:
            raise InputError(f"A way of ablation is one of {', '.join(WAYS)}; got {way!r}.")
    if heads not in (None, "none"):
        parse_heads(heads)


def asked_groups(texts: list[str] | None) -> dict[str, object]:
    """Heads by the name that --group gives them."""
    from sinklens.studies.head_roles.role_file import role_heads

    given = pairs(texts, "A group", "NAME=L5H1,L3H2, each name once", once=True)
    return {name: role_heads(heads, name) or heads for name, heads in given}


def asked_ways(how: list[str] | None, gammas: list[float] | None, files: list[Path] | None) -> list[Any]:
    """What --how, --gamma and --intervention do to heads."""
    from sinklens.interventions import ScaleKeys

    ways: list[Any] = [way.strip() for words in how or [] for way in words.split(",")]
    scaled = [ScaleKeys(keys=(0,), gamma=gamma) for gamma in gammas or []]
    return [*ways, *scaled, *interventions(files).values()] or ["zero"]


def asked_texts(text: list[str] | None, answers: Path | None) -> dict[str, Any]:
    """The texts that are named, and the table of answers.

    Returns:
        ``texts``, ``source``, ``table``, and whether the texts are the table's ``own``.

    Raises:
        InputError: A file that cannot be used, or texts from both.
    """
    from sinklens.studies.ablation.answers_file import AnswerTable

    table = None if answers is None else AnswerTable.read(answers)
    texts = [read_text(name) for name in text] if text else None
    source = ", ".join(text) if text else None
    own = table is not None and table.texts is not None
    if table is not None and own:
        if texts is not None:
            raise InputError("The answers file brings its own texts; leave --text away, or its column text.")
        texts, source = table.texts, str(table.path)
    return {"texts": texts, "source": source, "table": table, "own": own}


def run_sweep(
    model: str, given: dict[str, Any], words: dict[str, Any], options: dict[str, Any], progress: ShowProgress
) -> Any:
    """Load the model, tokenize, and sweep; None after a dry run.

    Args:
        model: Its name or place.
        given: What :func:`asked_texts` found.
        words: How texts become sequences: bos, max_tokens, max_sequences, seed.
        options: For :func:`~sinklens.studies.sweep`.
        progress: Told how it goes on.
    """
    texts, table, own = given["texts"], given["table"], given["own"]
    with progress.console.status(f"Loading {model} ..."):
        from sinklens.models import load
        from sinklens.passes.sequences import choose_sequences, first_sequences
        from sinklens.studies import sweep
        from sinklens.studies.ablation.executors import loading_here

        bridge = load(model, **loading_here(options["executor"], options["loading"]))
    by_number = table is not None and texts is not None  # answers name sequences by their number
    counted = {"max_sequences": sys.maxsize} if by_number else {}
    batch, source = choose_sequences(bridge, texts, split=not own, source=given["source"], **words | counted)
    if by_number and not own:
        batch = first_sequences(batch, words["max_sequences"])
    if own and batch.dropped:
        raise InputError(f"{table.path} has texts longer than --max-tokens; their answers would come too early.")
    chosen = None if table is None else table.answers(bridge, batch)
    try:
        found = sweep(
            bridge,
            tokens=batch,
            answers=chosen,
            source=source,
            seed=words["seed"],
            progress=progress,
            **options,
        )
    except Timed:
        return None
    if isinstance(progress, DryRun):
        progress.finished()
        return None
    return found


def print_sweep(result: Any, metrics: list[str], saved: list[str]) -> None:
    """What was found, and a table for each intervention."""
    from sinklens.cli import printing
    from sinklens.studies.ablation.result import short_table

    meta = result.meta
    printing.say_model(meta["model"], printing.sequences(meta["tokens"]))
    printing.say_verdict(result.verdict)
    meaning = "; ".join(_MEANING[metric] for metric in metrics)
    for label in meta["interventions"]:
        shown = short_table(result, label, metrics=metrics)
        printing.say_table(
            list(shown.columns),
            shown.itertuples(index=False),
            f"{label}: largest effects by size, and tested sets",
            f"means over sequences [95 % interval; none for fewer than 5 sequences]. {meaning}",
            left=["variant"],
        )
    printing.say_notes(meta["warnings"])
    printing.say_saved(saved, meta["seconds"])
