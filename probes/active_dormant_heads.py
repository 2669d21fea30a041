"""Is a head of a small language model at work on one kind of text or token, and dormant on another?

Every head is judged on prose and code, and within each on blanks (line breaks, indentation), symbols and words. To keep
chance out, heads are found on one half of the sequences and tested on the other. How much the answer depends on the
thresholds, and whether the method finds a head that is known to be active-dormant (a model trained on Bigram-Backcopy),
stands beside it. Writes figures/active_dormant_heads.{csv,md,html} and, with a browser, a PNG.

    python probes/active_dormant_heads.py
    python probes/active_dormant_heads.py path/to/llama --max-tokens 128 --out runs
"""

import argparse
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.detectors.active_dormant import head_label, state_by_ablation, state_by_mass
from sinklens.detectors.dormancy import Thresholds
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.models import load
from sinklens.models.tokens import TokenBatch
from sinklens.plots import active_dormant as active_dormant_figure
from sinklens.plots import save_figure
from sinklens.results.files import write_atomically
from sinklens.results.markdown import markdown_rows
from sinklens.studies import ActiveDormant, find_active_dormant
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.census.domains import Domains

KEYS = ["layer", "head", "domain", "class", "other_domain", "other_class"]
DORMANT_MASSES, EFFECTS = (0.3, 0.4, 0.5, 0.6), (0.01, 0.02, 0.03, 0.05)
DEFAULT, SINK = Thresholds(effect=0.03), Thresholds(dormant_mass=0.3, effect=0.03)
CONTROL = "bb-3l"


def token_classes(model: TransformerBridge) -> dict[str, list[int]]:
    """Ids of blanks and of symbols (no letter or digit); everything else is "other": words."""
    found: dict[str, list[int]] = {"blank": [], "symbol": []}
    for token in range(len(model.tokenizer)):
        text = model.tokenizer.decode([token])
        if text and not text.strip():
            found["blank"].append(token)
        elif not re.search(r"\w", text):
            found["symbol"].append(token)
    return found


def halves(domains: Domains) -> list[dict[str, TokenBatch]]:
    """Every other sequence of each domain, and the rest."""
    out = []
    for half in (0, 1):
        rows = {name: [i for i, of in enumerate(domains.of) if of == name][half::2] for name in domains.names}
        out.append({name: domains.batch.rows(index) for name, index in rows.items()})
    return out


def judged(found: ActiveDormant, thresholds: Thresholds) -> pd.DataFrame:
    """The comparisons of a result that other thresholds call active-dormant."""
    labels = {}
    for row in found.to_dataframe().to_dict("records"):
        mass = state_by_mass(row["mass"], row["null"], thresholds)
        effect = state_by_ablation(row["delta_low"], row["delta_high"], float(thresholds.effect or math.nan))
        labels[row["layer"], row["head"], row["domain"], row["class"]] = head_label(mass, effect)
    table = found.contrasts()
    kept = []
    for row in table.to_dict("records"):
        head = (row["layer"], row["head"])
        both = {labels[*head, row[f"{end}domain"], row[f"{end}class"]] for end in ("", "other_")}
        apart = all(
            row[f"{name}_difference_low"] > 0 or row[f"{name}_difference_high"] < 0 for name in ("mass", "delta")
        )
        kept.append(both == {"active", "dormant"} and apart)
    return table[kept]


def confirmed(pair: list[ActiveDormant], thresholds: Thresholds) -> pd.DataFrame:
    """Comparisons that are active-dormant on the first half, with the other half's figures and whether it agrees."""
    first, second = (judged(found, thresholds) for found in pair)
    there = pair[1].contrasts().set_index(KEYS)
    table = there.loc[pd.MultiIndex.from_frame(first[KEYS])].reset_index() if len(first) else first
    held = set(map(tuple, second[KEYS].to_numpy().tolist()))
    return table.assign(holds=[tuple(row) in held for row in table[KEYS].to_numpy().tolist()])


def between_domains(found: ActiveDormant) -> str:
    """The heads whose loss differs most."""
    heads, contrasts = found.to_dataframe(), found.contrasts()
    order = contrasts["delta_difference"].abs().sort_values(ascending=False).index
    one, other = list(dict.fromkeys(heads["domain"]))[:2]
    rows = []
    for row in contrasts.loc[order].head(8).to_dict("records"):
        own = heads[(heads["layer"] == row["layer"]) & (heads["head"] == row["head"])].set_index("domain")
        cells = [_name(row)]
        for domain in (one, other):
            cells.append(f"{own.loc[domain, 'label']} ({own.loc[domain, 'mass']:.2f}, {own.loc[domain, 'delta']:+.3f})")
        rows.append([*cells, _span(row, "mass_difference"), _span(row, "delta_difference")])
    titles = ["head", f"{one} (mass, loss without it)", f"{other} (mass, loss without it)"]
    return markdown_rows([*titles, "mass: first - second", "loss without it: first - second"], rows)


def sensitivity(found: ActiveDormant) -> str:
    """Active-dormant heads by the two thresholds that matter."""
    rows = []
    for mass in DORMANT_MASSES:
        cells = [f"{mass:g}"]
        for effect in EFFECTS:
            table = judged(found, Thresholds(dormant_mass=mass, effect=effect))
            cells.append(", ".join(_name(row) for row in table.to_dict("records")) or "none")
        rows.append(cells)
    return markdown_rows(["dormant from a mass of", *(f"effect {effect:g} nats" for effect in EFFECTS)], rows)


def tested(table: pd.DataFrame) -> str:
    """What was found on one half, with the other half's figures."""
    rows = [
        [
            _name(row),
            _group(row["domain"], row["class"]),
            _group(row["other_domain"], row["other_class"]),
            _span(row, "mass_difference"),
            _span(row, "delta_difference"),
            "yes" if row["holds"] else "no",
        ]
        for row in table.to_dict("records")
    ]
    count = f"Found on one half of the sequences: {len(table)}; of these hold on the other half, by the same rule: "
    count += f"{int(table['holds'].sum())}."
    if not rows:
        return count
    titles = ["head", "first", "second", "mass (other half)", "loss without it (other half)", "holds"]
    return f"{count}\n\n{markdown_rows(titles, rows)}"


def markdown(name: str, by_domain: ActiveDormant, by_class: ActiveDormant, tests: list[str], control: str) -> str:
    """All of it."""
    tokens = by_domain.meta["tokens"]
    given = by_domain.meta["settings"]["thresholds"]  # the effect is fixed here, so its spread plays no part
    thresholds = ", ".join(f"{key} {value}" for key, value in given.items() if key != "spread")
    agreement = [
        [*(str(row[key]).removeprefix("by_") for key in ("criterion", "other")), str(row["n"])]
        + ["n/a" if row[key] != row[key] else f"{row[key]:z.2f}" for key in ("agreement", "kappa")]
        for row in by_class.agreement().to_dict("records")
    ]
    parts = [
        f"# Active and dormant heads of {name}",
        f"Written by `python probes/active_dormant_heads.py`. {tokens['n_sequences']} sequences of "
        f"{tokens['max_length']} tokens: {by_domain.meta['source']}. {tokens['bos']['statement']} Thresholds unless "
        f"said otherwise: {thresholds}. Intervals: 95 % bootstrap over sequences. *Active*: removing the head costs "
        "loss, and it does not rest on the sink. *Dormant*: it rests on the sink, and its removal costs nothing. "
        "*Idle*: neither. *Loaded sink*: both.",
        "## Between domains",
        *by_domain.verdict,
        between_domains(by_domain),
        "## With other thresholds",
        "0.3 is the eps that sink rates are counted with (Gu et al., arXiv 2410.10781). A head counts that is active "
        "on one domain and dormant on the other with both intervals on one side of 0.",
        sensitivity(by_domain),
        f"Dormant from {SINK.dormant_mass}, effect {SINK.effect}. {tests[0]}",
        "## Between token classes",
        *by_class.verdict,
        f"With the first thresholds. {tests[1]}",
        f"Dormant from {SINK.dormant_mass}. {tests[2]}",
        f"## A head that is known to be active-dormant: {CONTROL}",
        control,
        "## Do the criteria agree?",
        markdown_rows(["criterion", "other", "both decide", "agree", "kappa"], agreement),
    ]
    return "\n\n".join(parts) + "\n"


def _name(row: dict[Any, Any]) -> str:
    return f"L{row['layer']}H{row['head']}"


def _group(domain: str, name: str) -> str:
    return domain if name == "all" else f"{domain}: {'word' if name == 'other' else name}"


def _span(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-llama", help="built-in name, directory or hub id")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-sequences", type=int, default=200, help="of each domain")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    model = load(options.model)
    domains = builtin_domains(model, length=options.max_tokens, n_sequences=options.max_sequences)
    texts = {name: domains.batch.rows([i for i, of in enumerate(domains.of) if of == name]) for name in domains.names}
    classes = token_classes(model)
    by_domain, by_class = (
        find_active_dormant(model, texts, classes=each, thresholds=DEFAULT, max_sequences=None)
        for each in (None, classes)
    )
    by_domain.meta["source"] = domains.source
    pairs = {
        kind: [
            find_active_dormant(model, half, classes=each, thresholds=DEFAULT, max_sequences=None)
            for half in halves(domains)
        ]
        for kind, each in (("domain", None), ("class", classes))
    }
    tests = [
        tested(confirmed(pairs[kind], thresholds))
        for kind, thresholds in (("domain", SINK), ("class", DEFAULT), ("class", SINK))
    ]
    control = find_active_dormant(load(CONTROL), classes={"trigger": BigramBackcopy().trigger_ids}, thresholds=DEFAULT)
    stem = options.out / "active_dormant_heads"
    table = pd.concat([by_domain.to_dataframe(), by_class.to_dataframe()], ignore_index=True)
    save_figure(active_dormant_figure(table), stem.with_suffix(".png"), table.drop(columns="evidence"), width=1200)
    text = markdown(options.model, by_domain, by_class, tests, " ".join(control.verdict))
    write_atomically(stem.with_suffix(".md"), text.encode())
    print(*itertools.chain(by_domain.verdict, by_class.verdict), f"Wrote {stem}.html, .csv and .md", sep="\n")


if __name__ == "__main__":
    main()
