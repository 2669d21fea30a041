"""Sections to look things up: what was measured and what not, layers, definitions, provenance and all downloads."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import plotly

from sinklens.app.page import callout, facts, html_table, text
from sinklens.app.sections.source import Downloads, Section
from sinklens.plots.style import layer_list
from sinklens.results.provenance import precision

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_PATHS: Final = {
    "fast": "measured, fast path",
    "fallback": "measured, fallback through the model's hooks",
    "none": "not applicable: no attention in this layer",
}


def layer_status(census: "Census", downloads: Downloads) -> str:
    """How each layer was measured."""
    attention = census.meta["model"]["attention"]
    rows = pd.DataFrame(
        {
            "layer": [int(entry["layer"]) for entry in attention],
            "status": [_PATHS.get(entry["path"], str(entry["path"])) for entry in attention],
            "window": [_window(entry) for entry in attention],
            "sink": [_learned(entry) for entry in attention],
        }
    )
    layers = census.tables["layers"]
    wanted = ["layer", "sink_rate_first", "n_sink_heads", "resid_ratio"]
    rows = rows.merge(layers[[name for name in wanted if name in layers.columns]], on="layer", how="left")
    none = [int(entry["layer"]) for entry in attention if entry["path"] == "none"]
    note = f'<p class="note">{text(census.meta["model"].get("attention_reason") or "")}</p>'
    if none:
        where = f"Not applicable: no attention in {layer_list(none)}"
        note += f'<p class="note">{text(where)}; numbers about attention are missing there, not 0.</p>'
    table = html_table(
        rows,
        {
            "layer": "layer",
            "status": "attention",
            "window": "window",
            "sink": "learned sink",
            "sink_rate_first": "sink rate, position 0",
            "n_sink_heads": "sink heads",
            "resid_ratio": "residual ratio",
        },
        formats={"sink_rate_first": ".2f"},
        words=("status", "window", "sink"),
    )
    return note + table


def _window(entry: dict[str, Any]) -> str | None:
    if entry["path"] == "none":
        return None
    return "full" if entry.get("window") is None else f"{entry['window']:,} tokens"


def _learned(entry: dict[str, Any]) -> bool | None:
    return None if entry["path"] == "none" else bool(entry["learned_sink"])


def definitions(census: "Census", downloads: Downloads) -> str:
    """What each number means."""
    metrics = census.meta["metrics"]
    rows = pd.DataFrame(
        [
            {"name": name, "version": m["version"], "definition": m["definition"], "source": m["source"]}
            for name, m in metrics.items()
        ],
        columns=["name", "version", "definition", "source"],
    )
    words = ("name", "definition", "source")
    table = html_table(rows, {n: n for n in ("name", "version", "definition", "source")}, words=words)
    return "<p>A changed formula gets a new version number.</p>\n" + table


def provenance(census: "Census", downloads: Downloads) -> str:
    """Where this page comes from, and all tables."""
    meta = census.meta
    pairs = {
        "sinklens": meta["sinklens_version"],
        "Census format": meta["format_version"],
        "Measured": meta["created"],
        "Took": f"{float(meta['seconds']):,.1f} s",
        "plotly": plotly.__version__,
        **meta.get("versions", {}),
    }
    settings = text(json.dumps(meta["settings"], indent=2, default=str))
    return facts(pairs) + f"<h3>Tables</h3>\n<p>{downloads.buttons()}</p>\n<h3>Settings</h3>\n<pre>{settings}</pre>"


def measured(census: "Census", downloads: Downloads) -> str:
    """Model, tokens, BOS, precision."""
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
        facts(pairs) + f"<h3>First token</h3>\n{callout([tokens['bos']['statement']])}" + callout(skipped, warning=True)
    )


def absent(census: "Census", sections: Sequence[Section]) -> str:
    """What this run did not look at, and what this model does not have: two different things."""
    missing = [
        (section.title, section.made_by)
        for section in sections
        if not all(name in census.tables for name in section.needs)
    ]
    missing.append(("Roles of heads (retrieval, induction, previous token)", "sinklens roles MODEL"))
    missing.append(("What a head's removal costs", "sinklens ablate MODEL"))
    listed = "".join(f"<li>{text(title)}: <code>{text(call)}</code></li>" for title, call in missing)
    body = f"<p>This run did not look at the following; these calls do.</p>\n<ul>{listed}</ul>\n"
    lacking = [_NAMES.get(name, name) for name in _empty_columns(census)]
    layers = [int(entry["layer"]) for entry in census.meta["model"]["attention"] if entry["path"] == "none"]
    lacking += [f"attention in {layer_list(layers)}"] if layers else []
    if lacking:
        body += f"<p>Not applicable, because this model does not have it: {text('; '.join(lacking))}.</p>"
    return body


_NAMES: Final = {
    "gate": "output gates of attention", "missing_mass": "a learned sink", "delta_logit": "a logit margin",
    "bos_mass": "a BOS token (bos_mass)", "drain": "value states (drain)", "drain_wo": "|W_O v| (drain_wo)",
}  # fmt: skip


def _empty_columns(census: "Census") -> list[str]:
    """Columns of the heads that were asked for and that no head has."""
    heads = census.tables.get("heads")
    return [] if heads is None or heads.empty else [name for name in heads.columns if heads[name].isna().all()]
