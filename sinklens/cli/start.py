"""How the program begins and ends: one sentence instead of a traceback, and the exit status that shells expect."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sinklens.errors import SinkLensError

INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13


def main() -> None:
    """Entry point: errors and interruptions end in one sentence, and with ``--debug`` in their traceback too."""
    words = sys.argv[1:]
    debug = "--debug" in words
    sys.argv[1:] = [word for word in words if word != "--debug"]
    with _quiet_interruption():
        from sinklens.cli.program import app  # this takes a second or more
    for printed in (sys.stdout, sys.stderr):
        if isinstance(printed, io.TextIOWrapper):
            printed.reconfigure(errors="replace")  # a terminal without some sign shows ? instead of ending the run
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a reader that has gone is found out here and not when Python ends
    except SinkLensError as error:
        _say(f"Error: {error}", debug)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        from sinklens.cli.running import interrupted

        interrupted(None)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _end_of_pipe()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich make status 1 of it
            _end_of_pipe()
        raise
    except BaseException as error:  # a library that panics raises no Exception
        from sinklens.cli.unforeseen import unforeseen

        _say(f"Error: {unforeseen(error, sys.argv[1:])}", debug)
        raise SystemExit(1) from None


def _say(sentence: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(sentence, file=sys.stderr)


def _end_of_pipe() -> None:
    """End as a program does whose reader has gone, and say nothing."""
    for printed in (sys.stdout, sys.stderr):
        try:
            printed.flush()
        except (OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, printed.fileno())  # or Python would complain when it flushes at its end
            os.close(nothing)
    raise SystemExit(BROKEN_PIPE)


@contextmanager
def _quiet_interruption() -> Iterator[None]:
    """End at Ctrl-C at once: in the middle of an import it would be a traceback, or an error of some library."""

    def end(*_: Any) -> None:
        os.write(2, b"Interrupted; nothing was begun.\n")
        os._exit(INTERRUPTED)

    try:
        before = signal.signal(signal.SIGINT, end)
    except ValueError:  # not in the main thread, so nobody presses Ctrl-C here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
