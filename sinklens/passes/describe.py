"""What a model is, for somebody who is about to measure it."""

from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import plan_for
from sinklens.attention.live_hooks import live_hooks
from sinklens.models.bos import bos_facts
from sinklens.models.rope import length_types
from sinklens.results.header import model_facts
from sinklens.results.provenance import precision, shape_words
from sinklens.wording import run_words, several

INSTEAD = {
    "hook_attn_scores": "MaskKeys, ScaleKeys",
    "hook_pattern": 'AblateHeads(..., how="uniform"), MaskKeys, SlidingWindow',
    "hook_v": "EditValues",
    "hook_z": "AblateHeads",
}


def describe_model(model: TransformerBridge) -> dict[str, str]:
    """Family, sizes, precision, how attention is measured, windows, BOS, and which hooks can be edited, in words.

    The last is tried out: see :func:`sinklens.attention.live_hooks.live_hooks`.
    """
    facts, plan, bos = model_facts(model), plan_for(model), bos_facts(model)
    rope = length_types(model)
    by_path: dict[str, list[int]] = {}
    by_window: dict[int, list[int]] = {}
    for layer in plan.layers:
        by_path.setdefault(layer.path, []).append(layer.layer)
        if layer.window is not None:
            by_window.setdefault(layer.window, []).append(layer.layer)
    names = {"fast": "fast", "fallback": "fallback", "none": "no attention"}
    windows = "; ".join(f"{several(size, 'token')} in {_layers(layers)}" for size, layers in by_window.items())
    verb = {True: "prepends", False: "does not prepend", None: "may or may not prepend"}[bos.prepends]
    template = getattr(model.tokenizer, "chat_template", None)
    described = {
        "name": str(facts["name"]),
        "architecture": str(facts["architecture"]),
        "size": f"{facts['n_params']:,} parameters; {shape_words(facts)} "
        f"({several(facts['n_kv_heads'], 'KV head')} of {facts['d_head']}), d_model {facts['d_model']}, vocabulary "
        f"{facts['d_vocab']:,}",
        "precision": f"{precision(facts)} on {facts['device']}",
        "context": several(facts["n_ctx"], "token") if facts["n_ctx"] else "no limit in the config",
        "attention": "; ".join(f"{names[path]}: {_layers(layers)}" for path, layers in by_path.items())
        + f" ({plan.reason})",
        "windows": windows or "none",
        "positions": ", ".join(f"{kind} from {several(n, 'token')} on: texts run by length" for kind, n in rope.items())
        or "the same at every length",
        "BOS": "none" if bos.bos_id is None else f"id {bos.bos_id}; the tokenizer {verb} it ({bos.why})",
        "chat template": "yes" if template else "no",
    }
    return described | ({"hooks": _hooks(model)} if plan.path != "none" else {})


def _hooks(model: TransformerBridge) -> str:
    said: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, live in live_hooks(model).items():
        said[live].append(name if live else f"{name} (use {INSTEAD[name]})")
    words = {True: "edits reach the logits", False: "edits are DROPPED in silence", None: "never called"}
    return "; ".join(f"{words[live]}: {', '.join(names)}" for live, names in said.items() if names)


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(run_words(layers, 2, ' to '))}"
