"""Loading without surprises: no subprocess, no question, no foreign progress bar, no half minute of retries."""

import contextlib
import os
import socket
from collections.abc import Iterator
from unittest import mock

from transformer_lens.model_bridge.sources.transformers import helpers as tl_helpers
from transformers import dynamic_module_utils


@contextlib.contextmanager
def quietly(*, is_local: bool) -> Iterator[None]:
    """All of this module's promises together.

    Args:
        is_local: The model is a directory or file here, so that nothing is looked up.
    """
    with _no_installs(), _no_questions(), _no_bars(), _quick_when_offline(is_local=is_local):
        yield


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Switch off transformers' own progress bars for weights, which would garble ours."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def _no_installs() -> Iterator[None]:
    """Keep TransformerLens from running ``pip install torchvision`` when a multimodal processor does not load."""
    with mock.patch.object(tl_helpers, "_ensure_torchvision", lambda: False):
        yield


@contextlib.contextmanager
def _no_questions() -> Iterator[None]:
    """Keep transformers from asking at the terminal whether to run a checkpoint's code: only the argument decides."""
    with mock.patch.object(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0):
        yield


@contextlib.contextmanager
def _quick_when_offline(*, is_local: bool) -> Iterator[None]:
    """Skip the hub's retries (half a minute) when it certainly cannot be reached; the cache still works."""
    from huggingface_hub import constants

    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if not is_local and not proxied and not constants.HF_HUB_OFFLINE:
        host = constants.ENDPOINT.split("://", 1)[-1].split("/", 1)[0].split(":", 1)[0]
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
                yield
            return
    yield
