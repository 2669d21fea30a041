"""Where the numbers of a saved result come from, in words."""

from collections.abc import Mapping
from typing import Any

from sinklens.wording import from_to, several


def precision(model: Mapping[str, Any]) -> str:
    """In what numbers a model computed, and what its weights were dequantised from.

    Args:
        model: What :func:`model_facts` gave, from a saved result of any age.

    >>> precision({"dtype": "float32", "dequantised_from": "Q4_1"})
    'float32 (dequantised from Q4_1)'
    >>> precision({"dtype": "bfloat16"})
    'bfloat16'
    """
    quantisation = model.get("dequantised_from")
    return f"{model['dtype']} (dequantised from {quantisation})" if quantisation else str(model["dtype"])


def model_words(model: Mapping[str, Any]) -> str:
    """Architecture, size and precision of a model, from a saved result of any age.

    >>> model_words({"architecture": "GPT2LMHeadModel", "n_layers": 2, "n_heads": 4, "dtype": "float32"})
    'GPT2LMHeadModel, 2 layers x 4 heads, float32'
    >>> model_words({"n_layers": 2, "n_heads": 4})
    '2 layers x 4 heads'
    """
    told = [str(model["architecture"])] if "architecture" in model else []
    told += [shape_words(model)] if "n_layers" in model else []
    return ", ".join([*told, precision(model)] if "dtype" in model else told)


def shape_words(model: Mapping[str, Any]) -> str:
    """Layers and heads of each.

    >>> shape_words({"n_layers": 12, "n_heads": 1})
    '12 layers x 1 head'
    """
    return f"{several(model['n_layers'], 'layer')} x {several(model['n_heads'], 'head')}"


def length_words(tokens: Mapping[str, Any], what: str = "sequence") -> str:
    """How many sequences, and their lengths.

    >>> length_words({"n_sequences": 1, "min_length": 64, "max_length": 64})
    '1 sequence of 64 tokens'
    """
    lengths = from_to(tokens["min_length"], tokens["max_length"], "token")
    return f"{several(tokens['n_sequences'], what)} of {lengths}"


def token_words(tokens: Mapping[str, Any]) -> str:
    """How many sequences of which lengths, where they come from, and what is to be known about their BOS."""
    source = f" ({tokens['source']})" if tokens["source"] else ""
    return f"{length_words(tokens)}{source}. {tokens['bos']['statement']}"
