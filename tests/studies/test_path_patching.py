"""Paths between heads against plain transformers with hooks; a model whose sum is known; a circuit that is known."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sinklens import load
from sinklens import open as open_result
from sinklens.errors import InputError
from sinklens.models.as_bridge import as_bridge
from sinklens.studies import PatchedPaths, pattern_scores
from sinklens.studies.path_patching.result import circuit_overlap, path_words
from sinklens.studies.path_patching.run import patch_paths
from tests.families import byte_tokenizer

HEADS, WIDTH = 4, 8


def plain() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=261, hidden_size=32, num_hidden_layers=3, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=3,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def prompts(batch: int = 2, pos: int = 7) -> tuple[Tensor, Tensor]:
    """Two kinds of prompts that differ in one early token."""
    clean = torch.randint(6, 261, (batch, pos), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] - 6 + 100) % 250 + 6
    return clean, corrupted


class Naive:
    """Passes of plain transformers with outputs of projections overwritten."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model

    @torch.no_grad()
    def run(self, ids: Tensor, z: dict[int, Tensor] | None = None, mlp: dict | None = None, put: dict | None = None):  # type: ignore[no-untyped-def, type-arg]
        """Logits at the end, what entered ``o_proj``, what MLPs and ``q_proj`` and so on gave."""
        seen: dict[object, Tensor] = {}
        handles = []
        for number, layer in enumerate(self.model.model.layers):

            def pre(module, args, number=number):  # type: ignore[no-untyped-def]
                mine = args[0] if z is None or number not in z else z[number]
                seen["z", number] = mine.clone()
                return (mine,)

            def post(module, args, out, key=None):  # type: ignore[no-untyped-def]
                source = mlp if key[0] == "mlp" else None
                if source is not None:
                    out = source[key]
                for (side, at, part), value in (put or {}).items():
                    if (side, at) == key:
                        out = out.clone()
                        out[..., slice(*part)] = value[..., slice(*part)]
                seen[key] = out.clone()
                return out

            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(pre))
            for side in ("q", "k", "v"):
                module = getattr(layer.self_attn, f"{side}_proj")
                handles.append(module.register_forward_hook(lambda m, a, o, key=(side, number): post(m, a, o, key=key)))
            handles.append(layer.mlp.register_forward_hook(lambda m, a, o, key=("mlp", number): post(m, a, o, key=key)))
        try:
            return self.model(ids).logits[:, -1], seen
        finally:
            for handle in handles:
                handle.remove()

    def effect(self, clean: Tensor, corrupted: Tensor, sender: tuple[int, int], receiver: str, freeze: bool) -> float:
        """One path, by the definition."""
        base, before = self.run(clean)
        end, after = self.run(corrupted)
        z = {number: before["z", number].clone() for number in range(3)}
        part = slice(WIDTH * sender[1], WIDTH * (sender[1] + 1))
        z[sender[0]][..., part] = after["z", sender[0]][..., part]
        logits, sent = self.run(clean, z, mlp=before if freeze else None)
        if receiver != "logits":
            head, side = receiver.split(".")
            layer, number = int(head[1]), int(head[3])
            at = number if side == "q" else number * 2 // HEADS
            where = slice(WIDTH * at, WIDTH * (at + 1))
            logits, _ = self.run(clean, put={(side, layer, (where.start, where.stop)): sent[side, layer]})
        difference = [float((each[:, 10] - each[:, 11]).mean()) for each in (logits, base, end)]
        return (difference[0] - difference[1]) / (difference[2] - difference[1])


@pytest.mark.parametrize("freeze", [False, True])
def test_every_path_equals_plain_transformers(freeze: bool) -> None:
    model = plain()
    naive = Naive(copy.deepcopy(model))
    clean, corrupted = prompts()
    found = patch_paths(
        as_bridge(model, tokenizer=byte_tokenizer()), clean, corrupted, [10, 10], [11, 11],
        receivers=["L2H1.q", "L2H3.k", "L1H0.v", "logits"], senders=["L0H0", "L0H3", "L1H2", "L2H1"],
        freeze_mlps=freeze,
    ).paths  # fmt: skip
    assert len(found) == 4 * 4 - 1 - 3  # L1H2 comes not before L1H0, and L2H1 only before the logits
    for row in found.itertuples():
        expected = naive.effect(clean, corrupted, (row.layer, row.head), row.receiver, freeze)
        assert row.effect == pytest.approx(expected, abs=2e-4), row
    assert found["effect"].abs().is_monotonic_decreasing


def test_sets_of_heads_equal_plain_transformers() -> None:
    """Needed: corrupted outputs in the clean prompt; enough: clean ones in the corrupted prompt."""
    model = plain()
    naive = Naive(copy.deepcopy(model))
    clean, corrupted = prompts()
    found = patch_paths(
        as_bridge(model, tokenizer=byte_tokenizer()), clean, corrupted, [10, 10], [11, 11],
        senders=["L0H0"], heads=["L0H1"], controls=2,
    )  # fmt: skip
    base, before = naive.run(clean)
    end, after = naive.run(corrupted)
    part = slice(WIDTH, 2 * WIDTH)
    moved = []
    for ids, mine, theirs in ((clean, before, after), (corrupted, after, before)):
        z = mine["z", 0].clone()
        z[..., part] = theirs["z", 0][..., part]
        moved.append(naive.run(ids, {0: z})[0])
    lost, kept, base, end = (float((each[:, 10] - each[:, 11]).mean()) for each in (*moved, base, end))
    row = found.sets.iloc[0]
    assert row["necessity"] == pytest.approx((lost - base) / (end - base), abs=2e-4)
    assert row["sufficiency"] == pytest.approx((end - kept) / (end - base), abs=2e-4)
    assert found.sets["kind"].tolist() == ["tested", "random", "random"]
    assert all(name.startswith("L0") and name != "L0H1" for name in found.sets["heads"][1:])


def test_the_direct_paths_of_all_heads_add_up_to_everything() -> None:
    """The card's check: without MLPs and with a linear last norm the effects on the logits sum to 1."""
    model = plain()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.variance_epsilon = 1e10
        model.model.norm.weight.fill_(1e5)
    clean, corrupted = prompts()
    bridge = as_bridge(model, tokenizer=byte_tokenizer())
    found = patch_paths(bridge, clean, corrupted, [10, 10], [11, 11], freeze_mlps=True)
    assert len(found.paths) == 12 and found.paths["effect"].sum() == pytest.approx(1, abs=1e-3)
    same = patch_paths(bridge, clean, clean, [10, 10], [11, 11], senders=["L0H0"])
    assert math.isnan(same.paths["effect"][0]) and "no path has an effect" in same.verdict[0]


def test_the_path_of_induction(tmp_path: Path) -> None:
    """The previous-token head hands the induction head its keys; no other sender and no later one does."""
    model = load("induction-2l", device="cpu")
    scores = pattern_scores(model, block=16, repeats=2, n_sequences=4)
    frame = scores.to_dataframe()
    before = frame.loc[frame["previous_token"].idxmax()]
    receiver = frame[frame["layer"] == 1].nlargest(1, "induction").iloc[0]
    draw = torch.Generator().manual_seed(0)
    clean = torch.stack([torch.randperm(60, generator=draw)[:18] + 4 for _ in range(12)])
    block = clean[:, :12]
    clean = torch.cat((block, block[:, :6]), 1)
    corrupted = clean.clone()
    corrupted[:, 5] = clean[:, 11]  # the token before the answer is another one in the first copy
    name = f"L1H{int(receiver['head'])}"
    found = patch_paths(
        model, clean, corrupted, clean[:, 6].tolist(), clean[:, 9].tolist(), receivers=[f"{name}.k", f"{name}.q"],
        heads=[f"L0H{int(before['head'])}"], controls=3,
    )  # fmt: skip
    keys = found.paths[found.paths["receiver"] == f"{name}.k"].set_index("sender")
    sender = f"L0H{int(before['head'])}"
    assert keys["effect"].idxmax() == sender and keys["low"][sender] > 0.05
    assert keys["effect"].drop(sender).abs().max() < 0.3 * keys["effect"][sender]
    assert found.paths[found.paths["receiver"] == f"{name}.q"]["effect"].abs().max() < 0.02
    tested, random = found.sets.iloc[0], found.sets[found.sets["kind"] == "random"]
    assert tested["necessity"] > 0.5 > random["necessity"].max()
    assert (
        f"senders {sender} hands {name}.k the most of what tells the prompts apart: {keys['effect'][sender]:.2f}"
        in found.verdict[0]
    )
    assert f"necessity {tested['necessity']:.2f}" in found.verdict[-1] and "p = 0.25" in found.verdict[-1]
    found.save(tmp_path / "paths")
    opened = open_result(tmp_path / "paths")
    assert isinstance(opened, PatchedPaths) and opened.verdict == path_words(found.paths, found.sets)
    for wrong in (
        {"receivers": ["L1H0"]},
        {"receivers": ["L7H0.q"]},
        {"senders": ["L9H0"]},
        {"correct": [1]},
        {"correct": [10**6] * 12},
        {"corrupted": clean[:, :5]},
    ):
        given = {"clean": clean, "corrupted": corrupted, "correct": [5] * 12, "wrong": [6] * 12, **wrong}
        with pytest.raises(InputError):
            patch_paths(model, **given)  # type: ignore[arg-type]


def test_circuit_overlap_counts_sets() -> None:
    """Against all pairs of subsets of a small pool."""
    from itertools import combinations

    pool = [f"L0H{i}" for i in range(6)]
    found = circuit_overlap(pool[:3], pool[1:4], n_heads=6)
    shares = [len(set(pool[:3]) & set(some)) for some in combinations(pool, 3)]
    assert found.p == pytest.approx(sum(s >= 2 for s in shares) / len(shares))
    assert found.expected == pytest.approx(sum(shares) / len(shares))
    assert (found.shared, found.share, found.jaccard) == (("L0H1", "L0H2"), pytest.approx(2 / 3), 0.5)
    assert circuit_overlap(pool[:3], pool[3:], n_heads=6).p == 1 and math.isnan(found.p_in_layers)
    first, second = ["L0H0", "L0H1", "L1H2"], ["L0H1", "L1H2", "L1H3"]
    kept = circuit_overlap(first, second, n_heads=8, layer_heads=4)
    layers = [[f"L{layer}H{i}" for i in range(4)] for layer in (0, 1)]
    drawn = [{a, *pair} for a in layers[0] for pair in combinations(layers[1], 2)]
    shares = [len(set(first) & some) for some in drawn]
    assert kept.expected_in_layers == pytest.approx(sum(shares) / len(shares))
    assert kept.p_in_layers == pytest.approx(sum(share >= 2 for share in shares) / len(shares))
    with pytest.raises(InputError, match="of a layer"):
        circuit_overlap(first, second, n_heads=8, layer_heads=1)
    with pytest.raises(InputError):
        circuit_overlap([], pool, n_heads=6)
