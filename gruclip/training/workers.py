"""A stack on the CPU: runs of one thread each, in as many processes as there are cores.

Batching runs saves nothing on a CPU, where a stack costs what its runs cost; separate processes keep every core busy,
and a run's numbers stay the bits it has alone. The parent hands out one run at a time over a pipe of each worker's own,
so that a worker that is killed takes nothing with it but its own run, which another one continues.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from gruclip.errors import Interrupted, RefusedRun, UserError
from gruclip.kernels import compiled
from gruclip.training.display import Display, RemoteDisplay
from gruclip.training.interrupts import POLL_SECONDS, Interrupts, deferred_interrupts, ignored
from gruclip.training.jobs import Job
from gruclip.training.stack import train_stack

#: What a worker sends: that it wants a run (with whether the last one was another process'), what to show, why a run is
#: refused, an error.
READY, SHOW, REFUSED, ERROR = "ready", "show", "refused", "error"


class WorkerError(RuntimeError):
    """A worker process failed by a fault of ours; the message carries its traceback."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None  #: what it trains
    started: bool = False  #: it has come as far as to ask for a run


def train_in_processes(
    jobs: Sequence[Job],
    count: int,
    display: Display,
    interrupted: Interrupts,
    refuse: Callable[[RefusedRun], object],
) -> list[Job]:
    """Train every job, each in one thread, in `count` processes; gives back those that others are training.

    A worker that is ended from outside is not replaced: another one continues its run. Raises `Interrupted` after
    checkpoints when `interrupted` is set, `UserError` where a process met one or none is left, and `WorkerError` where
    one failed otherwise; `refuse` is told of a run that cannot be continued.
    """
    compiled.library()  # compiled once, and not by each process; so is the warning where they cannot be
    pool = _Pool(jobs, count, display, refuse)
    try:
        pool.run(interrupted)
    finally:
        pool.stop()
    if interrupted.is_set():
        raise interrupted.error()
    return pool.locked


class _Pool:
    def __init__(
        self, jobs: Sequence[Job], count: int, display: Display, refuse: Callable[[RefusedRun], object]
    ) -> None:
        self.waiting, self.locked = deque(jobs), list[Job]()
        self.fault = ""  #: how the last worker ended that was ended from outside
        self.display, self.refuse = display, refuse
        self.workers = [self._start(count) for _ in range(count)]

    def _start(self, count: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, count), daemon=True)
        with ignored(signal.SIGINT):  # until it can look after itself
            process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return _Worker(process, ours)

    def run(self, interrupted: Interrupts) -> None:
        while self.workers and not interrupted.is_set():
            ready = wait([worker.pipe for worker in self.workers], timeout=POLL_SECONDS)
            for worker in [worker for worker in self.workers if worker.pipe in ready]:
                try:
                    kind, *content = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    self._ended(worker)
                    continue
                if kind == READY:
                    self._hand_out(worker, *content)
                elif kind == SHOW:
                    self.display.show(*content)
                elif kind == REFUSED:
                    self.refuse(content[0])
                else:
                    raise content[0]
        # What is sent to all processes of a job may end the workers before this one has heard of it.
        if self.waiting and not interrupted.wait(POLL_SECONDS):
            raise UserError(
                f"{self.fault}, and none is left; take a smaller hydra.launcher.stack_size, and start the same command "
                "again to continue"
            )

    def _hand_out(self, worker: _Worker, was_locked: bool) -> None:
        if was_locked and worker.job is not None:
            self.locked.append(worker.job)
        worker.started = True
        worker.job = self.waiting.popleft() if self.waiting else None
        with suppress(ConnectionError):  # it was ended since it asked: its pipe says so next
            worker.pipe.send(None if worker.job is None else (worker.job.config, worker.job.default))

    def _ended(self, worker: _Worker) -> None:
        """A worker's pipe is closed: it had nothing left to do, or was ended from outside."""
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        if not worker.started and code == 1:
            raise UserError(
                "the processes of a stack cannot start: a script that calls gruclip.train(..., stack=True) needs "
                '`if __name__ == "__main__":` around what it does'
            )
        if worker.job is not None:
            self.waiting.appendleft(worker.job)
        elif code == 0 or not self.waiting:
            return
        self.fault = f"a process of the stack was ended from outside (exit code {code}), perhaps for memory"
        if self.workers:
            self.display.note(f"{self.fault}; the others go on")

    def stop(self) -> None:
        """Let each write a checkpoint and end; SIGTERM is what a run takes for that."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self.workers:
            # What it still sends must be read: a full pipe would keep it from ending.
            while worker.process.is_alive():
                try:
                    if worker.pipe.poll(POLL_SECONDS):
                        kind, *content = worker.pipe.recv()
                        if kind == SHOW:
                            self.display.show(*content)
                        elif kind == ERROR:  # as of a disk that does not take the checkpoint
                            self.display.note(str(content[0]))
                except (EOFError, OSError):
                    worker.process.join()
            worker.pipe.close()


def _work(pipe: Connection, processes: int) -> None:
    """A worker process: train what it is handed, one run after another, until there is none."""
    # Between two runs; the terminal sends it to all, and the parent acts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", compiled.NativeWarning)
    torch.set_num_threads(1)
    send = threading.Lock()

    def tell(*message: Any) -> None:
        with send:
            pipe.send(message)

    was_locked = False
    try:
        while True:
            tell(READY, was_locked)
            if (task := pipe.recv()) is None:
                return
            display = RemoteDisplay(lambda *shown: tell(SHOW, *shown))
            refuse = functools.partial(tell, REFUSED)
            was_locked = bool(_train_alone(Job(*task), display, refuse, processes))
    except Interrupted as stop:
        raise SystemExit(128 + stop.signal) from None
    except (EOFError, ConnectionError):
        return  # the parent is gone, and what was trained is in its folder
    except UserError as error:
        tell(ERROR, UserError(str(error)))
    except BaseException:
        tell(ERROR, WorkerError(f"a run failed in its process:\n{traceback.format_exc()}"))


def _train_alone(job: Job, display: RemoteDisplay, refuse: Callable[[RefusedRun], object], processes: int) -> list[Job]:
    """What a process of a stack does for one run; `processes` is the number of them, itself included."""
    with deferred_interrupts(patient=True) as interrupted:
        return train_stack([job], 1, display, interrupted, refuse, processes)


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers: they write their checkpoints and end all the same."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
