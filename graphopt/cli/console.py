"""The two streams: results on stdout, talk and progress on stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from graphopt.transform import Progress

_PLAIN_WIDTH = 100
_PATIENCE = 2.0  #: seconds before a progress bar is worth showing


def stdout() -> Console:
    """The result's console; 100 columns wide where there is no terminal."""
    return _console(error=False)


def stderr() -> Console:
    """The talk's console."""
    return _console(error=True)


def _console(*, error: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PLAIN_WIDTH, highlight=False)


def print_json(text: str) -> None:
    """JSON goes out as it is: no wrapping, no colour."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


class TerminalTalk:
    """What the pipeline says, on stderr; progress bars only on a terminal."""

    def __init__(self, *, quiet: bool = False, verbose: int = 0) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._console = stderr()
        self._bars: RichProgress | None = None

    def step(self, text: str) -> None:
        """A new stage begins."""
        if not self.quiet:
            self._console.print(f"[dim]> {_plain(text)}[/]", soft_wrap=True)

    def info(self, text: str) -> None:
        """Worth knowing; shown with -v."""
        if self.verbose and not self.quiet:
            self._console.print(f"[dim]  {_plain(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        """To be acted on; shown unless -q."""
        if not self.quiet:
            self._console.print(f"[yellow]warning:[/] {_plain(text)}", soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """A bar that appears after a moment and disappears when done; nested bars share one display."""
        if self.quiet or not self._console.is_terminal:
            yield _Hidden()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        if self._bars is not None:
            yield from self._bar(self._bars, label, total)
            return
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = RichProgress(*columns, console=self._console, transient=True)
        begin = threading.Timer(_PATIENCE, self._bars.start)
        begin.daemon = True
        begin.start()
        try:
            yield from self._bar(self._bars, label, total)
        finally:
            begin.cancel()
            begin.join()
            if self._bars.live.is_started:
                self._bars.stop()
            self._bars = None

    def _bar(self, bars: RichProgress, label: str, total: int) -> Iterator[Progress]:
        task = bars.add_task(_plain(label), total=total)
        try:
            yield _Bar(bars, task)
        finally:
            bars.remove_task(task)


class _Bar:
    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, steps: int = 1) -> None:
        """Move on."""
        self._bars.advance(self._task, steps)

    def tell(self, total: int, text: str) -> None:
        """Another total, another label."""
        self._bars.update(self._task, total=total, description=_plain(text))


class _Hidden:
    def advance(self, steps: int = 1) -> None:
        """Ignore."""

    def tell(self, total: int, text: str) -> None:
        """Ignore."""


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
