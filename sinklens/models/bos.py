"""Whether a model has a BOS, and whether its tokenizer as shipped puts it first: never invented."""

import contextlib
import weakref
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.models.source import source_of


@dataclass(frozen=True)
class BosFacts:
    """What is known about the BOS of a model.

    Attributes:
        bos_id: Its id; ``None`` when the tokenizer has none, or nobody knows.
        prepends: Whether the tokenizer, as shipped, puts it first; ``None`` when that is not known.
        why: Half a sentence on where this comes from.
    """

    bos_id: int | None
    prepends: bool | None
    why: str


def bos_facts(model: TransformerBridge) -> BosFacts:
    """The BOS of a bridge, whoever made it.

    ``sinklens.load`` remembers what the checkpoint's tokenizer says. TransformerLens, which made every other bridge,
    changes the tokenizer: one without a BOS gets its EOS for one, and every tokenizer is told to prepend. So the
    tokenizer is read again where it lies (a directory, or the local hub cache; nothing is downloaded).
    """
    source = source_of(model)
    if source is not None:
        verb = "prepends" if source.tokenizer_prepends_bos else "does not prepend"
        why = f"{source.whose_tokenizer} {verb} one"
        return _in_vocabulary(model, BosFacts(source.bos_id, source.tokenizer_prepends_bos, why))
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        return BosFacts(None, False, "the model has no tokenizer")
    if tokenizer not in _known:
        _known[tokenizer] = _of_changed(tokenizer)
    return _in_vocabulary(model, _known[tokenizer])


_known: "weakref.WeakKeyDictionary[Any, BosFacts]" = weakref.WeakKeyDictionary()


def tokenizer_bos(tokenizer: Any) -> tuple[int | None, bool]:
    """BOS id of a tokenizer that nobody changed, and whether it puts it before a text."""
    bos_id = tokenizer.bos_token_id
    if bos_id is None:
        return None, False
    ids = tokenizer("a")["input_ids"]  # not "": a tokenizer may append the same id as EOS
    return int(bos_id), bool(ids) and ids[0] == bos_id


def _of_changed(tokenizer: Any) -> BosFacts:
    """The BOS of a tokenizer that went through TransformerLens."""
    shipped = _read_again(tokenizer)
    if shipped is not None:
        bos_id, prepends = tokenizer_bos(shipped)
        if bos_id is not None or tokenizer.bos_token_id == tokenizer.eos_token_id:
            verb = "prepends" if prepends else "does not prepend"
            return BosFacts(bos_id, prepends, f"the tokenizer in {shipped.name_or_path} {verb} one")
    declared = tokenizer.init_kwargs.get("bos_token", "")
    if declared is None and tokenizer.bos_token_id == tokenizer.eos_token_id:
        return BosFacts(None, False, "the tokenizer was made without one")
    if declared or tokenizer.bos_token_id != tokenizer.eos_token_id:
        # a BOS of its own: TransformerLens only ever makes the EOS one. It was told to prepend, so only "no" is sure.
        prepends = tokenizer_bos(tokenizer)[1]
        return BosFacts(
            tokenizer.bos_token_id,
            None if prepends else False,
            "it is not known whether the tokenizer prepends one unless TransformerLens tells it to"
            if prepends
            else "the tokenizer does not prepend one",
        )
    return BosFacts(
        None, None, "it is not known whether the tokenizer has one (its EOS serves as BOS in TransformerLens)"
    )


def _read_again(tokenizer: Any) -> Any:
    """The same tokenizer as it lies on disk, ``None`` when it is not there or is another one."""
    from transformers import AutoTokenizer

    place = str(getattr(tokenizer, "name_or_path", "") or "")
    if not place:
        return None
    with contextlib.suppress(Exception):  # not there, or not readable: then nothing is known from it
        shipped: Any = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        mine = tokenizer.get_vocab()
        if all(mine.get(token) == number for token, number in shipped.get_vocab().items()):
            return shipped
    return None


def _in_vocabulary(model: TransformerBridge, facts: BosFacts) -> BosFacts:
    if facts.bos_id is None or facts.bos_id < int(model.cfg.d_vocab):
        return facts
    return BosFacts(None, False, "the tokenizer's BOS is beyond the model's vocabulary")
