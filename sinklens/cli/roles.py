"""`sinklens roles`."""

from typing import Annotated, Any

from sinklens.cli import options
from sinklens.cli.roles_work import measure_roles, print_roles, save_roles
from sinklens.cli.running import working
from sinklens.cli.texts import read_text
from sinklens.cli.values import names
from sinklens.errors import InputError
from sinklens.models.locate import locate

in_measured, in_compared = options.panel("What is measured"), options.panel("What is compared")


def roles(
    model: options.ModelOrNone = None,
    scores: Annotated[
        str | None,
        in_measured(
            metavar="A,B,...",
            help="Some of retrieval,pattern,sinks,text,task_kv (the default: all of these) and the slow ones: "
            "streaming,importance,active_dormant. 'all' = every one, 'none' = only files.",
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        in_compared(
            "--import",
            metavar="[NAME=]FILE",
            help="Scores of this model that others published: Retrieval_Head's head_score .json, DuoAttention's "
            "full_attention_heads.tsv, or a head-roles.json of sinklens. Repeat for more; without a MODEL only files "
            "are compared.",
        ),
    ] = None,
    query_heads: Annotated[
        int | None,
        in_compared(metavar="N", help="Query heads of a layer, where only gates of KV heads are given and no model."),
    ] = None,
    top: Annotated[
        int | None,
        in_compared(
            metavar="K",
            help="Compare the K highest of every two scores. Default: as many as the smaller labelled set has.",
        ),
    ] = None,
    causal: Annotated[
        str | None,
        in_compared(
            metavar="SCORE[:K]",
            help="Also mask the K highest heads by this score (default: its labelled heads) and 10 random sets of as "
            "many others, in three ways, on needles and on plain text. For example retrieval.",
        ),
    ] = None,
    text: options.TextFiles = None,
    bos: options.Bos = "auto",
    max_tokens: options.MaxTokens = None,
    max_sequences: Annotated[
        int | None,
        options.in_texts(metavar="N", help="Use at most this many sequences. Default: what each criterion takes."),
    ] = None,
    out: options.Out = None,
    restart: options.Restart = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Find each head's roles by several published criteria, and where the criteria agree.

    Scores and labels of every head, Jaccard index and rank correlation of every two criteria with chance beside them.

    With --out also head-roles.json, which sinklens ablate reads (--ranking FILE:SCORE, --group NAME=FILE:ROLE).

    For example:

      sinklens roles induction-2l --out runs/roles

      sinklens roles induction-2l --scores retrieval,pattern,streaming --causal retrieval

      sinklens roles --import llama-2-7b-80k.json --import full_attention_heads.tsv --out runs/published

      sinklens roles path/to/llama --scores sinks --import llama.json --text book.txt --max-tokens 256
    """
    if model is None and (scores is not None or causal is not None or text):
        raise InputError("Name a MODEL to measure something on it; without one only files (--import) are compared.")
    if model is None and not given:
        raise InputError("Name a MODEL, or files with --import; see sinklens roles --help.")
    from sinklens.results import RunFolder
    from sinklens.studies.head_roles.result import FORMAT, WORK, Roles

    if out is not None:
        RunFolder(out, FORMAT, WORK).check()  # before the work, not after it
    if model is not None:
        locate(model)
    from sinklens.studies.head_roles.criteria import CRITERIA, USUAL
    from sinklens.studies.head_roles.read_scores import read_all

    words: dict[str, Any] = {"texts": [read_text(name) for name in text] if text else None, "bos": bos}
    words |= {"max_tokens": max_tokens, "max_sequences": max_sequences}
    every = {None: [*USUAL], "all": [*CRITERIA], "none": []}
    with working(out, "finished criteria") as progress:
        if model is None:
            files = read_all(given or [], n_heads=query_heads)
            found, check = (
                Roles.of(files, model={"name": ", ".join(files)}, top=top, seed=seed, progress=progress),
                None,
            )
        else:
            found, check = measure_roles(
                progress,
                model,
                {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
                given or [],
                causal,
                words,
                {
                    "scores": every[scores] if scores in every else names(scores),
                    "top": top,
                    "seed": seed,
                    "out": out,
                    "restart": restart,
                },
            )
    # before anything is printed: a closed pipe (| head) must not cost the result
    saved = [] if out is None else save_roles(found, check, out, model is None)
    print_roles(found, check, saved)
