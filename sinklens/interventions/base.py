"""What all interventions share: opening them on a model, adding them up, and going to JSON and back."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, StatisticFactory, plan_for
from sinklens.attention.engine import LayerListener
from sinklens.attention.turns import turn
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.heads import Head, Heads, check_heads, head_name
from sinklens.interventions.json_form import FORMAT, VERSION, content_of
from sinklens.interventions.positions import Positions


@dataclass(frozen=True)
class Intervention(ABC):
    """A change to a model's attention, values or residual stream that holds inside ``with`` and nowhere else.

    ::

        with torch.no_grad(), (ScaleKeys(keys=0, gamma=2.0) + AblateHeads(["L1H3"]))(model):
            logits = model(ids)

    One :class:`~sinklens.attention.AttentionEngine` is opened on the path that is exact for the model; forward passes
    and generation with a growing KV cache inside it are changed. On exit, and on any exception, the model is what it
    was before. Gradients are not kept: run under ``torch.no_grad()``.

    Positions count real tokens of each sequence from 0, cached ones included and left padding left out. Layers and
    heads count from 0. Subclasses are frozen dataclasses that check their fields in ``__post_init__``, register
    themselves under their name for JSON, and return engine edits from :meth:`edits`.
    """

    _registry: ClassVar[dict[str, type["Intervention"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Intervention._registry[cls.__name__] = cls

    @abstractmethod
    def edits(self, positions: Positions) -> Sequence[Any]:
        """Fresh edits for the engine (see :class:`sinklens.attention.Edit`), applied in order.

        Args:
            positions: Says which positions a block's rows and keys have.
        """

    def hooks(self, positions: Positions) -> Sequence[tuple[str, Any]]:
        """Bridge hooks that the intervention needs besides its edits, as ``(name, function)`` (default: none).

        Args:
            positions: Says which positions the forward pass in hand has.
        """
        return []

    def changing(self, model: TransformerBridge) -> AbstractContextManager[None]:
        """What the intervention changes in the model itself while it is open, put back at the end (default: nothing).

        Args:
            model: The bridge.
        """
        return nullcontext()

    def check(self, model: TransformerBridge) -> None:
        """Refuse a model that does not have what the intervention names (by default: its heads).

        Raises:
            InputError: One sentence about the first thing missing.
        """
        heads = self.heads_touched()
        if heads is not None:
            check_heads(model, heads)

    @contextmanager
    def __call__(
        self,
        model: TransformerBridge,
        *,
        statistics: Sequence[StatisticFactory] = (),
        observers: Sequence[Any] = (),
        on_layer: LayerListener | None = None,
        real: Tensor | None = None,
        compared: bool = False,
    ) -> Iterator[AttentionEngine]:
        """Apply the intervention to every forward pass inside ``with``.

        Args:
            model: The bridge.
            statistics: What to measure of the changed attention, as for the engine.
            observers: Look at the changed attention, as for the engine.
            on_layer: Receives each measured layer.
            real: Which positions are real tokens ``[batch pos]``, for the statistics.
            compared: Whether outputs are compared with those of another measured pass, as for the engine.

        Raises:
            InputError: The model has no such head, or an intervention or engine is open on it already.
            UnsupportedArchitectureError: The model has no attention, or it cannot be edited exactly.
        """
        self.check(model)
        plan = plan_for(model)
        positions = Positions()
        edits = self.edits(positions)
        if edits and plan.path == "none":
            raise UnsupportedArchitectureError(
                f"{type(self).__name__} changes attention, and {model.cfg.architecture} has none."
            )
        engine = AttentionEngine(
            model,
            path=plan.path,
            statistics=statistics,
            edits=edits,
            observers=observers,
            on_layer=on_layer,
            real=real,
            compared=compared,
        )
        with turn(model), self.around(model, positions), engine:
            yield engine

    @contextmanager
    def around(self, model: TransformerBridge, positions: Positions) -> Iterator[None]:
        """All that the intervention does besides its edits, for who gives these to an engine of another kind.

        Args:
            model: The bridge, which :meth:`check` let pass.
            positions: Those that the edits were made with.
        """
        hooks = model.hooks(fwd_hooks=list(self.hooks(positions)))
        with positions.watch(model), self.changing(model), hooks:
            yield

    def heads_touched(self) -> Heads | None:
        """Heads that the intervention is about, ``"all"`` included; ``None`` where it does not go by heads."""
        return getattr(self, "heads", None)

    def on(self, heads: Sequence[Head]) -> "Intervention":
        """The same for these heads instead of its own; of several added up, those parts that go by heads.

        Raises:
            InputError: It does not go by heads.
        """
        if self.heads_touched() is None:
            raise InputError(
                f"{type(self).__name__} cannot be restricted to heads; give an intervention with heads, such as "
                "AblateHeads, ScaleKeys or MaskKeys."
            )
        changed: Any = replace(self, heads=tuple(heads))  # type: ignore[call-arg]
        return changed  # type: ignore[no-any-return]

    def changes_weights(self) -> bool:
        """Whether :meth:`changing` does anything."""
        return type(self).changing is not Intervention.changing

    def by_head_alone(self, edits: Sequence[Any]) -> bool:
        """Whether its edits are all it does, and none changes what heads share: values, residual stream, weights."""
        shared = any(hasattr(edit, "edit_values") for edit in edits)
        return not shared and not self.changes_weights() and not list(self.hooks(Positions()))

    def __add__(self, other: object) -> "Composition":
        return Composition((*_parts(self), *_parts(other))) if isinstance(other, Intervention) else NotImplemented

    def to_json(self) -> str:
        """The intervention as JSON text, for :meth:`from_json`."""
        content = {"format": FORMAT, "version": VERSION, "intervention": _encode(self)}
        return json.dumps(content, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Intervention":
        """The intervention that :meth:`to_json` wrote.

        Raises:
            InputError: Damaged text, another format, a newer version, or an unknown intervention or field.
        """
        return _decode(content_of(text))


@dataclass(frozen=True)
class Composition(Intervention):
    """Several interventions in one engine, in order; what ``A + B`` makes.

    Changes of scores all run before the softmax and changes of head outputs after all of those, so only interventions
    of the same stage can depend on their order.
    """

    parts: tuple[Intervention, ...]

    def __post_init__(self) -> None:
        parts: Any = self.parts
        listed = isinstance(parts, tuple | list) and len(parts) > 0
        if not listed or not all(isinstance(part, Intervention) for part in parts):
            raise InputError(f"A composition needs at least one intervention, got {self.parts!r}.")
        object.__setattr__(self, "parts", tuple(parts))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """The edits of all parts."""
        return [edit for part in self.parts for edit in part.edits(positions)]

    def hooks(self, positions: Positions) -> Sequence[tuple[str, Any]]:
        """The hooks of all parts."""
        return [hook for part in self.parts for hook in part.hooks(positions)]

    @contextmanager
    def changing(self, model: TransformerBridge) -> Iterator[None]:
        """The changes of all parts, in order."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.changing(model))
            yield

    def heads_touched(self) -> Heads | None:
        """Those of all parts that go by heads."""
        named: set[Head] = set()
        for part in self.parts:
            heads = part.heads_touched()
            if isinstance(heads, str):
                return heads
            named.update(heads or ())
        return tuple(sorted(named)) or None

    def on(self, heads: Sequence[Head]) -> Intervention:
        """Every part that goes by heads for these heads, the others as they are."""
        if self.heads_touched() is None:
            return super().on(heads)
        return Composition(tuple(part if part.heads_touched() is None else part.on(heads) for part in self.parts))

    def changes_weights(self) -> bool:
        """Whether a part does."""
        return any(part.changes_weights() for part in self.parts)

    def check(self, model: TransformerBridge) -> None:
        """Check every part."""
        for part in self.parts:
            part.check(model)


def _parts(intervention: Intervention) -> tuple[Intervention, ...]:
    return intervention.parts if isinstance(intervention, Composition) else (intervention,)


def _encode(intervention: Intervention) -> dict[str, Any]:
    content: dict[str, Any] = {"kind": type(intervention).__name__}
    for field in fields(intervention):
        value = getattr(intervention, field.name)
        if field.name == "heads" and value != "all":
            value = [head_name(head) for head in value]
        content[field.name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    """What JSON can hold, interventions within it included."""
    if isinstance(value, Intervention):
        return _encode(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _decode(content: object) -> Intervention:
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise InputError('The intervention is damaged: expected an object with a "kind".')
    arguments = dict(content)
    kind = arguments.pop("kind")
    found = Intervention._registry.get(kind)
    if found is None or inspect.isabstract(found):
        known = ", ".join(sorted(Intervention._registry))
        raise InputError(f"{kind!r} is not an intervention of this sinklens, which has {known}.")
    arguments = {name: _opened(value) for name, value in arguments.items()}
    try:
        return found(**arguments)
    except TypeError:
        names = ", ".join(field.name for field in fields(found))
        raise InputError(f"{kind} has the fields {names}; got {', '.join(arguments) or 'none'}.") from None


def _opened(value: Any) -> Any:
    """A field as the constructor takes it: what was an intervention is one again."""
    if isinstance(value, list):
        return [_opened(each) for each in value]
    if isinstance(value, dict):
        return _decode(value) if "kind" in value else {key: _opened(each) for key, each in value.items()}
    return value
