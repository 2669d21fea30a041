"""Do the published claims about sinks, massive activations and heads hold on real language models?

Measures every claim on SmolLM2-135M-Instruct and Gemma-3-270M (both dequantised from Q4) and on the built-in models,
with its null or control and a 95 % bootstrap interval over texts, and judges it by a rule that stands in code beside
the claim. Writes figures/claims.md (the page), claims.csv (every figure) and claims.png (the verdicts). Finished cells
are kept in --work and not measured again: interrupted? Give the same command again. A model that is missing is
"not measured".

    python probes/claims.py                                 everything: about 40 minutes on two idle cores
    python probes/claims.py --quick --models tiny-llama     a minute
    python probes/claims.py --claims value-drain,super-weight --models smollm2 --out runs
    python probes/claims.py --models mine=path/to/model --out runs
    python probes/claims.py --list
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from published.page import page, table
from published.picture import picture
from published.study import CLAIMS, finished, run
from published.subject import QUICK, Sizes

from sinklens.errors import SinkLensError
from sinklens.models.real import REAL_MODELS, real_model_path
from sinklens.plots import save_figure
from sinklens.results.files import write_atomically
from sinklens.results.pace import duration

ABOUT = {
    "smollm2": "SmolLM2-135M-Instruct, 30 layers of 9 heads, dequantised from Q4_1; its tokenizer adds no BOS",
    "gemma3": "Gemma-3-270M (base), 18 layers of 4 heads, dequantised from Q4_K_M; BOS first",
    "tiny-llama": "built in, 4 layers of 4 heads, 1 M parameters; BOS first",
    "bb-3l": "built in, 3 layers of one head, trained on Bigram-Backcopy; BOS first",
    "induction-2l": "built in, 2 layers of 4 heads, attention only, trained to find needles",
}


def find(names: list[str]) -> dict[str, str]:
    """What ``load`` takes for each model that is there."""
    found = {}
    for name in names:
        label, _, path = name.partition("=")
        if not path and label in REAL_MODELS:
            try:
                path = str(real_model_path(label))
            except SinkLensError as error:
                print(f"{label} is not measured: {error}", file=sys.stderr)
                continue
        found[label] = path or label
    return found


def say(text: str, done: int, total: int, left: float) -> None:
    """One line a cell."""
    rest = "" if math.isnan(left) else f", about {duration(left)} left"
    print(f"{done}/{total} {text}{rest}", file=sys.stderr, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(ABOUT), help="names with commas between, or NAME=PATH")
    parser.add_argument("--claims", default=",".join(CLAIMS), help="keys with commas between; --list shows them")
    parser.add_argument("--quick", action="store_true", help="a few texts of each kind")
    parser.add_argument("--finished", action="store_true", help="measure nothing: write what --work holds")
    parser.add_argument("--list", action="store_true", help="print the claims and stop")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="folder of the finished cells")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    if options.list:
        for claim in CLAIMS.values():
            print(f"{claim.key:42}{claim.source.split(',')[0]}: {claim.says}")
        return
    names, keys = options.models.split(","), options.claims.split(",")
    unknown = [key for key in keys if key not in CLAIMS]
    if unknown:
        raise SystemExit(f"Error: no claim {', '.join(unknown)}; --list shows all {len(CLAIMS)}.")
    torch.set_num_threads(options.threads)
    labels = [name.partition("=")[0] for name in names]
    sizes = QUICK if options.quick else Sizes()
    try:
        if options.finished:
            cells = finished(options.work, labels, keys, sizes)
        else:
            cells = list(run(options.work, find(names), keys, sizes, say))
    except SinkLensError as error:
        raise SystemExit(f"Error: {error}") from None
    results = table(cells, labels, keys)
    header = [
        "Written by `python probes/claims.py"
        + (" --quick" if options.quick else "")
        + "`. Real models are dequantised from Q4: their figures hold for these files, not for the original weights. "
        f"Measured on {sizes}. Texts: built-in Shakespeare for the real models and `tiny-llama`, the own task of the "
        "other built-in ones, at most as long as the model's context. Brackets: 95 % bootstrap intervals over texts "
        "(prompts for needles, tokens for `any-first-token-spikes`); n is how many of them the first figure rests on. "
        "Where n is small and texts differ, as for windows, the interval is wide and the mean is that of these texts. "
        f"*quick*: measured with `--quick`, on {QUICK}.",
        "Figures of papers are marked as they were read: [T] transcription or notes, [2nd] second hand, [paper] text, "
        "[abstract], [code] the authors' code, [logs], [pt] and [calc] from files that the authors ship.",
    ]
    about = {label: ABOUT.get(label, "given on the command line") for label in labels}
    stem = options.out / "claims"
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(stem.with_suffix(".csv"), results.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(stem.with_suffix(".md"), page(results, about, header).encode())
    save_figure(picture(results), stem.with_suffix(".png"))
    once = results.drop_duplicates(["claim", "model"])
    print(once.pivot(index="claim", columns="model", values="verdict").loc[keys, labels].to_string())
    print(f"Wrote {stem}.md, .csv, .html and, with a browser, .png")


if __name__ == "__main__":
    main()
