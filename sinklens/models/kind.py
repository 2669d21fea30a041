"""What kind of model a config describes; sinklens measures decoders of text, and says so of everything else."""

from collections.abc import Mapping
from typing import Any

from sinklens.errors import UnsupportedArchitectureError


def refuse_other_kinds(config: Mapping[str, Any], path: str) -> None:
    """Refuse encoders, encoder-decoders, vision and audio models, by their config alone.

    Modelling code that comes with a checkpoint is not known here and left to the loading.

    Args:
        config: The content of ``config.json``.
        path: What to call the model.

    Raises:
        UnsupportedArchitectureError: The model is no decoder of text.
    """
    kind = _other_kind(config)
    if kind is not None:
        name = (config.get("architectures") or [config.get("model_type", "model")])[0]
        raise UnsupportedArchitectureError(
            f"{path} is a {name}, {kind}; expected a decoder of text, a model that predicts the next token from those "
            "before it."
        )


def _other_kind(config: Mapping[str, Any]) -> str | None:
    """In words what a model is that is no decoder of text, ``None`` for decoders and for what is not known."""
    from transformers.models.auto import modeling_auto as auto

    model_type = str(config.get("model_type", ""))
    names = config.get("architectures") or []
    name = str(names[0]) if names else ""
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder"
    masked = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked and not config.get("is_decoder"):
        return "an encoder"
    if causal or name.endswith(("ForCausalLM", "LMHeadModel")):
        return None
    if name in set(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()):
        return None  # a text decoder with an encoder of pictures before it
    if model_type not in auto.MODEL_MAPPING_NAMES:
        return None
    for word, mappings in _OTHERS.items():
        if any(model_type in getattr(auto, mapping, {}) for mapping in mappings):
            return word
    return "which generates no text"


_OTHERS = {
    "a model of pictures and text": ("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",),
    "a vision model": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES"),
    "an audio model": ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", "MODEL_FOR_CTC_MAPPING_NAMES"),
    "an encoder-decoder": (  # some name their encoder alone
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    ),
}
