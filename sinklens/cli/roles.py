"""`sinklens roles`."""

from typing import Annotated, Any

from sinklens.cli import listed, options
from sinklens.cli.place import check_out
from sinklens.cli.roles_work import causal_parts, measure_roles, print_roles, save_roles
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
        in_compared(
            metavar="N", min=1, help="Query heads of a layer, where only gates of KV heads are given and no model."
        ),
    ] = None,
    top: Annotated[
        int | None,
        in_compared(
            metavar="K",
            callback=options.counted("top"),
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
        options.in_texts(
            metavar="N",
            callback=options.counted("max_sequences"),
            help="Use at most this many sequences. Default: what each criterion takes.",
        ),
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
    from sinklens.studies.head_roles.read_scores import check_files, read_all
    from sinklens.studies.head_roles.result import FORMAT, WORK, Roles

    check_out(out, FORMAT, WORK)
    if model is not None:
        locate(model)
        check_files(given or [])
    known = listed.criteria()
    every = {None: [name for name, usual in known.items() if usual], "all": [*known], "none": []}
    wanted = every[scores] if scores in every else names(scores)
    listed.check_criteria(wanted)
    if model is not None and not (wanted or given):
        raise InputError(f"Unknown criteria (none); expected some of {', '.join(known)}.")
    if causal is not None:
        causal_parts(causal)
    words: dict[str, Any] = {"texts": [read_text(name) for name in text] if text else None, "bos": bos}
    words |= {"max_tokens": max_tokens, "max_sequences": max_sequences}
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
                    "scores": wanted,
                    "top": top,
                    "seed": seed,
                    "out": out,
                    "restart": restart,
                },
            )
    # before anything is printed: a closed pipe (| head) must not cost the result
    saved = [] if out is None else save_roles(found, check, out, model is None)
    print_roles(found, check, saved)
