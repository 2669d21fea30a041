"""`sinklens policy compare`."""

from typing import Annotated

import typer

from sinklens.cli import options, printing
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_texts
from sinklens.cli.values import numbers

app = typer.Typer(no_args_is_help=True, help="Compare KV-cache and sparse-attention rules on a model.")

SHOWN = {
    "policy": "policy",
    "scope": "scope",
    "kept": "keys a row",
    "density": "of those in sight",
    "delta_loss": "d loss",
    "delta_loss_low": "from",
    "delta_loss_high": "to",
    "kl": "KL",
    "top1_agreement": "top-1",
    "mass": "mass kept",
    "first_kept": "on first four",
    "held": "keys in cache",
    "mib": "cache MiB",
}


@app.callback()
def policy() -> None:
    """Compare KV-cache and sparse-attention rules on a model."""


@app.command()
def compare(
    model: options.ModelOrDefault = "tiny-llama",
    policies: Annotated[
        str,
        typer.Option(
            metavar="NAME[:FIELD=VALUE;...],...",
            help="Rules with commas between ('sinklens policies' lists them); fields of a rule after a colon, with "
            "semicolons between, as in h2o:heavy=8;recent=8.",
        ),
    ] = "full,sink_window,h2o,tova,snap_kv,quest,top_k",
    budget: Annotated[
        str, typer.Option(metavar="N|SHARE,...", help="Keys a row, or below 1 a share of the longest sequence.")
    ] = "0.125,0.25,0.5",
    prompt: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens that are the prompt; only later rows count. Default: half.")
    ] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Run rules that look at what comes later, and mark them.")
    ] = False,
    text: options.TextFiles = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 20,
    out: options.Out = None,
    restart: options.Restart = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Hold rules beside each other: keys that they read, attention that they keep, and what it costs.

    Every rule runs at every budget on the same texts. Only rows after the prompt count. With --out a killed comparison
    goes on where it stopped.

    For example:

      sinklens policy compare

      sinklens policy compare model.gguf --policies h2o,tova,streaming_llm --budget 32,64 --max-tokens 256 --out runs/kv

      sinklens policy compare path/to/llama --policies "h2o:heavy=60;recent=4,h2o:heavy=4;recent=60" --text book.txt
    """
    texts = read_texts(text) if text else None
    sizes = numbers(budget, float, "--budget", "0.1,0.2") if budget else []
    names = [each.replace(";", ",") for each in policies.split(",") if each]
    if out is not None:
        from sinklens.results import RunFolder
        from sinklens.studies.policies.result import FORMAT, WORK

        RunFolder(out, FORMAT, WORK).check()  # before the work, not after it
    with working(out, "finished batches") as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.policies.run import compare_policies

        found = compare_policies(
            bridge,
            names,
            texts,  # type: ignore[arg-type]
            budgets=sizes or (),
            prompt=prompt,
            allow_leak=allow_leak,
            bos=bos,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            out=out,
            restart=restart,
            batch_size=4 if batch_size is None else batch_size,
            seed=seed,
            progress=progress,
        )
    saved = []
    if out is not None:
        saved = [f"Report: {found.report(out / 'report.html')}", f"Tables: {out}"]
    meta = found.meta
    printing.say_model(meta["model"], printing.sequences(meta["tokens"], source=meta["source"]))
    printing.say_verdict(found.verdict)
    rows = [[row[name] for name in SHOWN] for row in found.summary.to_dict("records")]
    caption = f"rows from token {meta['settings']['prompt']} on; d loss in nats per token with 95 % interval"
    printing.say_table([*SHOWN.values()], rows, "Policies", caption, left=["policy", "scope"])
    printing.say_saved(saved)
