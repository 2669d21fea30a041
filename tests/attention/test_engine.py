"""The engine leaves a bridge as it found it, whatever happens inside, and refuses what it would get wrong."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, Block, FullMap, ReceivedMass
from sinklens.attention.engine import _interface
from sinklens.errors import InputError, UnsupportedArchitectureError
from tests.families import FAMILIES, boot, random_ids

IDS = random_ids(pos=24)
PATHS = [
    (name, path)
    for name, family in FAMILIES.items()
    for path in ("fast", "fallback", "none")
    if path == family.path or (family.path == "mixed" and path == "fast")
]
SOME = [("llama", "fast"), ("gpt2", "fast"), ("gemma2", "fast"), ("bloom", "fallback"), ("gptj", "fallback")]


class Boom(Exception):
    """Raised by a test in the middle of a run."""


def boom(*args: Any, **kwargs: Any) -> NoReturn:
    raise Boom


def attentions(bridge: TransformerBridge) -> list[Any]:
    return [block.attn for block in bridge.blocks if "attn" in block._modules]


def state(bridge: TransformerBridge) -> dict[str, Any]:
    """Everything that a run could leave behind."""
    hf = bridge.original_model
    points = {name: m for name, m in bridge.named_modules() if isinstance(m, HookPoint)}
    configs = {id(c): c for m in hf.modules() if (c := getattr(m, "config", None)) is not None}
    return {
        "forward": [attn.__dict__.get("forward") for attn in attentions(bridge)],
        "modules": [id(module) for module in bridge.modules()] + [id(module) for module in hf.modules()],
        "training": [module.training for module in hf.modules()],
        "parameters": [(name, p.data_ptr(), p._version) for name, p in hf.named_parameters()],
        "implementation": [getattr(c, "_attn_implementation", None) for c in configs.values()],
        "hooks": {name: len(p.fwd_hooks) for name, p in points.items() if p.fwd_hooks or p.has_hooks()},
        "torch hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in [*bridge.modules(), *hf.modules()]],
    }


@contextmanager
def unchanged(bridge: TransformerBridge) -> Iterator[None]:
    logits = bridge(IDS)  # first: the first pass makes some bridges register hooks of their own
    before = state(bridge)
    yield
    after = state(bridge)
    for key, value in before.items():
        assert after[key] == value, key
    assert after["forward"] == [None] * len(attentions(bridge))
    assert torch.equal(bridge(IDS), logits)  # bit for bit


# ------------------------------------------------------------------ restoring
@pytest.mark.parametrize(("name", "path"), PATHS)
def test_a_bridge_is_what_it_was(name: str, path: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with unchanged(bridge), AttentionEngine(bridge, path=path, statistics=[ReceivedMass]):
        bridge(IDS)


class BoomScores:
    def edit_scores(self, block: Block) -> None:
        if block.shape.layer == 1:
            raise Boom


class BoomPattern:
    def edit_pattern(self, block: Block) -> None:
        raise Boom


def boom_late(layer: int, value: Tensor, statistics: Any) -> None:
    if layer == 1:
        raise Boom


BROKEN_RUNS: dict[str, dict[str, Any]] = {
    "on_layer": {"on_layer": boom},
    "on_layer of the second layer": {"on_layer": boom_late},
    "statistic": {"statistics": [boom]},
    "scores": {"edits": [BoomScores()]},
    "pattern": {"edits": [BoomPattern()]},
}


@pytest.mark.parametrize("where", BROKEN_RUNS)
@pytest.mark.parametrize(("name", "path"), SOME)
def test_a_bridge_is_what_it_was_after_an_exception(name: str, path: str, where: str, zoo: Path) -> None:
    bridge, options = boot(name, zoo), BROKEN_RUNS[where]
    wanted: type[Exception] = Boom
    if name == "gptj" and "edits" in options:
        wanted = UnsupportedArchitectureError
    with (
        unchanged(bridge),
        pytest.raises(wanted),
        AttentionEngine(bridge, path=path, **options),
    ):
        bridge(IDS)


@pytest.mark.parametrize(("name", "path"), SOME)
def test_a_hook_of_the_user_that_raises(name: str, path: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with (
        unchanged(bridge),
        pytest.raises(Boom),
        AttentionEngine(bridge, path=path),
        bridge.hooks(fwd_hooks=[("blocks.0.hook_out", boom)]),
    ):
        bridge(IDS)


@pytest.mark.parametrize(("name", "path"), SOME)
def test_an_exception_of_the_caller(name: str, path: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    engine = AttentionEngine(bridge, path=path)
    with unchanged(bridge):
        with pytest.raises(Boom), engine:
            raise Boom
        with engine:  # and it can be opened again
            bridge(IDS)


@pytest.mark.parametrize(("name", "path"), SOME)
def test_hooks_of_the_user_stay_and_work(name: str, path: str, zoo: Path) -> None:
    bridge = boot.__wrapped__(name, zoo)
    plain = bridge(IDS)
    seen: list[str] = []

    def halve(x: Tensor, hook: Any) -> Tensor:
        seen.append(hook.name)
        return x * 0.5

    for point in ("blocks.0.hook_out", "blocks.1.mlp.hook_out", "blocks.1.attn.hook_out"):
        bridge.add_hook(point, halve)
    expected = bridge(IDS)
    count = len(seen)
    with AttentionEngine(bridge, path=path, statistics=[ReceivedMass]):
        torch.testing.assert_close(bridge(IDS), expected, atol=2e-5, rtol=0)
    assert seen[count:] == seen[:count]
    assert torch.equal(bridge(IDS), expected)
    bridge.reset_hooks()
    assert torch.equal(bridge(IDS), plain)


def test_results_of_every_forward_pass_come_apart(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    masses: list[Tensor] = []
    layers: list[int] = []
    with AttentionEngine(
        bridge,
        statistics=[ReceivedMass],
        on_layer=lambda i, v, s: (layers.append(i), masses.append(s[0].compute()["mass"])),
    ):
        bridge(IDS)
        bridge(IDS[:1, :9])
        bridge(IDS)
    assert layers == [0, 1] * 3
    assert masses[2].shape == (1, 4, 9)
    assert torch.equal(masses[0], masses[4]) and torch.equal(masses[1], masses[5])


# ------------------------------------------------------------------ refusing
@pytest.mark.parametrize("name", ["bloom", "gptj", "falcon", "codegen", "gpt_neo"])
def test_the_fast_path_refuses_what_never_reaches_it(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    wanted = (UnsupportedArchitectureError, TypeError, AttributeError)
    with unchanged(bridge), pytest.raises(wanted), AttentionEngine(bridge, path="fast"):
        bridge(IDS)


@pytest.mark.parametrize("calls", [0, 2])
def test_a_layer_that_attends_twice_or_not_at_all_is_refused(
    calls: int, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = boot("llama", zoo)
    module = attentions(bridge)[1].original_component
    forward = module.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        for _ in range(calls):
            out = forward(*args, **kwargs)
        return out if calls else (torch.zeros_like(kwargs["hidden_states"]), None)

    monkeypatch.setattr(module, "forward", count)
    message = re.escape(f"got calls for layers {[0] + [1] * calls}")
    with pytest.raises(UnsupportedArchitectureError, match=message), AttentionEngine(bridge):
        bridge(IDS)


def test_attention_of_no_block_is_refused(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    engine = AttentionEngine(bridge)
    with pytest.raises(UnsupportedArchitectureError, match="not the attention of any block"):
        engine.layer_of(torch.nn.Linear(1, 1))


def test_the_attention_function_alone_is_refused() -> None:
    with pytest.raises(InputError, match="outside"):
        _interface(torch.nn.Identity(), IDS, IDS, IDS, None)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_are_refused(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    raises = pytest.raises(InputError, match=r"torch\.no_grad")
    with torch.enable_grad(), unchanged(bridge), raises, AttentionEngine(bridge):
        bridge(IDS)


def test_dropout_is_refused(zoo: Path) -> None:
    bridge = boot.__wrapped__("gpt2", zoo)
    bridge.original_model.train()
    with pytest.raises(InputError, match="eval"), AttentionEngine(bridge):
        bridge(IDS)


@pytest.mark.parametrize("path", ["quick", "", "FAST"])
def test_unknown_paths_are_refused(path: str, zoo: Path) -> None:
    with pytest.raises(InputError, match="path must be"):
        AttentionEngine(boot("llama", zoo), path=path)


@pytest.mark.parametrize("real", [torch.ones(1, 24), torch.ones(2, 5), torch.ones(24)])
@pytest.mark.parametrize(("name", "path"), SOME)
def test_padding_of_another_shape_is_refused(name: str, path: str, real: Tensor, zoo: Path) -> None:
    with (
        pytest.raises(InputError, match="real must be"),
        AttentionEngine(boot(name, zoo), path=path, real=real),
    ):
        boot(name, zoo)(IDS)


@pytest.mark.parametrize(("name", "path"), SOME)
def test_a_second_engine_inside_is_refused(name: str, path: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with unchanged(bridge), AttentionEngine(bridge, path=path) as engine:
        with pytest.raises(InputError, match="already open"):
            engine.__enter__()
        if path == "fast":
            with pytest.raises(InputError, match="already open"):
                AttentionEngine(bridge).__enter__()
        bridge(IDS)


def test_two_models_at_once(zoo: Path) -> None:
    outer, inner = boot("llama", zoo), boot("mistral", zoo)
    expected = outer(IDS), inner(IDS)
    layers: list[int] = []
    engine = AttentionEngine(outer, on_layer=lambda layer, value, statistics: layers.append(layer))
    with engine, AttentionEngine(inner):
        torch.testing.assert_close(inner(IDS), expected[1], atol=2e-5, rtol=0)
        assert layers == []  # numbers of one model must not go to the other's listener
        torch.testing.assert_close(outer(IDS), expected[0], atol=2e-5, rtol=0)
    assert layers == list(engine.layers)
    assert torch.equal(outer(IDS), expected[0])


SILENT = [
    ("llama", "hook_pattern"),
    ("llama", "hook_attn_scores"),
    ("llama", "hook_rot_q"),
    ("gemma3", "hook_rot_k"),
    ("gpt2", "hook_v"),
    ("gpt2", "hook_z"),
    ("gpt_neox", "hook_q"),
    ("deepseek_v3", "hook_v"),
    ("opt", "hook_pattern"),
]


@pytest.mark.parametrize(("name", "point"), SILENT)
@pytest.mark.parametrize("inside", [True, False])
def test_hooks_that_would_be_ignored_are_refused(name: str, point: str, inside: bool, zoo: Path) -> None:
    bridge = boot(name, zoo)
    hooks = [(f"blocks.1.attn.{point}", lambda x, hook: x * 0)]
    hooked, engine = bridge.hooks(fwd_hooks=hooks), AttentionEngine(bridge)
    outer, inner = (engine, hooked) if inside else (hooked, engine)
    raises = pytest.raises(InputError, match=r"blocks\.1\.attn\..*make the change with an intervention")
    with unchanged(bridge), raises, outer, inner:
        bridge(IDS)


@pytest.mark.parametrize(
    ("name", "point"), [("llama", "hook_q"), ("llama", "hook_v"), ("llama", "hook_z"), ("gpt_neox", "hook_z")]
)
def test_hooks_that_work_on_the_fast_path_are_let_through(name: str, point: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    with bridge.hooks(fwd_hooks=[(f"blocks.1.attn.{point}", lambda x, hook: x * 0.5)]):
        expected = bridge(IDS)
        with AttentionEngine(bridge):
            torch.testing.assert_close(bridge(IDS), expected, atol=2e-5, rtol=0)
    assert not torch.allclose(bridge(IDS), expected, atol=1e-3)


def test_the_fallback_sees_hooks_set_before_it(zoo: Path) -> None:
    bridge = boot("llama", zoo)
    maps: list[Tensor] = []

    def first_only(pattern: Tensor, hook: Any) -> Tensor:
        pattern = torch.zeros_like(pattern)
        pattern[..., 0] = 1
        return pattern

    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", first_only)]):
        expected = bridge(IDS)
        with (
            AttentionEngine(
                bridge,
                path="fallback",
                statistics=[FullMap],
                on_layer=lambda i, v, s: maps.append(s[0].compute()["full_map"]),
            ),
        ):
            assert torch.equal(bridge(IDS), expected)
    assert (maps[1][..., 0] == 1).all()
