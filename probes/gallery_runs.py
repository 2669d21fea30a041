"""What the gallery's figures are made from: runs of real models, and of the built-in ones."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

import sinklens
from sinklens.detectors import measure
from sinklens.interventions import SlidingWindow
from sinklens.models.as_bridge import as_bridge
from sinklens.models.real import real_model_path
from sinklens.models.tokens import TokenBatch
from sinklens.passes.sequences import choose_sequences
from sinklens.plots.massive_table import strongest_activations
from sinklens.results.result import Result
from sinklens.studies import (
    Dynamics,
    RankingTask,
    Roles,
    compare_pooling,
    explain_sinks,
    find_conflict_heads,
    find_extreme_tokens,
    find_roles,
    find_span_heads,
    find_super_experts,
    follow_generation,
    inject_tokens,
    make_needles,
    measure_dynamics,
    measure_needles,
    near_far_costs,
    patch_paths,
    rank_documents,
    trace_massive,
    trace_recall,
)
from sinklens.studies.census.builtin_domains import builtin_domains
from sinklens.studies.census.result import Census
from sinklens.studies.census.run import DETECTORS
from sinklens.studies.document_ranking.prompts import builtin_tasks
from sinklens.studies.path_patching.prompts import repeated_prompts

FIGURES = Path(__file__).parents[1] / "figures"


class Runs:
    """Each run is made once, only if a figure asks for it, and kept in a folder that a later call reads.

    Args:
        sequences: Texts of 64 tokens.
        folder: Where the runs are kept; nothing is kept without one.
    """

    name = ""
    """What most figures show."""
    needle_model = ""
    tested = 50
    """Sequences that the heads are switched off on."""
    controls = 20
    near_head = "L16H0"
    """Attends to the token before."""
    massive_ratio = 1000.0
    """Medians from which an entry is massive."""

    def __init__(self, sequences: int, folder: Path | None = None) -> None:
        self.sequences, self.folder = sequences, folder

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A run, from the folder if it is there."""
        if self.folder is None:
            return make()
        if not (self.folder / name).exists():
            made: Result = make()
            made.save(self.folder / name)
        return sinklens.open(self.folder / name)

    @cached_property
    def model(self) -> Any:
        """The model of most figures."""
        raise NotImplementedError

    @cached_property
    def batch(self) -> TokenBatch:
        """Its texts, those that a scan takes by default."""
        batch, _source = choose_sequences(self.model, None, None, "auto", None, False, 0, None, self.sequences)
        return batch

    @cached_property
    def census(self) -> Census:
        """Everything a scan finds, with the maps of all heads."""
        found: Census = self.kept("census", self._scan)
        return found

    def _scan(self) -> Census:
        return sinklens.scan(
            self.model, max_sequences=self.sequences, maps=10_000, detectors=[*DETECTORS, "compression"]
        )

    @cached_property
    def others(self) -> dict[str, Census]:
        """Scans of other models."""
        raise NotImplementedError

    @cached_property
    def domains(self) -> Census:
        """The same on drama and on source code."""
        found: Census = self.kept("domains", self._scan_domains)
        return found

    def _scan_domains(self) -> Census:
        given = builtin_domains(self.model, n_sequences=max(5, self.sequences // 3))
        rows = {name: [place for place, of in enumerate(given.of) if of == name] for name in given.names}
        texts = {name: replace(given.batch.rows(places)) for name, places in rows.items()}
        return sinklens.scan(self.model, texts, maps=0, detectors=["sinks"])

    @property
    def traced(self) -> pd.DataFrame:
        """Contributions to the largest entry of the residual stream."""
        return self.census.lifecycle.to_dataframe()

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """What ablating heads does: each alone, the sink heads together, and the first k of their order."""
        return self.kept("sweep", self._sweep).summary.to_dataframe()

    def _sweep(self) -> Any:
        heads = self.census.heads.to_dataframe()
        sinks = [f"L{layer}H{head}" for layer, head in heads.loc[heads["is_sink"], ["layer", "head"]].to_numpy()]
        groups = {"sink heads": sinks} if sinks else None
        rows = self.batch.rows(slice(0, min(len(self.batch), self.tested)))
        return sinklens.sweep(
            self.model, "zero", tokens=rows, heads="all", groups=groups, ranking="own", controls=self.controls
        )

    @cached_property
    def causes(self) -> Any:
        """Why the strongest heads sink, on a few texts."""
        rows = self.batch.rows(slice(0, min(len(self.batch), 6)))
        return self.kept("causes", lambda: explain_sinks(self.model, tokens=rows, controls=2, donors=False))

    @cached_property
    def donors(self) -> Any:
        """What the values at the sinks of the three strongest heads do."""
        rows = self.batch.rows(slice(0, min(len(self.batch), 6)))
        return self.kept("donors", lambda: explain_sinks(self.model, tokens=rows, controls=0, donors=True, top=3))

    @cached_property
    def generation(self) -> Any:
        """A text as it is generated."""
        words = "Once upon a time there was a king who"
        return self.kept("generation", lambda: follow_generation(self.model, words, max_new_tokens=96))

    @cached_property
    def extreme(self) -> Any:
        """Extreme tokens of the texts."""
        bound = 0 if self.massive_ratio < 100 else 100
        return self.kept(
            "extreme",
            lambda: find_extreme_tokens(
                self.model, tokens=self.batch, absolute=bound, ratio=min(300, self.massive_ratio)
            ),
        )

    @cached_property
    def injection(self) -> Any:
        """A new token in four places of a few texts."""
        rows = self.batch.rows(slice(0, min(len(self.batch), 8)))
        return self.kept("injection", lambda: inject_tokens(self.model, tokens=rows, counts=[1, 4], draws=2))

    @cached_property
    def near_far(self) -> Any:
        """Near keys alone and far ones alone, for a head that looks at the token before."""
        rows = self.batch.rows(slice(0, min(len(self.batch), 8)))
        return self.kept("near_far", lambda: near_far_costs(self.model, [self.near_head], tokens=rows, window=8))

    @cached_property
    def spans(self) -> Any:
        """Heads that depend on the document with the answer, on six questions among three sentences."""
        return self.kept("spans", lambda: find_span_heads(self.model, builtin_tasks(3)[:6], top=4))

    @cached_property
    def pooling(self) -> Any:
        """Poolings of four layers."""
        return self.kept("pooling", lambda: compare_pooling(self.model))

    @cached_property
    def sources(self) -> Any:
        """Which weights write the massive activations, on a few texts."""
        rows = self.batch.rows(slice(0, min(len(self.batch), 6)))
        return self.kept("sources", lambda: trace_massive(self.model, tokens=rows, ratio=self.massive_ratio))

    @cached_property
    def needles(self) -> Any:
        """Needles in a text, in the model as it is and with a window of the last 128 tokens and 4 sinks."""
        return self.kept("needles", self._needles)

    def _needles(self) -> Any:
        raise NotImplementedError


MIXED = torch.randint(6, 261, (6, 20), generator=torch.Generator().manual_seed(0))
"""Tokens for the mixture."""


def planted_mixture() -> Any:
    """A random Mixtral of two layers and eight experts, whose expert 2 of layer 0 was made a super expert."""
    config = transformers.MixtralConfig(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    experts: Any = model.model.layers[0].mlp.experts
    with torch.no_grad():
        experts.down_proj[2].zero_()
        experts.down_proj[2, 9] = 3e5 * torch.sign(experts.gate_up_proj[2, 0, 0])
        experts.down_proj[2, 9, ::2] *= -1
    return as_bridge(model)


class Real(Runs):
    """SmolLM2-135M, and Gemma-3-270M beside it, both dequantised from Q4."""

    name = "SmolLM2-135M"
    needle_model = "SmolLM2-135M, passkeys"
    tested = 4
    controls = 10

    @cached_property
    def model(self) -> Any:
        """SmolLM2."""
        return sinklens.load(real_model_path("smollm2"))

    @cached_property
    def others(self) -> dict[str, Census]:
        """Gemma-3-270M."""
        return {"Gemma-3-270M": self.kept("gemma", self._gemma)}

    def _gemma(self) -> Census:
        return sinklens.scan(real_model_path("gemma3"), max_sequences=self.sequences)

    def _needles(self) -> Any:
        hidden = make_needles(self.model, "passkey", lengths=[128, 256, 384], depths=(0.0, 0.5, 1.0), repeats=3, size=2)
        return measure_needles(
            self.model, hidden, interventions={"window of 128, 4 sinks": SlidingWindow(128, sinks=4)}
        )

    @cached_property
    def conflict(self) -> Any:
        """Heads for the prompt's and for the memory's answer, on false capitals."""
        return self.kept("conflict", lambda: find_conflict_heads(self.model, controls=3, ways=["zero"]))

    @cached_property
    def recall(self) -> Any:
        """How capitals are recalled."""
        return self.kept("recall", lambda: trace_recall(self.model))

    @cached_property
    def policies(self) -> pd.DataFrame:
        """The committed comparison of KV-cache rules on SmolLM2."""
        return pd.read_csv(FIGURES / "what_policies_keep_SmolLM2.csv").fillna({"budget": pd.NA})


class Toys(Runs):
    """The built-in models, which are small enough to be in the repository."""

    name = "tiny-llama"
    needle_model = "induction-2l"
    near_head = "L0H1"
    massive_ratio = 20.0

    @cached_property
    def model(self) -> Any:
        """tiny-llama."""
        return sinklens.load("tiny-llama")

    @cached_property
    def others(self) -> dict[str, Census]:
        """The Bigram-Backcopy models."""
        return {name: sinklens.scan(name, max_sequences=self.sequences) for name in ("bb-3l", "bb-1l")}

    @cached_property
    def traced(self) -> pd.DataFrame:
        """Contributions to the largest entry of the residual stream, in all texts."""
        best = strongest_activations(self.census.massive_activations.to_dataframe(), 1).iloc[0]
        entries = [(int(best["position"]), int(best["channel"]))]
        return measure(self.model, self.batch, "lifecycle", entries=entries).tables["lifecycle"]

    def _needles(self) -> Any:
        model = sinklens.load("induction-2l")
        hidden = make_needles(model, "random", lengths=[64, 128, 256, 448], repeats=5)
        return measure_needles(model, hidden, interventions={"window of 128, 4 sinks": SlidingWindow(128, sinks=4)})

    @cached_property
    def ranking(self) -> Any:
        """Five documents of random tokens, and a question that is a copy of one, by the model with induction heads."""
        draw, tasks = np.random.default_rng(0), []
        for _ in range(20):
            documents = draw.permutation(np.arange(4, 64))[:40].reshape(5, 8).tolist()
            gold = int(draw.integers(5))
            tasks.append(RankingTask(documents, documents[gold], gold))
        return self.kept("ranking", lambda: rank_documents("induction-2l", tasks=tasks))

    @cached_property
    def paths(self) -> Any:
        """Who hands induction's second layer what it needs."""
        model = sinklens.load("induction-2l")
        prompts = repeated_prompts(model)
        return self.kept("paths", lambda: patch_paths(model, *prompts, receivers=["L1H0.k", "L1H1.k", "logits"]))

    @cached_property
    def mixture(self) -> Any:
        """The experts of a small random mixture; one of the first layer writes a thousand times as much."""
        return self.kept("mixture", lambda: find_super_experts(planted_mixture(), tokens=MIXED, controls=2))

    @cached_property
    def dynamics(self) -> Dynamics:
        """The model's checkpoints through training."""
        found: Dynamics = self.kept(
            "dynamics", lambda: measure_dynamics("tiny-llama", max_sequences=max(2, self.sequences // 4))
        )
        return found

    @cached_property
    def roles(self) -> Roles:
        """Every head's roles in the model with induction heads."""
        found: Roles = self.kept(
            "roles", lambda: find_roles("induction-2l", scores=("retrieval", "pattern", "sinks"), max_sequences=20)
        )
        return found

    @cached_property
    def calibration(self) -> Any:
        """A factor for the attention on position 0, chosen on the built-in prompts."""
        folder = (self.folder or FIGURES / "runs" / "toys") / "calibration"
        if not folder.exists():
            main = "from sinklens.cli import main; main()"
            command = [sys.executable, "-c", main, "calibrate", "tiny-llama", "--max-prompts", "60"]
            subprocess.run([*command, "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
        return sinklens.open(folder)
