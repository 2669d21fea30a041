"""The report's first screen: verdict, four numbers, and what was measured."""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from sinklens.app.page import callout, facts, text
from sinklens.app.sections.source import Downloads
from sinklens.plots.style import number
from sinklens.results.provenance import precision

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census


def header(census: "Census") -> str:
    """Write the verdict in words, and four numbers."""
    meta = census.meta
    verdict = [str(sentence) for sentence in meta["verdict"]] or ["No verdict was recorded."]
    rest = "".join(f"<li>{text(sentence)}</li>" for sentence in verdict[1:])
    tiles = "".join(f'<div class="tile"><b>{text(n)}</b><span>{text(what)}</span></div>' for n, what in _tiles(census))
    return (
        f'<p class="kind">sinklens census of extreme tokens</p>\n<h1>{text(meta["model"]["name"])}</h1>\n'
        f'<p class="headline">{text(verdict[0])}</p>\n'
        + (f'<ul class="verdict">{rest}</ul>\n' if rest else "")
        + f'<div class="tiles">{tiles}</div>'
    )


def _tiles(census: "Census") -> list[tuple[str, str]]:
    """Number and meaning; what the scan did not measure has no tile, what is not applicable says so."""
    layers, settings = census.tables["layers"], census.meta["settings"]
    tiles = []
    heads = census.tables.get("heads")
    if heads is not None and heads.empty:
        tiles.append(("n/a", "sink heads: not applicable, the model has no attention"))
        tiles.append(("n/a", "sink rate at position 0: not applicable"))
    elif heads is not None:
        rule = f"sink rate at least {settings.get('sink_head_rate', '?')}"
        if "sink_head_ratio" in settings:
            rule += f" and {number(settings['sink_head_ratio'])} × the null"
        tiles.append((f"{int(heads['is_sink'].sum()):,} of {len(heads):,}", f"heads are sink heads ({rule})"))
        rate = number(float(heads["sink_rate_first"].mean()))
        tiles.append((rate, f"sink rate at position 0, mean over heads (eps {settings.get('eps', '?')})"))
    peak = _largest(layers, "resid_ratio")
    if peak is not None:
        label = f"largest residual norm of position 0 relative to the others, {_at(peak)}"
        tiles.append((f"{number(peak['resid_ratio'])} ×", label))
    top = _largest(layers, "max_abs")
    if top is not None:
        ratio = float(top["max_over_median"])
        times = "" if math.isnan(ratio) else f", {number(ratio)} × the median"
        tiles.append((number(top["max_abs"]), f"largest hidden-state entry |h|, {_at(top)}{times}"))
    return tiles


def _largest(layers: pd.DataFrame, column: str) -> dict[str, Any] | None:
    if column not in layers.columns or layers[column].isna().all():
        return None
    best = layers.dropna(subset=[column]).sort_values(column, kind="stable").iloc[-1]
    return {str(key): value for key, value in best.items()}


def _at(row: dict[str, Any]) -> str:
    return "at the embedding" if row["layer"] < 0 else f"after layer {int(row['layer'])}"


def measured(census: "Census", downloads: Downloads) -> str:
    """Model, tokens, BOS, precision, warnings."""
    model, tokens = census.meta["model"], census.meta["tokens"]
    lengths = f"{tokens['max_length']:,} tokens"
    if tokens["min_length"] != tokens["max_length"]:
        lengths = f"{tokens['min_length']:,} to {lengths}"
    pairs = {
        "Model": model["name"],
        "Loaded from": model["path"],
        "Architecture": model["architecture"],
        "Layers × heads (KV heads)": f"{model['n_layers']} × {model['n_heads']} ({model['n_kv_heads']})",
        "d_model, d_head": f"{model['d_model']}, {model['d_head']}",
        "Vocabulary": model["d_vocab"],
        "Context": model["n_ctx"],
        "Parameters": model["n_params"],
        "Precision": precision(model),
        "Device": model["device"],
        "Texts": tokens["source"],
        "Sequences": tokens["n_sequences"],
        "Tokens in all": tokens["n_tokens"],
        "Length of a sequence": lengths,
    }
    skipped = [f"Skipped: {reason}" for reason in tokens["skipped"]]
    return (
        facts(pairs)
        + f"<h3>First token</h3>\n{callout([tokens['bos']['statement']])}"
        + callout([*census.meta["warnings"], *skipped], warning=True)
    )
