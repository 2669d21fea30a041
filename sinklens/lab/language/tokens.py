"""Domains as streams of token ids, and the sequences that are cut from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sinklens.errors import InputError
from sinklens.lab.language.domains import Domain
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


# Documents of one domain that the tokenizer learns from, in characters.
BPE_SHARE = 4_000_000


@dataclass(frozen=True)
class Streams:
    """The tokens of one domain, documents one after the other, no BOS in them.

    Attributes:
        name: the domain's name.
        train: ids to train on.
        held_out: ids that are never trained on.
    """

    name: str
    train: Int[Tensor, " train"]
    held_out: Int[Tensor, " held_out"]


def encode(domains: Sequence[Domain], tokenizer_json: str, longest: int) -> list[Streams]:
    """Encode every document.

    Raises:
        InputError: if a domain is too short for one sequence of `longest` tokens in either part.
    """
    core = Tokenizer.from_str(tokenizer_json)

    def ids(documents: Sequence[str]) -> Int[Tensor, " pos"]:
        encoded = core.encode_batch(list(documents), add_special_tokens=False)
        return torch.tensor([token for document in encoded for token in document.ids], dtype=torch.int32)

    streams = [Streams(domain.name, ids(domain.train), ids(domain.held_out)) for domain in domains]
    for stream in streams:
        for part, tokens in (("to train on", stream.train), ("held out", stream.held_out)):
            if len(tokens) < longest + 1:
                raise InputError(
                    f"The domain {stream.name!r} has {len(tokens)} tokens {part}, fewer than one sequence of "
                    f"{longest} needs; give more text or shorter sequences."
                )
    return streams


def bpe_texts(domains: Sequence[Domain]) -> list[str]:
    """Choose the training documents for the tokenizer: of a large domain every k-th, about four million characters."""
    chosen: list[str] = []
    for domain in domains:
        stride = -(-sum(map(len, domain.train)) // BPE_SHARE)
        chosen += domain.train[::stride]
    return chosen


def draw(
    streams: Sequence[Streams], rows: int, length: int, generator: torch.Generator
) -> Int[Tensor, "rows length_plus_1"]:
    """Draw one training batch: `length` inputs and their targets, the first input a BOS.

    Row `r` comes from domain `r mod n`, so that domains have equal shares, whatever their sizes; its place in
    the training stream is uniform.

    Example:
        >>> streams = [Streams("a", torch.arange(1, 9), torch.empty(0))]
        >>> batch = draw(streams, 2, 3, torch.Generator().manual_seed(0))
        >>> batch.shape, batch[:, 0].tolist(), (batch[:, 2:] - batch[:, 1:-1]).unique().item()
        (torch.Size([2, 4]), [0, 0], 1)
    """
    batch = torch.full((rows, length + 1), BOS_ID)
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    for row in range(rows):
        tokens = streams[row % len(streams)].train
        start = int(uniform[row] * (len(tokens) - length + 1))
        batch[row, 1:] = tokens[start : start + length]
    return batch


def cut(tokens: Int[Tensor, " pos"], length: int, limit: int | None = None) -> Int[Tensor, "rows length_plus_1"]:
    """Cut a stream into sequences that do not overlap, `length` inputs and their targets, the first input a BOS.

    Args:
        tokens: the stream.
        length: inputs of a sequence.
        limit: at most so many sequences, evenly spread over the stream; None for all.

    Example:
        >>> cut(torch.arange(10, 17), 3).tolist()
        [[0, 10, 11, 12], [0, 13, 14, 15]]
    """
    count = len(tokens) // length
    rows = tokens[: count * length].view(count, length).long()
    if limit is not None and limit < count:
        rows = rows[torch.linspace(0, count - 1, limit, dtype=torch.float64).long()]
    return torch.cat([torch.full((len(rows), 1), BOS_ID), rows], 1)
