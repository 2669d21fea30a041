"""What a dashboard holds: the opened results, the results computed here, the models, and the worker."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.compute import (
    MAX_TOTAL,
    exact_window,
    live_census,
    sequence_maps,
    text_tokens,
)
from sinklens.app.dashboard.folder import ResultFolder, refuse_nowhere
from sinklens.app.dashboard.kinds import live_run, open_run
from sinklens.app.dashboard.methods import method
from sinklens.app.dashboard.models import Models
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State
from sinklens.app.dashboard.trying import Trial, called, chosen_intervention, repeat_in_python, try_out
from sinklens.app.dashboard.worker import Cancelled, Worker
from sinklens.errors import InputError, ResultError
from sinklens.interventions import Intervention
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize
from sinklens.results.progress import Progress
from sinklens.results.result import Result

_OPEN: Final = 4
_LIVE: Final = 24
_LARGEST_WINDOW: Final = 256
_MOST_WINDOWS: Final = 64
_MOST_MAPS: Final = 256 * 2**20
_QUICK: Final = 1024
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
        self._opened: set[str] = set()
        self.trials: list[Trial] = []
        self._begun: set[tuple[str, int]] = set()
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
                    f"The result {name[:80]!r} was computed in a session that has ended, or before the last {_LIVE} "
                    'results of this one; compute it again under "Compute" below.'
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

    def add(self, result: Result, label: str = "", *, key: str = "", notes: Sequence[str] = ()) -> str:
        """Show a result that lives in memory.

        Returns:
            Its name.
        """
        with self._lock:
            self._numbers += 1
            name = f"live-{self._numbers}"
            label = label or f"{result.model_name} · {result.format.removeprefix('sinklens-')} in memory"
            run = live_run(result, name, label)
            run.notes = tuple(notes)
            self._live[name] = run
            if key:
                self._by_key[key] = name
            while len(self._live) > _LIVE:
                del self._live[self._least_wanted()]
            return name

    def _least_wanted(self) -> str:
        """What is dropped for a new result: the oldest under an intervention, without any the oldest.

        The newest stays, and so does what the user opened.
        """
        free = [name for name in self._live if name not in self._opened][:-1]
        return next((name for name in free if self._live[name].meta.get("intervention")), free[0])

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
            said = f"sinklens.tokenize(model, [{text!r}], bos={bos!r})"
            said = said if text.strip() else f"sinklens.builtin_corpus(model, n_sequences=1, bos={bos!r}).tokens"
            return self._under(state, bridge, base, said, progress)

        return self.worker.start(title, work)

    def _from_shown(self, state: State, progress: Progress) -> Arrival:
        shown = self._census_or_error(state.run)
        progress.step(f"Loading {shown.model.get('name')}")
        bridge = self.models.for_run(shown)
        if not state.method:
            self._add_maps(shown, state.sequence, progress)
            return Arrival()
        found = self.folder.path(state.run) if self.folder is not None and not state.run.startswith("live-") else None
        ids = ".groupby('sequence')['token_id'].agg(list).tolist()"
        tokens = f"[{shown.tokens(0)['token_id'].astype(int).tolist()}]"
        if found is not None:
            tokens = f"sinklens.open({str(found)!r}).to_dataframe('tokens'){ids}"
        elif len(shown.lengths) > 1:
            tokens = repr([shown.tokens(row)["token_id"].astype(int).tolist() for row in range(len(shown.lengths))])
        return self._under(state, bridge, state.run, f"sinklens.tokenize(model, {tokens})", progress)

    def _under(self, state: State, bridge: Any, base: str, tokens: str, progress: Progress) -> Arrival:
        """Measure the tokens of a result again under the chosen intervention, and compare the two."""
        if not state.method:
            return Arrival({"run": base, "compare": "", "sequence": 0, "token": None})
        before = self._census_or_error(base)
        with self._lock:
            if base in self._live:
                self._live.move_to_end(base)  # not the one that is dropped for what is compared with it
        if before.meta.get("intervention"):
            raise InputError("The shown result was itself measured under an intervention; choose the one before it.")
        batch = self._batch(before, bridge)
        if int(batch.lengths.sum()) > MAX_TOTAL:
            total = int(batch.lengths.sum())
            raise InputError(f"The shown result has {total:,} tokens; the dashboard runs up to {MAX_TOTAL:,} again.")
        progress.step("Preparing the intervention")
        chosen = method(state.method)
        intervention = chosen_intervention(chosen, state.fields, bridge, batch)
        label = called(chosen, state.fields)
        key = json.dumps([base, label])
        known = self._by_key.get(key)
        if known is None or known not in self._live:
            progress.step(f"Measuring under {label}")
            eps = float(dict(before.meta.get("settings") or {}).get("eps", 0.3))
            source = str(before.meta["tokens"]["source"])
            changed = live_census(bridge, progress, tokens=batch, source=source, eps=eps, intervention=intervention)
            name = self.models.name_for(before) or str(before.model.get("name"))
            python = repeat_in_python(chosen, state.fields, intervention, name, tokens)
            content = json.loads(intervention.to_json())
            trial = Trial(base, "", label, content, python, name, source)
            trial = try_out(trial, chosen, bridge, batch, intervention, progress)
            known = self.add(changed, f"{label} · {before.label}", key=key, notes=trial.sentences())
            self.trials.append(replace(trial, live=known))
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
        brought = Arrival({"region": f"{q0}-{q1 - 1}:{k0}-{k1 - 1}"})
        return self.worker.start("Exact rows", self._windows(name, sequence, head, [region], brought))

    def compute_rows(self, name: str, sequence: int, head: tuple[int, int], token: int) -> int:
        """Start computing all that one token reads, and all that read it, in one head.

        Raises:
            InputError: A computation is running already, or the text has no such token.
        """
        length = len(self._census_or_error(name).tokens(sequence))
        if not 0 <= token < length:
            raise InputError(f"Text {sequence} has the positions 0 to {length - 1}, not {token}.")
        regions = [(token, token + 1, 0, length), (0, length, token, token + 1)]
        return self.worker.start("Exact rows", self._windows(name, sequence, head, regions, Arrival()))

    def _windows(
        self,
        name: str,
        sequence: int,
        head: tuple[int, int],
        regions: Sequence[tuple[int, int, int, int]],
        brought: Arrival,
    ) -> Callable[[Progress], Arrival]:
        def work(progress: Progress) -> Arrival:
            shown = self._census_or_error(name)
            progress.step(f"Loading {shown.model.get('name')}")
            bridge = self.models.for_run(shown)
            row = self._batch(shown, bridge, sequence)
            for region in regions:
                values = exact_window(bridge, row, head, region, _intervention_of(shown), progress)
                shown.windows[(sequence, *head, region)] = values
            while len(shown.windows) > _MOST_WINDOWS:
                shown.windows.pop(next(iter(shown.windows)))
            return brought

        return work

    def begin_maps(self, name: str, sequence: int) -> bool:
        """Start computing the maps of a text if that is quick: its model is loaded, and nothing else runs.

        Returns:
            Whether it has begun; each text is begun once.
        """
        shown = self._census_or_error(name)
        model = self.models.name_for(shown)
        quick = model is not None and self.models.is_loaded(model) and len(shown.tokens(sequence)) <= _QUICK
        if not quick or (name, sequence) in self._begun or (self.worker.status.busy and not self.worker.idles):
            return False
        self._begun.add((name, sequence))

        def work(progress: Progress) -> Arrival:
            try:
                self._add_maps(shown, sequence, progress)
            except Cancelled:
                self._begun.discard((name, sequence))  # it gave way, and may begin again
                return Arrival()
            return Arrival()

        self.worker.start("Attention maps", work, gives_way=True)
        return True

    def can_compute(self, run: Run) -> bool:
        """Whether the model that made a result is at hand."""
        return self.models.name_for(run) is not None

    def _add_maps(self, shown: CensusRun, sequence: int, progress: Progress) -> None:
        bridge = self.models.for_run(shown)
        row = self._batch(shown, bridge, sequence)
        progress.step(f"Attention maps of sequence {sequence}")
        maps = sequence_maps(bridge, row, _intervention_of(shown), progress)
        shown.maps.update({(sequence, *head): each for head, each in maps.items()})
        held = sum(each.values.nbytes for each in shown.maps.values())
        for key in [key for key in shown.maps if key[0] != sequence and not shown.maps[key].why]:
            if held <= _MOST_MAPS:
                break
            held -= shown.maps.pop(key).values.nbytes

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


def open_source(
    source: "str | Path | Result | Any | None",
    *,
    models: Sequence[Any] = (),
    device: str = "auto",
) -> Bench:
    """A bench for what the user named.

    Args:
        source: A folder of results, a result, a model's name or folder, a result in memory, a loaded bridge,
            or ``None`` for the built-in models.
        models: More models that may be computed with: names, paths or loaded bridges.
        device: Where models are put.

    Raises:
        ResultError: A folder without any result or model in it.
        InputError: Something else.
    """
    if isinstance(source, Result):
        bench = Bench(None, Models(models, device=device))
        bench._opened.add(bench.add(source))
        return bench
    if source is None:
        return Bench(None, Models(models, device=device))
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir() and not (path / "config.json").is_file():
            return Bench(ResultFolder(path), Models(models, device=device))
        refuse_nowhere(str(source))
        return Bench(None, Models([str(source), *models], device=device))
    if isinstance(source, torch.nn.Module) and hasattr(source, "cfg"):
        given: Any = source
        return Bench(None, Models([given, *models], device))
    raise InputError(
        "A dashboard opens a folder of results, a model's name or folder, a loaded model, or a result; got "
        f"{type(source).__name__}."
    )


def _intervention_of(run: CensusRun) -> Intervention | None:
    content = run.meta.get("intervention")
    return Intervention.from_json(json.dumps(content)) if content else None
