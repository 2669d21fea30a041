"""Sections of studies of what a model answers and predicts: needles, documents, tasks, policies, interventions."""

from collections.abc import Mapping
from typing import Final

from sinklens.app.parts import INTERVAL, LOSS, Part

ANSWERS: Final[Mapping[str, tuple[Part, ...]]] = {
    "sinklens-document-ranking": (
        Part(
            "Which rule finds the document",
            r".*puts the right document first|In .* is the first of the prompt|Other rules|First by",
            note="Each rule orders documents by what the question's tokens attend to; overlap, place and random never "
            "ask the model.",
            table="summary",
            columns={
                "method": "rule", "n": "tasks", "first": "right one first", "share": "share", **INTERVAL,
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
    "sinklens-needles": (
        Part(
            "Are needles found", r".*: exact match ",
            note="All lengths and depths together; intervals are over repeats, which have a needle each.",
            table="summary",
            columns={
                "variant": "model", "n": "prompts", "exact": "whole answer right", "exact_low": "low",
                "exact_high": "high", "delta_exact": "change", "delta_exact_low": "low", "delta_exact_high": "high",
                "correct": "answer tokens right", "log_prob": "log p of an answer token, nats",
                "delta_log_prob": "change ",
            },
        ),
        Part(
            "At which length and depth", r"(?!)", figures=("Needles by length and depth",), table="grid",
            note="Depth 0 is the beginning of the text.",
            columns={
                "variant": "model", "length": "tokens", "depth": "depth", "n": "prompts",
                "exact": "whole answer right", "delta_exact": "change", "correct": "answer tokens right",
                "log_prob": "log p of an answer token, nats", "delta_log_prob": "change ",
                "rank": "median rank of the worst token",
            },
        ),
        Part(
            "Which heads copy the answer", r"[\d,]+ of [\d,]+ heads? (?:is a|are) retrieval|None of [\d,]+ prompts?",
            note="The share of an answer's tokens that a head has as its strongest key when they are written.",
            figures=("Scores of heads",), table="heads", by="retrieval",
            columns={
                "name": "head", "retrieval": "retrieval score", "retrieval_null": "if even",
                "retrieval_sd": "standard deviation", "activation_frequency": "share of prompts with a copy",
                "retrieval_unfiltered": "over all prompts",
            },
            caption="The highest score first",
        ),
        Part(
            "Prompt by prompt", r"[\d,]+ tokens?, depth ", table="instances",
            columns={
                "variant": "model", "length": "tokens", "depth": "depth", "repeat": "repeat",
                "exact": "whole answer right", "correct": "answer tokens right",
                "log_prob": "log p of an answer token, nats", "rank": "rank of the worst", "response": "it says",
                "rouge1": "ROUGE-1 recall",
            },
        ),
    ),
    "sinklens-policies": (
        Part(
            "What each rule costs",
            r"(?:At a budget of [\d,]+ keys: )?(?![Kk]ept attention )(?:.* costs |[Nn]ot ranked|[Ww]ithin its)|No "
            r"policy that|.* changes? nothing on texts|.* chose by what comes later",
            note="Against full attention on the same texts. A rule of scope global chooses by what comes later.",
            table="summary",
            columns={
                "policy": "rule", "kept": "keys read for a row", "density": "of those it could",
                "held": "held in the cache", "mib": "MiB", "delta_loss": "rise of the loss, nats",
                "delta_loss_low": "low", "delta_loss_high": "high", "kl": "KL, nats",
                "top1_agreement": "same first choice", "scope": "chooses by", "group": "same keys within",
            },
        ),
        Part(
            "What of the attention they keep", r".*[Kk]ept attention does not|The first four tokens",
            note="Shares of the attention of the rows after the prompt, mean over heads; of the unchanged "
            "model's: of what it attends to without the rule.",
            table="summary",
            columns={
                "policy": "rule", "mass": "kept", "mass_post_hoc": "of the unchanged model's",
                "first_mass": "on the first four tokens", "first_kept": "kept there",
                "delta_loss": "rise of the loss, nats",
            },
        ),
        Part(
            "What becomes of needles", r"With full attention |.* keeps the needle |.*: [\d,]+% answered",
            note="The answers to needles under each rule, beside full attention on the same prompts.",
            table="needle_summary", made_by="compare_policies(needles=make_needles(model))",
            columns={
                "policy": "rule", "n_needles": "needles", "needle_exact": "answered",
                "clean_needle_exact": "by full attention", "needle_rank": "mean rank",
                "clean_needle_rank": "by full attention ", "delta_needle_log_prob": "change of log p, nats",
                "delta_needle_log_prob_low": "low", "delta_needle_log_prob_high": "high",
                "needle_mass": "attention to the needle", "needle_kept": "kept there",
            },
        ),
    ),
    "sinklens-effects": (
        Part(
            "What they change", r".*: the loss changes by|.*: no token is predicted",
            note="Means over texts against the unchanged model, with 95 % intervals.",
            table="summary",
            columns={
                "intervention": "intervention", "n_sequences": "texts", "clean_loss": "loss before, nats",
                "loss": "after", **LOSS, "kl": "KL, nats", "top1_agreement": "same first choice",
                "delta_logit_diff": "change of the logit difference",
            },
        ),
        Part(
            "Where the sink goes", r"Under .*: [\d,]+ of [\d,]+ heads? sink",
            note="Heads that have their sink at a position. A hidden sink often comes back at another token, and then "
            "the loss says little about what a sink is for.",
            table="sinks_after",
            columns={
                "intervention": "intervention", "position": "position", "n_sink_heads_before": "sink heads before",
                "n_sink_heads": "after", "n_heads": "of", "importance_before": "largest attention before",
                "importance": "after ",
            },
        ),
    ),
    "sinklens-task-scores": (
        Part(
            "What changes the scores", r"",
            note="A change that matters moves the score further than its random controls of equal budget.",
            table="scores",
            columns={
                "task": "task", "metric": "metric", "condition": "model", "n": "documents", "value": "score",
                "delta": "change", "delta_low": "low", "delta_high": "high",
            },
        ),
    ),
}  # fmt: skip
