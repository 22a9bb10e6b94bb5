"""The runner: ``train(runs)`` takes a list of configurations, checks them all, and trains what is missing.

There is one runner, not two: a single run is a stack of one. On a CPU each run has an engine of its own and
the runs follow each other or share the cores in processes; on a GPU, runs of one shape share an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gruclip.config import RunConfig
from gruclip.errors import RefusedRun, UserError
from gruclip.model.device import SMALL_MODEL
from gruclip.runs.ownership import LockedError
from gruclip.runs.records import FINISHED
from gruclip.runs.sweeps import record_sweeps
from gruclip.training.capacity import check_stack_size, run_bytes
from gruclip.training.capacity import stack_size as stack_size_of
from gruclip.training.display import Display
from gruclip.training.interrupts import Interrupts, deferred_interrupts
from gruclip.training.jobs import Job, check_runs
from gruclip.training.stack import train_stack
from gruclip.training.workers import train_in_processes

#: Between two looks at runs that other processes are training.
WAIT_SECONDS = 1.0


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
    batched: bool = False,
    quiet: bool = False,
    ended: Callable[[Path], object] | None = None,
) -> list[RunResult]:
    """Train every run that is not finished yet; the results in the order of `runs`.

    `gruclip.train`, which calls this with the `defaults` of the files in ``conf``, documents the other arguments and
    errors.

    defaults: for each experiment's name the configuration that its folder names are told apart from.
    batched: a stack is one program on a CPU too, as it is on a GPU; slower there, for tests and rehearsals.
    """
    jobs = check_runs(runs, defaults)
    return train_jobs(jobs, stack=stack, stack_size=stack_size, quiet=quiet, ended=ended, batched=batched)


def train_jobs(
    jobs: Sequence[Job],
    *,
    stack: bool = False,
    stack_size: int | None = None,
    quiet: bool = False,
    ended: Callable[[Path], object] | None = None,
    batched: bool = False,
    part_of_sweep: bool = False,
) -> list[RunResult]:
    """`train` for checked runs; if `part_of_sweep`, another process has recorded the sweep's beginning."""
    pending = list({job.folder.path: job for job in jobs if not job.folder.is_finished()}.values())
    skipped = {job.folder.path for job in jobs} - {job.folder.path for job in pending}
    groups = list(_groups(pending, stack, stack_size, batched))
    if len(jobs) > 1 and pending and not part_of_sweep:
        record_sweeps([job.folder.path for job in jobs], [Path(job.config.output_dir) for job in jobs])
    with Display(len(pending), quiet, ended=ended) as display, deferred_interrupts() as interrupted:
        for path in sorted(skipped):
            display.note(f"{path}: finished before, skipped")
        many_threads = any(job.device.type == "cpu" and job.threads > 1 for job in pending)
        if many_threads and (stack_size or 1) > 1 and not batched:
            display.note(
                f"hydra.launcher.stack_size={stack_size}: on a CPU runs of more than {SMALL_MODEL} units take all "
                "cores and follow each other"
            )
        _train_groups(groups, display, interrupted, batched, alone=len(pending) == 1 and not part_of_sweep)
    return results_of(jobs, skipped)


def check_fits(jobs: Sequence[Job], *, stack: bool = False, stack_size: int | None = None) -> None:
    """Raise `UserError` where `train_jobs` of these would, before anything is written."""
    list(_groups([job for job in jobs if not job.folder.is_finished()], stack, stack_size, batched=False))


def results_of(jobs: Sequence[Job], skipped: Collection[Path]) -> list[RunResult]:
    """The results of runs that are all finished; those in `skipped` were before."""
    results = []
    for job in jobs:
        summary = job.folder.summary()
        assert summary is not None
        assert summary["status"] in FINISHED, f"{job.folder.path}: nobody has trained it, and nobody was told"
        results.append(RunResult(job.folder.path, summary["status"], job.folder.path in skipped, summary))
    return results


def _train_groups(
    groups: Sequence[tuple[list[Job], int]], display: Display, interrupted: Interrupts, batched: bool, alone: bool
) -> None:
    """Train group after group; then wait for runs that other processes train, or refuse a run that is `alone`.

    Raises `RefusedRun` at the end where a run could not be continued.
    """
    waited_for: set[Path] = set()
    refused: list[RefusedRun] = []
    several = sum(len(group) for group, _ in groups) > 1

    def refuse(error: RefusedRun) -> None:
        refused.append(error)
        if several:
            display.note(f"{error}; the other runs go on")

    while groups:
        locked: list[tuple[list[Job], int]] = []
        for group, size in groups:
            if interrupted.is_set():  # as the last run was ending
                raise interrupted.error()
            left = [job for job in group if job.folder.path in waited_for and job.folder.is_taken()]
            free = [job for job in group if job not in left and not job.folder.is_finished()]
            together = min(size, len(free))
            in_processes = together > 1 and group[0].device.type == "cpu" and not batched
            train = train_in_processes if in_processes else train_stack
            try:
                if free:
                    left += train(free, together, display, interrupted, refuse)
            except UserError as error:
                refuse(RefusedRun(str(error)))
            if left:
                locked.append((left, size))
        names = {job.folder.path for left, _ in locked for job in left}
        if names and alone:
            raise LockedError(f"{names.pop()}: another process is writing this run; wait for it or stop it")
        for name in sorted(names - waited_for):
            display.note(f"{name}: another process is training it; waiting for it")
        waited_for |= names
        if interrupted.wait(WAIT_SECONDS if names else 0):
            raise interrupted.error()
        groups = locked
    if len(refused) > 1:
        raise RefusedRun(f"{len(refused)} runs are not trained; the first one: {refused[0]}")
    if refused:
        raise refused[0]


def _groups(jobs: Sequence[Job], stack: bool, asked: int | None, batched: bool) -> Iterator[tuple[list[Job], int]]:
    """Runs that are trained together, and how many of them at a time; without `stack` each alone.

    One program takes runs of one shape; processes, single-threaded runs. Raises `UserError` where they do not fit.
    """
    check_stack_size(asked)
    groups: dict[Any, list[Job]] = {}
    for index, job in enumerate(jobs):
        key: Any = index
        if stack and (batched or job.device.type == "cuda"):
            key = job.shape()
        elif stack and job.threads == 1:
            key = "cpu"
        groups.setdefault(key, []).append(job)
    for group in groups.values():
        needs = [run_bytes(job.config, job.corpus.num_outputs) for job in group]
        wanted = len(group) if batched and asked is None else asked
        try:
            yield group, stack_size_of(needs, group[0].device, wanted if len(group) > 1 else None)
        except UserError as error:
            raise UserError(f"{group[needs.index(max(needs))].folder.path}: {error}") from None
