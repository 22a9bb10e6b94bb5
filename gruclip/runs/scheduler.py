"""What SLURM knows of its jobs: which one this process is in, which are queued, whether one is over for certain."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

#: Of a node that answers; a state with ``*`` is of one that does not, and `down` may be only what SLURM thinks.
_ANSWERS = re.compile(r"(idle|mixed|allocated|completing|draining|drained|planned|reserved)\+?")
#: That SLURM is given to answer.
SECONDS = 20
#: Environment variables of a job's processes.
JOB = {"id": "SLURM_JOB_ID", "node": "SLURMD_NODENAME", "cluster": "SLURM_CLUSTER_NAME"}
RESTARTS, ARRAY, TASK = "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"


def this_job() -> dict[str, Any] | None:
    """The SLURM job that this process is in: its id, how often it was started again, its node and cluster."""
    job: dict[str, Any] = {key: os.environ.get(name) for key, name in JOB.items()}
    if None in job.values():
        return None
    if TASK in os.environ:  # the number alone may stand for the whole array
        job["id"] = f"{os.environ[ARRAY]}_{os.environ[TASK]}"
    return {**job, "restarts": int(os.environ.get(RESTARTS, 0))}


class State(NamedTuple):
    """Of a job in SLURM's queue: e.g. RUNNING, or PENDING, and why."""

    name: str
    reason: str


def states(jobs: Iterable[str]) -> dict[str, State] | None:
    """Of each of `jobs` in SLURM's queue, arrays by their tasks; None where SLURM does not answer."""
    found: dict[str, State] = {}
    for job in jobs:  # one by one: of several, one that SLURM has forgotten would hide the others
        answer = _ask("squeue", "--noheader", "--array", "--jobs", job, "--format", "%i %T %r")
        if answer is None:
            return None
        for line in answer.splitlines():
            name, state, reason = line.split(maxsplit=2)
            found[name] = State(state, reason)
    return found


def is_over(job: Mapping[str, Any] | None) -> bool:
    """Whether SLURM knows that no process of `job` is left, as this process' job can see; False where it is not sure.

    A job is started again, or leaves the queue, only when its node said that its processes have ended, or when its node
    is down; so the node has to answer.
    """
    mine = this_job()
    if job is None or mine is None or job["cluster"] != mine["cluster"]:
        return False
    if not (job["restarts"] < mine["restarts"] if job["id"] == mine["id"] else states([job["id"]]) == {}):
        return False
    words = (_ask("sinfo", "--noheader", "--Node", "--nodes", str(job["node"]), "--format", "%T") or "").split()
    return bool(words) and all(_ANSWERS.fullmatch(word) for word in words)


def _ask(*command: str) -> str | None:
    """What a command of SLURM's says; empty for a job that SLURM has forgotten, None where it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return done.stdout
    return "" if "Invalid job id" in done.stderr else None
