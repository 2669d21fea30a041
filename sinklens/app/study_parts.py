"""What the report of each study shows, section by section: data alone, see :class:`~sinklens.app.parts.Part`."""

from collections.abc import Mapping
from typing import Final

from sinklens.app.parts import Part

_INTERVAL: Final = {"low": "low", "high": "high"}
_LOSS: Final = {"delta_loss": "change of the loss, nats", "delta_loss_low": "low", "delta_loss_high": "high"}

PARTS: Final[Mapping[str, tuple[Part, ...]]] = {
    "sinklens-sink-causes": (
        Part(
            "Why heads look there", r"[\d,]+ heads? looks? at|L\d+H\d+ looks at|No head was explained",
            note="A head prefers its sink by a margin of logits, which is a sum over the residual channels of the "
            "sink's key, and over who wrote to them. The random sets take as many other channels away.",
            table="heads",
            columns={
                "name": "head", "importance": "attention", "null": "if uniform", "margin": "margin, logits",
                "channel": "channel", "channel_share": "its share", "component": "writer",
                "component_share": "its share",
                "n_channels": "channels taken", "mass": "attention with", "mass_without": "without them",
                "random_lost": "lost by random ones", "p": "p",
            },
            caption="The strongest sink first",
        ),
        Part(
            "What the sink hands on", r"Of [\d,]+ sinks?, by the size|The value at the sink",
            note="A no-op writes little while it rests on the sink; a broadcast writes the same to every query. The "
            "value of one KV head at the sink is exchanged, at other positions for comparison.",
            table="donors",
            columns={
                "layer": "layer", "kv_head": "KV head", "heads": "heads", "edit": "value set to", "place": "where",
                "position": "position", **_LOSS,
            },
        ),
    ),
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
                "tested": "tested", "kind": "kind", "weights": "weights", "peak_kept": "of the entry kept", **_LOSS,
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
    "sinklens-document-ranking": (
        Part(
            "Which rule finds the document", r".*puts the right document first|Other rules|First by",
            note="Each rule orders documents by what the question's tokens attend to; overlap and random never ask the "
            "model.",
            table="summary",
            columns={
                "method": "rule", "n": "tasks", "first": "right one first", "share": "share", **_INTERVAL,
                "chance": "chance", "mrr": "mean reciprocal rank",
            },
        ),
        Part(
            "Does the answer use it", r"While answering",
            note="The attention that the answer's tokens give to the right document, and what they lose without it.",
            table="use",
            columns={
                "task": "task", "share": "share of the attention", "share_null": "of the tokens",
                "log_prob": "log p of the answer", "lost_gold": "lost without it", "lost_other": "without another",
            },
        ),
    ),
    "sinklens-path-patching": (
        Part(
            "Which paths carry the difference", r"Of [\d,]+ senders?|Both prompts give",
            note="A sender's output is that of the other prompt, for one receiver alone; the effect is the share of "
            "what tells the prompts apart.",
            table="paths",
            columns={"sender": "sender", "receiver": "receiver", "effect": "effect", **_INTERVAL},
            caption="The largest first",
        ),
        Part(
            "The set as a whole", r"L\d+H\d+.*: necessity",
            note="Necessity: what is lost when the set is exchanged in the clean prompt. Sufficiency: what comes back "
            "when it is the only thing exchanged in the other.",
            table="sets",
            columns={
                "kind": "kind", "heads": "heads", "necessity": "necessity", "necessity_low": "low",
                "necessity_high": "high", "sufficiency": "sufficiency", "sufficiency_low": "low",
                "sufficiency_high": "high",
            },
        ),
    ),
    "sinklens-conflict-heads": (
        Part(
            "Which side heads take", r"[\d,]+ of [\d,]+ heads? argue",
            note="What each head adds by itself to the answer of the prompt and to what the model knew, less what it "
            "adds to an unrelated one.",
            table="heads", by="conflict",
            columns={
                "name": "head", "context": "for the context's answer", "memory": "for the memory's",
                "conflict": "difference", **_INTERVAL, "side": "side",
            },
            caption="The largest difference first",
        ),
        Part(
            "The model without them", r"Without ",
            note="On prompts that nothing was chosen on, beside as many random heads.",
            table="pruned",
            columns={
                "way": "way", "kind": "heads of", "heads": "heads", "logit_diff": "context leads by",
                "change": "change",
                **_INTERVAL, "follows": "follows the context",
            },
        ),
    ),
    "sinklens-super-experts": (
        Part(
            "Which experts are super", r"None of [\d,]+ experts?|[\d,]+ of [\d,]+ experts?|Large, but",
            note="The paper's rule wants an expert in a layer where massive activations form.",
            table="experts",
            columns={
                "layer": "layer", "expert": "expert", "a": "largest output", "n_tokens": "tokens",
                "forms": "forms there",
                "is_super": "super", "is_super_code": "by the code", "outlier": "outlier",
            },
            caption="The largest first; expert -1 is the shared one",
        ),
        Part(
            "The model without them", r"Pruned, ",
            note="Random sets of as many experts, of any layer and of the same layers, stand beside them.",
            table="effects",
            columns={
                "kind": "kind", "experts": "experts", **_LOSS, "max_abs_kept": "of the largest |h| kept",
                "sink_decay": "decay of the sink",
            },
        ),
    ),
    "sinklens-injection": (
        Part(
            "What inserted tokens draw", r"\d+ x ",
            note="Beside as many random ordinary tokens at the same place; clean is the text as it was.",
            table="summary",
            columns={
                "place": "place", "count": "tokens", "measure": "measure", "token": "with the token",
                "random": "with random ones", "clean": "without", "difference": "difference", **_INTERVAL,
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
                **_INTERVAL, "own": "cosine to its own", "others": "to others", "chance": "chance",
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
    "sinklens-span-heads": (
        Part(
            "Which heads depend on the document", r"(?:[\d,]+|None) of [\d,]+ heads? depend|Which heads depend",
            note="How far a head's output moves when the right document goes, beside a random other one.",
            table="heads", by="excess",
            columns={
                "name": "head", "dependence": "right document", "other": "another", "excess": "difference", **_INTERVAL,
                "outlier": "left out as outlier", "chosen": "chosen",
            },
            caption="The largest difference first",
        ),
        Part(
            "What emphasis does", r"Emphasised in|A random other document|Other emphases",
            note="Change of the answer's log-probability while a document is emphasised, on other tasks than those "
            "that chose the heads.",
            table="summary", columns={"kind": "emphasised", "change": "change, nats", **_INTERVAL, "n": "tasks"},
        ),
    ),
}  # fmt: skip
"""By ``format``; kinds without parts have all figures and tables one after another."""
