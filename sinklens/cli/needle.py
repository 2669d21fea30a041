"""`sinklens needle`."""

from typing import Annotated, Any

from sinklens.cli import options
from sinklens.cli.needle_report import print_needles
from sinklens.cli.needle_work import Work, check_ablation, check_words, own_question, save_needles
from sinklens.cli.place import check_out
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_text
from sinklens.cli.values import interventions, numbers
from sinklens.errors import InputError
from sinklens.models.locate import locate
from sinklens.studies.needles.depths import checked_depths

in_needles, in_changes = options.panel("Needles"), options.panel("Before and after a change")
MORE = 24
"""Tokens decoded beyond the longest answer: a chat model begins with words of the question."""


def needle(
    model: options.Model,
    kind: Annotated[
        str,
        in_needles(
            metavar="random|passkey|json|natural",
            help="Random tokens after a key (any model); words after 'the third passkey to the vault'; a sentence "
            "under a random JSON key; a sentence with a question.",
        ),
    ] = "random",
    lengths: Annotated[
        str | None,
        in_needles(
            metavar="N,...",
            help="Prompt lengths in tokens. Default: the longest that fits (at most 2,048), and 1/2, 1/4, 1/8 of it.",
        ),
    ] = None,
    depths: Annotated[
        str, in_needles(metavar="D,...", help="Where in the haystack, 0 = its start, 1 = its end.")
    ] = "0,0.25,0.5,0.75,1",
    repeats: Annotated[
        int, in_needles(metavar="N", callback=options.counted("repeats"), help="Prompts of each length and depth.")
    ] = 10,
    size: Annotated[
        int,
        in_needles(
            metavar="K", callback=options.counted("size"), help="Tokens of a random needle, words of a passkey."
        ),
    ] = 8,
    shots: Annotated[
        int,
        in_needles(
            metavar="N", callback=options.counted("shots", 0), help="Entries shown again before the question, for json."
        ),
    ] = 3,
    text: Annotated[
        str | None, in_needles(metavar="FILE|-", help="The haystack. Default: an excerpt of Shakespeare.")
    ] = None,
    own: Annotated[
        str | None, in_needles("--needle", metavar="SENTENCE", help="A natural needle of your own; needs the next two.")
    ] = None,
    question: Annotated[str | None, in_needles(metavar="TEXT", help="What is asked about it.")] = None,
    answer: Annotated[str | None, in_needles(metavar="WORDS", help="The answer, as it stands in the needle.")] = None,
    chat: Annotated[
        bool | None,
        in_needles(
            "--chat/--no-chat",
            help="The tokenizer's chat template, or plain text. Default: chat where there is a template.",
        ),
    ] = None,
    sentence: Annotated[
        bool | None,
        in_needles(
            "--sentence/--words",
            help="For natural: the complete sentence is the answer, as chat models give it, or its last words after "
            "'Answer:'. Default: the sentence in a chat.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        in_needles(
            metavar="exact|contained|share|rouge|all",
            help="Prompts that count as answered for the heads' scores. Default: rouge where text is decoded, exact "
            "for random tokens, else share. All are counted.",
        ),
    ] = None,
    ablate: Annotated[
        str | None,
        in_changes(
            metavar="L1H0,...|top:K",
            help="Run everything again with these heads ablated; top:K takes the K strongest retrieval heads found.",
        ),
    ] = None,
    how: Annotated[
        str,
        in_changes(
            metavar="zero,mean,uniform",
            help="Output 0, the head's mean output, or even attention (what papers on retrieval heads call masking): "
            "some of these, side by side.",
        ),
    ] = "zero,mean,uniform",
    controls: options.Controls = 10,
    intervention: options.Interventions = None,
    generate: Annotated[
        int | None,
        options.in_running(
            metavar="N",
            callback=options.counted("generate", 0),
            help="Decode N tokens of every prompt, to read what the model says; 0 = none. Default: 24 more than the "
            "longest answer has for needles in text, none for random tokens.",
        ),
    ] = None,
    bos: options.Bos = "auto",
    out: options.Out = None,
    restart: options.Restart = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Hide a needle in a haystack at many lengths and depths, see whether the model finds it and which heads copy it.

    One teacher-forced pass per prompt: exact match is that of greedy decoding, and every head's retrieval score (how
    much of the answer it attends to while the model copies it) comes from the same pass.

    With --ablate the grid is measured first and stays whatever happens later: then the heads are masked in three ways,
    side by side, and beside --controls random sets of as many heads, and as many of equal own harm, on 12 of the
    prompts and on plain text (0 = none; with N sets no p below 1/(N + 1) can come out).

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens needle induction-2l --lengths 64,128,256

      sinklens needle path/to/llama --kind natural --lengths 1000,2000,4000 --out runs/needle

      sinklens needle path/to/llama --kind passkey --ablate top:10 --out runs/masked

      sinklens needle path/to/llama --kind natural --needle "The red key lies under the third stone." --question "Where
      does the red key lie?" --answer "under the third stone" --text book.txt
    """
    check_words(kind, keep)
    sizes = numbers(lengths, int, "--lengths", "64,128")
    places = checked_depths(numbers(depths, float, "--depths", "0,0.5,1") or [], sizes)
    words: dict[str, Any] = {
        "lengths": sizes,
        "depths": places,
        "questions": own_question(own, question, answer, kind),
        "text": None if text is None else read_text(text),
        "source": text,
        "repeats": repeats,
        "size": size,
        "shots": shots,
        "template": {None: "auto", True: "chat", False: "plain"}[chat] if kind != "random" else "plain",
        "sentence": sentence,
        "bos": bos,
        "seed": seed,
    }
    ways = check_ablation(ablate, how, controls)
    if chat and kind == "random":
        raise InputError("Random tokens have no chat; --chat goes with --kind passkey, json or natural.")
    from sinklens.studies.needles.result import FORMAT, WORK

    check_out(out, FORMAT, WORK)
    locate(model)
    changes = interventions(intervention)
    with working(out, "finished prompts") as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.needles.make import make_needles

        needles = make_needles(bridge, kind, **words)  # type: ignore[arg-type]
        if generate is None:
            generate = 0 if kind == "random" else MORE + max(len(each.answer) for each in needles.instances)
        grid = {"generate": generate, "keep": keep, "seed": seed, "out": out}
        work = Work(progress, bridge, needles, changes, grid)
        failure = work.run(ablate, ways, controls, bos, restart=restart)
    # before anything is printed: a closed pipe (| head) must not cost the figure
    saved = [] if out is None else save_needles(work, out)
    print_needles(work.result, work.check, saved)
    if failure is not None:
        raise failure
