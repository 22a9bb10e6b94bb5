"""What a submitted job does: it trains one stack, and is started again from checkpoints where it was preempted."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.runs import scheduler

#: In the folder of a local job: it is to end, and not to start anew.
STOPPED = "stopped"

#: What a scheduler may send before it takes the machine away: submitit asks for SIGUSR2 ahead of the time limit, sites
#: that preempt send SIGTERM or SIGUSR1.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class StackWork:
    """A stack's training as submitit calls it; `checkpoint` is what it submits again."""

    def __init__(self, defaults: Mapping[str, RunConfig], all_at_a_time: bool) -> None:
        self.defaults, self.all_at_a_time = defaults, all_at_a_time

    def __call__(self, runs: Sequence[RunConfig]) -> list[str]:
        """Train `runs`, which a sweep has recorded; their statuses."""
        _start_again_when_preempted()
        from gruclip.training.jobs import check_runs
        from gruclip.training.runner import train_jobs

        size = len(runs) if self.all_at_a_time else None
        try:
            results = train_jobs(check_runs(runs, self.defaults), stack=True, stack_size=size, part_of_sweep=True)
        except UserError as error:
            print(f"gruclip: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None
        return [result.status for result in results]

    def checkpoint(self, runs: Sequence[RunConfig]) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, runs)


def _start_again_when_preempted() -> None:
    """Let each of `SIGNALS` do what submitit does for its own, where this job is still wanted.

    While runs are trained these signals wait for the runs' checkpoints, and are sent again after them
    (`gruclip.training.interrupts`).
    """
    import submitit

    environment = submitit.JobEnvironment()
    start_again: Any = signal.getsignal(environment._usr_sig())

    def preempted(number: int, frame: FrameType | None) -> None:
        if _is_wanted(environment):
            start_again(number, frame)
        raise SystemExit(128 + number)

    for number in SIGNALS:
        signal.signal(number, preempted)


def _is_wanted(environment: Any) -> bool:
    """Whether the job was neither ended by its user nor started again by SLURM itself, which send SIGTERM as well."""
    if environment.cluster == "slurm":
        state = (scheduler.states([environment.job_id]) or {}).get(environment.job_id)
        return state is not None and state.name == "RUNNING"
    return not os.path.lexists(environment.paths.folder / STOPPED)
