"""Signals that ask a run to stop: it does between two iterations, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gruclip.errors import Interrupted

#: What a terminal, a closed terminal, `kill`, and the schedulers of clusters send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

#: Between two looks of a process that waits.
POLL_SECONDS = 0.2


class Interrupts:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def is_set(self) -> bool:
        return self.signal is not None

    def set(self, number: int) -> None:
        if self.signal is None:
            self.signal = number

    def wait(self, seconds: float) -> bool:
        """Sleep until one comes, at most so long; whether one has.

        By looking: an event that a handler sets while its own thread enters or leaves `wait` waits for itself for ever.
        """
        end = time.monotonic() + seconds
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return self.is_set()

    def error(self) -> Interrupted:
        return Interrupted(self.signal or signal.SIGINT)


@contextmanager
def ignored(number: int) -> Iterator[None]:
    """A signal ignored, also by processes that are started here: a terminal sends Ctrl-C to all of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


@contextmanager
def held_back(number: int = signal.SIGINT) -> Iterator[None]:
    """A signal held back, as while torch is imported: it swallows an exception in the middle and goes on with half of
    numpy."""
    handler, came = signal.getsignal(number), list[int]()
    if threading.current_thread() is not threading.main_thread() or handler in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(number, lambda *_: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, handler)
    if came:
        signal.raise_signal(number)


@contextmanager
def deferred_interrupts(patient: bool = False) -> Iterator[Interrupts]:
    """Turn the first of `SIGNALS` into a flag, so that a run stops between two iterations, checkpointed.

    The second interrupts at once, unless `patient`: a worker may be sent one by the terminal and one by its parent. A
    signal that is ignored, as `nohup` has it, stays so; one for which somebody else has a handler, such as submitit, is
    sent again once the run has stopped.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupts.is_set() and not patient:
            raise Interrupted(number)
        interrupts.set(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, handle)
    try:
        yield interrupts
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if interrupts.signal is not None and taken[signal.Signals(interrupts.signal)] not in usual:
            os.kill(os.getpid(), interrupts.signal)
