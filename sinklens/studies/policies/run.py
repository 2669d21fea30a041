"""Compares policies on one model: a pass of full attention, one that only looks, and one under each rule."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sinklens.arguments import checked
from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError
from sinklens.evidence.effects import Reference
from sinklens.interventions.base import Composition
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.sequences import choose_sequences
from sinklens.policies import Account, Policy, make_policy
from sinklens.policies.full import Full
from sinklens.policies.registry import budgeted
from sinklens.results import RunFolder
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.ablation.recipe import model_identity
from sinklens.studies.needles.needle_set import NeedleSet
from sinklens.studies.needles.run import check_instances
from sinklens.studies.policies.needle_rows import METRICS as NEEDLE_METRICS
from sinklens.studies.policies.needle_rows import needle_batches, read_needles
from sinklens.studies.policies.needle_summary import CLEAN, summarise_needles
from sinklens.studies.policies.result import FORMAT, WORK, PolicyComparison, summarise_policies
from sinklens.studies.policies.role_fields import read_role_fields

LOOK = 0.5
"""What a rule's choice alone costs, in passes of the model; in one pass all rules only look."""
METRICS = {
    "kept": "keys that a head reads for a row, mean over rows from the prompt's end on",
    "mass": "share of the attention that a row would pay to the kept keys without the rule in this layer",
    "mass_post_hoc": "the same on the unchanged model",
    "held": "keys that a cache holds for a KV head: those that its query heads keep where dropped keys are gone for "
    "good, else all in sight, since any may be read again",
    "delta_loss": "mean -log p of the next token under the rule minus with full attention, in nats, the same rows",
    "kl": "mean KL(full || rule) over the same rows, in nats",
    "top1_agreement": "share of those rows where the likeliest token stays the likeliest",
}


@checked
@usual_torch()
@torch.no_grad()
def compare_policies(
    model: AnyModel,
    policies: Mapping[str, Policy] | Sequence[str] | str,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    budgets: Sequence[float] = (),
    prompt: int | None = None,
    needles: NeedleSet | None = None,
    allow_leak: bool = False,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int | None = 20,
    out: str | Path | None = None,
    restart: bool = False,
    batch_size: int = 4,
    seed: int = 0,
    source: str | None = None,
    progress: Progress = SILENT,
) -> PolicyComparison:
    """What each rule reads, what it keeps of the attention, and what that costs, on the same rows of the same texts.

    ::

        found = compare_policies(model, ["sink_window", "h2o", "tova"], texts, budgets=[0.1, 0.2])
        found.verdict

    Only rows from the prompt's end on are counted, for every rule, because some choose by what the whole prompt looks
    at.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        policies: By label, or texts for :func:`~sinklens.policies.make_policy`.
        texts: One or several texts, a sequence each; default: a built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, or ids.
        budgets: Keys a row, or below 1 a share of the longest sequence, for policies given as text without fields; each
            of those runs at every budget. For policies as objects: the one that they were made for, if any.
        prompt: Tokens of each text that are its prompt; default: half of the shortest.
        needles: Prompts with a needle (:func:`~sinklens.studies.make_needles`) that every rule answers too: rank and
            probability of the answer, and the attention to the needle that is left. The rules are those of the texts,
            with as many keys.
        allow_leak: Run rules of scope "global" as well; their loss means nothing and is marked.
        bos: As for :func:`sinklens.scan`, like ``max_tokens`` and ``max_sequences``.
        max_tokens: Longest sequence; default: the model's context.
        max_sequences: Draw at most this many sequences from all over the texts.
        out: Directory for the work and the result; a killed comparison goes on there.
        restart: Throw away what ``out`` holds of another or an unfinished comparison.
        batch_size: Sequences in one forward pass.
        seed: Of corpus and bootstrap.
        source: What to call the texts in the provenance.
        progress: Told in forward passes of one sequence.

    Raises:
        InputError: No policy, two of one label, a rule that leaks, or a prompt as long as a text.
        ResultError: ``out`` holds something else.

    Cost: for every batch a clean pass, one in which all rules only look, and one pass for each rule; for every needle a
    clean pass and one for each rule.
    """
    folder = None if out is None else RunFolder(Path(out), FORMAT, WORK)
    if folder is not None:
        folder.check()  # before the work, not after it
    bridge = as_bridge(model)
    batch, source = choose_sequences(
        bridge, texts, tokens, bos=bos, max_tokens=max_tokens, max_sequences=max_sequences, seed=seed, source=source
    )
    prompt = max(1, int(batch.lengths.min()) // 2) if prompt is None else prompt
    if not 1 <= prompt < int(batch.lengths.min()) - 1:
        raise InputError(f"prompt must leave tokens to predict in texts of {int(batch.lengths.min())}, got {prompt}.")
    labelled = _labelled(policies, budgets, int(batch.lengths.max()), prompt)
    named = {label: policy for label, (policy, _) in labelled.items()}
    leaks = [label for label, policy in named.items() if policy.scope == "global"]
    if leaks and not allow_leak:
        raise InputError(
            f"{', '.join(leaks)} chooses by what comes later in the text, so its loss would mean nothing; leave it "
            "out, or run it marked with allow_leak=True (--allow-leak)."
        )
    for policy in named.values():
        policy.check(bridge)
    described = {label: json.loads(policy.to_json())["intervention"] for label, policy in named.items()}
    spec = {
        "model": model_identity(bridge),
        "texts": hashlib.sha256(batch.ids.numpy().tobytes() + batch.real.numpy().tobytes()).hexdigest()[:16],
        "policies": described,
        "budgets": [str(keys) for _, keys in labelled.values()],
        "prompt": prompt,
        "batch_size": batch_size,
        "seed": seed,
    }
    if needles is not None:
        check_instances(bridge, needles.instances)
        spec["needles"] = needles.digest
    run = _Run(bridge, batch, named, prompt, batch_size, needles, progress)
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder.locked())
            if folder.finished and not restart:
                found = PolicyComparison.load(folder.directory)
                folder.begin(spec, held=found.meta["spec"])
                return found
            folder.note(folder.begin(spec, restart))
        parts = run.all_parts(folder)
        names = dict.fromkeys(name for part in parts for name in part)
        tables = {name: pd.concat([part[name] for part in parts if name in part], ignore_index=True) for name in names}
        order = {label: at for at, label in enumerate(named)}
        by_order = tables["sequences"].sort_values(["policy", "sequence"], key=lambda c: c.map(order).fillna(c))
        tables["sequences"] = by_order.reset_index(drop=True)
        tables["heads"] = _pooled(tables["heads"], ["policy", "layer", "head"])
        tables["caches"] = _pooled(tables["caches"], ["policy", "layer", "kv_head"])
        claims = pd.DataFrame(
            [
                {
                    "policy": label,
                    "rule": label if math.isnan(keys) or isinstance(policies, Mapping) else policy.name,
                    "budget": keys,
                    "scope": policy.scope,
                    "group": policy.group,
                    "untrained": policy.untrained,
                }
                for label, (policy, keys) in labelled.items()
            ]
        )
        summary = summarise_policies(tables["sequences"], tables["heads"], tables["caches"], claims, seed)
        if needles is not None:
            order[CLEAN] = -1
            by_order = tables["needles"].sort_values(["policy", "instance"], key=lambda c: c.map(order).fillna(c))
            tables["needles"] = by_order.reset_index(drop=True)
            tables["needle_summary"] = summarise_needles(tables["needles"], summary, seed)
        meta = {
            **header(bridge, batch),
            "source": source,
            "policies": described,
            "spec": spec,
            "needles": None if needles is None else dict(needles.meta),
            "metrics": {
                name: {"version": 1, "definition": text}
                for name, text in {**METRICS, **(NEEDLE_METRICS if needles is not None else {})}.items()
            },
            "settings": {"prompt": prompt, "budgets": [*budgets], "seed": seed, "batch_size": batch_size},
        }
        result = PolicyComparison(meta, {"summary": summary, **tables})
        if folder is not None:
            folder.complete(result)
        return result


def _labelled(
    policies: Mapping[str, Policy] | Sequence[str] | str, budgets: Sequence[float], length: int, prompt: int
) -> dict[str, tuple[Policy, float]]:
    """Policies by label, told where the prompt ends, each with the budget in keys that it was made for (or NaN)."""
    found: dict[str, tuple[Policy, float]] = {}
    if isinstance(policies, Mapping):
        if len(budgets) > 1:
            raise InputError("Policies that are given as objects were made for one budget; name it, or none.")
        keys = _keys(budgets[0], length) if budgets else math.nan
        found = {str(label): (policy, float(keys)) for label, policy in policies.items()}
    else:
        for given in [policies] if isinstance(policies, str) else policies:
            label, text = read_role_fields(given)
            own = ":" in text or not budgets or not budgeted(type(make_policy(text)))
            for size in [None] if own else [_keys(budget, length) for budget in budgets]:
                policy = make_policy(text, keys=size, length=length)
                same = size is None or isinstance(policy, Full)  # at any budget
                name = label if same else f"{label} {size}"
                if name in found and found[name][0] != policy:
                    raise InputError(f"Two policies are called {name!r}; give each once.")
                found[name] = (policy, math.nan if same or size is None else float(size))
    if not found or not all(isinstance(policy, Policy) for policy, _ in found.values()):
        raise InputError(f"Expected policies by label, or names such as ['h2o', 'tova'], got {policies!r}.")
    return {label: (replace(rule, prompt=rule.prompt or prompt), keys) for label, (rule, keys) in found.items()}


def _keys(budget: float, length: int) -> int:
    if not budget > 0:
        raise InputError(f"A budget is a number of keys, or a share of the text below 1; got {budget!r}.")
    return max(1, round(budget * length)) if budget < 1 else int(budget)


def _pooled(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over all batches, every row of a text counting once; ``peak`` is the largest."""
    rows = table["rows"]
    means = [name for name in table.columns if name not in (*by, "rows", "peak")]
    sums = table[means].mul(rows, axis=0).assign(rows=rows)
    grouped = pd.concat([table[by], sums], axis=1).groupby(by, sort=False, as_index=False).sum()
    grouped[means] = grouped[means].div(grouped["rows"], axis=0)
    if "peak" in table:
        grouped["peak"] = table.groupby(by, sort=False)["peak"].max().to_numpy()
    return grouped


class _Run:
    def __init__(
        self,
        bridge: Any,
        batch: TokenBatch,
        policies: Mapping[str, Policy],
        prompt: int,
        batch_size: int,
        needles: NeedleSet | None,
        progress: Progress,
    ) -> None:
        self.bridge, self.batch, self.policies, self.prompt = bridge, batch, policies, prompt
        self.batch_size, self.needles, self.progress = batch_size, needles, progress
        self.path = plan_for(bridge).path

    def all_parts(self, folder: RunFolder | None) -> list[dict[str, pd.DataFrame]]:
        """What every batch gave: measured, or found in the folder."""
        passes, parts = 1 + (1 + LOOK) * len(self.policies), []
        n_needles = 0 if self.needles is None else len(self.needles)
        self.progress.begin(
            "Comparing policies",
            len(self.batch) * passes + n_needles * (1 + len(self.policies)),
            f"{len(self.policies)} policies on {len(self.batch)} sequences, {2 + len(self.policies)} passes each"
            + (f", and on {n_needles} needles." if n_needles else "."),
        )
        for number, indices in enumerate(equal_lengths(self.batch, self.batch_size)):
            kept = None if folder is None else folder.load(f"{number:05d}")
            if kept is not None:
                self.progress.skip(len(indices) * passes)
            parts.append(self.measure(indices) if kept is None else kept.tables)
            if folder is not None and kept is None:
                folder.save(f"{number:05d}", parts[-1])
        for number, some in enumerate(needle_batches(self.needles, self.batch_size) if self.needles else ()):
            kept = None if folder is None else folder.load(f"needles-{number:05d}")
            work = len(some) * (1 + len(self.policies))
            if kept is not None:
                self.progress.skip(work)
                parts.append(kept.tables)
                continue
            instances = {each: self.needles.instances[each] for each in some} if self.needles else {}
            parts.append({"needles": read_needles(self.bridge, instances, self.policies, self.path)})
            self.progress.advance(work)
            if folder is not None:
                folder.save(f"needles-{number:05d}", parts[-1])
        return parts

    def measure(self, indices: list[int]) -> dict[str, pd.DataFrame]:
        """Sequences, heads and caches of every policy on some sequences of one length."""
        part = self.batch.rows(indices)
        ids = part.ids.to(next(self.bridge.parameters()).device)
        among = (torch.arange(ids.shape[1]) >= self.prompt).expand(len(part), -1)
        with AttentionEngine(self.bridge, path=self.path):
            reference = Reference(self.bridge(ids), part, among=among)
        self.progress.advance(len(indices))
        looks = {label: Account() for label in self.policies}
        looking = [policy.counted(looks[label], only_look=True) for label, policy in self.policies.items()]
        with Composition(tuple(looking))(self.bridge):
            self.bridge(ids)
        self.progress.advance(LOOK * len(self.policies) * len(indices))
        tables: dict[str, list[pd.DataFrame]] = {"sequences": [], "heads": [], "caches": []}
        for label, policy in self.policies.items():
            account = Account()
            with policy.counted(account)(self.bridge):
                changed = reference.compare(self.bridge(ids))
            tables["sequences"].append(self._sequences(label, indices, reference.clean, changed))
            tables["heads"].append(self._heads(label, account, looks[label]))
            tables["caches"].append(self._caches(label, account))
            self.progress.advance(len(indices))
        return {name: pd.concat(frames, ignore_index=True) for name, frames in tables.items()}

    def _sequences(
        self, label: str, indices: list[int], clean: Mapping[str, Tensor], changed: Mapping[str, Tensor]
    ) -> pd.DataFrame:
        loss, before = (values.double().cpu().numpy() for values in (changed["loss"][0], clean["loss"]))
        return pd.DataFrame(
            {
                "policy": label,
                "sequence": indices,
                "n_tokens": clean["n_tokens"].cpu().numpy(),
                "clean_loss": before,
                "loss": loss,
                "delta_loss": loss - before,
                "kl": changed["kl"][0].double().cpu().numpy(),
                "top1_agreement": changed["top1_agreement"][0].double().cpu().numpy(),
            }
        )

    def _heads(self, label: str, account: Account, look: Account) -> pd.DataFrame:
        found = account.by_head(self.prompt)
        found.insert(0, "policy", label)
        found["mass_post_hoc"] = look.by_head(self.prompt)["mass"]
        return found

    def _caches(self, label: str, account: Account) -> pd.DataFrame:
        found = account.by_kv_head(self.prompt)
        found.insert(0, "policy", label)
        size = next(self.bridge.parameters()).element_size()
        found["bytes_per_key"] = self.policies[label].bytes_per_key(int(self.bridge.cfg.d_head), size)
        return found
