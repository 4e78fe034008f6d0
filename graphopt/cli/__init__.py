"""The command ``graphopt``: turns arguments into calls, results into text, and failures into one line and a code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main", "run"]


def main() -> None:
    """Entry point of the console script."""
    import signal

    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything is done: a Ctrl-C now must not change the verdict
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; the codes are listed in ``graphopt.cli.failure``."""
    from graphopt.cli.failure import guarded

    return guarded(list(arguments))
