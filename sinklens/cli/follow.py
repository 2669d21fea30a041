"""`sinklens follow`."""

from typing import Annotated

import typer

from sinklens.cli import options, printing
from sinklens.cli.place import check_out, save_in
from sinklens.cli.running import load_model, working
from sinklens.cli.texts import read_text
from sinklens.wording import several


def follow(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to go on from; or --text FILE.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to generate, at most.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0 takes the likeliest token.")] = 0.0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt as the user's turn into the chat template.")
    ] = False,
    threshold: options.Threshold = 0.3,
    text: options.TextFiles = None,
    bos: options.Bos = "auto",
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Generate, and follow sinks, drains and massive activations of every new token.

    Each step is measured in the pass that generates the token, with the KV cache.

    For example:

      sinklens follow tiny-llama "Once upon a time" --tokens 100

      sinklens follow model.gguf "Why is the sky blue?" --chat --tokens 1000 --out runs/reasoning
    """
    from sinklens.errors import InputError

    given = [read_text(name) for name in text or []] + ([] if prompt is None else [prompt])
    if len(given) != 1:
        raise InputError(f"Give one prompt, or one --text FILE; got {len(given)}.")
    check_out(out, "sinklens-generation")
    with working(out) as progress:
        bridge = load_model(progress, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        from sinklens.studies.generation.run import follow_generation

        words = given[0]
        if chat:
            if not getattr(bridge.tokenizer, "chat_template", None):
                raise InputError(f"{model} has no chat template; leave --chat out.")
            turn = [{"role": "user", "content": words}]
            words = bridge.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        found = follow_generation(
            bridge,
            words,
            max_new_tokens=tokens,
            temperature=temperature,
            eps=threshold,
            bos=bos,  # type: ignore[arg-type]
            seed=seed,
            progress=progress,
        )
    saved = save_in(out, found)  # before anything is printed: a closed pipe (| head) must not cost the result
    printing.say_model(
        found.meta["model"],
        f"{several(len(found.steps), 'token')} after a prompt of {len(found.tokens) - len(found.steps)}.",
    )
    printing.say(found.meta["text"])
    printing.say_verdict(found.verdict)
    new = found.tokens[found.tokens["generated"]]
    top = new.assign(token=new["token"].map(repr)).sort_values("importance_max", ascending=False)
    names = ["position", "token", "n_sink_heads", "importance_max", "importance", "null", "max_abs", "is_massive"]
    printing.say_rows(top, names, "Generated tokens that receive the most attention", left=["token"], most=12)
    printing.say_saved(saved)
