"""Tokenizers with one token per character or per word."""

from collections.abc import Sequence
from string import ascii_lowercase

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
    core = _core(characters, bos)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return _wrap(core, bos, max_length)


def word_tokenizer(words: Sequence[str], bos: str, max_length: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer of words between spaces, whose ids are the places of the words, with `bos` after them.

    Everything else is as for :func:`character_tokenizer`: `bos` is prepended, another word is an error.

    Args:
        words: the vocabulary; no white space in a word; index = id.
        bos: the token that begins a sequence.
        max_length: positions of the model.

    Example:
        >>> tokenizer = word_tokenizer(["w0", "w1", "w2"], "<s>", 8)
        >>> tokenizer("w2 w0")["input_ids"]
        [3, 2, 0]
        >>> tokenizer.decode([3, 2, 0], skip_special_tokens=True)
        'w2 w0'
    """
    core = _core(words, bos)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(core, bos, max_length)


def _core(vocabulary: Sequence[str], bos: str) -> Tokenizer:
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}))
    core.add_special_tokens([bos])
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, len(vocabulary))]
    )
    return core


def _wrap(core: Tokenizer, bos: str, max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=bos,
        pad_token=bos,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def words(count: int) -> list[str]:
    """Name the ids as spreadsheets name their columns: a, b .. z, aa, ab ..

    The letter "a" is among them, which TransformerLens spells to see whether a tokenizer prepends a BOS.

    Example:
        >>> names = words(512)
        >>> names[0], names[25], names[26], names[27], names[511]
        ('a', 'z', 'aa', 'ab', 'sr')
    """
    return [_name(number) for number in range(count)]


def _name(number: int) -> str:
    before, last = divmod(number, 26)
    return (_name(before - 1) if before else "") + ascii_lowercase[last]
