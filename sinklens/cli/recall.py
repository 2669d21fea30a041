"""`sinklens recall`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options, printing, values
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working


def recall(
    model: options.Model,
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='At least ten of [{"prompt": TEXT, "topic": WORD, "answer": WORD}, ...], all of one kind. Default: '
            "capitals.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Topic heads that are taken away.")] = 5,
    controls: options.Controls = 10,
    bos: options.Bos = "auto",
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Trace how facts are recalled: which heads bring the topic, and which late layer holds the answer down.

    Both are chosen on every other fact that the model knows and judged on the rest, beside random heads and the other
    late layers.

    For example:

      sinklens recall path/to/llama --out runs/recall

      sinklens recall model.gguf --facts presidents.json --top 3
    """
    given = None if facts is None else values.records(facts, ("prompt", "topic", "answer"), "--facts")
    check_out(out, "sinklens-factual-recall")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.factual_recall.facts import Fact
        from sinklens.studies.factual_recall.run import trace_recall

        found = trace_recall(
            bridge,
            None if given is None else [Fact(**each) for each in given],
            top=top,
            controls=controls,
            bos=bos,  # type: ignore[arg-type]
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)
    printing.say_model(found.meta["model"], printing.sequences(found.meta["tokens"], "prompt"))
    printing.say_verdict(found.verdict)
    names = ["name", "topic", "low", "high", "shuffled", "sds", "answer", "chosen"]
    best = found.heads.sort_values("topic", ascending=False, kind="stable")
    caption = "in logits, at the last token"
    printing.say_rows(best, names, "Heads that bring the topic", caption, left=["name"], most=12)
    names = ["layer", "total", "low", "high", "attention", "rest", "lens", "skipped"]
    caption = "total: logits for the right answer over others"
    printing.say_rows(found.layers.tail(10), names, "The last layers", caption)
    printing.say_notes(found.meta["warnings"])
    printing.say_saved(saved)
