"""Models the dashboard may compute with: the built-in ones and those named when it was started, each loaded once."""

import threading
from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

from sinklens.app.dashboard.run import Run
from sinklens.errors import InputError
from sinklens.models.builtin import builtin_models
from sinklens.models.load import load
from sinklens.models.source import source_of


def name_of(model: TransformerBridge) -> str:
    """What a loaded model is called: by its source, else as its configuration says."""
    known = source_of(model)
    return known.name if known is not None else str(getattr(model.cfg, "model_name", "model"))


_LANGUAGE = "tiny-llama"
"""The built-in model that takes any text, and so stands before the others."""


class Models:
    """Names that the page may ask for; it can name no other, so it cannot make the program read another path.

    Args:
        named: Names, paths or loaded bridges given when the dashboard was started, the first of them chosen by default.
        device: Where models are put, as for :func:`sinklens.load`.
    """

    def __init__(self, named: Sequence[str | TransformerBridge] = (), device: str = "auto") -> None:
        self._loaded: dict[str, TransformerBridge] = {
            name_of(each): each for each in named if not isinstance(each, str)
        }
        self._given = [each if isinstance(each, str) else name_of(each) for each in named]
        self._device = device
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """What the page may choose, those given first."""
        builtin = sorted(builtin_models(), key=lambda name: name != _LANGUAGE)
        return list(dict.fromkeys([*self._given, *builtin]))

    def is_loaded(self, name: str) -> bool:
        """Whether using it starts at once."""
        return name in self._loaded

    def get(self, name: str) -> TransformerBridge:
        """The model, loaded on first use.

        Raises:
            InputError: Not one of :attr:`names`.
            ModelLoadError: It cannot be loaded.
        """
        if name not in self.names:
            raise InputError(
                f"This dashboard was not started with the model {name[:80]!r}; start it with --model {name[:80]}."
            )
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load(name, device=self._device)
            return self._loaded[name]

    def name_for(self, run: Run) -> str | None:
        """Which of the names made a result: by its name or path, ``None`` when none of them does."""
        facts = run.model
        wanted = {str(facts.get("name")), str(facts.get("path"))}
        for name in self.names:
            source = source_of(self._loaded[name]) if name in self._loaded else None
            known = {name} if source is None else {name, source.name, source.path}
            if wanted & known:
                return name
        return None

    def for_run(self, run: Run) -> TransformerBridge:
        """The model that made a result.

        Raises:
            InputError: It is not there, or has another shape than the result says.
        """
        name = self.name_for(run)
        if name is None:
            raise InputError(
                f"This needs the model {run.model.get('name', '(unknown)')}, which the dashboard was not given; start "
                "it with --model and the model's name or folder."
            )
        model = self.get(name)
        expected = tuple(run.model.get(key) for key in ("n_layers", "n_heads", "d_vocab"))
        found = tuple(int(getattr(model.cfg, key)) for key in ("n_layers", "n_heads", "d_vocab"))
        if expected != found:
            raise InputError(
                f"{name} has {found[0]} layers, {found[1]} heads and {found[2]} tokens in its vocabulary, but the "
                f"result was made with {expected[0]}, {expected[1]} and {expected[2]}: it is another model."
            )
        return model
