"""One run over a series: checkpoints loaded in turn, measured or taken from an earlier run, put together."""

import gc
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.detectors.registry import built_in_detectors, metrics_of
from sinklens.detectors.sinks import SINK_HEAD_RATE, SINK_HEAD_RATIO
from sinklens.errors import InputError, ModelLoadError, ResultError
from sinklens.models.load import load
from sinklens.models.tokens import TokenBatch
from sinklens.results import RunFolder
from sinklens.results.header import header
from sinklens.results.progress import Progress, Share
from sinklens.results.run_folder import ANEW
from sinklens.studies.census.domains import Domains
from sinklens.studies.dynamics.measure import DETECTORS, measure_checkpoint
from sinklens.studies.dynamics.result import FORMAT, PARTS, WORK, Dynamics
from sinklens.studies.dynamics.roles import measure_roles
from sinklens.studies.dynamics.series import Checkpoint, Series

METRICS = metrics_of([built_in_detectors()[name] for name in DETECTORS])
Tables = dict[str, pd.DataFrame]


class DynamicsRun:
    """Measures every checkpoint of a series on the tokens of the first one that can be loaded.

    Args:
        series: The checkpoints.
        read: Gives the sequences, by a model's own tokenizer.
        settings: What the numbers depend on beside tokens and model.
        loading: What :func:`sinklens.load` takes beside the name.
        batch_size: Sequences in one forward pass.
        progress: Told the plan, then in checkpoints.
    """

    def __init__(
        self,
        series: Series,
        read: Callable[[TransformerBridge], Domains],
        settings: dict[str, Any],
        loading: dict[str, Any],
        batch_size: int | None,
        progress: Progress,
    ) -> None:
        self.series, self.read, self.settings = series, read, settings
        self.loading, self.batch_size, self.progress = loading, batch_size, progress
        self.notes = [f"Left out, because its name tells no step: {name}." for name in series.ignored]
        self.missing: dict[Checkpoint, str] = {}
        self.done: dict[Checkpoint, Tables] = {}
        self.stamps = {str(checkpoint.step): stamp(checkpoint) for checkpoint in series.checkpoints}

    def to(self, out: Path | None, restart: bool) -> Dynamics:
        """Run, keeping work and result in ``out`` if there is one.

        Raises:
            ModelLoadError: No checkpoint can be loaded.
            InputError: A checkpoint with another tokenizer or architecture, or tokens that cannot be used.
            ResultError: ``out`` holds something else.
        """
        with _only_what_is_new():
            return self._to(out, restart)

    def _to(self, out: Path | None, restart: bool) -> Dynamics:
        first, model = self._first()
        self.first = first
        self.domains = self.read(model)
        self.notes += self.domains.notes()
        self.shape = _shape(model)
        self.facts = header(model, self.domains.batch)
        spec = self._spec()
        folder = None if out is None else RunFolder(out, FORMAT, WORK, self._note)
        with nullcontext() if folder is None else folder.locked():
            if folder is not None:
                finished = self._begin(folder, spec, restart)
                if finished is not None:
                    return finished
                for checkpoint in self.series.checkpoints:
                    part = folder.load(_part(checkpoint), self.stamps[str(checkpoint.step)])
                    if part is not None:
                        self.done[checkpoint] = part.tables
            self._begin_work()
            if first not in self.done:
                self._measure(first, model, folder)
            del model
            for checkpoint in self.series.checkpoints:
                if checkpoint not in self.done and checkpoint not in self.missing:
                    _release()
                    later = self._load(checkpoint)
                    if later is not None:
                        self._check(checkpoint, later)
                        self._measure(checkpoint, later, folder)
                    del later
            result = Dynamics(self._meta(spec), self._tables())
            if folder is not None:
                folder.complete(result)
        return result

    def _first(self) -> tuple[Checkpoint, TransformerBridge]:
        """The first checkpoint that can be loaded."""
        for checkpoint in self.series.checkpoints:
            model = self._load(checkpoint)
            if model is not None:
                return checkpoint, model
        reason = next(iter(self.missing.values()))
        raise ModelLoadError(f"None of the {len(self.missing)} checkpoints can be loaded; the first: {reason}")

    def _load(self, checkpoint: Checkpoint) -> TransformerBridge | None:
        try:
            return load(checkpoint.source, **self.loading)
        except ModelLoadError as error:
            self.missing[checkpoint] = str(error)
            self.progress.skip(1.0)
            self._note(f"{checkpoint.name} is missing: {error}")
            return None

    def _check(self, checkpoint: Checkpoint, model: TransformerBridge) -> None:
        """Refuse what cannot be compared with the first checkpoint."""
        shape = _shape(model)
        if shape != self.shape:
            raise InputError(
                f"{checkpoint.name} is another model ({_words(shape)}) than the first checkpoint "
                f"({_words(self.shape)}); a series is one model at several steps."
            )
        if _same_words(checkpoint, self.first):
            return  # the same files give the same ids
        here, there = self.read(model).batch, self.domains.batch
        if not _same(here, there):
            raise InputError(
                f"The tokenizer of {checkpoint.name} gives other ids for the same texts than that of the first "
                "checkpoint, so that their numbers cannot be compared; leave it out (--steps), or give it the same "
                "tokenizer files."
            )

    def _spec(self) -> dict[str, Any]:
        """Everything but the checkpoints that the numbers depend on."""
        batch = self.domains.batch
        ids = hashlib.sha256(batch.ids.numpy().tobytes() + batch.real.numpy().tobytes()).hexdigest()
        return {
            "tokens": {"n_sequences": len(batch), "ids": ids, "bos": batch.bos_added_by},
            "domains": {name: self.domains.of.count(name) for name in self.domains.names},
            "model": dict(zip(("architecture", "n_layers", "n_heads"), self.shape, strict=True)),
            "dtype": str(self.loading.get("dtype") or "as stored"),
            "settings": {name: self.settings[name] for name in ("eps", "seed", "roles") if name in self.settings},
            "metrics": {metric.name: metric.version for metric in METRICS},
        }

    def _begin(self, folder: RunFolder, spec: dict[str, Any], restart: bool) -> Dynamics | None:
        """What the folder holds: a result with nothing to add, or one that is taken apart for more to join it."""
        folder.check()
        if restart or not folder.finished:
            folder.begin(spec, restart)
            folder.note()
            return None
        try:
            held = Dynamics.load(folder.directory)
        except ResultError as error:
            raise ResultError(f"{error} You can {ANEW}.") from error
        folder.begin(spec, held=held.meta["spec"])
        parts = _parts(held, self.series)
        there = held.tables["checkpoints"]
        other = there[there["measured"].astype(bool) & ~there["step"].isin([each.step for each in parts])]
        if len(other):
            raise ResultError(
                f"{folder.directory} holds checkpoints that are not asked for now "
                f"({', '.join(other['name'][:3])}); name them too, name another directory, or {ANEW}."
            )
        stamps: dict[str, str] = held.meta["stamps"]
        if stamps == self.stamps:
            folder.tidy()
            return held
        folder.note()
        for checkpoint, tables in parts.items():
            folder.save(_part(checkpoint), tables, stamps[str(checkpoint.step)])
        folder.reopen()
        return None

    def _begin_work(self) -> None:
        """Tell what is about to be done."""
        steps, done = self.series.steps, len(self.done)
        before = f"; {done} of them finished before" if done else ""
        self.progress.begin(
            "Measuring checkpoints",
            len(self.series.checkpoints),
            f"{len(steps)} checkpoints of {self.series.name}, steps {steps[0]:,} to {steps[-1]:,}, on "
            f"{len(self.domains.batch)} sequences each{before}.",
        )
        self.progress.skip(done + len(self.missing))

    def _measure(self, checkpoint: Checkpoint, model: TransformerBridge, folder: RunFolder | None) -> None:
        tables = measure_checkpoint(
            model,
            self.domains,
            eps=self.settings["eps"],
            seed=self.settings["seed"],
            batch_size=self.batch_size,
            progress=Share(self.progress, 0.5 if self.settings.get("roles") else 1.0),
        )
        if self.settings.get("roles"):
            part = Share(self.progress, 0.5)
            tables["roles"] = measure_roles(model, self.settings["roles"], seed=self.settings["seed"], progress=part)
            part.finish()
        if folder is not None:
            folder.save(_part(checkpoint), tables, self.stamps[str(checkpoint.step)])
        self.done[checkpoint] = tables

    def _tables(self) -> Tables:
        """All checkpoints one after the other, by step."""
        ordered = [checkpoint for checkpoint in self.series.checkpoints if checkpoint in self.done]
        tables = {}
        for name in (*PARTS, *(["roles"] if self.settings.get("roles") else [])):
            frames = []
            for checkpoint in ordered:
                frame = self.done[checkpoint][name].copy()
                frame.insert(0, "step", checkpoint.step)
                frame.insert(1, "name", checkpoint.name)
                frames.append(frame)
            kept = [frame for frame in frames if len(frame)]
            tables[name] = pd.concat(kept, ignore_index=True) if kept else frames[0]
        checkpoints = [
            (each.step, each.name, each.tokens, each in self.done, self.missing.get(each, ""))
            for each in self.series.checkpoints
        ]
        listed = pd.DataFrame(checkpoints, columns=["step", "name", "tokens", "measured", "reason"])
        tables["checkpoints"] = listed.astype({"tokens": "Int64"})
        return tables

    def _meta(self, spec: dict[str, Any]) -> dict[str, Any]:
        facts = dict(self.facts)
        facts["tokens"] |= {"source": self.domains.source, "domains": self.domains.facts()}
        facts["model"] |= {"name": self.series.name}
        return facts | {
            "series": {"name": self.series.name, "steps": list(self.series.steps)},
            "spec": json.loads(json.dumps(spec)),
            "stamps": {str(each.step): self.stamps[str(each.step)] for each in self.done},
            "metrics": {metric.name: metric.as_dict() for metric in METRICS},
            "settings": self.settings | {"sink_head_rate": SINK_HEAD_RATE, "sink_head_ratio": SINK_HEAD_RATIO},
            "warnings": list(dict.fromkeys(self.notes)),
        }

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, stacklevel=2)


def _part(checkpoint: Checkpoint) -> str:
    """Name of a checkpoint's part: its step, and its name by hash, because a name may hold anything."""
    return f"{checkpoint.step:012d}-{hashlib.sha256(checkpoint.name.encode()).hexdigest()[:8]}"


def _parts(held: Dynamics, series: Series) -> dict[Checkpoint, Tables]:
    """The tables of each checkpoint in a result, as they were before they were joined."""
    parts = {}
    listed = held.tables["checkpoints"]
    measured = set(listed.loc[listed["measured"].astype(bool), "step"])
    for checkpoint in series.checkpoints:
        if checkpoint.step in measured:
            parts[checkpoint] = {
                name: held.tables[name][held.tables[name]["step"] == checkpoint.step]
                .drop(columns=["step", "name"])
                .reset_index(drop=True)
                for name in (*PARTS, *(["roles"] if "roles" in held.tables else []))
            }
    return parts


def _shape(model: TransformerBridge) -> tuple[str, int, int]:
    return str(model.cfg.architecture), len(model.blocks), int(model.cfg.n_heads)


def _words(shape: tuple[str, int, int]) -> str:
    return f"{shape[0]}, {shape[1]} layers x {shape[2]} heads"


def _same(one: TokenBatch, other: TokenBatch) -> bool:
    return torch.equal(one.ids, other.ids) and torch.equal(one.real, other.real) and one.bos_id == other.bos_id


_WORDS = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tokenization_*.py",
)
"""Files that decide which ids a text becomes."""


def _same_words(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two directories hold the same tokenizer and configuration, byte for byte."""
    found = []
    for checkpoint in (one, other):
        directory = Path(checkpoint.source).expanduser()
        if not directory.is_dir():
            return False
        paths = {path.name: path for pattern in _WORDS for path in directory.glob(pattern) if path.is_file()}
        found.append({name: path.read_bytes() for name, path in paths.items()})
    return found[0] == found[1]


@contextmanager
def _only_what_is_new() -> Iterator[None]:
    """Let collections look at what is made from here on: all that is imported takes a quarter of a second each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _release() -> None:
    """Give back what the last model held; bridges hold on to themselves in cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_PIECES, _PIECE = 16, 1 << 16


def stamp(checkpoint: Checkpoint) -> str:
    """Tells whether a checkpoint's files are still the same without reading all of them.

    Of a directory a hash of every file's name, size and 16 pieces of its contents; of a hub id its name, because there
    a revision is taken to be what it was.
    """
    directory = Path(checkpoint.source).expanduser()
    if not directory.is_dir():
        return checkpoint.source
    found = hashlib.sha256()
    for path in sorted(each for each in directory.iterdir() if each.is_file() and not each.name.startswith(".")):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(piece * max(0, size - _PIECE) // max(1, _PIECES - 1))
                found.update(file.read(_PIECE))
    return found.hexdigest()
