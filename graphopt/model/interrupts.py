"""Holds Ctrl-C back while something is done that must not be cut short."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class InterruptGate:
    """While open, Ctrl-C interrupts as ever, once; while closed it waits, so that no clean-up is cut short."""

    def __init__(self) -> None:
        self.closed = False
        self.pending = False
        self._before: Any = None

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):
                self._before = before
                signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.closed:
            self.pending = True
            return
        self.closed = True
        self._before(number, frame)
        self.closed = False  # the handler before us chose not to raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.pending and kind is None:
            raise KeyboardInterrupt
