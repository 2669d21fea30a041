"""What a dashboard holds: the opened results, the results computed here, the models, and the worker."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from sinklens.app.dashboard.census_run import CensusRun, census_run
from sinklens.app.dashboard.compute import (
    MAX_TOTAL,
    chosen_intervention,
    effect_notes,
    exact_window,
    live_census,
    sequence_maps,
    text_tokens,
)
from sinklens.app.dashboard.folder import ResultFolder
from sinklens.app.dashboard.kinds import open_run
from sinklens.app.dashboard.models import Models
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State
from sinklens.app.dashboard.stored import MemoryTables
from sinklens.app.dashboard.sweep_run import sweep_run
from sinklens.app.dashboard.worker import Worker
from sinklens.errors import InputError, ResultError
from sinklens.interventions import Intervention
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize
from sinklens.results.progress import Progress
from sinklens.studies.ablation.result import Sweep
from sinklens.studies.census.result import Census

_OPEN: Final = 4
_LIVE: Final = 24
_LARGEST_WINDOW: Final = 256
_LOG = logging.getLogger("sinklens.dashboard")


@dataclass(frozen=True)
class Arrival:
    """What a computation brings onto the screen: changes of the state."""

    changes: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """Everything behind one dashboard; one person works with it at a time.

    Args:
        folder: Saved results to choose from.
        models: What may be computed with.
    """

    def __init__(self, folder: ResultFolder | None, models: Models) -> None:
        self.folder, self.models = folder, models
        self.worker = Worker()
        self._saved: OrderedDict[str, tuple[float, Run]] = OrderedDict()
        self._live: OrderedDict[str, Run] = OrderedDict()
        self._by_key: dict[str, str] = {}
        self._numbers = 0
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------------------ results

    def choices(self) -> list[tuple[str, str]]:
        """Name and label of every result there is, those computed here first."""
        with self._lock:
            live = [(name, run.label) for name, run in reversed(self._live.items())]
        saved = [] if self.folder is None else [(entry.name, entry.label) for entry in self.folder.entries()]
        return live + saved

    def first(self) -> str:
        """What to show when the address names nothing: the first result, empty without any."""
        choices = self.choices()
        return choices[0][0] if choices else ""

    def run(self, name: str) -> Run:
        """Open a result; the last four are kept open.

        Raises:
            ResultError: There is none of that name, or it is damaged.
        """
        with self._lock:
            if name in self._live:
                return self._live[name]
            if self.folder is None or name.startswith("live-"):
                raise ResultError(
                    f"The result {name[:80]!r} was computed in a session that has ended; compute it again under "
                    '"Compute" below.'
                )
            path = self.folder.path(name)
            changed = (path / "result.json").stat().st_mtime
            if name in self._saved and self._saved[name][0] == changed:
                self._saved.move_to_end(name)
                return self._saved[name][1]
            label = dict(self.choices()).get(name, name)
            opened = open_run(path, name, label)
            self._saved[name] = (changed, opened)
            while len(self._saved) > _OPEN:
                self._saved.popitem(last=False)
            return opened

    def census(self, name: str) -> CensusRun | None:
        """The result if it is a census, with tokens and maps; ``None`` for other kinds."""
        run = self.run(name)
        return run if isinstance(run, CensusRun) else None

    def add(self, result: Census | Sweep, label: str = "", *, key: str = "", notes: Sequence[str] = ()) -> str:
        """Show a result that lives in memory.

        Returns:
            Its name.
        """
        with self._lock:
            self._numbers += 1
            name = f"live-{self._numbers}"
            label = label or f"{result.meta['model']['name']} · {type(result).__name__.lower()} in memory"
            tables = MemoryTables(result.tables)
            if isinstance(result, Census):
                run = census_run(name, label, result.meta, tables, result.maps)
            else:
                run = sweep_run(name, label, result.meta, tables)
            run.notes = tuple(notes)
            self._live[name] = run
            if key:
                self._by_key[key] = name
            while len(self._live) > _LIVE:
                self._live.popitem(last=False)
            return name

    # ------------------------------------------------------------------------------------------- computations

    def compute(self, state: State, model: str, text: str, bos: BosChoice, use_shown: bool) -> int:
        """Start a census of a text, or of the shown result's tokens, and of the same under the chosen intervention.

        What was computed before on the same tokens is not computed again.

        Raises:
            InputError: A computation is running already, or what was typed cannot be used.
        """
        title = "Measuring the shown tokens" if use_shown else "Measuring the text"

        def work(progress: Progress) -> Arrival:
            if use_shown:
                return self._from_shown(state, progress)
            progress.step(title if self.models.is_loaded(model) else f"Loading {model}")
            bridge = self.models.get(model)
            tokens, source = text_tokens(bridge, text, bos)
            key = json.dumps([model, text.strip(), bos])
            base = self._by_key.get(key)
            if base is None or base not in self._live:
                progress.step(title)
                census = live_census(bridge, progress, tokens=tokens, bos=bos, source=source)
                label = f"{model} · {source or 'built-in sample'}"
                base = self.add(census, label, key=key)
            return self._under(state, bridge, base, progress)

        return self.worker.start(title, work)

    def _from_shown(self, state: State, progress: Progress) -> Arrival:
        shown = self._census_or_error(state.run)
        progress.step(f"Loading {shown.model.get('name')}")
        bridge = self.models.for_run(shown)
        if state.method == "none":
            self._add_maps(shown, state.sequence, progress)
            return Arrival()
        return self._under(state, bridge, state.run, progress)

    def _under(self, state: State, bridge: Any, base: str, progress: Progress) -> Arrival:
        """Measure the tokens of a result again under the chosen intervention, and compare the two."""
        if state.method == "none":
            return Arrival({"run": base, "compare": "", "sequence": 0, "token": None})
        before = self._census_or_error(base)
        if before.meta.get("intervention"):
            raise InputError("The shown result was itself measured under an intervention; choose the one before it.")
        batch = self._batch(before, bridge)
        if int(batch.lengths.sum()) > MAX_TOTAL:
            total = int(batch.lengths.sum())
            raise InputError(f"The shown result has {total:,} tokens; the dashboard runs up to {MAX_TOTAL:,} again.")
        progress.step("Preparing the intervention")
        intervention = chosen_intervention(state, bridge, batch)
        if intervention is None:
            return Arrival()
        label = intervention_label(state)
        key = json.dumps([base, label])
        known = self._by_key.get(key)
        if known is None or known not in self._live:
            progress.step(f"Measuring under {label}")
            eps = float(dict(before.meta.get("settings") or {}).get("eps", 0.3))
            source = str(before.meta["tokens"]["source"])
            changed = live_census(bridge, progress, tokens=batch, source=source, eps=eps, intervention=intervention)
            notes = effect_notes(bridge, batch, intervention, progress)
            known = self.add(changed, f"{label} · {before.label}", key=key, notes=(f"{label}. {notes[0]}", *notes[1:]))
        return Arrival({"run": base, "compare": known})

    def compute_maps(self, name: str, sequence: int) -> int:
        """Start computing the maps of all heads on one sequence of a census.

        Raises:
            InputError: A computation is running already.
        """

        def work(progress: Progress) -> Arrival:
            shown = self._census_or_error(name)
            progress.step(f"Loading {shown.model.get('name')}")
            self._add_maps(shown, sequence, progress)
            return Arrival()

        return self.worker.start("Attention maps", work)

    def compute_window(self, name: str, sequence: int, head: tuple[int, int], region: tuple[int, int, int, int]) -> int:
        """Start computing exact rows of a map.

        Raises:
            InputError: A computation is running already, or the region is larger than 256 x 256.
        """
        q0, q1, k0, k1 = region
        if q1 - q0 > _LARGEST_WINDOW or k1 - k0 > _LARGEST_WINDOW:
            raise InputError(
                f"The region has {q1 - q0:,} queries and {k1 - k0:,} keys; zoom further in: exact rows are shown for "
                f"up to {_LARGEST_WINDOW} of each."
            )

        def work(progress: Progress) -> Arrival:
            shown = self._census_or_error(name)
            progress.step(f"Loading {shown.model.get('name')}")
            bridge = self.models.for_run(shown)
            row = self._batch(shown, bridge, sequence)
            values = exact_window(bridge, row, head, region, _intervention_of(shown), progress)
            shown.windows[(sequence, *head, region)] = values
            return Arrival({"region": f"{q0}-{q1 - 1}:{k0}-{k1 - 1}"})

        return self.worker.start("Exact rows", work)

    def can_compute(self, run: Run) -> bool:
        """Whether the model that made a result is at hand."""
        return self.models.name_for(run) is not None

    def _add_maps(self, shown: CensusRun, sequence: int, progress: Progress) -> None:
        bridge = self.models.for_run(shown)
        row = self._batch(shown, bridge, sequence)
        progress.step(f"Attention maps of sequence {sequence}")
        maps = sequence_maps(bridge, row, _intervention_of(shown), progress)
        shown.maps.update({(sequence, *head): each for head, each in maps.items()})

    def _batch(self, shown: CensusRun, bridge: Any, sequence: int | None = None) -> TokenBatch:
        """The tokens of a census again, exactly."""
        rows = range(len(shown.lengths)) if sequence is None else [sequence]
        ids = [shown.tokens(row)["token_id"].astype(int).tolist() for row in rows]
        return tokenize(bridge, ids)

    def _census_or_error(self, name: str) -> CensusRun:
        run = self.census(name) if name else None
        if run is None:
            raise InputError("This needs a census on the screen; choose one, or measure a text.")
        return run


def intervention_label(state: State) -> str:
    """The intervention in words.

    >>> intervention_label(State(method="scale", keys="0", gamma=0.5))
    'keys 0 × 0.5'
    >>> intervention_label(State(method="ablate", heads="L0H1", how="zero"))
    'without L0H1 (zero)'
    """
    if state.method == "scale":
        heads = f" in {state.heads.strip()}" if state.heads.strip() not in ("", "all") else ""
        return f"keys {state.keys.strip()} × {state.gamma:.3g}{heads}"
    return f"without {state.heads.strip()} ({state.how})"


def open_source(
    source: "str | Path | Census | Sweep | Any | None",
    *,
    models: Sequence[str] = (),
    device: str = "auto",
) -> Bench:
    """A bench for what the user named.

    Args:
        source: A folder of results, a result, a model's name or folder, a census or sweep in memory, a loaded bridge,
            or ``None`` for the built-in models.
        models: More models that may be computed with.
        device: Where models are put.

    Raises:
        ResultError: A folder without any result or model in it.
        InputError: Something else.
    """
    if isinstance(source, Census | Sweep):
        bench = Bench(None, Models(models, device=device))
        bench.add(source)
        return bench
    if source is None:
        return Bench(None, Models(models, device=device))
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir() and not (path / "config.json").is_file():
            return Bench(ResultFolder(path), Models(models, device=device))
        if not path.exists() and (path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2):
            raise ResultError(  # hub ids are NAME or ORG/NAME
                f"There is no {source}; expected a folder of results, one saved result, or a model's name or folder."
            )
        return Bench(None, Models([str(source), *models], device=device))
    if isinstance(source, torch.nn.Module) and hasattr(source, "cfg"):
        from sinklens.models.source import source_of

        known = source_of(source)  # type: ignore[arg-type]
        name = known.name if known is not None else str(getattr(source.cfg, "model_name", "model"))
        return Bench(None, Models(models, {name: source}, device))  # type: ignore[dict-item]
    raise InputError(
        "A dashboard opens a folder of results, a model's name or folder, a loaded model, a census or a sweep; got "
        f"{type(source).__name__}."
    )


def _intervention_of(run: CensusRun) -> Intervention | None:
    content = run.meta.get("intervention")
    return Intervention.from_json(json.dumps(content)) if content else None
