"""`sinklens dynamics`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli import listed, options
from sinklens.cli.place import check_out
from sinklens.cli.running import working
from sinklens.cli.texts import read_texts
from sinklens.cli.values import names, numbers

SHOWN = {
    "step": "step",
    "importance_first": "to 0",
    "n_sink_heads": "sinks",
    "delta_logit": "margin",
    "drain_wo": "drain",
    "max_over_median": "peak",
    "resid_ratio": "norm",
}


def dynamics(
    series: Annotated[
        list[str],
        typer.Argument(
            metavar="SERIES...",
            help="A directory of checkpoint folders (step-000125, checkpoint-500, ...), a built-in model with a series "
            "(tiny-llama), a hub id with revisions (ORG/MODEL@REV,REV), or several of [STEP=]DIR and "
            "[STEP=]ORG/MODEL@REV.",
        ),
    ],
    revisions: Annotated[
        str | None,
        typer.Option(
            metavar="REV,...", help="Revisions of a hub id; * and ? stand for what the hub has, as in 'step*000'."
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N,...", help="Only these steps, as the names of the checkpoints tell them.")
    ] = None,
    threshold: options.Threshold = 0.3,
    roles: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Also follow every head's scores and roles by these criteria of 'sinklens roles', such as "
            "pattern,text,retrieval: excess over the first step, and how far heads specialise.",
        ),
    ] = None,
    text: options.DomainTexts = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 100,
    out: options.Out = None,
    restart: options.Restart = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Follow sinks, drains, residual peaks and loss through a model's checkpoints.

    All checkpoints see the same tokens. One that is damaged is listed as missing, and the others are measured.

    Interrupted? Give the same command again: it goes on with the next checkpoint. With more checkpoints, too.

    For example:

      sinklens dynamics tiny-llama --out runs/emergence

      sinklens dynamics tiny-llama --steps 0,8000 --roles pattern,text

      sinklens dynamics path/to/training-output --text prose=book.txt --text code=script.py --max-tokens 256

      sinklens dynamics EleutherAI/pythia-160m --steps 0,512,1000,4000,143000 --out runs/pythia

      sinklens dynamics allenai/OLMo-1B --revisions 'step1000-*,step20000-*' --dtype bfloat16

      sinklens dynamics 0=runs/untrained 5000=runs/half 10000=runs/final
    """
    chosen = numbers(steps and steps.replace("_", ""), int, "--steps", "0,1000,2000")
    texts = read_texts(text) if text else None
    listed.check_criteria(names(roles))
    from sinklens.studies.dynamics.result import FORMAT, WORK
    from sinklens.studies.dynamics.series import find_series

    check_out(out, FORMAT, WORK)
    with working(out, "finished checkpoints") as progress:
        with progress.console.status("Reading the series ..."):
            found = find_series(series, revisions=revisions, steps=chosen)
            from sinklens.studies.dynamics.entry import measure_dynamics

        result = measure_dynamics(
            found,
            texts,
            bos=bos,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            eps=threshold,
            roles=names(roles),
            batch_size=batch_size,
            seed=seed,
            source=", ".join(text) if text else None,
            loading={"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
            out=out,
            restart=restart,
            progress=progress,
        )
    # before anything is printed: a closed pipe (| head) must not cost the report
    saved = [] if out is None else _save(result, out)
    _print(result, saved)


def _save(result: Any, out: Path) -> list[str]:
    from sinklens.cli import printing
    from sinklens.plots import dynamics as dynamics_figure

    figure = dynamics_figure(result.to_dataframe(), result.heads())
    printing.save_picture(figure, out / "dynamics.png", result, width=1250)
    report = result.report(out / "report.html")
    return [f"Report: {report}", f"Figure: {out / 'dynamics.html'}", f"Tables: {out}"]


def _print(result: Any, saved: list[str]) -> None:
    from sinklens.cli import printing

    meta = result.meta
    words = printing.sequences(meta["tokens"], where=", the same for every checkpoint, from")
    printing.say_model(meta["model"], words, meta["series"]["name"])
    printing.say_verdict(result.verdict)
    steps = result.to_dataframe()
    domains = [name for name in result.domains if name != "all"]
    losses = steps.pivot(index="step", columns="domain", values="loss")
    rows = [
        [row[name] for name in SHOWN] + [float(losses.loc[row["step"], name]) for name in domains]
        for row in steps[steps["domain"] == result.domains[0]].to_dict("records")
    ]
    printing.say_table(
        [*SHOWN.values(), *(f"loss {name}" if len(domains) > 1 else "loss" for name in domains)],
        rows,
        "By step, all domains together" if len(domains) > 1 else "By step",
        "to 0: attention to position 0, mean over heads; sinks: heads with a sink there; drain: its |W_O v| over the "
        "others'; peak: largest residual entry over the median; norm: residual norm over the others'; loss in nats",
        where="dynamics.csv (--out DIR)",
    )
    if "roles" in result.tables:
        growth = result.role_growth().sort_values(["score", "step"])
        shown = ["step", "score", "mean", "top", "excess_top", "specialisation", "specialisation_excess", "n_labelled"]
        printing.say_rows(growth, shown, "Scores of heads by step", "excess: over the first step", left=["score"])
    printing.say_notes(meta["warnings"])
    printing.say_saved(saved)
