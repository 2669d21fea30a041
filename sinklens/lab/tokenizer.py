"""A tokenizer with one token per character."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def character_tokenizer(characters: Sequence[str], bos: str, max_length: int) -> PreTrainedTokenizerFast:
    r"""Build a tokenizer whose ids are the places of the characters, with `bos` after them.

    `tokenizer("ab")` prepends `bos`; decoding gives every character back, line breaks and runs of spaces
    included. A character outside the alphabet is an error and not replaced: any stand-in would be a token
    that the text does not have. `bos` also serves as end and padding token, which TransformerLens would
    otherwise invent beyond the embedding's last row.

    Args:
        characters: the alphabet, single characters; index = id.
        bos: the token that begins a sequence.
        max_length: positions of the model.

    Example:
        >>> tokenizer = character_tokenizer(["\n", "a", "b"], "<s>", 8)
        >>> tokenizer("ab\n")["input_ids"]
        [3, 1, 2, 0]
        >>> tokenizer.decode([3, 1, 2, 0], skip_special_tokens=True)
        'ab\n'
    """
    vocabulary = {character: index for index, character in enumerate(characters)}
    core = Tokenizer(models.WordLevel(vocabulary))
    core.add_special_tokens([bos])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, len(vocabulary))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=bos,
        pad_token=bos,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
