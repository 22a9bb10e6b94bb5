"""A sweep in jobs of SLURM, as arrays; they go on without the process that submitted them, which follows them."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from gruclip.errors import Interrupted, UserError
from gruclip.rules import plural
from gruclip.runs import scheduler
from gruclip.runs.sweeps import record_sweeps, sweeps
from gruclip.training.display import Display
from gruclip.training.interrupts import Interrupts
from gruclip.training.jobs import Job
from hydra_plugins.gruclip.submission import Submission, Submitted, check_finished, report


def train(
    stacks: Sequence[list[Job]], jobs: Sequence[Job], submission: Submission, display: Display, interrupted: Interrupts
) -> None:
    """Submit `stacks`, record all `jobs` as a sweep, and wait; `UserError` where a run is unfinished then."""
    output_dirs = [Path(job.config.output_dir) for job in jobs]
    _refuse_queued({job.folder.path for stack in stacks for job in stack}, set(output_dirs))
    size = _largest_array()
    arrays = [stacks[start : start + size] for start in range(0, len(stacks), size)]
    side_by_side = math.ceil(submission.parameters["array_parallelism"] / len(arrays))
    submitted: list[Submitted] = []
    try:
        for array in arrays:
            submitted += submission.submit(array, array_parallelism=side_by_side)
    except UserError:
        if submitted:
            subprocess.run(["scancel", *_arrays(submitted)], check=False)
        raise
    record_sweeps([job.folder.path for job in jobs], output_dirs, _arrays(submitted))
    display.note(
        f"{plural(display.total, 'run')} in {plural(len(submitted), 'job')} of SLURM "
        f"({', '.join(_arrays(submitted))}), which go on without this command; gruclip status --watch follows them"
    )
    _wait(submitted, display, interrupted)
    check_finished(submitted)


def _arrays(submitted: Sequence[Submitted]) -> list[str]:
    return list(dict.fromkeys(one.name.partition("_")[0] for one in submitted))


def _refuse_queued(folders: set[Path], output_dirs: set[Path]) -> None:
    """Raise `UserError` where jobs of SLURM are going to train some of these runs already."""
    for output_dir in sorted(output_dirs):
        for sweep in sweeps(output_dir):
            common = folders & {output_dir / run for run in sweep.runs}
            if common and (queued := scheduler.states(sweep.jobs)):
                raise UserError(
                    f"{len(common)} of these runs are in {len(queued)} jobs of SLURM already; gruclip status --watch "
                    f"{output_dir} follows them, scancel {' '.join(sweep.jobs)} ends them"
                )


def _largest_array() -> int:
    """SLURM refuses larger ones: MaxArraySize, one above the largest index."""
    answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    sizes = [line.split("=")[1] for line in answer.splitlines() if line.startswith("MaxArraySize")]
    return int(sizes[0]) if sizes else 1001


def _wait(submitted: Sequence[Submitted], display: Display, interrupted: Interrupts) -> None:
    """Until no job is in the queue: by squeue, for submitit's sacct needs an accounting database, and warns without."""
    running, begun, told = list(submitted), time.monotonic(), set[str]()
    while running:
        # Soon after the start, and then with the patience that a sweep of days allows; squeue asks the controller.
        if interrupted.wait(min(60.0, 1.0 + (time.monotonic() - begun) / 60)):
            then = (
                f"the jobs go on: gruclip status --watch follows them, scancel {' '.join(_arrays(running))} ends them"
            )
            raise Interrupted(interrupted.error().signal, then)
        queued = scheduler.states(_arrays(running))
        if queued is None:
            words = {"squeue does not answer; asking again"}
        else:
            words = {f"SLURM lets jobs wait: {state.reason}" for state in queued.values() if state.reason != "None"}
            ended = [one for one in running if one.name not in queued]
            report(ended, display)
            running = [one for one in running if one.name in queued]
        for line in sorted(words - told):
            display.note(line)
        told |= words
