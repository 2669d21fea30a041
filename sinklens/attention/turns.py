"""One measurement of a model at a time: other threads wait for their turn, whatever runs in between is refused."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError


class Turn:
    """The time for which one thread or task has a model to itself.

    Attributes:
        model: The bridge.
        thread: Who took the turn.
        depth: How many ``with turn(model)`` stand inside one another.
        engine: The engine that is open on the model, if any.
        level: Hooks of TransformerLens above this level were added within the turn.
        watch: The hook that refuses others' forward passes.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model
        self.thread = threading.get_ident()
        self.depth = 1
        self.engine: Any = None
        self.level: int = getattr(model, "context_level", 0)
        self.watch: Any = model.original_model.register_forward_pre_hook(self._refuse_others, prepend=True)

    def _refuse_others(self, *_: Any) -> None:
        if self not in _mine.get():
            raise InputError(
                "This model is being measured in another thread or task; wait until that is done, or load the model a "
                "second time."
            )


class _Place:
    """What is known of one Hugging Face model: whose turn it is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.turn: Turn | None = None


_places: WeakKeyDictionary[nn.Module, _Place] = WeakKeyDictionary()
_guard = threading.Lock()
# turns and not threads: two tasks of one event loop share a thread, and a thread that works for a task has its context
_mine: ContextVar[tuple[Turn, ...]] = ContextVar("sinklens_turns", default=())


@contextmanager
def turn(model: TransformerBridge) -> Iterator[Turn]:
    """Have a model to oneself: a second thread waits here, and its plain forward passes are refused meanwhile.

    May stand inside itself. Two bridges of one Hugging Face model share a turn. In a forked child, turns of threads
    that it does not have are over, and what they had changed is undone.

    Raises:
        InputError: Another task of this thread has the model, so that waiting would be for ever.
    """
    root = model.original_model
    with _guard:
        place = _places.setdefault(root, _Place())
    mine = place.turn
    if mine is not None and mine in _mine.get():
        mine.depth += 1
    else:
        if not place.lock.acquire(blocking=False):
            if place.turn is not None and place.turn.thread == threading.get_ident():
                raise InputError(
                    "This model is being measured by another task: an AttentionEngine is already open on this model; "
                    "await that task first, or load the model a second time."
                )
            place.lock.acquire()
        mine = place.turn = Turn(model)
        _mine.set((*_mine.get(), mine))
    try:
        yield mine
    finally:
        mine.depth -= 1
        if mine.depth == 0:
            mine.watch.remove()
            # not by a token: the end may come in another context, where a generator is closed
            _mine.set(tuple(each for each in _mine.get() if each is not mine))
            place.turn = None
            place.lock.release()


def engine_of(module: nn.Module) -> Any:
    """The engine of this thread or task that measures a Hugging Face attention module; else its latest, or ``None``."""
    engines = [each.engine for each in _mine.get() if each.engine is not None]
    return next((engine for engine in engines if engine.has(module)), engines[-1] if engines else None)


def _after_fork() -> None:
    """End the turns of threads that the child does not have."""
    global _guard
    _guard = threading.Lock()
    for place in list(_places.values()):
        left = place.turn
        if left is None:
            place.lock = threading.Lock()
        elif left.thread != threading.get_ident():
            added = range(left.level + 1, left.model.context_level + 1)
            if left.engine is not None:
                with suppress(Exception):  # the rest has to be undone all the same
                    left.engine.__exit__()
            left.watch.remove()
            for point in left.model.hook_dict.values():
                for level in added:
                    point.remove_hooks(level=level)
            left.model.context_level = left.level
            place.lock, place.turn = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
