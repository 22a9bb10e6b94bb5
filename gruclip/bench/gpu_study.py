"""Runs of the study on a lent GPU: as many side by side as the minutes allow, their results kept as soon as they end.

Only whole runs are begun: an iteration and a validation of a stack are measured first, and the largest stack is taken
that comes to its end in time. What is kept has the form of ``outputs/paper``, and what is there already is skipped.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gruclip.bench.gpu_runs import DEFAULTS
from gruclip.config import RunConfig
from gruclip.errors import Interrupted, UserError
from gruclip.report import collected
from gruclip.report.collecting import collect
from gruclip.training.capacity import run_bytes, stack_size
from gruclip.training.engine import WARM_UP, Engine
from gruclip.training.jobs import Job, check_runs
from gruclip.training.runner import train

#: Seconds between two times that results are written while runs are still trained, and kept free at a stage's end.
WRITE_SECONDS, RESERVE = 20.0, 15.0

#: Iterations timed; what the host takes for an iteration beside what the device does, and for each run in it, at the
#: end of its epoch, and at its own end, where its weights are written, read again and tested; seconds.
TIMED, HOST_SECONDS, RECORD_SECONDS, EPOCH_SECONDS, END_SECONDS = 10, 1e-3, 2e-5, 5e-3, 0.6

#: What an iteration takes over its phases, for projections that are redone: 2.2 in the first epochs seen (`gpu.md`).
REDOING = 1.5

#: Epochs of a plateau schedule over those of one whose loss never improves, at most: 649 over 310 in the kept runs.
PLATEAU_SLACK = 2.1


class Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    @contextmanager
    def interrupting(self, seconds_before: float) -> Iterator[None]:
        """What `train` stops at, some seconds before the end; nothing else in this process minds it."""
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        timer = threading.Timer(max(0.0, self.left() - seconds_before), os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            signal.signal(signal.SIGTERM, before)


@dataclass
class Results:
    """The runs of an experiment below `outputs`, kept in `out` in the form of ``outputs/paper``."""

    experiment: str
    outputs: Path
    out: Path
    ended: int = 0
    _written: float = -math.inf

    def run_ended(self, folder: Path) -> None:
        self.ended += 1
        print(f"{self.ended} ended: {folder.name}", flush=True)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            try:
                self.write()
            except UserError as error:  # told again at the end; the runs under way go on
                print(error, flush=True)

    def write(self) -> None:
        for path, count, *_ in collect([self.outputs], [self.experiment], self.out, []):
            print(f"{path}: {count} runs", flush=True)
        self._written = time.monotonic()


def train_study(runs: Sequence[RunConfig], deadline: Deadline, out: Path, kept: Path, batched: bool = False) -> int:
    """Train those of `runs`, all of one experiment, that neither `kept` nor `out` holds; how many have ended.

    They are taken in order, and stacks of them are begun as long as one comes to its end before the deadline.
    """
    outputs, experiment = Path(runs[0].output_dir), runs[0].experiment
    results = Results(experiment, outputs, out)
    jobs = check_runs(runs, DEFAULTS)
    done = _kept(kept / f"{experiment}.csv") | _kept(out / f"{experiment}.csv")
    pending = [job for job in jobs if job.folder.identity not in done]
    print(f"{experiment}: {len(jobs) - len(pending)} of {len(jobs)} runs are kept already", flush=True)
    if finished := [job for job in pending if job.folder.is_finished()]:
        pending = [job for job in pending if job not in finished]
        results.write()
    try:
        while pending:
            count = fitting(pending, deadline.left() - RESERVE)
            if count == 0:
                print(f"{experiment}: {len(pending)} missing; none ends in the {deadline.left():.0f} s that are left")
                break
            print(f"{experiment}: {count} of {len(pending)} side by side, {deadline.left():.0f} s left", flush=True)
            batch, pending = [job.config for job in pending[:count]], pending[count:]
            with deadline.interrupting(RESERVE / 2):
                train(batch, defaults=DEFAULTS, stack=True, batched=batched, quiet=True, ended=results.run_ended)
    except Interrupted:
        print(f"{experiment}: stopped before its runs ended")
    finally:
        if results.ended:
            results.write()
    return results.ended


def _kept(path: Path) -> set[str]:
    """The identities of the runs in a collected file."""
    return {run["identity"] for run, _ in collected.read(path)} if path.exists() else set()


def fitting(jobs: Sequence[Job], seconds: float) -> int:
    """How many of the first `jobs` to train side by side so that all of them end in time: as many as possible.

    Where not all settings of a seed fit, as many of them as do.
    """
    needs = [run_bytes(job.config, job.corpus.num_outputs) for job in jobs]
    count, seeds = len(jobs), [job.config.seed for job in jobs]
    if jobs[0].device.type == "cuda":
        count = stack_size(needs, jobs[0].device, None)
    count = _whole_seeds(seeds, count)
    while count and (needed := stack_seconds([job.config for job in jobs[:count]], jobs[0])) > seconds:
        print(f"{count} runs: {needed:.0f} s by the measured iteration, {seconds:.0f} s are left", flush=True)
        smaller = min(count - 1, int(count * seconds / needed)) if seconds > 0 else 0
        # Never by more than half: few runs take more time each.
        count = _whole_seeds(seeds, max(smaller, (count - 1) // 2)) if seconds > 0 else 0
    return count


def _whole_seeds(seeds: Sequence[int], count: int) -> int:
    """At most `count`, without a seed of which some runs are cut off, where a whole one fits."""
    if count >= len(seeds):
        return len(seeds)
    whole = count
    while whole and seeds[whole] == seeds[whole - 1]:
        whole -= 1
    return whole or count


def stack_seconds(configs: Sequence[RunConfig], job: Job) -> float:
    """What the training of these runs as one stack takes, by its measured iteration, radius, validation and the cutting
    of an epoch's data."""
    engine = Engine(configs, job.corpus, job.device)
    iterations = engine.begin_epoch([1] * len(configs))
    # On a card the last of these are replays; an epoch may be shorter.
    for turn in range(WARM_UP + 2):
        engine.step(turn % iterations, False).loss.tolist()
    # By the device's clock: in the first iterations, where all singular values are equal, everything is redone.
    engine.clock.read()
    for turn in range(TIMED):
        engine.step(turn % iterations, False).loss.tolist()
    step = REDOING * sum(engine.clock.read().values()) / TIMED + HOST_SECONDS
    engine.step(0, True).loss.tolist()
    radius = REDOING * sum(engine.clock.read().values()) + HOST_SECONDS - step
    step += max(0.0, radius) / configs[0].trainer.radius_every + RECORD_SECONDS * len(configs)
    engine.evaluate("valid")
    started = time.perf_counter()
    engine.evaluate("valid")
    engine.begin_epoch([2] * len(configs))
    validation = time.perf_counter() - started + EPOCH_SECONDS * len(configs)
    del engine
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
    return max(_run_seconds(config, iterations, step, validation) for config in configs) + END_SECONDS * len(configs)


def _run_seconds(config: RunConfig, iterations: int, step: float, validation: float) -> float:
    steps = config.total_steps(iterations)
    epochs = math.ceil(steps / iterations) if steps is not None else plateau_epochs(config)
    return (steps if steps is not None else epochs * iterations) * step + (epochs + 2) * validation


def plateau_epochs(config: RunConfig) -> int:
    """Epochs until the rate has fallen below the smallest, each fall after its patience, with some slack."""
    falls = math.floor(math.log(config.optimizer.lr / config.schedule.min_lr) / math.log(config.schedule.factor)) + 1
    return math.ceil(PLATEAU_SLACK * config.patience * falls)
