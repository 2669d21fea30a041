"""The decoder is the study's model when it should be, and its parts are wired as they say."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.errors import InputError
from sinklens.lab.architecture import build_model
from sinklens.lab.settings import BackcopySettings
from sinklens.lab.tasks import Backcopy
from sinklens.lab.variants.attention import Attended, VariantAttention
from sinklens.lab.variants.catalogue import VARIANTS
from sinklens.lab.variants.decoder import Decoder, DecoderSettings
from tests.lab.variants.twin import twin


def decoder(**changes: Any) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(DecoderSettings(**(dict(d_vocab=20, context=16, d_model=16) | changes))).eval()


def ids(batch: int = 2, length: int = 16, vocab: int = 20) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(0))


def attended(model: Decoder, tokens: Tensor) -> tuple[list[Attended], list[Tensor]]:
    layers: list[Attended] = []
    states: list[Tensor] = []

    def listen(layer: int, what: Attended | None, hidden: Tensor) -> None:
        assert layer == len(states) - 1
        layers.extend([] if what is None else [what])
        states.append(hidden)

    with torch.no_grad():
        model(tokens, listen)
    return layers, states


def test_with_softmax_it_is_the_studys_model() -> None:
    original = build_model(BackcopySettings.choose(2, d_model=16, seq_len=12)).eval()
    tokens = Backcopy(seq_len=12).sample(3)
    with torch.no_grad():
        torch.testing.assert_close(twin(original)(tokens), original(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_everything_it_has(name: str) -> None:
    model = decoder(attention=name, heads=2, layers=2)
    tokens = ids()
    torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    without = [parameter for parameter, value in model.named_parameters() if value.grad is None]
    assert without == []
    # A key learned from zero moves only once its value or the queries do; everything else moves at once.
    still = [parameter for parameter, value in model.named_parameters() if not value.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_the_future_is_never_seen(name: str, positions: str) -> None:
    model = decoder(attention=name, positions=positions, layers=2, heads=2)
    tokens = ids()
    other = tokens.clone()
    other[:, 9] = (other[:, 9] + 1) % 20
    with torch.no_grad():
        before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_repeated_tokens_without_positions_or_with_rope_are_one_state_and_learned_positions_break_it() -> None:
    repeated = torch.full((1, 16), 7)
    for positions, equal in (("rope", True), ("none", True), ("learned", False)):
        layers, states = attended(decoder(positions=positions, layers=3, heads=2), repeated)
        spread = max(float((s - s[:, :1]).norm(dim=-1).max() / s[:, :1].norm()) for s in states)
        assert (spread <= 1e-5) == equal
        scores = layers[0].scores
        assert scores is not None
        by_distance = all(bool((scores[0, 0].diagonal(-d) - scores[0, 0, d, 0]).abs().max() < 1e-5) for d in range(16))
        assert by_distance == equal and bool(scores[0, 0, :, 0].std() > 1e-3) == (positions != "none")
        uniform = 1 / torch.arange(1, 17.0)
        if positions == "none":
            torch.testing.assert_close(layers[2].weights[0, 0].tril(), uniform[:, None].expand(16, 16).tril())


def test_windows_prefixes_and_alibi_reach_the_weights() -> None:
    narrow = attended(decoder(window=3), ids())[0][0].weights
    assert torch.equal((narrow > 0).sum(-1)[0, 0], torch.tensor([1, 2, *[3] * 14]))
    wide = attended(decoder(prefix=4), ids())[0][0].weights
    assert bool((wide[:, :, 0, :4] > 0).all()) and not wide[:, :, 0, 4:].any()
    flat, sloped = decoder(positions="none"), decoder(positions="alibi")
    for first, second in zip(flat.parameters(), sloped.parameters(), strict=True):
        assert torch.equal(first, second)
    (flat_layer,), (sloped_layer,) = attended(flat, ids())[0], attended(sloped, ids())[0]
    assert flat_layer.scores is not None and sloped_layer.scores is not None
    difference = (sloped_layer.scores - flat_layer.scores)[0, 0]
    torch.testing.assert_close(difference[9, :10], -(2.0**-8) * torch.arange(9, -1, -1.0), atol=1e-5, rtol=1e-4)


def test_attention_alone_has_no_mlp_and_norms_can_be_rms() -> None:
    assert not any("up" in name for name, _ in decoder(mlp=False).named_parameters())
    assert any(isinstance(module, torch.nn.RMSNorm) for module in decoder(norm="rms").modules())
    layers, states = attended(decoder(mlp=False), ids())
    torch.testing.assert_close(states[1], states[0] + layers[0].output)


@pytest.mark.parametrize("name", ["head-gate", "element-gate"])
def test_gates_multiply_what_leaves_the_head(name: str) -> None:
    torch.manual_seed(0)
    layer = VariantAttention(VARIANTS[name], 8, 2)
    plain = VariantAttention(VARIANTS["softmax"], 8, 2)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("gate")})
    hidden, visible = torch.randn(1, 5, 8), torch.ones(5, 5).tril().bool()
    assert layer.gate is not None
    with torch.no_grad():
        layer.gate.weight.zero_()
        half, whole = layer(hidden, visible), plain(hidden, visible)
        torch.testing.assert_close(half.output, whole.output / 2)
        assert half.gate is not None and torch.equal(half.gate, torch.full((1, 2, 5), 0.5))
        assert torch.equal(half.weights, whole.weights)
        layer.gate.weight.normal_()
        rows = layer.gate.weight.unflatten(0, (2, -1))
        rows[1].zero_()  # the second head's gates only
        mixed = layer(hidden, visible)
    assert torch.equal(mixed.gate[:, 1], torch.full((1, 5), 0.5)) and not torch.equal(mixed.gate[:, 0], half.gate[:, 0])


def test_output_weights_write_what_the_layer_writes() -> None:
    torch.manual_seed(0)
    layer = VariantAttention(VARIANTS["relu"], 8, 2)
    hidden, visible = torch.randn(1, 5, 8), torch.ones(5, 5).tril().bool()
    with torch.no_grad():
        out = layer(hidden, visible)
        by_head = torch.einsum("bhqk,bhkd,hdm->bqm", out.weights, out.value, layer.output_weights)
    torch.testing.assert_close(out.output, by_head)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "hard"}, "no attention variant 'hard'"),
        ({"heads": 3}, "multiple of the 3 heads"),
        ({"positions": "rope", "d_model": 6, "heads": 2}, "odd"),
        ({"positions": "alibi", "attention": "elu-linear"}, "elu-linear has none"),
        ({"positions": "sine"}, "learned, rope, alibi, none"),
        ({"norm": "batch"}, "layer, rms"),
        ({"window": 0}, "at least 1 key"),
        ({"prefix": 17}, "from 0 to the context of 16"),
        ({"layers": 0}, "layers must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder(**changes)


def test_a_sequence_that_is_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="knows 16 positions, and 17 tokens came"):
        decoder()(ids(length=17))
