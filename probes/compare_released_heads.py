"""Do two published ways of finding retrieval heads pick the same heads?

Sets a released table of retrieval scores (nightdessert/Retrieval_Head, head_score/*.json) beside released DuoAttention
gates of the same or a related model (mit-han-lab/duo-attention, attn_patterns/.../full_attention_heads.tsv), without
running any model: bands of the scores, the highest heads, how many of the retrieval heads are among the gates above a
quantile, the rank correlation with its interval, and for each number what chance gives and how many heads tie. Where
query heads share KV heads the comparison is over KV heads, a group's score being its largest. Writes
NAME.{html,csv,md} into the output folder, and a PNG where Chrome or Chromium is installed.

Download one file of each first, then:

    python probes/compare_released_heads.py --retrieval llama-2-7b-80k.json --gates Llama-2-7B-32K-Instruct.tsv
    python probes/compare_released_heads.py --retrieval Mistral-7B-v0.2-hf.json --gates Mistral.tsv --name mistral
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from sinklens.detectors.retrieval_bands import BANDS
from sinklens.plots import head_roles, save_figure
from sinklens.studies import Roles
from sinklens.studies.head_roles.gates_file import Gates
from sinklens.studies.head_roles.retrieval_file import RetrievalRuns
from sinklens.studies.head_roles.rules import XIAO, Rule


def compare(runs: RetrievalRuns, gates: Gates, share: float | None) -> Roles:
    """Both tables as roles of one model."""
    layers, heads = runs.shape
    rules = [] if share is None else [Rule("duo", "streaming_gate", f"{XIAO}: quantile", share=share)]
    model = {"name": f"{runs.name} and {gates.name}", "n_layers": layers, "n_heads": heads}
    model["n_kv_heads"] = gates.values.shape[1]
    return Roles.of({"retrieval": runs.scores(), "duo": gates.scores(heads)}, model=model, rules=rules)


def facts(runs: RetrievalRuns, gates: Gates, roles: Roles) -> list[tuple[str, str]]:
    """What the tables say, as rows of name and value."""
    table = roles.to_dataframe()
    bands = table["retrieval_band"].value_counts()
    values = gates.values.clip(0, 1)
    top = table.nlargest(10, "retrieval")
    row = roles.agreement().iloc[0]
    rule = roles.criteria().set_index("role").loc["duo"]
    what = "KV heads" if row["unit"] == "kv_head" else "heads"
    return [
        ("kept runs", f"{runs.n_runs}"),
        ("largest score of one run", f"{max(max(scores) for scores in runs.runs.values()):.3f}"),
        *((f"heads with score {band}", f"{bands.get(band, 0)} of {len(table)}") for band in BANDS),
        ("heads with score >= 0.1", f"{int((table['retrieval'] >= 0.1).sum())} of {len(table)}"),
        ("highest", ", ".join(f"{r.layer}-{r.head} {r.retrieval:.3f}" for r in top.itertuples())),
        ("gates", f"{values.shape[0]} x {values.shape[1]}, mean {values.mean():.3f}"),
        ("gates above 0.5 / exactly 0 / exactly 1", _shares(values)),
        ("gates labelled", f"{rule['rule']}: >= {rule['cut']:.4f}, {rule['n_at_cut']} {what} tie with it"),
        (
            "labelled by both",
            f"{row['n_both']:.0f} of {row['n_first']:.0f} and {row['n_second']:.0f}, of {row['n']} {what}",
        ),
        ("by chance", f"{row['both_chance']:.2f} (p = {row['p']:.1g})"),
        ("by chance within layers", f"{row['both_in_layers']:.2f} (p = {row['p_in_layers']:.1g})"),
        ("Jaccard", f"{row['jaccard']:.3f}, {row['jaccard_chance']:.3f} by chance"),
        ("Spearman", f"{row['spearman']:.3f} [{row['spearman_low']:.3f}, {row['spearman_high']:.3f}]"),
        ("share of tied scores", f"retrieval {row['tied_first']:.3f}, gates {row['tied_second']:.3f}"),
        (
            f"among the top {row['top']:.0f} by each score",
            f"{row['top_both']:.1f} shared, {row['top_chance']:.1f} by chance; {row['top_tied_second']:.0f} gates too "
            "many tie for the last places",
        ),
        ("gates rank retrieval heads above others", f"AUC {row['auc_second']:.3f}"),
    ]


def _shares(values: np.ndarray) -> str:
    return " / ".join(f"{share:.1%}" for share in ((values > 0.5).mean(), (values == 0).mean(), (values == 1).mean()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrieval", type=Path, required=True, metavar="FILE", help="head_score .json")
    parser.add_argument(
        "--gates", type=Path, required=True, metavar="FILE", help="full_attention_heads.tsv, or its folder"
    )
    parser.add_argument(
        "--share",
        type=float,
        help="share of gates that count as retrieval heads; default: what the authors deploy, 0.5 with grouped-query "
        "attention and 0.25 without",
    )
    parser.add_argument("--name", default="compare_released_heads", help="of the files written")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    runs, gates = RetrievalRuns.read(options.retrieval), Gates.read(options.gates)
    roles = compare(runs, gates, options.share)
    rows = facts(runs, gates, roles)
    lines = [f"# {runs.name} and {gates.name}", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", *(f"- {sentence}" for sentence in roles.verdict)]
    text = "\n".join(lines) + "\n"
    print(text)
    stem = options.out / options.name
    options.out.mkdir(parents=True, exist_ok=True)
    fig = head_roles(roles.to_dataframe(), roles.criteria(), roles.agreement())
    table = pd.DataFrame(rows, columns=["what", "value"])
    written = save_figure(fig, stem.with_suffix(".png"), table, provenance=roles.meta, width=1100)
    stem.with_suffix(".md").write_text(text, "utf-8")
    print("Wrote " + ", ".join(str(path) for path in [*written, stem.with_suffix(".md")]))


if __name__ == "__main__":
    main()
