"""A sweep in jobs that are processes of this machine; they end with the process that submitted them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from gruclip.rules import plural
from gruclip.runs.sweeps import record_sweeps
from gruclip.training.display import Display
from gruclip.training.interrupts import POLL_SECONDS, Interrupts, ignored
from gruclip.training.jobs import Job
from hydra_plugins.gruclip.submission import JOB_FOLDER, Submission, Submitted, check_finished, report
from hydra_plugins.gruclip.work import STOPPED


def train(
    stacks: Sequence[list[Job]],
    jobs: Sequence[Job],
    submission: Submission,
    side_by_side: int,
    display: Display,
    interrupted: Interrupts,
) -> None:
    """Record all `jobs` as a sweep and train `stacks`, `side_by_side` jobs at a time.

    Raises `UserError` where a run is unfinished then.
    """
    record_sweeps([job.folder.path for job in jobs], [Path(job.config.output_dir) for job in jobs])
    told = f"{plural(display.total, 'run')} in {plural(len(stacks), 'job')} of this machine, {side_by_side} at a time"
    display.note(f"{told}; gruclip status --watch follows them")
    waiting, running, ended = list(stacks), list[Submitted](), list[Submitted]()
    gpus = torch.cuda.device_count()  # submitit hides those that a job does not ask for
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                with ignored(signal.SIGINT):
                    running += submission.submit([waiting.pop(0)], gpus_per_node=gpus)
            if interrupted.wait(POLL_SECONDS):
                raise interrupted.error()
            over = [one for one in running if one.handle.done()]
            report(over, display)
            ended += over
            running = [one for one in running if one not in over]
    finally:
        for one in running:
            (one.handle.paths.folder / STOPPED).touch()  # else it would start anew
            one.handle._process.terminate()
        for one in running:
            one.handle._process.wait()
        with suppress(OSError):  # submitit's local executor makes it beside those of its jobs
            (submission.folder / JOB_FOLDER).rmdir()
    check_finished(ended)
