"""A byte-level BPE whose tokenizer itself puts the BOS first."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sinklens.errors import InputError
from sinklens.lab.language.settings import CONTEXT

BOS, BOS_ID = "<s>", 0


def train_bpe(texts: Iterable[str], vocab: int) -> str:
    """Train a tokenizer and return it as the JSON that Hugging Face calls tokenizer.json.

    Token 0 is the BOS, then come the 256 bytes, so that any text can be encoded and decoded without loss, then
    the merges. The saved post-processor puts the BOS before every text.

    Raises:
        InputError: if the texts do not yield as many tokens as asked for.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if core.get_vocab_size() != vocab:
        raise InputError(
            f"The texts yield {core.get_vocab_size()} tokens instead of {vocab}; give more text or a smaller --vocab."
        )
    return core.to_str()


def wrap(tokenizer_json: str) -> PreTrainedTokenizerFast:
    """Make a Hugging Face tokenizer of the JSON.

    BOS also serves as end and padding token, which TransformerLens would otherwise invent beyond the
    embedding's last row.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json),
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
