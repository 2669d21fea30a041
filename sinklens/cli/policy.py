"""`sinklens policy compare`."""

from typing import Annotated, Any

import typer

from sinklens.cli import listed, options, printing
from sinklens.cli.needle_work import check_words
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_texts
from sinklens.cli.values import numbers
from sinklens.errors import InputError

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

NEEDLES = {
    "policy": "policy",
    "needle_exact": "answered",
    "needle_rank": "mean rank",
    "delta_needle_log_prob": "d log p",
    "delta_needle_log_prob_low": "from",
    "delta_needle_log_prob_high": "to",
    "needle_mass": "attention to it",
    "needle_kept": "left",
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
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens that are the prompt; only later rows count. Default: half."),
    ] = None,
    needle: Annotated[
        bool, typer.Option("--needle", help="Also hide needles in prompts and see which rules keep their answers.")
    ] = False,
    needle_kind: Annotated[
        str, typer.Option(metavar="random|passkey|json|natural", help="As for sinklens needle.")
    ] = "random",
    needle_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens of a prompt. Default: --max-tokens, at most 256.")
    ] = None,
    needle_repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompts of each of the depths 0, 0.5 and 1.")
    ] = 8,
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

    Heads that a rule leaves alone may come from the file that sinklens roles writes, as in
    "head_split:full=runs/roles/head-roles.json:retrieval;recent=60".

    For example:

      sinklens policy compare

      sinklens policy compare induction-2l --policies h2o,tova,top_k --budget 16 --needle

      sinklens policy compare model.gguf --policies h2o,tova,streaming_llm --budget 32,64 --max-tokens 256 --out runs/kv

      sinklens policy compare path/to/llama --policies "h2o:heavy=60;recent=4,h2o:heavy=4;recent=60" --text book.txt
    """
    texts = read_texts(text) if text else None
    sizes = numbers(budget, float, "--budget", "0.1,0.2") if budget else []
    names = [each.replace(";", ",") for each in policies.split(",") if each]
    listed.check_policies(names)
    check_words(needle_kind, None)
    if any(not size > 0 for size in sizes or []):
        raise InputError(f"A budget is a number of keys, or a share of the text below 1; got {budget!r}.")
    from sinklens.studies.policies.result import FORMAT, WORK

    check_out(out, FORMAT, WORK)
    with working(out, "finished batches") as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.needles.make import make_needles
        from sinklens.studies.policies.run import compare_policies

        needles = None
        if needle:
            length = needle_length or min(max_tokens or 256, int(bridge.cfg.n_ctx) - 16, 256)
            words: dict[str, Any] = {"lengths": (length,), "depths": (0, 0.5, 1), "repeats": needle_repeats}
            needles = make_needles(bridge, needle_kind, bos=bos, seed=seed, **words)  # type: ignore[arg-type]
        found = compare_policies(
            bridge,
            names,
            texts,  # type: ignore[arg-type]
            budgets=sizes or (),
            prompt=prompt,
            needles=needles,
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
    saved = save_in(out, found, kept=True)
    meta = found.meta
    printing.say_model(meta["model"], printing.sequences(meta["tokens"], source=meta["source"]))
    printing.say_verdict(found.verdict)
    caption = f"rows from token {meta['settings']['prompt']} on; d loss in nats per token with 95 % interval"
    printing.say_rows(found.summary, SHOWN, "Policies", caption, left=["policy", "scope"])
    if needles is not None:
        about = f"{len(needles)} prompts of {needles.meta['lengths'][0]} tokens; d log p in nats a token of the answer"
        printing.say_rows(found.to_dataframe("needle_summary"), NEEDLES, "Needles", about, left=["policy"])
    printing.say_saved(saved)
