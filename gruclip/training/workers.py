"""A stack on the CPU: runs of one thread each, in as many processes as there are cores.

Batching runs saves nothing on a CPU, where a stack costs what its runs cost; separate processes keep every
core busy, and a run's numbers stay the bits it has alone.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from rich.console import Console

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.kernels import compiled
from gruclip.training.display import Display
from gruclip.training.interrupts import deferred_interrupts
from gruclip.training.jobs import Job
from gruclip.training.stack import train_stack

#: A run and the configuration that its folder's name is told apart from.
Task = tuple[RunConfig, RunConfig]

POLL_SECONDS = 0.2

#: Exit code of a process that stopped after a checkpoint.
STOPPED = 130


class WorkerError(RuntimeError):
    """A worker process failed by a fault of ours; the message carries its traceback."""


def train_in_processes(tasks: Sequence[Task], count: int, display: Display, interrupted: threading.Event) -> None:
    """Train every task, each in one thread, in `count` processes.

    Raises KeyboardInterrupt after checkpoints when `interrupted` is set, `UserError` where a process met one or was
    killed, and `WorkerError` where it failed otherwise.
    """
    compiled.library()  # compiled once, and not by each process; so is the warning where they cannot be
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    done: Any = context.Queue()
    for task in tasks:
        todo.put(task)
    for _ in range(count):
        todo.put(None)
    quiet = display.console.quiet
    workers = [context.Process(target=_work, args=(todo, done, count, quiet), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        _wait(workers, done, interrupted)
    finally:
        _stop(workers)
    if interrupted.is_set():
        raise KeyboardInterrupt


def _wait(workers: Sequence[BaseProcess], done: Any, interrupted: threading.Event) -> None:
    while any(worker.is_alive() for worker in workers) and not interrupted.is_set():
        try:
            error = done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        raise error
    if interrupted.is_set():
        return
    if not done.empty():
        raise done.get()
    for worker in workers:
        if worker.exitcode != 0:
            raise UserError(
                f"a process of the stack was ended from outside (exit code {worker.exitcode}), perhaps for memory; "
                "take a smaller hydra.launcher.stack_size, and start the same command again to continue"
            )


def _stop(workers: Sequence[BaseProcess]) -> None:
    """Let each write a checkpoint and end; SIGTERM is what `train` takes for that."""
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    for worker in workers:
        worker.join()


def _work(todo: Any, done: Any, stack_size: int, quiet: bool) -> None:
    """A worker process: train tasks until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between two runs; the terminal sends it to all, and the parent acts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", compiled.NativeWarning)
    torch.set_num_threads(1)
    console = Console(stderr=True, quiet=quiet, highlight=False, force_terminal=False)
    try:
        while (task := todo.get()) is not None:
            _train_alone(task, console, stack_size)
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
    except UserError as error:
        done.put(UserError(str(error)))
    except BaseException:
        done.put(WorkerError(f"a run failed in its process:\n{traceback.format_exc()}"))
    done.close()
    done.join_thread()


def _train_alone(task: Task, console: Console, neighbours: int) -> None:
    """What a process of a stack does for one run; `neighbours` is the number of processes, itself included."""
    job = Job(*task)
    with Display(total=1, console=console) as display, deferred_interrupts(patient=True) as interrupted:
        train_stack([job], 1, display, interrupted, neighbours)


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers: they write their checkpoints and end all the same."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
