"""`sinklens ablate`."""

from pathlib import Path
from typing import Annotated, Any

from sinklens.cli import options
from sinklens.cli.ablate_work import (
    asked_groups,
    asked_metrics,
    asked_texts,
    asked_ways,
    check_asked,
    positive,
    print_sweep,
    run_sweep,
)
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import DryRun, working
from sinklens.cli.values import intervention_texts, numbers
from sinklens.errors import InputError

in_heads, in_ways = options.panel("Which heads"), options.panel("What is done to them")


def ablate(
    model: options.Model,
    heads: Annotated[
        str | None,
        in_heads(
            metavar="all|none|L5H1,...",
            help="Heads, each changed by itself. Default: all; none with --group or a --ranking file.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        in_heads(
            metavar="NAME=L5H1,...|FILE[:ROLE]",
            help="Heads changed together, or those with a role (default: NAME) in a head-roles.json of sinklens roles; "
            "repeat for more.",
        ),
    ] = None,
    ranking: Annotated[
        str | None,
        in_heads(
            metavar="own|FILE[:COLUMN]",
            help="Change the first k heads together, for several k: by this sweep's own per-head result, or by a table "
            "with layer, head and a score (a list of names; head-roles.json; the --out of a scan, of roles or of "
            "another sweep). :-COLUMN = lowest first.",
        ),
    ] = None,
    top: Annotated[
        str | None, in_heads(metavar="K,...", help="Those k. Default: 1,2,4,... to half of all heads.")
    ] = None,
    controls: Annotated[
        int,
        in_heads(
            metavar="N",
            callback=options.counted("controls", 0),
            help="Random sets of the same size and layers, for every group, top k and head named with --heads.",
        ),
    ] = 10,
    how: Annotated[
        list[str] | None,
        in_ways(
            metavar="zero|mean|resample|uniform",
            help="Output 0; its mean over the texts; its output on another of the texts; even attention. Repeat or "
            "join with commas. Default: zero.",
        ),
    ] = None,
    gamma: Annotated[
        list[float] | None,
        in_ways(metavar="G", callback=positive, help="Scale attention to position 0 by G (ZeroTuning)."),
    ] = None,
    intervention: options.Interventions = None,
    approx: Annotated[
        bool,
        in_ways(
            "--approx",
            help="Estimate single heads by attribution patching (one forward, one backward) and say how well that "
            "ranks them.",
        ),
    ] = False,
    sample: Annotated[int, in_ways(min=0, metavar="N", help="Heads run exactly beside --approx.")] = 16,
    text: options.TextFiles = None,
    answers: Annotated[
        Path | None,
        options.in_texts(
            metavar="CSV",
            help="Right and wrong answers for logit differences: columns correct and wrong (one token each), text or "
            "sequence, position (default: the last token).",
        ),
    ] = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 100,
    metric: Annotated[
        str,
        options.in_running(
            metavar="A,B,...",
            help="Shown, of loss, kl, top1, logit_diff; the first one orders the heads, by size. All are saved.",
        ),
    ] = "loss,kl,top1",
    out: options.Out = None,
    restart: options.Restart = False,
    dry_run: Annotated[
        bool,
        options.in_running(
            "--dry-run", help="Print the plan and how long it takes (a few seconds of it are run); save nothing."
        ),
    ] = False,
    executor: options.Executor = "serial",
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Ablate heads and measure what that does to the predictions.

    Every head by itself, named groups, or the first k of a ranking against random heads.

    Loss, KL, top-1 agreement and logit differences on every text, with intervals.

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens ablate bb-3l --out runs/heads

      sinklens ablate path/to/llama --text book.txt --max-tokens 256 --how mean --ranking own --out runs/top

      sinklens ablate path/to/llama --group induction=L5H1,L5H5,L6H9 --how zero,uniform --answers ioi.csv

      sinklens ablate path/to/llama --approx --executor processes:4 --out runs/quick
    """
    from sinklens.studies.ablation.result import FORMAT, WORK

    shown = asked_metrics(metric)
    check_asked(model, heads, how)
    check_out(out, FORMAT, WORK)
    from sinklens.studies.ablation.ranking_file import read_ranking
    from sinklens.studies.ablation.variants import OWN

    given, sizes = asked_texts(text, answers), numbers(top, int, "--top", "1,2,4")
    if sizes is not None and min(sizes) < 1:
        raise InputError(f"--top takes sizes from 1 on, such as 1,2,4; got {top!r}.")
    intervention_texts(intervention)
    asked: dict[str, Any] = {
        "heads": () if heads == "none" else heads,
        "groups": asked_groups(group),
        "ranking": ranking if ranking is None or ranking == OWN else read_ranking(ranking),
        "top": sizes,
        "controls": controls,
        "rank_by": shown[0],
        "approx": sample if approx else 0,
        "batch_size": batch_size,
        "executor": executor,
        "loading": {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
        "restart": restart,
        "interventions": asked_ways(how, gamma, intervention),
    }
    words = {"bos": bos, "max_tokens": max_tokens, "max_sequences": max_sequences, "seed": seed}
    place = None if dry_run else out
    with working(place, None if dry_run else "finished parts") as progress:
        told = DryRun(progress.console) if dry_run else progress
        result = run_sweep(model, given, words, asked | {"out": place}, told)
    if result is not None:
        saved = save_in(out, result, kept=True)  # before anything is printed: a closed pipe must not cost the report
        print_sweep(result, shown, saved)
