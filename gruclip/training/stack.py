"""Runs of one shape trained side by side: epoch after epoch, those that have ended making room for others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from gruclip.training.active_run import ActiveRun
from gruclip.training.display import Display
from gruclip.training.engine import Engine
from gruclip.training.jobs import Job


def train_stack(
    jobs: Sequence[Job], size: int, display: Display, interrupted: threading.Event, neighbours: int | None = None
) -> None:
    """Train runs, `size` of them side by side: at the end of an epoch those that have ended make room for others."""
    torch.backends.cuda.matmul.allow_tf32 = jobs[0].config.precision == "tf32"
    waiting = deque(jobs)
    active: list[ActiveRun] = []
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(jobs[0].threads)
        engine: Engine | None = None
        while active or waiting:
            survivors = [run for run in active if not run.ended]
            joining = [ActiveRun(waiting.popleft(), display) for _ in range(min(size - len(survivors), len(waiting)))]
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


def _engine(active: Sequence[ActiveRun], states: Mapping[ActiveRun, dict[str, Tensor]]) -> Engine:
    """An engine for these runs, each from its state, or from its start where it has none."""
    engine = Engine([run.config for run in active], active[0].job.corpus, active[0].job.device)
    for index, run in enumerate(active):
        run.tensors = None
        if run in states:
            engine.load_run_state(index, states[run])
    return engine


def _validate_start(engine: Engine, active: Sequence[ActiveRun]) -> None:
    """The validation loss before training, of runs that begin."""
    if all(run.progress.initial_valid_loss is not None for run in active):
        return
    losses = engine.evaluate("valid")
    for run, loss in zip(active, losses, strict=True):
        if run.progress.initial_valid_loss is None:
            run.begin(loss)


def _train_epoch(engine: Engine, active: Sequence[ActiveRun], interrupted: threading.Event) -> None:
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


def _validate(engine: Engine, active: Sequence[ActiveRun], runs: Sequence[ActiveRun]) -> None:
    """The end of an epoch, or of a run within one, for `runs`."""
    losses = engine.evaluate("valid")
    _book_time(engine, active)
    for index, run in enumerate(active):
        if run in runs:
            run.end_epoch(losses[index], engine.run_state(index))


def _book_time(engine: Engine, active: Sequence[ActiveRun]) -> None:
    seconds = engine.clock.read()
    for run in active:
        run.progress.totals.add_seconds(seconds, run.stack_size)
