"""The folder a training writes to: whose it is, what it holds, and how its files are written."""

import json
import math
import tempfile
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save as safetensors_bytes
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sinklens.errors import InputError, ResultError
from sinklens.lab.running import choose_device
from sinklens.results.files import write_atomically

STATE = Path("checkpoint") / "state.pt"
FORMAT = 1
# Everything that a training puts into its checkpoint's folder.
_OURS = ("state.pt", "tokenizer.json")


def already_finished(target: Path, task: str, settings: Mapping[str, Any], *, resume: bool) -> bool:
    """Decide what a training does with its target folder.

    A folder with something else in it is refused. With `resume` a finished model of the same settings is
    left as it is; without it, a checkpoint is deleted and a finished model is marked as to be replaced.

    Returns:
        Whether there is nothing to do.

    Raises:
        InputError: if the target is a file or holds something that no training wrote.
        ResultError: if a finished model there has another task, other settings or no weights, or its recipe is
            damaged.
    """
    _refuse_foreign(target)
    recipe = read_recipe(target, task)
    if not resume:
        forget(target)
        if recipe is not None:
            # If this run is interrupted early, the empty folder tells that the old files are ours.
            (target / STATE).parent.mkdir(exist_ok=True)
            (target / "recipe.json").unlink()
        return False
    if recipe is None:
        return False
    refuse_other(settings, recipe, f"{target} holds a finished model")
    if not (target / "model.safetensors").exists():
        raise ResultError(f"{target} has lost its model.safetensors; start anew with --restart (resume=False).")
    forget(target)
    return True


def work_in(
    out: str | Path, task: str, settings: Mapping[str, Any], *, device: str, checkpoint_every: int, resume: bool
) -> tuple[Path, torch.device, bool]:
    """What a training begins with: its folder, its device, and whether it is finished already.

    Raises:
        InputError: as :func:`already_finished` and :func:`~sinklens.lab.running.choose_device`, or if
            ``checkpoint_every`` is below 1.
        ResultError: as :func:`already_finished`.
    """
    if checkpoint_every < 1:
        raise InputError(f"checkpoint_every must be at least 1 step, not {checkpoint_every}.")
    target, place = Path(out), choose_device(device)
    return target, place, already_finished(target, task, settings, resume=resume)


def read_recipe(folder: Path, task: str) -> dict[str, Any] | None:
    """Return the settings of the finished model in `folder`, or None if there is none.

    Raises:
        ResultError: if recipe.json is damaged, of a newer format or of another task.
    """
    path = folder / "recipe.json"
    if not path.exists():
        return None
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        version, found, settings = int(recipe["format"]), recipe["task"], dict(recipe["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is no recipe of sinklens or is damaged; choose another folder.") from error
    if found != task:
        raise ResultError(f"{path} is of the task {found!r} and not {task!r}; choose another folder.")
    if version > FORMAT:
        raise ResultError(f"{path} has format {version} and this version of sinklens reads up to {FORMAT}.")
    return settings


def refuse_other(settings: Mapping[str, Any], saved: Mapping[str, Any], what: str) -> None:
    """Refuse to go on where a training with other settings stopped.

    Raises:
        ResultError: naming each setting that differs, as `lr 0.001 (saved: 0.003)`.
    """
    differences = [
        f"{name} {settings.get(name, 'absent')} (saved: {saved.get(name, 'absent')})"
        for name in sorted(settings.keys() | saved.keys())
        if settings.get(name) != saved.get(name)
    ]
    if differences:
        raise ResultError(
            f"{what} with other settings: {', '.join(differences)}; repeat those settings, "
            "choose another folder, or start anew with --restart (resume=False)."
        )


def forget(target: Path) -> None:
    """Delete the checkpoint and its folder, but nothing else that might lie there."""
    folder = (target / STATE).parent
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if _is_ours(path):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def how_it_ran(seconds: float, device: str) -> dict[str, Any]:
    """What a recipe tells of the machine: weights repeat on one machine with one number of threads."""
    return {
        "seconds": round(seconds, 1),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_model(
    out: Path, model: PreTrainedModel, weights: Mapping[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write a directory that `sinklens.load` and transformers take; config.json names fp32 to compute with.

    Args:
        out: the folder.
        model: whose configuration is written.
        weights: what is stored, by name, in the precision to store.
        tokenizer: goes beside them.

    Raises:
        ResultError: if the directory cannot be written.
    """
    write_atomically(out / "config.json", json_bytes(json.loads(model.config.to_json_string()) | {"dtype": "float32"}))
    write_tokenizer(out, tokenizer)
    write_atomically(out / "model.safetensors", safetensors_bytes(dict(weights), metadata={"format": "pt"}))


def full_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights in fp32, on the CPU."""
    return {name: weight.detach().float().cpu().contiguous() for name, weight in model.state_dict().items()}


def write_tokenizer(out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write tokenizer.json and tokenizer_config.json, the latter so that transformers 4 and 5 both read it.

    Raises:
        ResultError: if they cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            content = path.read_bytes()
            if path.name == "tokenizer_config.json":
                content = json_bytes(json.loads(content) | {"tokenizer_class": "PreTrainedTokenizerFast"})
            write_atomically(out / path.name, content)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Encode for a file that is read by people and diffed: indented, ending with a line break."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def measured_bytes(measured: Mapping[str, float]) -> bytes:
    """Encode measured.json: six digits, null for what is NaN or infinite."""
    return json_bytes(
        {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in measured.items()}
    )


def paragraph(text: str) -> str:
    """Wrap a model card's sentences."""
    return textwrap.fill(" ".join(text.split()), width=110)


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; a folder for the model was expected.")
    if not target.is_dir() or (target / "recipe.json").exists():  # `read_recipe` refuses a strange recipe
        return
    folder, strangers = (target / STATE).parent, sorted(path.name for path in target.iterdir())
    if strangers and not (folder.is_dir() and all(map(_is_ours, folder.iterdir()))):
        raise InputError(f"{target} already holds {strangers[0]}; give a new or an empty folder for the model.")


def _is_ours(path: Path) -> bool:
    # a killed write leaves .state.pt.PID.tmp behind
    return path.is_file() and any(
        path.name == name or (path.name.startswith(f".{name}.") and path.suffix == ".tmp") for name in _OURS
    )
