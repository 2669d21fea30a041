"""Fixtures that rooms' conftests import: no gradients, and one thread."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    # thousands of tiny operations: threads that wait for each other are slower, most of all on a busy machine
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
