"""Claims about heads: which retrieve, which are dormant, which may stream."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from published.claim import NotTestableError, at_least, at_most, claim
from published.observed import observe
from published.subject import Subject
from sinklens.evidence import all_heads, paired_interval, random_head_sets
from sinklens.evidence.bootstrap import Interval, statistic_interval
from sinklens.interventions import AblateHeads, CompensatedWindow
from sinklens.interventions.heads import Head
from sinklens.interventions.kv_groups import heads_of_kv
from sinklens.passes.repeated_tokens import repeated_tokens
from sinklens.studies import NeedleSet, make_needles, measure_needles, pattern_scores, score_needles
from sinklens.studies.census.builtin_domains import builtin_domains

WU = "Wu et al. 2025, arXiv 2404.15574"
RAZOR = "Tang et al. 2025 (RazorAttention), arXiv 2407.15891"
GUO = "Guo et al. 2024, arXiv 2410.13835"
SANDOVAL = "Sandoval-Segura et al. 2025, arXiv 2504.03889"
HUA = "Hua et al. 2025 (AttentionInfluence), arXiv 2505.07293"
RETRIEVAL, MASKED, DORMANT = 0.1, 0.05, 0.12
DRAWS = 2


def _needles(subject: Subject) -> NeedleSet:
    def make() -> NeedleSet:
        repeats = max(2, subject.sizes.prompts // 4)
        if subject.name.startswith(("induction", "bb")):
            return make_needles(subject.model, "random", lengths=(48,), depths=(0.1, 0.4, 0.7, 0.9), repeats=repeats)
        length = 224 if (subject.model.cfg.n_layers > 4) else 128
        depths = (0.1, 0.4, 0.7, 0.9)
        return make_needles(subject.model, "passkey", lengths=(length,), depths=depths, repeats=repeats, size=6)

    found: NeedleSet = subject.once("needles", make)
    return found


def _copies(subject: Subject) -> np.ndarray:
    """Share of the answer that each head copies, ``[prompt head]``, over prompts with three quarters right."""

    def make() -> tuple[np.ndarray, pd.DataFrame]:
        result = measure_needles(subject.model, _needles(subject))
        table, answers = result.tables["copies"], result.tables["instances"]
        layers, heads = int(subject.model.cfg.n_layers), int(subject.model.cfg.n_heads)
        shares = np.zeros((len(answers), layers * heads))
        shares[table["instance"], table["layer"] * heads + table["head"]] = table["set"]
        return shares, answers

    shares, answers = subject.once("copies", make)
    good = (answers["correct"] >= 0.75).to_numpy()
    if good.sum() < 5:
        raise NotTestableError(
            f"It gets three quarters of the answer right in {int(good.sum())} of {len(good)} prompts; 5 are needed."
        )
    kept: np.ndarray = shares[good]
    return kept


@claim(
    "retrieval-heads-are-few",
    WU,
    kind="heads",
    says="Fewer than 5 % of heads retrieve (score of at least 0.1).",
    reported="LLaMA-2-7B-80K 3.2 %, Mistral-7B 4.2 %, Mixtral 6.2 %, Yi-6B 5.2 % [calc from the released scores]",
    figures={
        "share": "share of heads that copy at least 0.1 of the answer, mean over the prompts of which the model gets "
        "three quarters of the answer right (the paper: ROUGE-1 above 50)",
        "strong": "share that copy at least 0.5",
    },
    tests=(at_most("share", 0.05, 0.15),),
    call='measure_needles(model, make_needles(model, "passkey")).heads',
)
def retrieval_heads_are_few(subject: Subject) -> dict[str, Interval]:
    """Heads above the bounds, resampling prompts."""
    copies = _copies(subject).T
    return {
        "share": statistic_interval(copies, lambda means: (means >= RETRIEVAL).mean(0)),
        "strong": statistic_interval(copies, lambda means: (means >= 0.5).mean(0)),
    }


@claim(
    "most-heads-never-retrieve",
    WU,
    kind="heads",
    says="About half of the heads or more never copy a token of the answer.",
    reported="score exactly 0: 49.4 % (Yi-6B) to 73.2 % (LLaMA-2-13B) of heads [calc]",
    figures={
        "share": "share of heads that copy nothing in any prompt; more prompts can only lower it, and the paper has "
        "hundreds"
    },
    tests=(at_least("share", 0.45, 0.2),),
    call="as retrieval-heads-are-few",
)
def most_never_retrieve(subject: Subject) -> dict[str, Interval]:
    """Heads with a score of 0."""
    return {"share": statistic_interval(_copies(subject).T, lambda means: (means == 0).mean(0))}


def _masked(subject: Subject) -> dict[str, np.ndarray]:
    """Share of the answer right, by prompt: as it is, with the top 5 % uniform, and with random heads uniform."""

    def make() -> dict[str, np.ndarray]:
        scores = _copies(subject).mean(0)
        names = all_heads(subject.model)
        n_heads = int(subject.model.cfg.n_heads)
        count = max(1, round(MASKED * len(names)))
        order = np.argsort(-scores, kind="stable")[:count]
        top = [(int(at) // n_heads, int(at) % n_heads) for at in order]
        drawn = random_head_sets(names, top, draws=DRAWS, exclude=_above(scores, n_heads)).sets
        sets: dict[str, Sequence[Head]] = {"top": top} | {f"random {n}": one for n, one in enumerate(drawn)}
        found = {"clean": score_needles(subject.model, _needles(subject))["correct"].to_numpy()}
        prose = {}
        for name, heads in sets.items():
            change = AblateHeads(list(heads), "uniform")
            found[name] = score_needles(subject.model, _needles(subject), change)["correct"].to_numpy()
            prose[name] = change
        rises = subject.rises(prose, subject.few_texts)
        return found | {f"{name}, prose": rise for name, rise in rises.items()}

    found: dict[str, np.ndarray] = subject.once("masked", make)
    return found


def _above(scores: np.ndarray, n_heads: int) -> list[Head]:
    return [(int(at) // n_heads, int(at) % n_heads) for at in np.flatnonzero(scores >= RETRIEVAL)]


def _mean_of_random(found: dict[str, np.ndarray], end: str = "") -> np.ndarray:
    drawn = [
        values for name, values in found.items() if name.startswith("random") and name.endswith("prose") == bool(end)
    ]
    if not drawn:
        raise NotTestableError("There are too few other heads for a random control.")
    mean: np.ndarray = np.mean(drawn, 0)
    return mean


@claim(
    "masking-retrieval-heads-kills-the-needle",
    WU,
    kind="heads",
    says="Masking the top 5 % of retrieval heads (uniform attention) breaks needle tests; random heads do not.",
    reported="needle score below 50 for all models at K = 50 (about 5 %) [paper]",
    figures={
        "kept": "share of the answer right with the top 5 % masked / without",
        "random": "control: the same with as many random other heads of the same layers, mean of 2 draws",
    },
    tests=(at_most("kept", 0.5, 0.9), at_least("random", 0.8, 0.5)),
    call='score_needles(model, needles, AblateHeads(top, "uniform"))',
)
def masking_kills_the_needle(subject: Subject) -> dict[str, Interval]:
    """Ratios of means over prompts."""
    found = _masked(subject)
    pairs = {"kept": found["top"], "random": _mean_of_random(found)}
    return {
        name: statistic_interval(np.stack([found["clean"], each]), lambda means: means[1] / means[0])
        for name, each in pairs.items()
    }


@claim(
    "masking-retrieval-heads-spares-prose",
    HUA,
    kind="heads",
    says="The same masking hardly hurts tasks that need no retrieval.",
    reported="1.3B model, top 5 % masked: HellaSwag .572 -> .549 (random .552), GSM8K .182 -> .007 (random .127) "
    "[paper]",
    figures={
        "rise": "rise of the loss on prose with the top 5 % masked, nats a token",
        "random": "control: with as many random heads",
    },
    tests=(at_most("rise", 0.1, 0.5),),
    call='measure_effects(model, {"top": AblateHeads(top, "uniform")}, texts)',
)
def masking_spares_prose(subject: Subject) -> dict[str, Interval]:
    """Loss on short natural texts."""
    found = _masked(subject)
    return {"rise": paired_interval(found["top, prose"]), "random": paired_interval(_mean_of_random(found, "prose"))}


@claim(
    "few-heads-need-the-whole-cache",
    RAZOR,
    kind="heads",
    says="15 % of KV heads (14 % by induction, 1 % by echo) need the whole cache; the others can do with sinks, a "
    "window and one token that stands for the rest.",
    reported="compressing the 15 % costs 16 % accuracy, the other 85 % compressed the same way 1.5 % [2nd, table 1]",
    figures={
        "ratio": "rise of the loss on repeated random tokens: the other heads compressed / the chosen ones compressed",
        "chosen": "rise with the chosen heads compressed, nats a token",
        "others": "rise with all the others compressed",
    },
    tests=(at_most("ratio", 0.2, 1.0),),
    call="CompensatedWindow(32, sinks=4, heads=...) for pattern_scores(model)'s column razor",
)
def few_need_the_cache(subject: Subject) -> dict[str, Interval]:
    """Loss in the repeated blocks under either compression."""
    block = 64 if subject.model.cfg.n_layers > 4 else 40
    scores = pattern_scores(subject.model, block=block, repeats=3, n_sequences=6).to_dataframe()
    kept = sorted({(int(row.layer), int(row.kv_head)) for row in scores[scores["razor"] != ""].itertuples()})
    if not kept:
        raise NotTestableError("Its KV heads are so few that 15 % of them are none.")
    every = sorted({(int(row.layer), int(row.kv_head)) for row in scores.itertuples()})
    probe = repeated_tokens(subject.model, block=block, repeats=3, n_sequences=6, seed=7)
    size = probe.repeats.block
    parts = {"chosen": kept, "others": [each for each in every if each not in kept]}
    changes = {
        name: CompensatedWindow(size // 2, sinks=4, heads=heads_of_kv(subject.model, kv_heads))
        for name, kv_heads in parts.items()
    }
    rises = subject.rises(changes, probe.batch, start=probe.repeats.prefix + size)
    found = {name: paired_interval(rise) for name, rise in rises.items()}
    if found["chosen"].value < 0.05:
        raise NotTestableError("Compressing the chosen heads costs less than 0.05 nats: nothing to compare with.")
    columns = np.stack([rises["others"], rises["chosen"]])
    return {"ratio": statistic_interval(columns, lambda means: means[0] / means[1]), **found}


@claim(
    "active-in-one-domain-dormant-in-another",
    GUO,
    kind="heads",
    says="A head can be active on one kind of text and rest on the sink on another.",
    reported="Llama-2-7B L16H25: active on GitHub, dormant on Wikipedia (figure) [paper]",
    figures={
        "mass": "importance of position 0 in the head's dormant domain less that in its active one (prose and code); "
        "head chosen on half of the texts by the largest difference, measured on the other half",
        "loss": "cost of zeroing it in the active domain less that in the dormant one, nats a token, same half",
    },
    tests=(at_least("mass", 0.2, 0.0), at_least("loss", 0.01, 0.0)),
    call="find_active_dormant(model, {'prose': ..., 'code': ...})",
)
def active_in_one_domain(subject: Subject) -> dict[str, Interval]:
    """Two domains, two halves."""
    domains = builtin_domains(subject.model, n_sequences=2 * subject.sizes.effect_texts)
    if len(domains.names) < 2:
        raise NotTestableError("It knows only its own task.")
    mass = observe(subject.model, domains.batch).importance[..., 0]
    rows = {name: [i for i, of in enumerate(domains.of) if of == name] for name in domains.names}
    one, other = domains.names
    first = mass[:, rows[one][::2]].mean(1) - mass[:, rows[other][::2]].mean(1)
    layer, head = divmod(int(np.abs(first).argmax()), first.shape[1])
    dormant, active = (one, other) if first[layer, head] > 0 else (other, one)
    held = {name: index[1::2] for name, index in rows.items()}
    differences = mass[layer, held[dormant], head] - mass[layer, held[active], head]
    change = {"zero": AblateHeads([(int(layer), int(head))])}
    cost = {name: subject.rises(change, domains.batch.rows(held[name]))["zero"] for name in (active, dormant)}
    return {"mass": paired_interval(differences), "loss": paired_interval(cost[active] - cost[dormant])}


def _removal(subject: Subject, key: str, order: np.ndarray, share: float) -> dict[str, Interval]:
    """What zeroing the first heads of an order costs, beside random heads of the same layers."""
    n_heads = int(subject.model.cfg.n_heads)
    count = max(1, round(share * order.size))
    tested = [(int(at) // n_heads, int(at) % n_heads) for at in order[:count]]
    drawn = random_head_sets(all_heads(subject.model), tested, draws=DRAWS).sets
    changes = {key: AblateHeads(tested)} | {f"random {n}": AblateHeads(list(one)) for n, one in enumerate(drawn)}
    rises = subject.rises(changes, subject.few_texts)
    found = {key: paired_interval(rises.pop(key))}
    return found | ({"random": paired_interval(np.mean(list(rises.values()), 0))} if rises else {})


@claim(
    "resting-heads-can-go",
    GUO,
    kind="heads",
    says="A head that rests on the sink does nothing: taking it away leaves the loss as it was.",
    reported="one-layer model: bigram loss 2.2299 -> 2.2299 without attention, copies 5.5e-6 -> 7.69 [pt]",
    figures={
        "rise": "rise of the loss with the 5 % of heads that give most attention to position 0 at zero, nats a token",
        "random": "control: as many random other heads of the same layers, mean of 2 draws",
    },
    tests=(at_most("rise", 0.05, 0.5),),
    call='measure_effects(model, {"resting": AblateHeads(heads)}, batch)',
)
def resting_heads_can_go(subject: Subject) -> dict[str, Interval]:
    """Zero ablation of the strongest sink heads."""
    mass = subject.natural.importance[..., 0].mean(1)
    return _removal(subject, "rise", np.argsort(-mass.ravel(), kind="stable"), MASKED)


@claim(
    "quiet-heads-can-go",
    SANDOVAL,
    kind="heads",
    says="More than 12 % of heads write so little, next to the others of their layer, that they can be zeroed.",
    reported="over 12 % of heads dormant by the norm of their output [T]",
    figures={
        "rise": "rise of the loss with the 12 % of heads of smallest |W_O z| over the layer's mean at zero, nats a "
        "token",
        "random": "control: as many random other heads of the same layers, mean of 2 draws",
    },
    tests=(at_most("rise", 0.05, 0.5),),
    call="find_active_dormant(model).to_dataframe(): output norms; AblateHeads(heads)",
)
def quiet_heads_can_go(subject: Subject) -> dict[str, Interval]:
    """Zero ablation of the quietest heads."""
    wrote = subject.natural.wrote.mean(1)
    quiet = wrote / wrote.mean(1, keepdims=True)
    return _removal(subject, "rise", np.argsort(quiet.ravel(), kind="stable"), DORMANT)
