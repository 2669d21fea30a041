"""Libraries in Rust that panic: an exception like others, where Python would end the program."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_panics() -> Iterator[None]:
    """Raise a panic of the tokenizers library, which is no ``Exception``, as a ``RuntimeError``."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # it can be imported from nowhere
            raise RuntimeError(f"the tokenizer's library gave up on it ({error})") from None
        raise
