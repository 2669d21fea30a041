"""Sections of studies of tokens and of the entries and means of their states."""

from collections.abc import Mapping
from typing import Final

from sinklens.app.parts import INTERVAL, LOSS, Part

TOKENS: Final[Mapping[str, tuple[Part, ...]]] = {
    "sinklens-massive-sources": (
        Part(
            "Who wrote them", r"Channel \d+ is massive|There is no massive",
            note="An entry of the residual stream is the sum of what all writers wrote to its channel; the share of an "
            "MLP is split further over the weights that make it.",
            table="sources",
            columns={
                "channel": "channel", "appears": "after layer", "leaves_after": "to layer", "n_sequences": "sequences",
                "token": "token", "value": "value", "peak_layer": "at layer", "writer": "writer",
                "writer_share": "its part",
                "weight": "weight", "weight_value": "its size", "weight_share": "its part ",
            },
            caption="The largest first",
        ),
        Part(
            "Without these weights", r"Without ",
            note="Each named weight is put to zero, beside random other weights of the same matrices and the largest "
            "others of the same rows.",
            table="effects",
            columns={
                "tested": "tested", "kind": "kind", "weights": "weights", "peak_kept": "of the entry kept", **LOSS,
                "sink_heads": "sink heads", "sink_heads_before": "before",
            },
        ),
    ),
    "sinklens-generation": (
        Part(
            "Step by step", r"[\d,]+ tokens? generated|Nothing was generated",
            note="What each new token attended to when it was made, and what its residual stream held.",
            table="steps",
            columns={
                "step": "step", "position": "position", "token": "token", "mass_first": "attention to position 0",
                "null": "if even", "n_first": "heads on position 0", "max_abs": "largest |h|", "layer": "after layer",
                "channel": "channel", "is_massive": "massive", "n_drained_heads": "drained heads",
            },
        ),
        Part(
            "What became of each token", r"[\d,]+ of [\d,]+ generated|None of [\d,]+ generated|No generated",
            note="At the end: the attention that a token got from itself and all later ones.",
            table="tokens", by="importance",
            columns={
                "position": "position", "token": "token", "generated": "generated", "importance": "attention received",
                "null": "if even", "importance_max": "of one head", "n_sink_heads": "heads with a sink there",
                "max_abs": "largest |h|", "is_massive": "massive",
            },
            caption="The most attended first",
        ),
    ),
    "sinklens-extreme-tokens": (
        Part(
            "Which tokens", r"[\d,]+ of [\d,]+ token|None of [\d,]+ token|After position 0",
            note="Tokens with a massive entry after some layer, with their largest one.",
            table="tokens", by="value",
            columns={
                "sequence": "sequence", "position": "position", "token": "token", "first_layer": "from layer",
                "last_layer": "to layer", "n_entries": "entries", "channel": "channel", "layer": "after layer",
                "value": "largest entry", "ratio": "× median",
            },
            caption="The largest first",
        ),
        Part(
            "Which channels", r"Their entries lie",
            note="What code that drops or protects such entries needs: the channels of each layer, and the smallest "
            "magnitude that counted.",
            table="channels", by="peak",
            columns={
                "layer": "after layer", "channel": "channel", "n_tokens": "tokens", "n_sequences": "sequences",
                "token_share": "share of all tokens", "value": "mean", "peak": "largest",
                "threshold": "smallest that counts",
            },
            caption="The largest first",
        ),
    ),
    "sinklens-injection": (
        Part(
            "What inserted tokens draw", r"\d+ x ",
            note="Beside as many random ordinary tokens at the same place; clean is the text as it was.",
            table="summary",
            columns={
                "place": "place", "count": "tokens", "measure": "measure", "token": "with the token",
                "random": "with random ones", "clean": "without", "difference": "difference", **INTERVAL,
            },
        ),
        Part(
            "Head by head", r"(?!)", table="heads", by="inserted_token",
            note="Attention of the later tokens to the inserted ones and to the first token.",
            columns={
                "place": "place", "count": "tokens", "name": "head", "first_clean": "first token, nothing inserted",
                "inserted_token": "inserted", "first_token": "first token", "inserted_random": "random inserted",
                "first_random": "first token then",
            },
            caption="Heads that look most at the inserted token first",
        ),
    ),
    "sinklens-pooling": (
        Part(
            "Which pooling finds the text", r"Layer \d+: mean",
            note="A question is nearest to its document, or not, in the mean of states after a layer.",
            table="summary",
            columns={
                "layer": "after layer", "pooling": "pooling", "first": "right one first", "mrr": "mean reciprocal rank",
                **INTERVAL, "own": "cosine to its own", "others": "to others", "chance": "chance",
            },
        ),
        Part(
            "What is left out", r"[\d,]+ of [\d,]+ positions? (is|are) extreme", table="left_out",
            columns={
                "text": "text", "position": "position", "token": "token", "n_sink_heads": "heads with a sink there",
                "is_sink": "sink", "is_massive": "massive",
            },
        ),
    ),
}  # fmt: skip
