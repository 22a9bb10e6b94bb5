"""The runner: ``train(runs)`` takes a list of configurations, checks them all, and trains what is missing.

There is one runner, not two: a single run is a stack of one. On a CPU each run has an engine of its own and
the runs follow each other; on a GPU, runs of one shape share an engine.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gruclip.capacity import run_bytes
from gruclip.capacity import stack_size as stack_size_of
from gruclip.config import RunConfig
from gruclip.data import MusicCorpus, WordCorpus, check_window, load
from gruclip.display import Display
from gruclip.engine import Engine, parameters_of
from gruclip.environment import describe_environment
from gruclip.errors import ConfigError
from gruclip.evaluation import evaluate_weights
from gruclip.loggers import Logger, check_loggers, open_loggers
from gruclip.progress import EPOCH_COLUMNS, TIMING_COLUMNS, EpochTotals, Progress, step_columns
from gruclip.runs import CSV_FILES, RunFolder
from gruclip.workers import Task, train_in_processes

Corpus = WordCorpus | MusicCorpus

#: Hidden size up to which a run on the CPU takes one thread.
SMALL_MODEL = 256


@dataclass(frozen=True)
class RunResult:
    """What became of one configuration."""

    folder: Path
    status: str  #: success, failed, diverged
    skipped: bool  #: it was finished before this call
    summary: dict[str, Any]


def train(
    runs: Sequence[RunConfig],
    *,
    defaults: Mapping[str, RunConfig] | None = None,
    stack: bool = False,
    stack_size: int | None = None,
    quiet: bool = False,
) -> list[RunResult]:
    """Train every run that is not finished yet; the results in the order of `runs`.

    defaults: for each experiment's name the configuration that its folder names are told apart from.
    stack: train runs side by side: on a GPU those of one shape as one program, on a CPU in a process for each core;
    `stack_size` of them at a time (None: as many as the memory takes), and others as soon as some have ended.
    Raises `UserError` before anything is written when a setting, a corpus or a folder is wrong or a stack does not
    fit into the memory, and KeyboardInterrupt after a checkpoint when interrupted.
    """
    jobs = check_runs(runs, defaults)
    pending = list({job.folder.path: job for job in jobs if not job.folder.is_finished()}.values())
    skipped = {job.folder.path for job in jobs} - {job.folder.path for job in pending}
    groups = list(_groups(pending, stack, stack_size))
    with Display(total=len(pending), quiet=quiet) as display, _deferred_interrupts() as interrupted:
        for path in sorted(skipped):
            display.note(f"{path}: finished before, skipped")
        if (stack_size or 1) > 1 and any(job.device.type == "cpu" and job.threads > 1 for job in pending):
            display.note(
                f"hydra.launcher.stack_size={stack_size}: on a CPU runs of more than {SMALL_MODEL} units take all "
                "cores and follow each other"
            )
        for group, size in groups:
            if size > 1 and group[0].device.type == "cpu":
                train_in_processes([(job.config, job.default) for job in group], size, display, interrupted)
            else:
                _train_stack(group, size, display, interrupted)
    results = []
    for job in jobs:
        summary = job.folder.summary()
        assert summary is not None
        results.append(RunResult(job.folder.path, summary["status"], job.folder.path in skipped, summary))
    return results


def train_alone(task: Task, console: Console, neighbours: int) -> None:
    """What a process of a stack does for one run; `neighbours` is the number of processes, itself included."""
    job = Job(*task)
    with Display(total=1, console=console) as display, _deferred_interrupts(patient=True) as interrupted:
        _train_stack([job], 1, display, interrupted, neighbours)


def check_runs(runs: Sequence[RunConfig], defaults: Mapping[str, RunConfig] | None = None) -> list[Job]:
    """The jobs of `train`, in order; raises `UserError` where one could not start, and writes nothing."""
    return [Job(config.check(), (defaults or {}).get(config.experiment, RunConfig())) for config in runs]


class Job:
    """A checked run: its folder, its data, its device and threads."""

    def __init__(self, config: RunConfig, default: RunConfig) -> None:
        self.config, self.default = config, default
        self.device = choose_device(config)
        self.threads = choose_threads(config, self.device)
        check_loggers(config.logger)
        self.corpus = load(config.dataset.name, config.dataset.root)
        check_window(self.corpus, config.trainer.batch_size, config.trainer.bptt)
        self.folder = RunFolder(config, default, self.corpus.checksum)
        self.folder.check()

    def shape(self) -> tuple[Any, ...]:
        """What runs must have in common to share an engine."""
        c = self.config
        trainer = (c.trainer.bptt, c.trainer.batch_size, c.trainer.radius_every)
        checkpoint = self.folder.load_checkpoint("last")
        position = checkpoint[1]["iteration"] if checkpoint is not None else 0
        return c.dataset, c.model, trainer, c.precision, c.optimizer.algorithm, str(self.device), position


def choose_device(config: RunConfig) -> torch.device:
    """The device that a configuration asks for; `ConfigError` where it, or the precision on it, is not to be had."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ConfigError("device=cuda: torch finds no CUDA device here; take device=cpu or auto")
    device = torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
    if config.precision == "tf32" and device.type == "cpu":
        raise ConfigError("precision=tf32: not on the CPU, which supports fp32, bf16 and fp64")
    return device


def choose_threads(config: RunConfig, device: torch.device) -> int:
    """Threads of one run's products, a rule of its shape alone: one for a small model, whatever trains beside it.

    Two threads make an iteration of 200 units hardly faster, and a stack of such runs uses the cores better with
    a process for each. Since the number of threads can change the last bits of a sum, it must not depend on
    whether a run is alone.
    """
    if device.type == "cpu" and config.model.hidden_size <= SMALL_MODEL:
        return 1
    return torch.get_num_threads()


def _groups(jobs: Sequence[Job], stack: bool, asked: int | None) -> Iterator[tuple[list[Job], int]]:
    """Runs that are trained together, and how many of them at a time; without `stack` each alone.

    On a GPU those of one shape, on the CPU all that take one thread. Raises `UserError` where they do not fit.
    """
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ConfigError(f"hydra.launcher.stack_size={asked}: should be a whole number of at least 1, or null")
    groups: dict[Any, list[Job]] = {}
    for index, job in enumerate(jobs):
        key: Any = index
        if stack and job.device.type == "cuda":
            key = job.shape()
        elif stack and job.threads == 1:
            key = "cpu"
        groups.setdefault(key, []).append(job)
    for group in groups.values():
        needs = [run_bytes(job.config, job.corpus.num_outputs) for job in group]
        yield group, stack_size_of(needs, group[0].device, asked if len(group) > 1 else None)


@contextmanager
def _deferred_interrupts(patient: bool = False) -> Iterator[threading.Event]:
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


def _train_stack(
    jobs: Sequence[Job], size: int, display: Display, interrupted: threading.Event, neighbours: int | None = None
) -> None:
    """Train runs, `size` of them side by side: at the end of an epoch those that have ended make room for others."""
    torch.backends.cuda.matmul.allow_tf32 = jobs[0].config.precision == "tf32"
    waiting = deque(jobs)
    active: list[_ActiveRun] = []
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(jobs[0].threads)
        engine: Engine | None = None
        while active or waiting:
            survivors = [run for run in active if not run.ended]
            joining = [_ActiveRun(waiting.popleft(), display) for _ in range(min(size - len(survivors), len(waiting)))]
            for run in joining:
                stack.callback(run.close)
            if joining or len(survivors) < len(active):
                states = {} if engine is None else {run: engine.run_state(active.index(run)) for run in survivors}
                states |= {run: run.tensors for run in joining if run.tensors is not None}
                active = [*survivors, *joining]
                engine = None  # before the next one takes its memory
                if not active:
                    return
                engine = _engine(active, states)
                _validate_start(engine, active)
            assert engine is not None
            for run in active:
                run.stack_size = neighbours or len(active)
            _train_epoch(engine, active, interrupted)


def _engine(active: Sequence[_ActiveRun], states: Mapping[_ActiveRun, dict[str, Tensor]]) -> Engine:
    """An engine for these runs, each from its state, or from its start where it has none."""
    engine = Engine([run.config for run in active], active[0].job.corpus, active[0].job.device)
    for index, run in enumerate(active):
        run.tensors = None
        if run in states:
            engine.load_run_state(index, states[run])
    return engine


def _validate_start(engine: Engine, active: Sequence[_ActiveRun]) -> None:
    """The validation loss before training, of runs that begin."""
    if all(run.progress.initial_valid_loss is not None for run in active):
        return
    losses = engine.evaluate("valid")
    for run, loss in zip(active, losses, strict=True):
        if run.progress.initial_valid_loss is None:
            run.begin(loss)


def _train_epoch(engine: Engine, active: Sequence[_ActiveRun], interrupted: threading.Event) -> None:
    """From where the runs stand to the end of their epoch, or to the end of all of them."""
    start = active[0].progress.iteration
    for run in active:
        run.begin_epoch()
    engine.set_rates([run.progress.schedule.lr for run in active])
    iterations = engine.begin_epoch([run.progress.epoch for run in active], fresh_states=start == 0)
    for run in active:
        run.announce(iterations)
    radius_every = active[0].config.trainer.radius_every
    for iteration in range(start, iterations):
        # Counted over each run: they may have begun at different times.
        due = [(run.progress.step + 1) % radius_every == 0 for run in active]
        metrics = engine.step(iteration, any(due))
        redone = engine.redone()
        columns = torch.stack([metrics.loss.double(), metrics.grad_norm, metrics.values_clipped.double()])
        layers = metrics.spectral_norm if metrics.spectral_radius is None else metrics.spectral_radius
        numbers = torch.cat((columns, metrics.spectral_norm, layers)).T.tolist()
        num_layers = metrics.spectral_norm.shape[0]
        for run, redone_now, with_radius, (loss, grad_norm, clipped, *rest) in zip(
            active, redone, due, numbers, strict=True
        ):
            if not run.ended:
                run.progress.projections_redone += redone_now
                radii = rest[num_layers:] if with_radius else [None] * num_layers
                run.record(metrics.time_steps, loss, grad_norm, int(clipped), rest[:num_layers], radii)
        diverged = [run for run in active if run.progress.diverged and not run.ended]
        if diverged:
            _book_time(engine, active)
            for index, run in enumerate(active):
                if run in diverged:
                    run.diverge(engine.run_state(index))
        stop_early = [run for run in active if not run.ended and run.stops_now()]
        at_end = iteration + 1 == iterations
        if stop_early and not at_end:
            _validate(engine, active, stop_early)
        if all(run.ended for run in active):
            break
        if interrupted.is_set() or (not at_end and any(run.checkpoint_due() for run in active)):
            _book_time(engine, active)
            for index, run in enumerate(active):
                if not run.ended:
                    run.save(engine.run_state(index))
            if interrupted.is_set():
                raise KeyboardInterrupt
    else:
        _validate(engine, active, [run for run in active if not run.ended])
    for index, run in enumerate(active):
        if not run.ended:
            run.save(engine.run_state(index))


def _validate(engine: Engine, active: Sequence[_ActiveRun], runs: Sequence[_ActiveRun]) -> None:
    """The end of an epoch, or of a run within one, for `runs`."""
    losses = engine.evaluate("valid")
    _book_time(engine, active)
    for index, run in enumerate(active):
        if run in runs:
            run.end_epoch(losses[index], engine.run_state(index))


def _book_time(engine: Engine, active: Sequence[_ActiveRun]) -> None:
    seconds = engine.clock.read()
    for run in active:
        run.progress.totals.add_seconds(seconds, run.stack_size)


class _ActiveRun:
    """One run while it is trained: its progress and its folder."""

    def __init__(self, job: Job, display: Display) -> None:
        self.job, self.config, self.folder, self.display = job, job.config, job.folder, display
        self.stack_size = 1
        self.name = str(job.folder.path)
        self.ended = False
        self.loggers: list[Logger] = []
        self.last_checkpoint = time.monotonic()
        checkpoint = self.folder.load_checkpoint("last")
        self.tensors = None if checkpoint is None else checkpoint[0]
        self.progress = Progress.of(self.config) if checkpoint is None else Progress.from_json(checkpoint[1])
        columns = (EPOCH_COLUMNS, step_columns(self.config.model.num_layers), TIMING_COLUMNS)
        self.folder.open(
            dict(zip(CSV_FILES, columns, strict=True)), None if checkpoint is None else self.progress.offsets
        )
        if self.folder.write_environment(describe_environment(job.device), continued=checkpoint is not None):
            display.note(f"{self.name}: not all of it with one machine, revision, kernels, threads and versions")
        self.loggers = open_loggers(
            self.config.logger, self.folder.path, self.config.flat(), self.folder.identity, self.progress.step
        )

    def begin(self, initial_valid_loss: float) -> None:
        self.progress.initial_valid_loss = initial_valid_loss
        self.folder.append("epochs.csv", [0, None, None, initial_valid_loss, None, None, None])
        self._write_summary(finished=False)

    def begin_epoch(self) -> None:
        if self.progress.iteration == 0:
            self.progress.epoch += 1
            self.progress.totals = EpochTotals()

    def announce(self, iterations: int) -> None:
        epochs, steps = self.config.max_epochs, self.config.max_steps
        total = steps if steps is not None else None if epochs is None else epochs * iterations
        self.display.start(self.name, iterations, total)

    def record(
        self,
        time_steps: int,
        loss: float,
        grad_norm: float,
        clipped: int,
        spectral_norms: list[float],
        radii: Sequence[float | None],
    ) -> None:
        """Take one iteration's numbers; a loss that is not finite ends the run."""
        progress = self.progress
        progress.iteration += 1
        progress.step += 1
        progress.explosions.observe(progress.step, grad_norm)
        progress.totals.add(loss, time_steps, grad_norm, clipped)
        self.folder.append("steps.csv", [progress.step, loss, grad_norm, *spectral_norms, *radii, clipped])
        norm = max(spectral_norms)
        self.display.step(
            self.name, epoch=progress.epoch, step=progress.step, loss=loss, grad_norm=grad_norm, spectral_norm=norm
        )
        for logger in self.loggers:
            values = {"loss": loss, "grad_norm": grad_norm, "spectral_norm": norm, "values_clipped": clipped}
            logger.step(progress.step, values)
        progress.diverged = not math.isfinite(loss)

    def diverge(self, tensors: dict[str, Tensor]) -> None:
        """End the run at a loss that is not finite; what its epoch took until then is kept."""
        self.folder.append("timing.csv", self.progress.timing_row())
        self.end(f"the loss is not finite at iteration {self.progress.step}", tensors)

    def stops_now(self) -> bool:
        return self.config.max_steps is not None and self.progress.step >= self.config.max_steps

    def checkpoint_due(self) -> bool:
        return time.monotonic() - self.last_checkpoint > 60 * self.config.trainer.checkpoint_minutes

    def end_epoch(self, valid_loss: float, tensors: dict[str, Tensor]) -> None:
        """Take the validation loss of an epoch's end; ends the run after its last."""
        progress = self.progress
        lr = progress.schedule.lr
        if progress.validated(valid_loss):
            record = {"epoch": progress.epoch, "valid_loss": valid_loss}
            self.folder.save_checkpoint("best", parameters_of(tensors), record)
        row = progress.epoch_row(lr, valid_loss)
        self.folder.append("epochs.csv", row)
        self.folder.append("timing.csv", progress.timing_row())
        named = dict(zip(EPOCH_COLUMNS, row, strict=True))
        self.display.epoch(self.name, named)
        for logger in self.loggers:
            logger.epoch(progress.epoch, progress.step, named)
        exhausted = progress.schedule.after_epoch(self.config, progress.epoch, valid_loss)
        progress.iteration = 0
        if not math.isfinite(valid_loss):
            progress.diverged = True
        last = self.config.max_epochs is not None and progress.epoch >= self.config.max_epochs
        if progress.diverged or exhausted or last or self.stops_now():
            self.end("", tensors)

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint that the run can be continued from."""
        self.progress.offsets = self.folder.offsets()
        self.folder.save_checkpoint("last", tensors, self.progress.to_json())
        self._write_summary(finished=False)
        self.last_checkpoint = time.monotonic()

    def end(self, message: str, tensors: dict[str, Tensor]) -> None:
        """Take the test loss of the best epoch's weights and write the run's summary and last state."""
        self.ended = True
        best = self.folder.load_checkpoint("best")
        if best is not None and self.progress.best_epoch is not None:
            device = self.job.device
            self.progress.test_loss = evaluate_weights(best[0], self.config, self.job.corpus, "test", device)
        self.progress.offsets = self.folder.offsets()
        self._write_summary(finished=True)
        # After the summary: a state from which to go on would make a run that is interrupted here train too long.
        self.folder.save_checkpoint("last", tensors, self.progress.to_json())
        status = self._summary(finished=True)["status"]
        self.display.finish(self.name, status, message)
        for logger in self.loggers:
            logger.close(status, self._summary(finished=True))
        self.loggers = []

    def _summary(self, finished: bool) -> dict[str, Any]:
        return self.progress.summary(self.job.corpus.unit, finished)

    def _write_summary(self, finished: bool) -> None:
        self.folder.write_summary(self._summary(finished))

    def close(self) -> None:
        for logger in self.loggers:
            logger.close("unfinished", self._summary(finished=False))
        self.folder.close()
