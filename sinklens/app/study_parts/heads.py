"""Sections of studies of heads and experts: what roles they have, what they write, and what is lost without them."""

from collections.abc import Mapping
from typing import Final

from sinklens.app.parts import INTERVAL, LOSS, Part

HEADS: Final[Mapping[str, tuple[Part, ...]]] = {
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
            figures=("What the value at the sink does",),
            note="A no-op writes little while it rests on the sink; a broadcast writes the same to every query. The "
            "value of one KV head at the sink is exchanged, at other positions for comparison.",
            table="donors",
            columns={
                "layer": "layer", "kv_head": "KV head", "heads": "heads", "edit": "value set to", "place": "where",
                "position": "position", **LOSS,
            },
        ),
    ),
    "sinklens-path-patching": (
        Part(
            "Which paths carry the difference", r"Of [\d,]+ senders?|Both prompts give",
            note="A sender's output is that of the other prompt, for one receiver alone; the effect is the share of "
            "what tells the prompts apart.",
            table="paths",
            columns={"sender": "sender", "receiver": "receiver", "effect": "effect", **INTERVAL},
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
                "conflict": "difference", **INTERVAL, "side": "side",
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
                **INTERVAL, "follows": "follows the context",
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
                "kind": "kind", "experts": "experts", **LOSS, "max_abs_kept": "of the largest |h| kept",
                "sink_decay": "decay of the sink",
            },
        ),
    ),
    "sinklens-span-heads": (
        Part(
            "Which heads depend on the document", r"(?:[\d,]+|None) of [\d,]+ heads? depend|Which heads depend",
            note="How far a head's output moves when the right document goes, beside a random other one.",
            table="heads", by="excess",
            columns={
                "name": "head", "dependence": "right document", "other": "another", "excess": "difference", **INTERVAL,
                "outlier": "left out as outlier", "chosen": "chosen",
            },
            caption="The largest difference first",
        ),
        Part(
            "What emphasis does", r"Emphasised in|A random other document|Other emphases",
            note="Change of the answer's log-probability while a document is emphasised, on other tasks than those "
            "that chose the heads.",
            table="summary", columns={"kind": "emphasised", "change": "change, nats", **INTERVAL, "n": "tasks"},
        ),
    ),
    "sinklens-roles": (
        Part(
            "Which heads have which role", r"\w+: (?:not applicable|[\d,]+ of )|No head has a score",
            note="Each score has a rule from the paper or code that it comes from; a head has the role where it meets "
            "the rule.",
            figures=("Scores, labels and their agreement",),
            table="criteria",
            columns={
                "role": "role", "criterion": "score", "rule": "rule", "n_labelled": "heads with the role",
                "n_known": "heads with a score", "unit": "one score for each", "rule_source": "where the rule is from",
            },
        ),
        Part(
            "Retrieval, sinks and induction", r"The strongest retrieval head|Of the [\d,]+ strongest|No head copied",
            note="A retrieval head copies from a needle; on ordinary text it may rest on its sink.",
            figures=("Retrieval, sink and induction scores of the same heads",), table="heads", by="retrieval",
            columns={
                "name": "head", "retrieval": "retrieval", "retrieval_null": "if even",
                "importance": "attention on its sink", "sink_null": "if uniform", "induction": "induction",
                "previous_token": "previous token",
            },
            caption="The highest retrieval score first", made_by='find_roles(scores=("retrieval", "pattern", "sinks"))',
        ),
        Part(
            "Which criteria name the same heads", r".* share [\d,]+ of|Of [\d,]+ pairs",
            note="Pairs of scores: how many labelled heads both have, beside what random sets of these sizes share, "
            "and how alike they rank all heads. Scores are named here, roles in the sentences; the first "
            "table has both.",
            table="agreement", by="jaccard",
            columns={
                "first": "one", "second": "other", "n_first": "heads of one", "n_second": "of the other",
                "n_both": "shared", "both_chance": "by chance", "p": "p", "jaccard": "Jaccard",
                "jaccard_chance": "by chance ", "spearman": "Spearman",
            },
            caption="The largest Jaccard index first",
        ),
    ),
    "sinklens-causal-check": (
        Part(
            "What is lost without the heads", r"Masking |\w+ masking of the top",
            note="Harm: fall of the exact match or of an answer token's log-probability, rise of the loss on plain "
            "text. Random heads, as many, stand beside the tested ones.",
            table="summary",
            columns={
                "way": "masked by", "top": "heads", "measure": "measure", "clean": "before", "tested": "after",
                "harm": "harm", "harm_low": "low", "harm_high": "high", "n_controls": "random sets",
                "control_mean": "their harm", "p": "p", "n_matched": "of equal own harm", "matched_mean": "their harm ",
                "matched_p": "p ",
            },
        ),
        Part(
            "Are masks and controls neutral", r"Warning: |[\d,]+ idle heads? |The model has no idle",
            note="A mask that harms plain text as much as needles says nothing about needles, and a random set that "
            "harms plain text is no neutral control.",
            table="summary",
            columns={
                "way": "masked by", "top": "heads", "own_harm": "rise of the loss on plain text",
                "control_own": "by random sets", "n_harmful": "random sets that harm", "n_controls": "of",
                "matched_own": "by those of equal own harm", "n_idle": "idle sets", "idle_mean": "by them",
            },
            where={"measure": "loss"},
        ),
        Part(
            "The answer exchanged", r"Patching ",
            note="Outputs of the heads come from the same needles with another answer (necessity), or go there "
            "(sufficiency): the share of what tells both apart that is lost, or comes back.",
            table="patched", made_by="run_causal_check(patching=True)",
            columns={
                "top": "heads", "kind": "kind", "heads": "which", "necessity": "necessity", "necessity_low": "low",
                "necessity_high": "high", "sufficiency": "sufficiency", "sufficiency_low": "low",
                "sufficiency_high": "high",
            },
        ),
    ),
    "sinklens-streaming-gates": (
        Part(
            "Which heads need the whole past", r"[\d,]+ of [\d,]+ KV heads?|No KV head",
            note="A gate of 1 needs the whole cache, one of 0 is served by the first and the recent tokens.",
            figures=("Scores of heads",), table="gates", by="alpha",
            columns={"layer": "layer", "kv_head": "KV head", "alpha": "gate"}, caption="The highest gate first",
        ),
        Part(
            "How they were learned", r"The loss went",
            note="The loss is the distance from the states of full attention, plus a penalty on open gates.",
            table="losses", by="step",
            columns={
                "step": "step", "loss": "loss", "distillation": "distance from full attention",
                "regulariser": "penalty before its weight", "mean_gate": "mean gate", "lr": "learning rate",
                "length": "tokens of a text",
            },
            caption="The last first",
        ),
    ),
    "sinklens-split-check": (
        Part(
            "How many passkeys are answered", r"",
            note="Retrieval heads see everything, all others the first and the recent tokens; random heads in their "
            "place stand beside them.",
            table="conditions",
            columns={
                "condition": "attention", "n_retrieval_kv": "KV heads that see all", "kv_kept": "share of the cache",
                "exact_match": "answered exactly", "delta_exact_match": "change", "delta_exact_match_low": "low",
                "delta_exact_match_high": "high", "accuracy": "right values", "answer_loss": "-log p, nats",
                "n_sequences": "texts",
            },
        ),
    ),
    "sinklens-near-far": (
        Part(
            "What near and far keys are worth",
            r".* seeing only |It loses more|Which of the two|That one of the two",
            note="The heads see only near keys, or only far ones, and the first ones both times; as many random heads "
            "of the same layers stand beside them.",
            table="costs",
            columns={
                "kind": "kind", "heads": "heads", "sees": "see only keys that are", "loss": "loss, nats",
                "cost": "rise", **INTERVAL,
            },
        ),
    ),
    "sinklens-factual-recall": (
        Part(
            "Which layers carry the answer", r"The model knows|Late layers",
            note="What each layer adds to the right answer over the other facts' answers, at the last token; then the "
            "answer's log-probability if the network ended there.",
            table="layers",
            columns={
                "layer": "layer", "answer": "to the right answer, logits", "rivals": "to the others",
                "total": "difference", **INTERVAL, "attention": "by attention", "rest": "by the rest",
                "lens": "log p if it ended there", "skipped": "change of log p without it", "skipped_low": "low ",
                "skipped_high": "high ",
            },
        ),
        Part(
            "Which heads bring the topic", r"[\d,]+ of [\d,]+ heads? write",
            note="What a head writes towards the prompt's topic, beside topics exchanged between prompts, on the facts "
            "that choose.",
            table="heads", by="topic",
            columns={
                "name": "head", "topic": "for the topic, logits", **INTERVAL, "shuffled": "topics exchanged",
                "sds": "standard deviations above", "answer": "for the answer", "is_topic": "topic head",
                "chosen": "left out below",
            },
            caption="The largest first",
        ),
        Part(
            "The model without them", r"Without ",
            note="The chosen heads write their mean, on facts that did not choose them, beside as many random heads.",
            table="pruned",
            columns={
                "kind": "kind", "heads": "heads", "logit_diff": "the right answer leads by, logits",
                "change": "change", **INTERVAL,
            },
        ),
    ),
}  # fmt: skip
