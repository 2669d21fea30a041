"""Do kvpress and sinklens keep the same keys, where kvpress' rule is the paper's, and predict the same afterwards?

kvpress needs an older transformers than sinklens, so each runs in its own environment. The first makes two tiny random
Llama models (one with as many KV heads as heads, one with half of them), compresses a prompt with each press, notes the
kept keys of every layer and KV head and the logits of the tokens after it; the second runs the policies on the same
models and tokens and writes kvpress_oracle.{csv,md} to --out.

    python -m venv kv && kv/bin/pip install kvpress
    kv/bin/python probes/kvpress_oracle.py presses --work /tmp/oracle
    python probes/kvpress_oracle.py policies --work /tmp/oracle
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROMPT, AFTER, KEPT, SINKS, WINDOW, POOL, HEADS = 64, 8, 32, 4, 8, 5, 4
MODELS = {"as many KV heads as heads": HEADS, "two heads for each KV head": HEADS // 2}
SAME = {
    "StreamingLLM": "the same keys are meant; kvpress cuts once and keeps the old positions",
    "SnapKV": "the same rule where every head has its own keys; with shared ones kvpress averages over the group",
    "TOVA": "kvpress keeps the last token and cuts once at the prompt's end, the paper after every token",
    "H2O": "kvpress' ObservedAttention divides by the rows that could see a key and cuts once; the paper sums, and "
    "cuts after every token",
}


def presses(work: Path) -> None:
    """In kvpress' environment: models, kept keys, logits."""
    from kvpress import ObservedAttentionPress, SnapKVPress, StreamingLLMPress, TOVAPress
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    ids = torch.randint(3, 250, (1, PROMPT + AFTER), generator=torch.Generator().manual_seed(0))
    ratio = 1 - KEPT / PROMPT
    made = {
        "StreamingLLM": StreamingLLMPress(ratio, n_sink=SINKS),
        "SnapKV": SnapKVPress(ratio, window_size=WINDOW, kernel_size=POOL),
        "TOVA": TOVAPress(ratio),
        "H2O": ObservedAttentionPress(ratio),
    }
    for number, kv_heads in enumerate(MODELS.values()):
        torch.manual_seed(number)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            max_position_embeddings=256,
            initializer_range=0.25,
            attn_implementation="eager",
        )
        model: Any = LlamaForCausalLM(config).eval()
        folder = work / f"model{number}"
        model.save_pretrained(folder)
        found: dict[str, np.ndarray] = {"ids": ids.numpy()}
        for rule, press in made.items():
            kept: list[np.ndarray] = []
            score = press.score

            def noted(*arguments: Any, score: Any = score, kept: Any = kept, **more: Any) -> Any:
                values = score(*arguments, **more)
                kept.append(np.sort(values.topk(KEPT, -1).indices[0].numpy(), -1))
                return values

            press.score = noted
            cache = DynamicCache()
            with torch.no_grad():
                with press(model):
                    model(ids[:, :PROMPT], past_key_values=cache, output_attentions=rule == "H2O")
                logits = []
                for at in range(PROMPT, PROMPT + AFTER):  # alone, so that no mask has to know what was cut
                    place = torch.tensor([[at]])
                    logits.append(model(ids[:, at : at + 1], past_key_values=cache, position_ids=place).logits[0])
            found[f"{rule}.kept"], found[f"{rule}.logits"] = np.stack(kept), torch.cat(logits).numpy()
        np.savez(work / f"presses{number}.npz", **found)
    from importlib.metadata import version

    versions = {name: version(name) for name in ("kvpress", "transformers", "torch")}
    (work / "versions.json").write_text(json.dumps(versions))


def policies(work: Path, out: Path) -> None:
    """In sinklens' environment: the same with policies, and the table."""
    import pandas as pd
    from transformers import AutoModelForCausalLM

    from sinklens.models import as_bridge
    from sinklens.policies import Account, Policy
    from sinklens.policies.h2o import H2O
    from sinklens.policies.sink_window import SinkWindow
    from sinklens.policies.snap_kv import SnapKV
    from sinklens.policies.tova import TOVA
    from sinklens.results.files import write_atomically

    class FirstRow(Account):
        """What the row after the prompt reads, by layer."""

        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[int, np.ndarray] = {}

        def add(self, view: Any, kept: Any, entries: Any, cached: Any) -> None:
            at = int((view.rows == PROMPT).nonzero()[0])
            self.kept[view.layer] = kept[:, at, :PROMPT].numpy()

    rules: dict[str, Policy] = {
        "StreamingLLM": SinkWindow(SINKS, KEPT - SINKS, evict_after=True),
        "SnapKV": SnapKV(KEPT, window=WINDOW, pool=POOL, prompt=PROMPT),
        "TOVA": TOVA(KEPT),
        "H2O": H2O(KEPT // 2, KEPT // 2),
    }
    rows = []
    for number, (name, kv_heads) in enumerate(MODELS.items()):
        held = np.load(work / f"presses{number}.npz")
        bridge = as_bridge(AutoModelForCausalLM.from_pretrained(work / f"model{number}", dtype=torch.float32))
        ids = torch.from_numpy(held["ids"])
        for rule, policy in rules.items():
            account = FirstRow()
            with torch.no_grad(), policy.counted(account)(bridge):
                logits = bridge(ids)[0, PROMPT:].numpy()
            shares = []
            for layer, kept in account.kept.items():
                for head in range(HEADS):
                    theirs = set(held[f"{rule}.kept"][layer][head * kv_heads // HEADS].tolist())
                    ours = set(np.flatnonzero(kept[head]).tolist())
                    shares.append(len(theirs & ours) / len(theirs | ours))
            apart = float(np.abs(logits - held[f"{rule}.logits"]).max())
            row = {"rule": rule, "model": name, "same_keys": float(np.mean(shares)), "least": min(shares)}
            rows.append(row | {"logits_apart": apart, "why": SAME[rule]})
    table = pd.DataFrame(rows)
    versions = json.loads((work / "versions.json").read_text("utf-8"))
    lines = ["| rule | model | same keys | worst head | logits apart |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        numbers = f"{row['same_keys']:.3f} | {row['least']:.3f} | {row['logits_apart']:.1e}"
        lines.append(f"| {row['rule']} | {row['model']} | {numbers} |")
    text = [
        "# kvpress beside sinklens",
        f"Written by `python probes/kvpress_oracle.py`. {', '.join(f'{k} {v}' for k, v in versions.items())}. Random "
        f"Llama models of 3 layers and {HEADS} heads, a prompt of {PROMPT} tokens cut to {KEPT} keys, {AFTER} tokens "
        "after it. Same keys: Jaccard index of what the first row after the prompt reads, mean over layers and heads. "
        "Logits apart: largest difference on the rows after the prompt.",
        "\n".join(lines),
        "\n".join(f"- **{rule}**: {why}." for rule, why in SAME.items()),
        "StreamingLLM's later rows differ because its window slides here and stays there.",
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "kvpress_oracle.csv", table.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(out / "kvpress_oracle.md", ("\n\n".join(text) + "\n").encode())
    print(table.drop(columns="why").to_string())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("presses", "policies"), help="presses: in kvpress' environment; then policies")
    parser.add_argument("--work", type=Path, required=True, help="folder for what one step leaves to the other")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.step == "presses":
        presses(options.work)
    else:
        policies(options.work, options.out)


if __name__ == "__main__":
    main()
