"""Whether a checkpoint's weights are exactly what its config asks for; transformers only logs what is not."""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from sinklens.errors import ModelLoadError

if TYPE_CHECKING:
    from torch import nn

# Buffers that older versions of transformers saved and that models compute by themselves.
BUFFERS = re.compile(
    r"(^|\.)(inv_freq|position_ids|token_type_ids|masked_bias)$"
    r"|(^|\.)(attn|attention|self_attn|self_attention)\.bias$"  # GPT-2's and GPT-NeoX's causal mask
)


@contextlib.contextmanager
def exact_weights() -> Iterator[None]:
    """Refuse, while models are loaded, weights that are missing, of another shape, or dropped though they matter."""
    from transformers import modeling_utils

    # transformers hands its findings to this function alone, to be logged at a level that TransformerLens silences
    with mock.patch.object(modeling_utils, "log_state_dict_report", _check):
        yield


def _check(*, model: Any, pretrained_model_name_or_path: Any, loading_info: Any, **_: Any) -> None:
    """Raise for what would make the model another one, warn of what is merely left over.

    The arguments are those of ``transformers.utils.loading_report.log_state_dict_report``.
    """
    path = pretrained_model_name_or_path
    if loading_info.mismatched_keys:
        name, stored, wanted = min(loading_info.mismatched_keys)
        more = len(loading_info.mismatched_keys) - 1
        raise ModelLoadError(
            f"The weights in {path} do not fit its config: {name} is {list(stored)} in the checkpoint and "
            f"{list(wanted)} in the model{f' (and {more} more)' if more else ''}. One of the two files is another "
            "model's."
        )
    if loading_info.error_msgs or loading_info.conversion_errors:
        told = [*loading_info.error_msgs, *loading_info.conversion_errors.values()]
        raise ModelLoadError(f"The weights in {path} could not be read: {' '.join(told[0].split())[:300]}")
    if loading_info.missing_keys:
        raise ModelLoadError(
            f"The weights in {path} are incomplete: {_some(loading_info.missing_keys)} would be random numbers. "
            "Expected a complete checkpoint; download or save it again."
        )
    left = [name for name in loading_info.unexpected_keys if not BUFFERS.search(name)]
    changing = [name for name in left if _belongs_to_model(model, name)]
    if changing:
        raise ModelLoadError(
            f"{path} holds weights that its config does not use and {type(model).__name__} would drop: "
            f"{_some(changing)}. The numbers would be another model's; the config is not this checkpoint's (biases "
            "or layers that it does not ask for)."
        )
    if left:
        warnings.warn(
            f"{path} holds weights that the model has no place for: {_some(left)}. They are not used.", stacklevel=2
        )


def _belongs_to_model(model: "nn.Module", name: str) -> bool:
    """Whether a weight without a place would sit in a block of the model, or in a module that the model has."""
    from torch import nn

    stacks = [stack for stack, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if any(name.startswith(f"{stack}.") for stack in stacks):
        return True
    parent = name.rpartition(".")[0]
    return bool(parent) and any(parent == module for module, _ in model.named_modules())


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return ", ".join(ordered[:count]) + more
