"""`sinklens scan`."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sinklens.cli import listed, options
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_texts
from sinklens.cli.values import names
from sinklens.errors import InputError
from sinklens.wording import several


class ScanCommand(TyperCommand):
    """Its help names the detectors that are installed; they are looked up when it is asked for, and not before."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill in the help of ``--detectors`` and print."""
        usual, others = listed.detectors() or _loaded_detectors()
        option: Any = next(each for each in self.params if each.name == "detectors")
        option.help = f"Some of {', '.join(usual)} (the default: all of these), {', '.join(others)}."
        super().format_help(ctx, formatter)


def _loaded_detectors() -> tuple[list[str], list[str]]:
    """The usual detectors and the others, those of installed packages too."""
    from sinklens.detectors.registry import all_detectors, asked_for, default_detectors

    usual, known = default_detectors(), all_detectors()
    return [*usual], [name for name, kind in known.items() if name not in usual and not asked_for(kind)]


def _spread(value: str | None) -> str | None:
    if value is not None and value not in SPREADS:
        raise InputError(f"device_map must be one of {', '.join(SPREADS)}, got {value!r}.")
    return value


SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


def scan(
    model: options.ModelOrDefault = "tiny-llama",
    detectors: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Names of detectors.",
        ),
    ] = None,
    threshold: options.Threshold = 0.3,
    text: options.DomainTexts = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 100,
    out: options.Out = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    device_map: Annotated[
        str | None, options.in_running(callback=_spread, help="Spread the model over GPUs: auto or balanced.")
    ] = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Scan a model for extreme tokens: all detectors on one pass.

    Prints what was found, and with --out saves Parquet tables, a JSON header and one self-contained report.html.

    For example:

      sinklens scan --out runs/demo

      sinklens scan bb-3l --out runs/bb

      sinklens scan path/to/llama --text book.txt --max-tokens 64 --dtype bfloat16 --out runs/llama

      sinklens scan path/to/llama --text prose=book.txt --text code=script.py --max-tokens 64

      cat notes.txt | sinklens scan path/to/llama --text - --bos no
    """
    from sinklens.studies.census.result import FORMAT

    check_out(out, FORMAT)
    wanted: dict[str, Any] = {
        "texts": read_texts(text) if text else None,
        "bos": bos,
        "max_tokens": max_tokens,
        "max_sequences": max_sequences,
        "batch_size": batch_size,
        "eps": threshold,
        "seed": seed,
        "source": ", ".join(text) if text else None,
    }
    if detectors is not None:
        wanted["detectors"] = names(detectors)
        listed.check_detectors(wanted["detectors"])
    with working(out) as progress:
        progress.console.print(_plan(model, wanted, out), highlight=False, markup=False, soft_wrap=True)
        bridge = load_model(
            progress, model, device=device, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code
        )
        from sinklens.studies import scan as run

        census = run(bridge, progress=progress, **wanted)
    saved = save_in(out, census)  # before anything is printed: a closed pipe (| head) must not cost the result
    _print(census, saved)


def _plan(model: str, wanted: dict[str, Any], out: Any) -> str:
    """What is about to be done, said before torch is loaded."""
    which = ", ".join(wanted["detectors"]) if "detectors" in wanted else "the default detectors"
    texts = wanted["source"] or "built-in texts"
    where = "nothing is saved (--out DIR saves)" if out is None else f"results in {out}"
    return f"Scan of {model}: {which} on at most {several(wanted['max_sequences'], 'sequence')} of {texts}; {where}."


def _print(census: Any, saved: list[str]) -> None:
    from sinklens.cli import printing
    from sinklens.studies.census.result import strongest_heads

    tokens = census.meta["tokens"]
    printing.say_model(census.meta["model"], printing.sequences(tokens))
    printing.say_verdict(census.verdict)
    if "heads" in census.tables and len(census.tables["heads"]):
        shown = strongest_heads(census.tables["heads"])
        printing.say_table(
            list(shown.columns),
            shown.itertuples(index=False),
            "Heads with the most attention on one key",
            "rate: share of sequences with importance alpha above the threshold; null: uniform attention; |v|, "
            "|W_O v|: norm over the other tokens'",
            left=["head"],
            where="report.html (--out DIR)",
        )
    printing.say_notes(census.meta["warnings"])
    for line in tokens["skipped"][:5]:
        printing.say(f"Skipped {line}")
    printing.say_saved(saved, census.meta["seconds"])
