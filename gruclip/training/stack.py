"""Runs of one shape trained side by side: epoch after epoch, those that have ended making room for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gruclip.errors import RefusedRun, UserError
from gruclip.model.device import round_products
from gruclip.runs.ownership import LockedError
from gruclip.training.active_run import ActiveRun
from gruclip.training.display import AnyDisplay
from gruclip.training.engine import Engine
from gruclip.training.interrupts import Interrupts
from gruclip.training.jobs import Job


def train_stack(
    jobs: Sequence[Job],
    size: int,
    display: AnyDisplay,
    interrupted: Interrupts,
    refuse: Callable[[RefusedRun], object],
    processes: int | None = None,
) -> list[Job]:
    """Train runs, `size` of them side by side: at the end of an epoch those that have ended make room for others.

    processes: how many train runs beside one another, this one included; None where it is alone.

    Gives back the jobs that other processes are training. A stack that runs out of memory goes on from its checkpoints
    with half as many runs at a time. Raises `UserError` where a single run does not fit; `refuse` is told of one that
    cannot be continued, which keeps no other from being trained.
    """
    round_products(jobs[0].config.precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(jobs[0].threads)
    stack = _Stack(list(jobs), size, display, interrupted, refuse, processes)
    try:
        while stack.waiting or stack.active:
            try:
                stack.train_epoch()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                stack.shrink()
    finally:
        stack.close(stack.active)
        torch.set_num_threads(threads)
    return stack.locked


@dataclass
class _Stack:
    """Which runs are trained at the moment, which wait, and which others are training."""

    waiting: list[Job]
    size: int
    display: AnyDisplay
    interrupted: Interrupts
    refuse: Callable[[RefusedRun], object]
    processes: int | None
    active: list[ActiveRun] = field(default_factory=list)
    locked: list[Job] = field(default_factory=list)
    _engine: Engine | None = None

    def train_epoch(self) -> None:
        """Fill the places that are free, and train to the end of the epoch."""
        trained = len(self.active)  # by the engine there is
        self._join()
        staying = [(index, run) for index, run in enumerate(self.active) if not run.ended]
        if len(staying) < len(self.active) or trained < len(self.active):
            engine, self._engine = self._engine, None
            states = [
                run.tensors if engine is None or index >= trained else engine.run_state(index) for index, run in staying
            ]
            del engine  # before the next one takes its memory
            self.close([run for run in self.active if run.ended])
            self.active = [run for _, run in staying]
            if self.active:
                self._engine = _engine(self.active, states)
                _validate_start(self._engine, self.active)
        if self._engine is None:
            return  # all runs that were left are other processes'
        for run in self.active:
            run.stack_size = self.processes or len(self.active)
        _train_epoch(self._engine, self.active, self.interrupted)

    def _join(self) -> None:
        """Take waiting runs into the free places: as far into their epochs as the others, and locked by nobody else.

        Each waits or is active at every moment: what fails for want of memory loses none.
        """
        staying = [run for run in self.active if not run.ended]
        for job in list(self.waiting):
            if len(staying) == self.size:
                return
            try:
                run = ActiveRun(job, self.display)
            except LockedError:
                self.locked.append(job)
            except UserError as error:
                self.refuse(RefusedRun(str(error)))
            else:
                if run.ended:
                    run.close()
                elif staying and run.progress.iteration != staying[0].progress.iteration:
                    run.close()
                    continue
                else:
                    self.active.append(run)
                    staying.append(run)
            self.waiting.remove(job)

    def shrink(self) -> None:
        """Go on with half as many runs, from their checkpoints."""
        runs = [run for run in self.active if not run.ended]
        self._engine = None
        self.close(self.active)
        self.active = []
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if len(runs) < 2:
            name = runs[0].name if runs else "a run"
            raise UserError(f"{name}: out of memory; take a smaller model.hidden_size or trainer.batch_size")
        self.size = len(runs) // 2
        self.waiting[:0] = [run.job for run in runs]
        self.display.note(f"out of memory with {len(runs)} runs side by side: going on with {self.size}")

    def close(self, runs: Sequence[ActiveRun]) -> None:
        for run in runs:
            run.close()


def _is_out_of_memory(error: BaseException) -> bool:
    """torch's own allocator for GPUs has a class for it; the CPU's, the driver and its libraries have texts alone."""
    told = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in told)


def _engine(active: Sequence[ActiveRun], states: Sequence[dict[str, Tensor] | None]) -> Engine:
    """An engine for these runs, each from its state, or from its start where it has none."""
    job = active[0].job
    engine = Engine([run.config for run in active], job.corpus, job.device, states=states)
    for run in active:
        run.tensors = None
    return engine


def _validate_start(engine: Engine, active: Sequence[ActiveRun]) -> None:
    """The validation loss before training, of runs that begin."""
    if all(run.progress.initial_valid_loss is not None for run in active):
        return
    losses = _valid_losses(engine, active)
    for run, loss in zip(active, losses, strict=True):
        if run.progress.initial_valid_loss is None:
            run.begin(loss)


def _valid_losses(engine: Engine, active: Sequence[ActiveRun]) -> list[float]:
    """Of all runs, whose folders are kept meanwhile."""

    def beat() -> None:
        for run in active:
            run.folder.beat()

    return engine.evaluate("valid", beat)


def _train_epoch(engine: Engine, active: Sequence[ActiveRun], interrupted: Interrupts) -> None:
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
        stop_early = [run for run in active if not run.ended and run.progress.stops_now(run.config)]
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
                raise interrupted.error()
    else:
        _validate(engine, active, [run for run in active if not run.ended])
    for index, run in enumerate(active):
        if not run.ended and run.epoch_checkpoint_due():
            run.save(engine.run_state(index))


def _validate(engine: Engine, active: Sequence[ActiveRun], runs: Sequence[ActiveRun]) -> None:
    """The end of an epoch, or of a run within one, for `runs`."""
    losses = _valid_losses(engine, active)
    _book_time(engine, active)
    for index, run in enumerate(active):
        if run in runs:
            run.end_epoch(losses[index], engine.run_state(index))


def _book_time(engine: Engine, active: Sequence[ActiveRun]) -> None:
    seconds = engine.clock.read()
    for run in active:
        run.progress.totals.add_seconds(seconds, run.stack_size)
