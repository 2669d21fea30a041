"""A small made-up census: planted sinks, hostile and repeated tokens, missing cells and layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sinklens.detectors.massive_channels import CHANNEL_COLUMNS, EPISODE_COLUMNS
from sinklens.studies.census.result import AttentionMap, Census

NAN = float("nan")
EVIL = "<script>alert(1)</script>"
CLOSING = "</script>"
TOKENS = [
    "<s>",
    "The",
    " cat",
    " the",
    " the",
    "\n",
    EVIL,
    CLOSING,
    " &amp;",
    "<b>",
    "$x$",
    "%{x}",
    "'",
    '"',
    "  ",
]
"""Repeated, empty-looking, bold, closing and template-like tokens."""

N_LAYERS, N_HEADS, N_KV, N_SEQUENCES = 6, 4, 2, 2
WITHOUT_ATTENTION = 3
WINDOWED, WINDOW = 4, 16
SINK_HEADS = {(1, 0), (2, 1), (2, 2), (5, 3)}


def tokens(n: int) -> list[str]:
    filler = [" sat", " on", " the", " mat", ".", " the", " internationalisation", "\n"]
    return [TOKENS[i] if i < len(TOKENS) else filler[i % len(filler)] for i in range(n)]


def weights(n: int, *, sink: bool, window: int | None = None, seed: int = 0) -> "np.ndarray[Any, Any]":
    """A causal attention pattern [q_pos, k_pos] with NaN where the mask hides a cell."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, n)) * 1.5
    if sink:
        scores[:, 0] += np.log(6 * np.arange(1, n + 1))
    q, k = np.indices((n, n))
    seen = k <= q
    if window is not None:
        seen &= q - k < window
    masked = np.where(seen, scores, -np.inf)
    p = np.exp(masked - masked.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.where(seen, p, np.nan)


def synthetic_census(n: int = 48) -> Census:
    layers = [layer for layer in range(N_LAYERS) if layer != WITHOUT_ATTENTION]
    words = tokens(n)
    sinks, heads, sweep, maps = [], [], [], {}
    received = {}
    for layer in layers:
        window = WINDOW if layer == WINDOWED else None
        uniform = np.where(np.isnan(weights(n, sink=False, window=window)), np.nan, 1.0)
        null = np.nanmean(uniform / np.nansum(uniform, 1, keepdims=True), 0)
        for head in range(N_HEADS):
            sink = (layer, head) in SINK_HEADS
            p = weights(n, sink=sink, window=window, seed=layer * 10 + head)
            missing = 0.3 if (layer, head) == (5, 0) else 0.0
            importance = np.nanmean(p, 0) * (1 - missing)
            received[layer, head] = importance
            strongest = int(np.argmax(importance[: n - 9]))
            rate = 1.0 if importance[strongest] > 0.3 else 0.0
            for k in range(n):
                sinks.append((layer, head, k, importance[k], float(importance[k] > 0.3), null[k], N_SEQUENCES))
            heads.append(
                {
                    "layer": layer,
                    "head": head,
                    "kv_head": head // 2,
                    "sink_position": strongest,
                    "importance": importance[strongest],
                    "sink_rate": rate,
                    "null": null[strongest],
                    "ratio": importance[strongest] / null[strongest],
                    "is_sink": sink,
                    "importance_first": importance[0],
                    "sink_rate_first": float(importance[0] > 0.3),
                    "entropy": float(np.nanmean(-np.nansum(p * np.log(p), 1))),
                    "entropy_null": float(np.log(np.arange(1, n + 1)).mean()),
                    "distance": 9.5,
                    "bos_mass": importance[0],
                    "special_mass": importance[0],
                    "missing_mass": missing,
                    "delta_logit": NAN if (layer, head) == (0, 0) else (6.0 if sink else -0.7),
                    "drain": 0.05 if sink else 1.1,
                    "drain_wo": 0.04 if sink else 1.2,
                }
            )
            for position in sorted({0, strongest}):
                for eps in (0.2, 0.3, 0.4, 0.5):
                    sweep.append((layer, head, position, eps, float(importance[position] > eps)))
            if sink or (layer, head) in {(0, 0), (4, 0)}:
                why = f"strongest sink: rate {rate:.2f} at position {strongest}"
                maps[f"L{layer}H{head}"] = AttentionMap(layer, head, p.astype("float32"), 1, n, words, why)
    # One pooled map, 3 x 3 tokens to a cell, the last cell incomplete.
    maps["L1H0"] = pooled(maps["L1H0"], 5)

    layer_rows, profile = [], []
    for layer in range(-1, N_LAYERS):
        here = layer in layers
        norms = np.full(n, 10.0 + layer) + np.sin(np.arange(n))
        if 1 <= layer < 5:
            norms[0] = 1800.0
        top = 1500.0 if 1 <= layer < 5 else 9.0 + layer
        for k in range(n):
            values = 1 + 0.1 * np.cos(k) if k else 0.05
            profile.append(
                {
                    "layer": layer,
                    "position": k,
                    "token": words[k],
                    "resid_norm": norms[k],
                    "value_norm": values if here else NAN,
                    "wo_value_norm": values / 2 if here else NAN,
                    "received": np.mean([received[layer, h][k] for h in range(N_HEADS)]) if here else NAN,
                }
            )
        layer_rows.append(
            {
                "layer": layer,
                "attention": "embedding"
                if layer < 0
                else ("none" if not here else ("fallback" if layer == WINDOWED else "fast")),
                "window": WINDOW if layer == WINDOWED else NAN,
                "sink_rate_first": 0.25 if here else NAN,
                "n_sink_heads": sum(key[0] == layer for key in SINK_HEADS) if here else NAN,
                "resid_norm_first": norms[0],
                "resid_norm_others": norms[1:].mean(),
                "resid_ratio": norms[0] / norms[1:].mean(),
                "resid_growth": NAN if layer < 0 else 3.0,
                "max_abs": top,
                "median_abs": 0.4,
                "max_over_median": top / 0.4,
                "top_position": 0,
                "top_token": EVIL,
                "top_channel": 7,
                "n_massive_absolute": int(top > 100),
                "n_massive_ratio": int(top / 0.4 > 1000),
            }
        )
    token_rows = [
        {
            "sequence": s,
            "position": k,
            "token_id": k + 3,
            "token": words[k],
            "is_special": k == 0,
            "is_bos": k == 0,
            "n_sink_heads": 4 if k == 0 else 0,
            "received": float(np.mean([r[k] for r in received.values()])),
            "peak_ratio": 150.0 if k == 0 else 1.0,
            "is_massive_absolute": k == 0,
            "is_massive_ratio": k == 0,
        }
        for s in range(N_SEQUENCES)
        for k in range(n)
    ]
    massive = [
        {
            "sequence": s,
            "layer": layer,
            "position": k,
            "token": words[k],
            "channel": 7 + k,
            "value": -1500.0 / (k + 1) ** 4,
            "median": 0.4,
            "ratio": 3750.0 / (k + 1) ** 4,
            "absolute": 1500.0 / (k + 1) ** 4 > 100,
            "relative": 3750.0 / (k + 1) ** 4 > 1000,
        }
        for s in range(N_SEQUENCES)
        for layer in range(-1, N_LAYERS)
        for k in range(5)
    ]
    columns = ["layer", "head", "position", "importance", "sink_rate", "null", "n_sequences"]
    sinks_table = pd.DataFrame(sinks, columns=columns)
    sinks_table.insert(6, "ratio", sinks_table["importance"] / sinks_table["null"])
    return Census.of(
        meta=meta(n),
        tables={
            "sinks": sinks_table,
            "heads": pd.DataFrame(heads),
            "eps_sweep": pd.DataFrame(sweep, columns=["layer", "head", "position", "eps", "sink_rate"]),
            "layers": pd.DataFrame(layer_rows).astype({"window": "Int64"}),
            "tokens": pd.DataFrame(token_rows),
            "massive": pd.DataFrame(massive),
            "profile": pd.DataFrame(profile),
            "residual_norms": pd.DataFrame(profile)[["layer", "position", "resid_norm"]].assign(n_sequences=2),
            "massive_episodes": pd.DataFrame(
                [("absolute", "start", 7, 0, 1, 4, 2, 2, 2, 400.0, 2, 390.0, 0.0, 40.0, False)],
                columns=[*EPISODE_COLUMNS],
            ),
            "massive_channels": pd.DataFrame(
                [(layer, "absolute", "start", 7, 2, 2, 2, 0.0, 390.0, 400.0, 40.0) for layer in range(1, 5)],
                columns=[*CHANNEL_COLUMNS],
            ),
        },
        maps=maps,
    )


def pooled(full: AttentionMap, cell: int) -> AttentionMap:
    n = full.n_tokens
    cells = -(-n // cell)
    values = np.full((cells, cells), np.nan, dtype="float32")
    for i in range(cells):
        for j in range(i + 1):
            block = full.values[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
            values[i, j] = np.nanmax(block) if not np.isnan(block).all() else np.nan
    return replace(full, values=values, cell=cell)


def attentionless_census(n: int = 12) -> Census:
    """A model without any attention layer: nothing about attention may read 0."""
    full = synthetic_census(n)
    # What a scan of such a model leaves: empty tables with fewer columns, and no types.
    empty = {
        "sinks": ["layer", "head", "position", "importance", "sink_rate", "null", "ratio", "n_sequences"],
        "eps_sweep": ["layer", "head", "position", "eps", "sink_rate"],
        "heads": ["layer", "head", "sink_position", "sink_rate", "importance", "null", "ratio", "is_sink"],
    }
    tables = full.tables | {name: pd.DataFrame(columns=columns) for name, columns in empty.items()}
    tables["profile"] = tables["profile"].assign(value_norm=NAN, wo_value_norm=NAN, received=NAN)
    tables["tokens"] = tables["tokens"].assign(received=NAN)
    tables["layers"] = tables["layers"].assign(attention="none", sink_rate_first=NAN, n_sink_heads=NAN)
    none = [{"layer": i, "path": "none", "window": None, "learned_sink": False} for i in range(N_LAYERS)]
    changed = full.meta | {
        "model": full.meta["model"] | {"attention": none},
        "verdict": ["This model has no attention."],
    }
    return Census.of(changed, tables)


def meta(n: int) -> dict[str, Any]:
    attention = [
        {
            "layer": layer,
            "path": "none" if layer == WITHOUT_ATTENTION else ("fallback" if layer == WINDOWED else "fast"),
            "window": WINDOW if layer == WINDOWED else None,
            "learned_sink": layer == 5,
        }
        for layer in range(N_LAYERS)
    ]
    return {
        "format_version": 1,
        "sinklens_version": "0.1.0",
        "created": "2026-11-21T08:00:00+00:00",
        "seconds": 3.21,
        "model": {
            "name": "toy-<6>l",
            "path": "toy & co",
            "architecture": "LlamaForCausalLM",
            "n_layers": N_LAYERS,
            "n_heads": N_HEADS,
            "n_kv_heads": N_KV,
            "d_model": 64,
            "d_head": 16,
            "d_vocab": 1000,
            "n_ctx": 512,
            "n_params": 1_234_567,
            "dtype": "float32",
            "device": "cpu",
            "attention": attention,
        },
        "tokens": {
            "n_sequences": N_SEQUENCES,
            "n_tokens": N_SEQUENCES * n,
            "max_length": n,
            "min_length": n,
            "source": "built-in corpus 'toy'",
            "skipped": ["text 3: only 4 tokens"],
            "bos": {
                "position0": "<s>",
                "id": 1,
                "added_by": "sinklens",
                "statement": "Position 0 of every sequence is the BOS token <s> (id 1), added by sinklens.",
            },
        },
        "metrics": {
            "sink_score": {
                "version": 1,
                "definition": "alpha_k = mean of A[i, k] over queries i >= k; rate = share > eps.",
                "source": "Gu et al. 2025 (arXiv 2410.10781)",
            },
            "entropy": {
                "version": 1,
                "definition": "H = -sum_k A[i, k] ln A[i, k], mean over i.",
                "source": "textbook",
            },
        },
        "settings": {
            "detectors": ["sinks", "value_drains", "massive_activations", "residual_peaks"],
            "sink_head_ratio": 2.0,
            "eps": 0.3,
            "eps_sweep": [0.2, 0.3, 0.4, 0.5],
            "min_queries": 10,
            "sink_head_rate": 0.5,
        },
        "warnings": ["Layer 4 fell back to hooks: its attention <does not dispatch>."],
        "verdict": [
            "toy-<6>l has attention sinks: 4 of 20 heads put most of their attention on position 0.",
            "The sink token's values are drained: 0.05 of the norm of the others.",
            "Position 0 carries a massive activation of 1500 from layer 1 to layer 4.",
        ],
    }
