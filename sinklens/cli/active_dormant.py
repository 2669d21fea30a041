"""`sinklens active-dormant`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.progress import listening
from sinklens.cli.texts import read_texts
from sinklens.errors import InputError


class _Plan:
    """What the bar needs to know."""

    def __init__(self, total: int) -> None:
        self.work, self.work_done = float(total), 0.0

    def __str__(self) -> str:
        return f"{self.work:,.0f} ablations: every head by itself on every sequence."


def active_dormant(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ] = "tiny-llama",
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="[DOMAIN=]FILE|-",
            help="UTF-8 text file with its domain, as in prose=book.txt and code=script.py; repeat for more. Without "
            "it: built-in prose and code, or a built-in model's own task.",
        ),
    ] = None,
    token_class: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME=TOKEN",
            help="Judge queries on this token apart, as in --class line='\\n' --class stop=.; repeat for more tokens "
            "of a class or more classes. A bb model's own triggers are a class unless others are given.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save tables and report.html here; without it only print.")
    ] = None,
    dormant_mass: Annotated[
        float, typer.Option("--dormant-mass", help="Attention on the sink from which a head rests on it.")
    ] = 0.5,
    active_mass: Annotated[
        float, typer.Option("--active-mass", help="Attention on the sink up to which it does not.")
    ] = 0.3,
    effect: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Rise of the loss without the head that matters. Default: by domain a tenth of the standard deviation "
            "of the loss between its sequences.",
        ),
    ] = None,
    sink: Annotated[str, typer.Option(metavar="POS,...", help="Positions of the sink.")] = "0",
    bos: Annotated[
        str, typer.Option(metavar="auto|yes|no", help="Prepend a BOS: auto does what the model's tokenizer does.")
    ] = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", help="Tokens per sequence, BOS included; longer texts are cut into several."
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", metavar="N", help="Use at most this many sequences of each domain.")
    ] = 100,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per clean pass. Default: what fits the memory.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as the checkpoint is stored.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the built-in texts and the bootstrap.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the checkpoint.")
    ] = False,
) -> None:
    r"""Find heads that work on one kind of text or token and rest on the sink on another.

    Every head is judged on every domain and token class by its attention on the sink, by what it writes, and by what
    its removal costs there. A head is active-dormant when it is active on one and dormant on the other, and the
    intervals of both differences exclude 0.

    For example:

      sinklens active-dormant --out runs/heads

      sinklens active-dormant bb-3l

      sinklens active-dormant path/to/llama --text prose=book.txt --text code=script.py --max-tokens 128

      sinklens active-dormant path/to/llama --text book.txt --class line='\n' --class stop=. --class stop=!
    """
    from rich.console import Console

    from sinklens.results.tables import check_writable

    texts = read_texts(text) if text else None
    positions = _positions(sink)
    console = Console(stderr=True)
    with console.status(f"Loading {model} ..."):
        from sinklens.detectors.active_dormant import Thresholds
        from sinklens.models import load
        from sinklens.studies.active_dormant.run import FORMAT
        from sinklens.studies.active_dormant.run import active_dormant as run

        thresholds = Thresholds(dormant_mass=dormant_mass, active_mass=active_mass, effect=effect)
        if out is not None:
            check_writable(out, FORMAT)  # before the work, not after it
        bridge = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        classes = _classes(bridge, token_class)
    with listening(console, False, "Ablating heads") as listeners:
        planned: list[int] = []

        def done(count: int, total: int) -> None:
            if not planned:
                planned.append(total)
                listeners["on_plan"](_Plan(total))
            listeners["on_work"](float(count))

        found = run(
            bridge,
            texts,
            classes=classes,
            sink=positions,
            thresholds=thresholds,
            bos=bos,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            batch_size=batch,
            seed=seed,
            on_done=done,
        )
    saved = "Nothing was saved; add --out DIR for tables and a report."
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the result
        from sinklens.app import write_active_dormant_report

        found.save(out)
        saved = f"Report: {write_active_dormant_report(found, out / 'report.html')}\nTables: {out}"
    _print(found)
    typer.echo(saved)


def _positions(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--sink takes positions such as 0 or 0,1; got {text!r}.") from None


def _classes(model: Any, given: list[str] | None) -> dict[str, list[int]] | None:
    """Token ids by class: those given, else the triggers of a built-in Bigram-Backcopy model."""
    from sinklens.models.builtin import builtin_models
    from sinklens.models.source import source_of

    if given is None:
        source = source_of(model)
        recipe = builtin_models()[source.builtin].recipe if source is not None and source.builtin else {}
        if recipe.get("task") != "bigram-backcopy":
            return None
        from sinklens.lab.bigram_backcopy import BigramBackcopy

        return {"trigger": list(BigramBackcopy(n_triggers=recipe["settings"]["n_triggers"]).trigger_ids)}
    classes: dict[str, list[int]] = {}
    for each in given:
        name, equals, token = each.partition("=")
        if not equals or not name or not token:
            raise InputError(f"A class is written NAME=TOKEN, as in stop=. or line='\\n'; got {each!r}.")
        written = token.replace("\\n", "\n").replace("\\t", "\t")
        ids = model.tokenizer(written, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"{written!r} is {len(ids)} tokens of this model; each --class names one token.")
        classes.setdefault(name, []).append(int(ids[0]))
    return classes


def _print(found: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.app.active_dormant_report import effects_that_matter, strongest_contrasts
    from sinklens.results.provenance import precision
    from sinklens.studies.active_dormant.sentences import change

    console = Console()
    meta = found.meta
    tokens, model = meta["tokens"], meta["model"]
    console.print(
        f"[bold]{escape(model['name'])}[/bold]: {model['architecture']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {precision(model)}; {tokens['n_sequences']} sequences of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens from {escape(meta['source'])}. {escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    for sentence in found.verdict:
        console.print(f"- {escape(sentence)}", highlight=False)
    heads = found.to_dataframe()
    console.print(f"An effect matters from {escape(effects_that_matter(found))} on.", highlight=False)
    labels = Table(title="Labels", caption="number of heads by domain and token class")
    groups = list(dict.fromkeys(zip(heads["domain"], heads["class"], strict=True)))
    kinds = list(dict.fromkeys(heads["label"]))
    for column in ("domain", "class", *kinds):
        labels.add_column(escape(column), justify="left" if column in ("domain", "class") else "right")
    for domain, name in groups:
        own = heads[(heads["domain"] == domain) & (heads["class"] == name)]["label"]
        labels.add_row(escape(domain), escape(name), *(str(int((own == kind).sum())) for kind in kinds))
    console.print(labels)
    contrasts = found.contrasts()
    if len(contrasts):
        table = Table(
            title="Largest differences",
            caption="first minus second, with 95 % intervals; mass: attention on the sink; loss: its rise without the "
            "head, in nats; A / D: active on one and dormant on the other",
        )
        found_any = bool(contrasts["active_dormant"].any())
        for column in ("head", "first", "second", "mass", "loss", *([""] if found_any else [])):
            table.add_column(column, justify="right" if column in ("mass", "loss") else "left")
        for row in strongest_contrasts(contrasts, 10).to_dict("records"):
            ends = [_group(row[f"{end}domain"], row[f"{end}class"]) for end in ("", "other_")]
            spans = [
                change(row[f"{name}_difference"], row[f"{name}_difference_low"], row[f"{name}_difference_high"], 2)
                for name in ("mass", "delta")
            ]
            mark = [("A / D" if row["active_dormant"] else "")] if found_any else []
            table.add_row(f"L{row['layer']}H{row['head']}", *map(escape, ends), *map(escape, spans), *mark)
        console.print(table)
    agreement = Table(title="Agreement of the criteria", caption="kappa: agreement beyond chance")
    for column in ("criterion", "other", "both decide", "agree", "kappa"):
        agreement.add_column(column, justify="left" if column in ("criterion", "other") else "right")
    for row in found.agreement().to_dict("records"):
        values = [
            "n/a" if row[name] != row[name] else f"{row[name] + 0.0:.2f}" for name in ("agreement", "kappa")
        ]  # + 0.0: never -0.00
        agreement.add_row(
            row["criterion"].removeprefix("by_"), row["other"].removeprefix("by_"), str(row["n"]), *values
        )
    console.print(agreement)
    for warning in meta["warnings"]:
        console.print(f"Note: {escape(warning)}", highlight=False)


def _group(domain: str, name: str) -> str:
    return domain if name == "all" else name if domain == "text" else f"{domain}: {name}"
