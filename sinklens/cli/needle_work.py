"""What `sinklens needle` runs: the grid first, then the ablation of heads and its controls."""

from typing import Any

from sinklens.errors import InputError

WAYS = ("zero", "mean", "uniform")
CHECKED = 12
"""Prompts on which random sets are masked."""


class Work:
    """The steps of the command; what a finished step gave stays when a later one fails.

    Args:
        console: Where the progress bar goes.
        bridge: The model.
        needles: The prompts.
        changes: Interventions given as files, by name.
        options: For :func:`needle_grid`.

    Attributes:
        result: The latest finished grid.
        check: The causal check, where there is one.
    """

    def __init__(self, console: Any, bridge: Any, needles: Any, changes: dict[str, Any], options: Any) -> None:
        self.console, self.bridge, self.needles = console, bridge, needles
        self.changes, self.options = changes, options
        self.result: Any = None
        self.check: Any = None

    def grid(self, *, restart: bool) -> None:
        """The unchanged model and the interventions given as files."""
        self._grid(self.changes, restart)

    def ablate(self, which: str, ways: list[str], controls: int, bos: str) -> Exception | None:
        """Heads masked in each way, and their controls; an error is handed back, the grid before it is kept."""
        from sinklens.interventions import AblateHeads
        from sinklens.interventions.head_outputs import mean_outputs
        from sinklens.models import tokenize
        from sinklens.studies.needles import NeedleSet

        try:
            heads = self._heads(which)
            name = f"top {len(heads)}" if which.startswith("top:") else which
            some = self._some()
            masks: dict[str, Any] = {}
            for way in ways:
                batch = tokenize(self.bridge, [list(each.ids) for each in some])
                outputs = mean_outputs(self.bridge, batch, heads=heads) if way == "mean" else None
                masks[f"{name} {way}"] = AblateHeads(heads, way, outputs)  # type: ignore[arg-type]
            self._grid({**self.changes, **masks}, restart=False)
            if controls:
                self._check(heads, ways, controls, NeedleSet(tuple(some), self.needles.meta), bos)
        except Exception as error:  # whatever it is, it must not cost the grid
            return error
        return None

    def _heads(self, which: str) -> tuple[tuple[int, int], ...]:
        from sinklens.interventions.heads import check_heads, parse_heads

        if which.startswith("top:"):
            return tuple(_strongest(self.result, int(which[4:])))
        parsed: Any = parse_heads(which)
        if isinstance(parsed, str):
            raise InputError("--ablate takes heads such as L1H0,L1H2 or top:K; all of them leave nothing to compare.")
        check_heads(self.bridge, parsed)
        return tuple(parsed)

    def _some(self) -> list[Any]:
        """Prompts evenly over lengths, depths and repeats: those on which means and random sets are taken."""
        every = self.needles.instances
        count = min(CHECKED, len(every))
        return [every[number * len(every) // count] for number in range(count)]

    def _grid(self, changes: dict[str, Any], restart: bool) -> None:
        from sinklens.studies.needles import needle_grid

        with self._bar("Reading needles", len(self.needles) * (1 + len(changes))) as tell:
            self.result = needle_grid(
                self.bridge, self.needles, interventions=changes, restart=restart, on_done=tell.add, **self.options
            )

    def _check(self, heads: Any, ways: list[str], controls: int, needles: Any, bos: str) -> None:
        from sinklens.studies.causal_check.run import causal_check

        with self._bar("Masking random sets of heads", None) as tell:
            self.check = causal_check(
                self.bridge, heads, ways=ways, needles=needles, controls=controls, bos=bos, on_done=tell.set,  # type: ignore[arg-type]
                seed=self.options["seed"],
            )  # fmt: skip

    def _bar(self, what: str, total: int | None) -> "_Bar":
        return _Bar(self.console, what, total)


class _Bar:
    """A progress bar on standard error, gone when done."""

    def __init__(self, console: Any, what: str, total: int | None) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> "_Bar":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def add(self, count: int) -> None:
        """So many more are done."""
        self.bar.advance(self.task, count)

    def set(self, done: int, total: int) -> None:
        """So many of all are done."""
        self.bar.update(self.task, completed=done, total=total)


def _strongest(result: Any, count: int) -> list[tuple[int, int]]:
    """The heads with the highest retrieval scores.

    Raises:
        InputError: No head copied anything in a prompt that counts.
    """
    scores = result.heads
    frame = scores.frame.dropna(subset=["retrieval"])
    frame = frame[frame["retrieval"] > 0].sort_values(
        ["retrieval", "retrieval_event", "layer", "head"], ascending=[False, False, True, True]
    )
    if frame.empty:
        why = scores.meta["warnings"][-1] if scores.meta["warnings"] else "No head copied anything in these prompts."
        raise InputError(
            f"There is no retrieval head to ablate. {why} Name heads with --ablate L1H0,..., use easier needles, or "
            "another --keep."
        )
    return list(frame.head(count)[["layer", "head"]].itertuples(index=False, name=None))
