"""A series of checkpoints: which there are, in which order, and what to load for each."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sinklens.errors import InputError
from sinklens.models.builtin import builtin_models
from sinklens.studies.dynamics.revisions import choose_revisions

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """One state of a model in training.

    Attributes:
        name: Folder or revision, such as ``"step-000125"``.
        step: Training step that the name tells.
        source: What :func:`sinklens.load` takes.
        tokens: Tokens trained on, ``None`` where the name does not tell.
    """

    name: str
    step: int
    source: str
    tokens: int | None = None


@dataclass(frozen=True)
class Series:
    """Checkpoints by rising step.

    Attributes:
        name: What the series is called.
        checkpoints: At least one, each step once.
        ignored: Folders or revisions whose names tell no step.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    ignored: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """All steps."""
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    def at(self, steps: Sequence[int]) -> "Series":
        """Only these steps.

        Raises:
            InputError: There is no checkpoint of a step.
        """
        missing = [step for step in steps if step not in self.steps]
        if missing or not steps:
            raise InputError(
                f"{self.name} has no checkpoint of step {', '.join(map(str, missing)) or '(none given)'}; it has "
                f"{_some(self.steps)}."
            )
        chosen = tuple(checkpoint for checkpoint in self.checkpoints if checkpoint.step in steps)
        return Series(self.name, chosen, self.ignored)


def find_series(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    revisions: str | Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
) -> Series:
    """The checkpoints that a series names, ordered by the steps in their names (``step-000125``, ``checkpoint-500``).

    Args:
        source: A directory of checkpoint folders (or one whose folder ``checkpoints`` holds them); a built-in model
            that has a series; a hub id, with revisions after an ``@`` (``org/model@step0,step1000``) or given apart;
            or several of ``DIR`` and ``org/model@revision``, where ``STEP=`` in front states the step itself.
        revisions: For one hub id: revisions, with ``*`` and ``?`` standing for what the hub (or its cache) has;
            default: ``steps`` of those that TransformerLens knows for the model (Pythia, stanford-crfm).
        steps: Only these.

    Raises:
        InputError: No checkpoint, a step that no checkpoint has or two have, or a name that tells no step.
        ModelLoadError: The hub must be asked for its revisions and cannot be reached.

    Cost: names are read, no model is.
    """
    sources = [os.fspath(each) for each in ([source] if isinstance(source, str | os.PathLike) else source or ())]
    if len(sources) == 1:
        series = _one(sources[0], revisions, every=steps is None)
    elif not sources:
        raise InputError("Expected a series of checkpoints, such as a directory of step-000125 folders; got nothing.")
    elif revisions is not None:
        raise InputError("Revisions go with one hub id; write ORG/MODEL@REVISION for each of several.")
    else:
        series = Series(", ".join(sources), tuple(_named(each) for each in sources))
    series = _ordered(series)
    return series if steps is None else series.at(steps)


def _one(source: str, revisions: str | Sequence[str] | None, *, every: bool) -> Series:
    directory = builtin_models()[source].path if source in builtin_models() else Path(source).expanduser()
    if directory.is_dir():
        if revisions is not None:
            raise InputError(f"{source} is a directory; revisions go with a hub id.")
        return _folder(source, directory)
    repository, _, written = source.partition("@")
    parts = Path(repository).parts
    if Path(repository).is_absolute() or repository.startswith((".", "~")) or len(parts) > 2 or not parts:
        raise InputError(f"There is no directory {source}; expected one with checkpoint folders, or a hub id.")
    if revisions is not None and written:
        raise InputError("Give the revisions after the @ or by themselves, not both.")
    wanted = written or revisions
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else wanted
    found, unsure = choose_revisions(repository, None if names is None else [name for name in names if name])
    ignored = [name for name in found if unsure and parse_step(name) is None]
    checkpoints = [_checkpoint(name, f"{repository}@{name}") for name in found if name not in ignored]
    if names is None and every:
        raise InputError(
            f"{repository} has {len(checkpoints)} checkpoints; choose some of them, as with --steps "
            f"{','.join(str(each.step) for each in checkpoints[:: max(1, len(checkpoints) // 4)])}."
        )
    if not checkpoints:
        raise InputError(f"{repository} has no revision that names a step; name some, as in {repository}@step1000.")
    return Series(repository, tuple(checkpoints), tuple(ignored))


def _folder(name: str, directory: Path) -> Series:
    folders = _subfolders(directory)
    if not any(parse_step(each.name) is not None for each in folders) and (directory / CHECKPOINTS).is_dir():
        folders = _subfolders(directory / CHECKPOINTS)
    counted = [each for each in folders if parse_step(each.name) is not None]
    ignored = tuple(each.name for each in folders if each not in counted and (each / "config.json").is_file())
    if not counted:
        alone = "; it is a single checkpoint" if (directory / "config.json").is_file() else ""
        raise InputError(
            f"{name} holds no series of checkpoints{alone}; expected folders such as step-000125 or checkpoint-500, or "
            "several directories."
        )
    return Series(name, tuple(_checkpoint(each.name, str(each)) for each in counted), ignored)


def _subfolders(directory: Path) -> list[Path]:
    return sorted(each for each in directory.iterdir() if each.is_dir() and not each.name.startswith("."))


def _named(source: str) -> Checkpoint:
    """One of several: ``[STEP=]DIR`` or ``[STEP=]org/model@revision``."""
    stated = re.fullmatch(r"(\d+)=(.+)", source)
    where = stated[2] if stated else source
    name = Path(where).expanduser().name.rpartition("@")[2]
    return _checkpoint(name, where, int(stated[1]) if stated else None)


def _checkpoint(name: str, source: str, step: int | None = None) -> Checkpoint:
    step = parse_step(name) if step is None else step
    if step is None:
        raise InputError(
            f"The name {name!r} tells no training step; expected one such as step-000125 or checkpoint-500, or state "
            f"it with several sources: 125={source}."
        )
    return Checkpoint(name, step, source, parse_tokens(name))


def _ordered(series: Series) -> Series:
    ordered = sorted(series.checkpoints, key=lambda checkpoint: checkpoint.step)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise InputError(f"{one.name} and {other.name} are both of step {one.step}; leave one out.")
    return Series(series.name, tuple(ordered), series.ignored)


def _some(steps: Sequence[int]) -> str:
    shown = [f"{step:,}" for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]])


_STEP = re.compile(r"(?:steps?|checkpoint|ckpt|chkpt|iter(?:ation)?|updates?)[-_=]*(\d+)([kKmM](?![a-zA-Z]))?")
_TOKENS = re.compile(r"tokens?[-_=]*(\d+(?:\.\d+)?)([KMBT])?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_step(name: str) -> int | None:
    """Step in the name of a folder or revision: the number after "step", "checkpoint", "iter", else the only one.

    ``None`` where there is no number, or several and none of them is named.

    Example:
        >>> [parse_step(name) for name in ("step-000125", "checkpoint-500", "step1000-tokens4B", "ckpt_20k", "007")]
        [125, 500, 1000, 20000, 7]
        >>> [parse_step(name) for name in ("main", "v1-2")]
        [None, None]
    """
    named = _STEP.search(name.lower())
    if named is not None:
        return int(named[1]) * _UNITS[(named[2] or "").lower()]
    numbers = re.findall(r"\d+", name)
    return int(numbers[0]) if len(numbers) == 1 else None


def parse_tokens(name: str) -> int | None:
    """Tokens trained on, where the name tells them.

    Example:
        >>> parse_tokens("step1000-tokens4B"), parse_tokens("stage1-step500-tokens2.5B"), parse_tokens("step1000")
        (4000000000, 2500000000, None)
    """
    found = _TOKENS.search(name)
    return None if found is None else round(float(found[1]) * _UNITS[(found[2] or "").lower()])
