"""Signals that ask a run to stop: it does between two iterations, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupts(patient: bool = False) -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a flag, so that a run stops between two iterations, checkpointed.

    The second interrupts at once, unless `patient`: a worker may be sent one by the terminal and one by its parent.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.is_set() and not patient:
            raise KeyboardInterrupt
        flag.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
