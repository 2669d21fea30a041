"""Runs a needle test and kills this process, as the kernel would, after some finished prompts."""

import os
import signal
import sys

from sinklens import load
from sinklens.studies import make_needles, measure_needles
from tests.heard import Heard


def count(heard: Heard) -> None:
    if len(heard.done) >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    model = load("bb-3l")
    needles = make_needles(model, lengths=(20, 40), depths=(0, 0.5, 1), repeats=4, size=3)
    measure_needles(model, needles, max_tokens=50, out=sys.argv[1], progress=Heard(count))
