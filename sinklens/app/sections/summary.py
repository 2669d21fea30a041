"""The report's first screen: verdict, four numbers, and what was measured."""

import math
from typing import Any

import pandas as pd

from sinklens.app.page import callout, facts, text
from sinklens.app.sections.source import CensusLike, Downloads
from sinklens.plots.style import number


def header(census: CensusLike) -> str:
    """Write the verdict in words, and four numbers."""
    meta = census.meta
    verdict = [str(sentence) for sentence in meta["verdict"]] or ["No verdict was recorded."]
    rest = "".join(f"<li>{text(sentence)}</li>" for sentence in verdict[1:])
    tiles = "".join(
        f'<div class="tile"><b>{text(n)}</b><span>{text(what)}</span></div>' for n, what in _tiles(census)
    )
    return (
        f'<p class="kind">sinklens census of extreme tokens</p>\n<h1>{text(meta["model"]["name"])}</h1>\n'
        f'<p class="headline">{text(verdict[0])}</p>\n'
        + (f'<ul class="verdict">{rest}</ul>\n' if rest else "")
        + f'<div class="tiles">{tiles}</div>'
    )


def _tiles(census: CensusLike) -> list[tuple[str, str]]:
    heads, layers, settings = census.tables["heads"], census.tables["layers"], census.meta["settings"]
    tiles = []
    if heads.empty:
        tiles.append(("n/a", "sink heads: not applicable, the model has no attention"))
        tiles.append(("n/a", "sink rate at position 0: not applicable"))
    else:
        count = f"{int(heads['is_sink'].sum()):,} of {len(heads):,}"
        tiles.append(
            (count, f"heads are sink heads (sink rate at least {settings.get('sink_head_rate', '?')})")
        )
        rate = f"{heads['sink_rate_first'].mean():.3g}"
        tiles.append((rate, f"sink rate at position 0, mean over heads (eps {settings.get('eps', '?')})"))
    peak = _largest(layers, "resid_ratio")
    if peak is None:
        tiles.append(("n/a", "residual peak: not applicable"))
    else:
        label = f"largest residual norm of position 0 against the others, {_at(peak)}"
        tiles.append((f"{number(peak['resid_ratio'])} ×", label))
    top = _largest(layers, "max_abs")
    if top is None:
        tiles.append(("n/a", "largest hidden-state entry: not applicable"))
    else:
        ratio = float(top["max_over_median"])
        times = "" if math.isnan(ratio) else f", {number(ratio)} × the median"
        tiles.append((f"{top['max_abs']:,.4g}", f"largest hidden-state entry, {_at(top)}{times}"))
    return tiles


def _largest(layers: pd.DataFrame, column: str) -> dict[str, Any] | None:
    known = layers.dropna(subset=[column]).sort_values(column, kind="stable")
    return None if known.empty else {str(key): value for key, value in known.iloc[-1].items()}


def _at(row: dict[str, Any]) -> str:
    return "at the embedding" if row["layer"] < 0 else f"after layer {int(row['layer'])}"


def measured(census: CensusLike, downloads: Downloads) -> str:
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
        "Precision": model["dtype"],
        "Device": model["device"],
        "Texts": tokens["source"],
        "Sequences": tokens["n_sequences"],
        "Tokens in all": tokens["n_tokens"],
        "Length of a sequence": lengths,
    }
    skipped = [f"Skipped: {reason}" for reason in tokens["skipped"]]
    return (
        "<h2>What was measured</h2>\n"
        + facts(pairs)
        + f"<h3>First token</h3>\n{callout([tokens['bos']['statement']])}"
        + callout([*census.meta["warnings"], *skipped], warning=True)
    )
