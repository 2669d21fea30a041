"""Run pytest on the pretend GPU: ``python -m tests.pretend_cuda [--devices 2] PYTEST-ARGUMENTS``."""

import sys

from tests.pretend_cuda import stubs


def main() -> int:
    """Load the stubs, then torch, then pytest."""
    arguments = sys.argv[1:]
    devices = 1
    if arguments[:1] == ["--devices"]:
        devices, arguments = int(arguments[1]), arguments[2:]
    guard = stubs.preload(devices)
    from tests.pretend_cuda.install import install

    install(guard, devices)
    import pytest

    return int(pytest.main(["-p", "tests.pretend_cuda.plugin", *arguments]))


if __name__ == "__main__":
    sys.exit(main())
