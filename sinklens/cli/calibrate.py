"""`sinklens calibrate`."""

from pathlib import Path
from typing import Annotated, Any

from sinklens.cli import options, printing
from sinklens.cli.place import check_out
from sinklens.cli.running import load_model, working
from sinklens.cli.values import numbers, pairs
from sinklens.errors import InputError
from sinklens.models.locate import locate

in_prompts, in_method = options.panel("Prompts"), options.panel("What is chosen")


def calibrate(
    model: options.ModelOrDefault = "tiny-llama",
    data: Annotated[
        Path | None,
        in_prompts(
            metavar="CSV",
            help="Labelled texts: columns text and label. Without it: which of four words comes next in Shakespeare.",
        ),
    ] = None,
    text_column: Annotated[str, in_prompts(metavar="NAME", help="Column with the texts.")] = "text",
    label_column: Annotated[str, in_prompts(metavar="NAME", help="Column with the labels.")] = "label",
    template: Annotated[
        str,
        in_prompts(
            metavar="TEXT",
            help="What the model reads; {text} is where the text goes, \\n a line break. The answer is its next token.",
        ),
    ] = "{text}",
    answer: Annotated[
        list[str] | None,
        in_prompts(
            metavar="LABEL=TOKEN|TOKEN",
            help="Tokens that count as a label, as in 'pos= good| great'; repeat for more labels. Default: the label "
            "with a space before it, and without.",
        ),
    ] = None,
    max_prompts: Annotated[
        int | None, in_prompts(metavar="N", help="Use at most this many, drawn with the seed.")
    ] = None,
    method: Annotated[
        str,
        in_method(
            metavar="gamma|act|FILE.json",
            help="gamma: heads and factor of attention to position 0 (ZeroTuning). act: heads whose later sinks are "
            "weakened (ACT). A file: heads of that intervention, as its to_json() wrote it.",
        ),
    ] = "gamma",
    gammas: Annotated[
        str | None, in_method(metavar="G,...", help="Factors to try with gamma. Default: 0.1 to 4.")
    ] = None,
    per: Annotated[
        str,
        in_method(
            metavar="head|index",
            help="With gamma: try every head, or one head index in all layers at a time (fewer runs).",
        ),
    ] = "head",
    heads: Annotated[str | None, in_method(metavar="L5H1,...", help="Candidates. Default: all heads.")] = None,
    objective: Annotated[
        str,
        in_method(
            metavar="accuracy|entropy",
            help="Better means more right answers, or a surer next token (needs no labels to choose).",
        ),
    ] = "accuracy",
    share: Annotated[float, in_method(help="Of the prompts that are chosen on; the rest is reported on.")] = 0.5,
    controls: options.Controls = 10,
    bos: options.Bos = "auto",
    out: options.Out = None,
    restart: options.Restart = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    r"""Choose heads and strength of an intervention on labelled prompts, and report it on others.

    One part of the prompts is chosen on, the other reported on, beside random heads: accuracy, the share of valid
    answers (the next token is one of the labels), and accuracy among those. A gain of form alone is called that.

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens calibrate tiny-llama --out runs/calibrated

      sinklens calibrate DIR --data films.csv --template '{text}\nMood:' --answer 'pos= good| great' --answer 'neg= bad'

      sinklens calibrate tiny-llama --objective entropy --max-prompts 60

      sinklens calibrate path/to/llama --data films.csv --method act --max-prompts 200 --out runs/act

      sinklens calibrate path/to/llama --per index --gammas 0.5,1.5,2,4 --out runs/gamma
    """
    from sinklens.studies.calibration.asked import check_asked
    from sinklens.studies.calibration.labelled_csv import LabelledTexts
    from sinklens.studies.calibration.result import FORMAT, WORK

    if max_prompts is not None and max_prompts < 4:
        raise InputError(f"--max-prompts must be at least 4, two for each side of the split; got {max_prompts}.")
    labelled = LabelledTexts.read(data, text=text_column, label=label_column).some(max_prompts, seed)
    factors = numbers(gammas, float, "--gammas", "0.5,1.5,2")
    tried = None if factors is None else tuple(factors)
    size = 8 if batch_size is None else batch_size
    check_asked(method, tried, per, heads, objective, share, controls, size)
    answers, wanted = _answers(answer), template.replace("\\n", "\n")
    labelled.check(wanted, answers)
    check_out(out, FORMAT, WORK)
    locate(model)
    with working(out, "finished answers") as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.calibration.run import Calibrating

        settings = Calibrating.ask(
            method=method,
            gammas=tried,
            per=per,
            heads=heads,
            objective=objective,
            share=share,
            controls=controls,
            batch_size=size,
            seed=seed,
        )
        task = labelled.task(bridge, template=wanted, answers=answers, bos=bos)  # type: ignore[arg-type]
        result = settings.run(bridge, task, labelled.source, out=out, restart=restart, progress=progress)
    # before anything is printed: a closed pipe (| head) must not cost the report
    saved = [] if out is None else save_calibration(result, out)
    print_calibration(result, saved)


def _answers(given: list[str] | None) -> dict[str, list[str]]:
    how = "LABEL=TOKEN|TOKEN, each label once, as in 'pos= good'"
    return {label: tokens.split("|") for label, tokens in pairs(given, "An answer", how, once=True)}


def save_calibration(result: Any, out: Path) -> list[str]:
    """Figure and report; the lines that say where they are."""
    from sinklens.plots import calibration as calibration_figure

    printing.save_picture(calibration_figure(result.summary()), out / "calibration.png", result.summary(), width=900)
    return [f"Report: {result.report(out / 'report.html')}", f"Tables: {out}"]


def print_calibration(result: Any, saved: list[str]) -> None:
    """The sentences, what was chosen, and what it is worth on other prompts."""
    meta = result.meta
    where = f", {len(meta['split']['search'])} of them chosen on, from"
    printing.say_model(meta["model"], printing.sequences(meta["tokens"], "prompt", where=where))
    printing.say_verdict(result.verdict)
    if result.intervention is not None:
        more = len(result.heads) - 12
        chosen = ",".join(result.heads[:12]) + (f" and {more} more" if more > 0 else "")
        gamma = meta["chosen"].get("gamma")
        printing.say_verdict([f"Chosen: {chosen}{'' if gamma is None else f', gamma {gamma:g}'}."])
    report = result.summary()
    rows = []
    for row in report[(report["variant"] != "tuned") | (report["heads"] != "")].to_dict("records"):
        shares = [_span(row, name, ".3f") for name in ("accuracy", "valid_rate", "accuracy_given_valid")]
        change = "" if row["variant"] == "unchanged" else _span(row, "accuracy_gain", "+z.3f")
        rows.append([row["variant"], *shares, change])
    printing.say_table(
        ["variant", "accuracy", "valid answers", "accuracy among valid", "change"],
        rows,
        "On held-out prompts",
        "shares with 95 % intervals over prompts; change: of accuracy, paired over prompts",
        left=["variant"],
    )
    printing.say_saved(saved)


def _span(row: dict[str, Any], name: str, spec: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value != value:
        return "n/a"
    return f"{value:{spec}}" if low != low else f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"
