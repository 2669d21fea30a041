"""`sinklens evaluate`."""

from typing import Annotated, Any

import typer

from sinklens.cli import listed, options, printing
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.values import interventions, names
from sinklens.models.locate import locate

SHOWN = {
    "condition": "condition",
    "task": "task",
    "metric": "metric",
    "n": "documents",
    "value": "score",
    "delta": "difference",
    "delta_low": "from",
    "delta_high": "to",
}


def evaluate(
    model: options.Model,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.jsonl,...",
            help="Tasks with commas between: names of lm-evaluation-harness (it fetches their data), and files of your "
            'own, a line each as in {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}.',
        ),
    ],
    intervention: options.Interventions = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:FIELD=VALUE,...]",
            help="A rule of 'sinklens policies', as in h2o:budget=64; repeat for more.",
        ),
    ] = None,
    controls: options.Controls = 3,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N documents of each task.")
    ] = None,
    fewshot: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Solved examples before each document. Default: the task's own."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat/--no-chat", help="Each document as the user's turn in the tokenizer's chat template."),
    ] = False,
    bos: options.Bos = "auto",
    out: options.Out = None,
    restart: options.Restart = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    r"""Score a model on tasks as it is, under interventions and policies, and under random controls.

    Runs lm-evaluation-harness (pip install 'sinklens\[eval]'). The controls have the budget of the change: as many
    random heads of the same layers, or as many random keys in every head and row. With --out a killed evaluation goes
    on.

    For example:

      sinklens evaluate model.gguf --tasks questions.jsonl --policy streaming_llm:budget=64 --policy h2o:budget=64

      sinklens evaluate path/to/llama --tasks arc_easy,hellaswag --limit 200 --intervention no_sink_heads.json
      --out runs/arc
    """
    listed.check_policies(policy or [])
    locate(model)
    from sinklens.studies.evaluation.result import FORMAT, WORK

    check_out(out, FORMAT, WORK)
    changes: dict[str, Any] = interventions(intervention)
    from sinklens.policies import make_policy
    from sinklens.studies.policies.role_fields import read_role_fields

    for text in policy or []:
        label, words = read_role_fields(text)
        changes[label] = make_policy(words)
    with working(out, "finished conditions") as progress:
        from sinklens.studies.evaluation.run import evaluate_tasks

        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        found = evaluate_tasks(
            bridge,
            names(tasks),
            changes,
            controls=controls,
            limit=limit,
            fewshot=fewshot,
            chat=chat,
            bos=bos,  # type: ignore[arg-type]
            batch_size=8 if batch_size is None else batch_size,
            out=out,
            restart=restart,
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found, kept=True)
    printing.say_model(found.meta["model"], f"{found.meta['harness']}. {found.meta['bos']}")
    printing.say_verdict(found.verdict)
    caption = "difference from the unchanged model on the same documents, with 95 % interval"
    printing.say_rows(found.to_dataframe(), SHOWN, "Task scores", caption, left=["condition", "task", "metric"])
    printing.say_saved(saved)
