"""Head importance against the bridge's own hooks: writes, logits through the frozen norm, and masked heads."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.effects import Answers
from sinklens.interventions import AblateHeads
from sinklens.models.tokens import TokenBatch, tokenize
from sinklens.passes.write_pass import measure_writes
from sinklens.studies.head_scores.head_importance import attention_influence, head_importance
from tests.families import FAMILIES, boot, checkpoint, random_ids
from tests.heard import Heard
from tests.interventions import reference

pytestmark = pytest.mark.usefixtures("no_gradients")

POS = 20
LINEAR = ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "phi", "cohere", "gpt_oss", "bloom", "falcon", "gptj", "mpt"]
PLAIN_HOOKS = ["llama", "qwen2", "gpt2", "gpt_neox", "phi", "stablelm"]


@pytest.fixture(scope="module")
def induction() -> TransformerBridge:
    return sinklens.load("induction-2l")


def hooked(bridge: TransformerBridge, batch: TokenBatch, *names: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any, name: str) -> None:
        found[name] = x.clone()

    with bridge.hooks(fwd_hooks=[(name, partial(keep, name=name)) for name in names]):
        found["logits"] = bridge(batch.ids)
    return found


@pytest.mark.filterwarnings("ignore:.*measured through the bridge")
@pytest.mark.parametrize("name", LINEAR)
def test_heads_and_the_rest_add_up_to_the_logits(name: str, zoo: Path) -> None:
    """Direct logit attribution is complete: to 1e-4 of what the model gives, for the next token and for answers."""
    bridge = boot(name, zoo)
    batch = tokenize(bridge, random_ids(batch=3, pos=POS))
    answers = Answers(torch.tensor([4, -1, POS - 1]), torch.tensor([9, 9, 20]), torch.tensor([30, 8, 200]))
    logits = bridge(batch.ids)
    for chosen in (None, answers):
        found = measure_writes(bridge, batch, answers=chosen)
        total = sum(each.sum(1) for each in found.logits.values()) + sum(found.parts.values())
        if chosen is None:
            rows = logits[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0] - logits[:, :-1].mean(-1)
            expected = rows.double().mean(1)
        else:
            expected = torch.tensor([math.nan] * 3, dtype=torch.float64)
            expected[0], expected[2] = logits[0, 4, 9] - logits[0, 4, 30], logits[2, -1, 20] - logits[2, -1, 200]
        scale = 1e-4 * max(1.0, float(logits.abs().max()))
        torch.testing.assert_close(total, expected, atol=scale, rtol=0, equal_nan=True)
        assert found.gap < 1e-4 and not found.problems
        heads = torch.cat([*found.logits.values()], 1)
        assert heads.shape == (3, 4 * len(bridge.blocks)) and bool((heads[0] != 0).all())


@pytest.mark.parametrize("name", PLAIN_HOOKS)
def test_scores_are_those_of_the_bridge_s_hooks(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = tokenize(bridge, random_ids(batch=2, pos=POS))
    names = [f"blocks.{layer}.attn.hook_{what}" for layer in range(2) for what in ("z", "out")]
    seen = hooked(bridge, batch, *names, "ln_final.hook_in", "ln_final.hook_scale")
    scores = head_importance(bridge, tokens=batch, measures=["direct_logit", "write_norm"]).frame
    unembed: Any = bridge.original_model
    unembed = unembed.get_output_embeddings().weight
    final: Any = bridge.ln_final
    weight = final.original_component.weight
    layer_norm = isinstance(final.original_component, torch.nn.LayerNorm)
    for layer in range(2):
        z, w_o = seen[f"blocks.{layer}.attn.hook_z"], bridge.blocks[layer].attn.W_O
        writes = torch.einsum("bphd,hdm->bhpm", z, w_o)
        rest = seen[f"blocks.{layer}.attn.hook_out"] - writes.sum(1)
        torch.testing.assert_close(rest, rest[:1, :1].expand_as(rest), atol=1e-4, rtol=0)  # the bias of W_O
        own = scores[scores["layer"] == layer]
        np.testing.assert_allclose(own["write_norm"], writes.abs().sum(-1).mean((0, 2)), rtol=1e-4)
        part = writes - writes.mean(-1, keepdim=True) if layer_norm else writes
        logits = torch.einsum("bhpm,vm->bhpv", part * weight / seen["ln_final.hook_scale"][:, None], unembed)[:, :, :-1]
        target = batch.ids[:, None, 1:, None].expand(-1, 4, -1, 1)
        direct = (logits.gather(-1, target)[..., 0] - logits.mean(-1)).mean((0, 2))
        np.testing.assert_allclose(own["direct_logit"], direct, atol=2e-4 * float(logits.abs().max()))


def test_a_head_without_w_o_scores_exactly_0(tmp_path: Path) -> None:
    bridge = sinklens.load(checkpoint("llama", tmp_path))
    attention: Any = bridge.original_model.model.layers[1].self_attn  # type: ignore[union-attr, index]
    attention.o_proj.weight[:, 16:24] = 0  # head 2
    scores = head_importance(bridge, tokens=random_ids(pos=POS)).frame.set_index(["layer", "head"])
    idle = scores.loc[(1, 2), ["write_norm", "attention_influence", "direct_logit"]]
    assert (idle == 0).all(), idle
    others = scores.drop((1, 2))[["write_norm", "attention_influence", "direct_logit"]]
    assert (others != 0).all(axis=None)


def test_zeroing_a_last_head_takes_away_its_logits(induction: TransformerBridge) -> None:
    """Card head-roles-a, 4: with the norm frozen, exactly its direct logit attribution (no MLP follows)."""
    batch = tokenize(induction, torch.randint(0, 512, (4, 30), generator=torch.Generator().manual_seed(0)))
    answers = Answers(torch.full((4,), 20), torch.arange(4), torch.arange(4) + 100)
    found = measure_writes(induction, batch, answers=answers)
    clean = hooked(induction, batch, "ln_final.hook_in", "ln_final.hook_scale")
    unembed: Any = induction.original_model
    weights, norm = unembed.lm_head.weight, unembed.model.norm.weight
    read = norm * (weights[answers.correct] - weights[answers.wrong]) / clean["ln_final.hook_scale"][:, 20]
    for head in range(4):
        residual: dict[str, Tensor] = {}
        with (
            AblateHeads([(1, head)])(induction),
            induction.hooks(fwd_hooks=[("ln_final.hook_in", lambda x, hook, at=residual: at.update(x=x))]),
        ):
            induction(batch.ids)
        change = ((clean["ln_final.hook_in"] - residual["x"])[:, 20] * read).sum(-1)
        torch.testing.assert_close(found.logits[1][:, head].float(), change, atol=1e-4, rtol=1e-4)


def test_influence_of_one_head_and_of_a_set(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    rows = [random_ids(batch=1, pos=pos, seed=pos)[0].tolist() for pos in (20, 12, 20)]
    batch = tokenize(bridge, rows)
    scores = head_importance(bridge, tokens=batch, measures=["attention_influence"], batch_size=1).frame

    def losses(heads: Any) -> Tensor:
        out = []
        for row in rows:
            ids = torch.tensor([row])
            logits = bridge(ids) if heads is None else reference.under(bridge, AblateHeads(heads, "uniform"), ids)
            out.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))
        return torch.stack(out)

    base = losses(None)
    for row in scores.to_dict("records"):
        expected = (losses([(row["layer"], row["head"])]) - base) / base
        assert row["attention_influence"] == pytest.approx(float(expected.mean()), abs=1e-4)
    heads = ["L0H1", "L1H0", "L1H3"]
    found = attention_influence(bridge, heads, batch)
    np.testing.assert_allclose(found.by_sequence, (losses(heads) - base) / base, atol=1e-4)
    assert found.heads == ((0, 1), (1, 0), (1, 3)) and found.score.value == pytest.approx(found.by_sequence.mean())
    assert len(attention_influence(bridge, "all", batch).heads) == 8
    assert (
        head_importance(bridge, tokens=batch, measures=["attention_influence"]).frame["layer"].tolist()
        == [0] * 4 + [1] * 4
    )


def test_masking_induction_heads_hurts_repeated_text_alone(induction: TransformerBridge) -> None:
    """Card head-roles-a, 2: +0.33 on repeated sequences and -0.11 on random ones there; repeated - random >= 0.2."""
    generator = torch.Generator().manual_seed(0)
    words = torch.stack([torch.randperm(512, generator=generator)[:60] for _ in range(16)])
    bos = torch.full((16, 1), 512)
    repeated = tokenize(induction, torch.cat([bos, words[:, :20].repeat(1, 3)], 1))
    random = tokenize(induction, torch.cat([bos, words], 1))
    pair = ["L1H0", "L1H1"]
    hurt, spared = (attention_influence(induction, pair, batch).score for batch in (repeated, random))
    assert hurt.value - spared.value >= 0.2
    assert hurt.low > 0 and abs(spared.value) < 0.2


def test_padding_and_batches_change_nothing(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    rows = [random_ids(batch=1, pos=pos, seed=pos)[0].tolist() for pos in (20, 9, 14)]
    together, apart = (head_importance(bridge, tokens=tokenize(bridge, rows), batch_size=n).frame for n in (8, 1))
    for name in ("write_norm", "attention_influence", "direct_logit"):
        np.testing.assert_allclose(together[name], apart[name], atol=1e-5)
    each = [head_importance(bridge, tokens=tokenize(bridge, [row])).frame["write_norm"] for row in rows]
    np.testing.assert_allclose(together["write_norm"], np.mean(each, 0), rtol=1e-5)


def test_the_table_and_what_it_says_about_itself(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    heard = Heard()
    scores = head_importance(bridge, tokens=random_ids(batch=6, pos=POS), progress=heard, batch_size=4)
    assert heard.begun[0][1] == 6 and heard.whole
    assert scores.scores == ["write_norm", "attention_influence", "direct_logit"]
    frame = scores.frame
    assert frame["kv_head"].tolist() == [0, 0, 1, 1] * 2
    for name in scores.scores:
        assert (frame[f"{name}_low"] <= frame[name]).all() and (frame[name] <= frame[f"{name}_high"]).all()
    json.dumps(scores.meta, allow_nan=False)
    parts = scores.meta["direct_logit"]
    assert parts["gap"] < 1e-4
    total = frame["direct_logit"].sum() + sum(parts["parts"].values())
    assert total == pytest.approx(parts["read"], abs=1e-4)
    assert scores.meta["warnings"] == []


@pytest.mark.filterwarnings("ignore:.*measured through the bridge")
@pytest.mark.parametrize(
    ("name", "absent", "why"),
    [
        ("gemma2", ["direct_logit"], "a norm or a scale stands in between"),
        ("olmo2", ["direct_logit"], "a norm or a scale stands in between"),
        ("qwen3_next", ["direct_logit", "write_norm"], "has an output gate after its heads"),
        ("gptj", ["attention_influence"], "can be measured but not edited"),
    ],
)
def test_what_does_not_apply_is_nan_with_a_reason(name: str, absent: list[str], why: str, zoo: Path) -> None:
    scores = head_importance(boot(name, zoo), tokens=random_ids(pos=POS))
    for measure in scores.scores:
        assert scores.frame[measure].isna().all() == (measure in absent), measure
        assert scores.frame[measure].isna().any() == (measure in absent), measure
    assert {warning.split(":")[0] for warning in scores.meta["warnings"]} == {*absent}
    assert all(why in warning for warning in scores.meta["warnings"])
    assert FAMILIES[name].attention_layers == tuple(sorted(scores.frame["layer"].unique()))


def test_writes_that_do_not_add_up_are_not_given(zoo: Path) -> None:
    """A hook that changes the attention output by position leaves no constant rest."""
    bridge = boot("llama", zoo)
    bridge(random_ids())
    hooks: Any = [("blocks.1.attn.hook_out", lambda x, hook: x * torch.linspace(1, 2, x.shape[1])[:, None])]
    with bridge.hooks(fwd_hooks=hooks):
        scores = head_importance(bridge, tokens=random_ids(pos=POS), measures=["write_norm", "direct_logit"])
    frame = scores.frame.groupby("layer")
    assert frame["write_norm"].count().tolist() == [4, 0]
    assert scores.frame["direct_logit"].isna().all()
    assert any("does not add up to its attention output" in warning for warning in scores.meta["warnings"])


def test_what_is_refused(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    for wrong in ([], ["loss"]):
        with pytest.raises(InputError, match="measures must be some of"):
            head_importance(bridge, tokens=random_ids(), measures=wrong)
    with pytest.raises(InputError, match="answers for 1 sequence and 2"):
        one = torch.tensor([1])
        head_importance(bridge, tokens=random_ids(), answers=Answers(one, one, one))
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        head_importance(boot("mamba", zoo), tokens=random_ids())
    with pytest.raises(InputError, match="L7H0 does not exist"):
        attention_influence(bridge, ["L7H0"], tokenize(bridge, random_ids()))
