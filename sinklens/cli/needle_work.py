"""What `sinklens needle` runs: the grid first, then the ablation of heads and its controls."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sinklens.cli.running import interrupted
from sinklens.errors import InputError
from sinklens.interventions.heads import parse_heads
from sinklens.results.progress import Progress, Share

if TYPE_CHECKING:
    from sinklens.studies.needles.needle_set import NeedleSet

WAYS = ("zero", "mean", "uniform")
KINDS = ("random", "passkey", "json", "natural")
KEEP = ("exact", "contained", "share", "rouge", "all")
"""What needles and answers know, here without torch."""
CHECKED = 12
"""Prompts on which random sets are masked."""


class Work:
    """The steps of the command; what a finished step gave stays when a later one fails.

    Args:
        progress: Told how it goes on.
        bridge: The model.
        needles: The prompts.
        changes: Interventions given as files, by name.
        options: For :func:`measure_needles`.

    Attributes:
        result: The latest finished grid.
        check: The causal check, where there is one.
    """

    def __init__(self, progress: Progress, bridge: Any, needles: Any, changes: dict[str, Any], options: Any) -> None:
        self.progress, self.bridge, self.needles = progress, bridge, needles
        self.changes, self.options = changes, options
        self.result: Any = None
        self.check: Any = None

    def run(
        self, which: str | None, ways: list[str], controls: int, bos: str, *, restart: bool
    ) -> BaseException | None:
        """The grid, then the heads named masked in each way, and their controls.

        What ends the second part, an error or an interruption, is handed back: it must not cost the grid.
        """
        from sinklens.studies.needles.grid import reading_work

        once = reading_work(self.needles, self.options["generate"])
        grid = once * (1 + len(self.changes))
        again = once * len(ways) + (grid if self.options["out"] is None else 0.0)
        n_sets = (1 + 2 * controls) * len(ways) if controls else 0
        check = n_sets * reading_work(self._some(), 0)
        total = grid + (again + check if which is not None else 0.0)
        self.progress.begin("Reading needles", total, f"{len(self.needles)} prompts.")
        self._grid(self.changes, restart, Share(self.progress, grid))
        if which is None:
            return None
        try:
            self._ablate(which, ways, controls, bos, Share(self.progress, again), Share(self.progress, check))
        except KeyboardInterrupt:
            interrupted(self.options["out"], "finished prompts")
            return typer.Exit(130)
        except Exception as error:  # whatever it is, it must not cost the grid
            return error
        return None

    def _ablate(self, which: str, ways: list[str], controls: int, bos: str, again: Share, check: Share) -> None:
        from sinklens.interventions import AblateHeads
        from sinklens.interventions.head_outputs import mean_outputs
        from sinklens.models import tokenize
        from sinklens.studies.causal_check.run import run_causal_check

        heads = self._heads(which)
        name = f"top {len(heads)}" if which.startswith("top:") else which
        some = self._some()
        masks: dict[str, Any] = {}
        for way in ways:
            batch = tokenize(self.bridge, [list(each.ids) for each in some.instances])
            outputs = mean_outputs(self.bridge, batch, heads=heads) if way == "mean" else None
            masks[f"{name} {way}"] = AblateHeads(heads, way, outputs)  # type: ignore[arg-type]
        self._grid({**self.changes, **masks}, False, again)
        if controls:
            self.progress.step("Masking random sets of heads")
            self.check = run_causal_check(
                self.bridge, heads, ways=ways, needles=some, controls=controls, bos=bos, progress=check,  # type: ignore[arg-type]
                seed=self.options["seed"],
            )  # fmt: skip
        check.finish()

    def _heads(self, which: str) -> tuple[tuple[int, int], ...]:
        from sinklens.interventions.heads import check_heads, parse_heads

        if which.startswith("top:"):
            return tuple(_strongest(self.result, int(which[4:])))
        parsed: Any = parse_heads(which)
        if isinstance(parsed, str):
            raise InputError("--ablate takes heads such as L1H0,L1H2 or top:K; all of them leave nothing to compare.")
        check_heads(self.bridge, parsed)
        return tuple(parsed)

    def _some(self) -> "NeedleSet":
        """Prompts evenly over lengths, depths and repeats: those on which means and random sets are taken."""
        from sinklens.studies.needles.needle_set import NeedleSet

        every = self.needles.instances
        count = min(CHECKED, len(every))
        return NeedleSet(tuple(every[n * len(every) // count] for n in range(count)), self.needles.meta)

    def _grid(self, changes: dict[str, Any], restart: bool, progress: Share) -> None:
        from sinklens.studies.needles.grid import measure_needles

        self.result = measure_needles(
            self.bridge, self.needles, interventions=changes, restart=restart, progress=progress, **self.options
        )
        progress.finish()


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


def own_question(needle: str | None, question: str | None, answer: str | None, kind: str) -> Any:
    """The question that a sentence, what is asked and the answer make; None without them."""
    given = [part for part in (needle, question, answer) if part is not None]
    if not given:
        return None
    if len(given) < 3 or kind != "natural":
        raise InputError("A needle of your own takes --kind natural and all of --needle, --question and --answer.")
    from sinklens.studies.needles.question import Question

    return [Question.about(*given)]


def check_words(kind: str, keep: str | None) -> None:
    """Refuse kinds of needles and filters of answers that there are not, before torch is loaded."""
    for name, word, known in (("kind", kind, KINDS), ("keep", keep, KEEP)):
        if word is not None and word not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {word!r}.")


def check_ablation(ablate: str | None, how: str, controls: int) -> list[str]:
    """The ways of ablation in their usual order, refused where they or the heads cannot be read."""
    ways = [way.strip() for way in how.split(",") if way.strip()]
    if not ways or any(way not in WAYS for way in ways):
        raise InputError(
            f"--how takes some of {', '.join(WAYS)}, got {how!r}; other ways go through --intervention FILE.json."
        )
    if controls < 0:
        raise InputError(f"--controls is a number of random sets, 0 for none; got {controls}.")
    if ablate is not None and not ablate.startswith("top:"):
        parse_heads(ablate)
    if ablate is not None and ablate.startswith("top:") and not (ablate[4:].isdecimal() and int(ablate[4:])):
        raise InputError(f"--ablate top:K takes a number of heads from 1 on, such as top:5; got {ablate!r}.")
    return [way for way in WAYS if way in ways]


def save_needles(work: Work, out: Path) -> list[str]:
    """Figures and the causal check; the lines that say where they are."""
    from sinklens.plots import save_figure
    from sinklens.plots.needle_grid import needle_grid as figure

    result = work.result
    grid = result.grid.to_dataframe()
    names = result.variants[1:] or [None]
    for number, name in enumerate(names):
        path = out / f"needle_grid{'' if number == 0 else f'-{number + 1}'}.html"
        save_figure(figure(grid, variant=name), path, grid, provenance=result.meta)
    lines = [f"Figure: {out / 'needle_grid.html'}", f"Tables: {out}"]
    if work.check is not None:
        work.check.save(out / "causal")
        lines.insert(1, f"Causal check: {out / 'causal'}")
    return lines
