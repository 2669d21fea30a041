"""Heads that see near or far keys alone: loops over whole patterns, a head that looks near, heads that look far."""

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens import open as open_result
from sinklens.attention import Block
from sinklens.errors import InputError
from sinklens.evidence.effects import token_losses
from sinklens.interventions import Intervention
from sinklens.interventions.heads import heads_in_block
from sinklens.models.as_bridge import as_bridge
from sinklens.models.tokens import to_batch
from sinklens.studies import NearFar, near_far_costs
from sinklens.studies.near_far.result import near_far_words
from tests.families import byte_tokenizer
from tests.studies.test_path_patching import plain


class OneByOne(Intervention):
    """Keys of one head of layer 1 hidden in loops."""

    def __init__(self, sees: str, window: int, head: int) -> None:
        self.sees, self.window, self.head = sees, window, head

    def edits(self, positions: object) -> list[object]:
        return [self]

    def edit_scores(self, block: Block) -> None:
        heads = heads_in_block(((1, self.head),), block)
        if heads == []:
            return
        scores = block.scores[heads]
        for row in range(scores.shape[-2]):
            for key in range(scores.shape[-1]):
                far = block.rows.start + row - (block.keys.start + key) >= self.window
                if block.keys.start + key > 0 and far == (self.sees == "near"):
                    scores[..., row, key] = -torch.inf
        block.scores[heads] = scores


@torch.no_grad()
def test_both_ways_equal_loops() -> None:
    model = as_bridge(plain(), tokenizer=byte_tokenizer())
    ids = torch.randint(6, 261, (2, 12), generator=torch.Generator().manual_seed(3))
    found = near_far_costs(model, ["L1H2"], tokens=ids, window=3, controls=2).costs.set_index(["kind", "draw", "sees"])
    assert len(found) == 6 and {*found["heads"]} <= {"L1H0", "L1H1", "L1H2", "L1H3"}
    for sees in ("near", "far"):
        costs = []
        for row in ids:
            batch = to_batch(model, [row.tolist()], bos="no")
            before = token_losses(model(batch.ids), batch).nanmean()
            with OneByOne(sees, 3, 2)(model):
                costs.append(float(token_losses(model(batch.ids), batch).nanmean() - before))
        assert found.loc[("tested", -1, sees), "cost"] == pytest.approx(sum(costs) / 2, abs=1e-5)
        assert abs(sum(costs)) > 1e-4


@pytest.fixture(scope="module")
def repeated() -> tuple[TransformerBridge, torch.Tensor]:
    model = load("induction-2l", device="cpu")
    draw = torch.Generator().manual_seed(0)
    block = torch.stack([torch.randperm(60, generator=draw)[:20] + 4 for _ in range(6)])
    return model, torch.cat((block, block), 1)


def test_the_previous_token_head_works_near_and_induction_heads_far(
    repeated: tuple[TransformerBridge, torch.Tensor],
) -> None:
    """A copy stands twenty tokens back, the token before one."""
    model, ids = repeated
    before, copies = (
        near_far_costs(model, heads, tokens=ids, window=8, controls=3).costs.set_index(["kind", "draw", "sees"])
        for heads in (["L0H0"], ["L1H0", "L1H1", "L1H2", "L1H3"])
    )
    near, far = (before.loc[("tested", -1, sees), :] for sees in ("near", "far"))
    assert abs(near["cost"]) < 0.05 and far["low"] > 0.5
    random = before.loc["random"]["cost"]
    assert random.abs().max() < 0.7 * far["cost"] and random.median() < 0.1
    near, far = (copies.loc[("tested", -1, sees), :] for sees in ("near", "far"))
    assert near["low"] > 0.5 and far["cost"] < 0.7 * near["cost"]


def test_sentences_are_those_of_the_table_saved_and_opened(
    repeated: tuple[TransformerBridge, torch.Tensor], tmp_path: Path
) -> None:
    model, ids = repeated
    found = near_far_costs(model, ["L0H0"], tokens=ids, window=8, controls=3)
    found.save(tmp_path / "near-far")
    opened = open_result(tmp_path / "near-far")
    assert isinstance(opened, NearFar) and opened.verdict == found.verdict
    assert (opened.report(tmp_path / "report.html")).read_text("utf-8").count("L0H0") > 1
    rows = {(kind, sees): some for (kind, sees), some in opened.costs.groupby(["kind", "sees"])}
    for sentence, sees in zip(opened.verdict, ("near", "far"), strict=False):
        row, others = rows["tested", sees].iloc[0], rows["random", sees]["cost"]
        assert (
            f"by {row['cost']:+.4f} nats [{row['low']:+.4f}, {row['high']:+.4f}]".replace("-0.0000", "+0.0000")
            in sentence
        )
        assert f"random heads {others.mean():+.4f}" in sentence
        assert f"p = {(1 + (others >= row['cost']).sum()) / 4:.2g} of 3 sets" in sentence
    assert "only the last 8 keys and the first 1" in opened.verdict[0]
    assert opened.verdict[2] == "It loses more by seeing far keys alone than near ones: what it needs is near."
    overlap = opened.costs.assign(low=opened.costs["cost"] - 9, high=opened.costs["cost"] + 9)
    assert near_far_words(overlap, opened.meta["settings"])[2] == "That one of the two costs more is not shown."
    few = opened.costs.assign(low=float("nan"), high=float("nan"))  # as four sequences give
    assert near_far_words(few, opened.meta["settings"])[2] == (
        "Which of the two costs more is not judged: an interval needs 5 sequences."
    )
    copies = near_far_costs(model, ["L1H0", "L1H1", "L1H2", "L1H3"], tokens=ids, window=8, controls=0)
    assert copies.verdict[2].startswith("It loses more by seeing near keys alone") and "random" not in copies.verdict[0]


def test_what_cannot_be_asked(repeated: tuple[TransformerBridge, torch.Tensor]) -> None:
    model, ids = repeated
    for heads, words, sentence in (
        ([], {}, "Expected heads"),
        (["L9H0"], {}, "L9H0"),
        (["L0H0"], {"window": 0}, "window and sinks from 1"),
        (["L0H0"], {"sinks": 0}, "window and sinks from 1"),
        (["L0H0"], {"window": 60}, "No sequence has a far key"),
    ):
        with pytest.raises(InputError, match=sentence):
            near_far_costs(model, heads, tokens=ids, **words)  # type: ignore[arg-type]
