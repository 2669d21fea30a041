"""`sinklens active-dormant`."""

from typing import Annotated, Any

import typer

from sinklens.cli import options
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_texts
from sinklens.cli.values import numbers, pairs
from sinklens.errors import InputError
from sinklens.wording import several


def active_dormant(
    model: options.ModelOrDefault = "tiny-llama",
    token_class: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME=TOKEN",
            help="Judge queries on this token apart, as in --class line='\\n' --class stop=.; repeat for more tokens "
            "of a class or more classes. A bb model's own triggers are a class unless others are given.",
        ),
    ] = None,
    keys: Annotated[str, typer.Option(metavar="POS,...", help="Positions of the sink.")] = "0",
    dormant_mass: Annotated[float, typer.Option(help="Attention on the sink from which a head rests on it.")] = 0.5,
    active_mass: Annotated[float, typer.Option(help="Attention on the sink up to which it does not.")] = 0.3,
    effect: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Rise of the loss without the head that matters. Default: by domain a tenth of the standard deviation "
            "of the loss between its sequences.",
        ),
    ] = None,
    text: options.DomainTexts = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: options.MaxSequences = 100,
    out: options.Out = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
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
    from sinklens.detectors.dormancy import Thresholds
    from sinklens.studies.active_dormant.result import FORMAT

    texts = read_texts(text) if text else None
    positions = numbers(keys, int, "--keys", "0,1") or [0]
    if min(positions) < 0:
        raise InputError(f"--keys are positions from 0 on, such as 0,1; got {keys!r}.")
    thresholds = Thresholds(dormant_mass=dormant_mass, active_mass=active_mass, effect=effect)
    named = pairs(token_class, "A class", "NAME=TOKEN, as in stop=. or line='\\n'") if token_class else None
    check_out(out, FORMAT)
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.active_dormant.run import find_active_dormant as run

        found = run(
            bridge,
            texts,
            classes=_classes(bridge, named),
            sink=tuple(positions),
            thresholds=thresholds,
            bos=bos,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)  # before anything is printed: a closed pipe (| head) must not cost the result
    _print(found, saved)


def _classes(model: Any, given: list[tuple[str, str]] | None) -> dict[str, list[int]] | None:
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
    for name, token in given:
        written = token.replace("\\n", "\n").replace("\\t", "\t")
        ids = model.tokenizer(written, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(
                f"{written!r} is {several(len(ids), 'token')} of this model; each --class names one token."
            )
        classes.setdefault(name, []).append(int(ids[0]))
    return classes


def _print(found: Any, saved: list[str]) -> None:
    from sinklens.app.active_dormant_report import effects_that_matter, strongest_contrasts
    from sinklens.cli import printing
    from sinklens.studies.active_dormant.result import change

    meta = found.meta
    printing.say_model(meta["model"], printing.sequences(meta["tokens"], source=meta["source"]))
    printing.say_verdict(found.verdict)
    printing.say(f"An effect matters from {effects_that_matter(found)} on.")
    heads = found.to_dataframe()
    kinds = list(dict.fromkeys(heads["label"]))
    counts = [
        [domain, name, *(int((own["label"] == kind).sum()) for kind in kinds)]
        for (domain, name), own in heads.groupby(["domain", "class"], sort=False)
    ]
    names = ["domain", "class"]
    printing.say_table([*names, *kinds], counts, "Labels", "number of heads by domain and token class", left=names)
    contrasts = found.contrasts()
    if len(contrasts):
        found_any = bool(contrasts["active_dormant"].any())
        rows = []
        for row in strongest_contrasts(contrasts, 10).to_dict("records"):
            ends = [_group(row[f"{end}domain"], row[f"{end}class"]) for end in ("", "other_")]
            spans = [
                change(row[f"{name}_difference"], row[f"{name}_difference_low"], row[f"{name}_difference_high"], 2)
                for name in ("mass", "delta")
            ]
            mark = ["A / D" if row["active_dormant"] else ""] if found_any else []
            rows.append([f"L{row['layer']}H{row['head']}", *ends, *spans, *mark])
        printing.say_table(
            ["head", "first", "second", "mass", "loss", *([""] if found_any else [])],
            rows,
            "Largest differences",
            "first minus second, with 95 % intervals; mass: attention on the sink; loss: its rise without the head, in "
            "nats; A / D: active on one and dormant on the other",
            left=["head", "first", "second", ""],
        )
    agreement = [
        [
            row["criterion"].removeprefix("by_"),
            row["other"].removeprefix("by_"),
            row["n"],
            row["agreement"],
            row["kappa"],
        ]
        for row in found.agreement().to_dict("records")
    ]
    printing.say_table(
        ["criterion", "other", "both decide", "agree", "kappa"],
        agreement,
        "Agreement of the criteria",
        "kappa: agreement beyond chance",
        left=["criterion", "other"],
    )
    printing.say_notes(meta["warnings"])
    printing.say_saved(saved)


def _group(domain: str, name: str) -> str:
    return domain if name == "all" else name if domain == "text" else f"{domain}: {name}"
