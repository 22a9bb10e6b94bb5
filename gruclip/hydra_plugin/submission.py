"""Submitting a sweep's stacks by submitit: the jobs, their logs, and what has become of their runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.training.display import Display
from gruclip.training.jobs import Job
from hydra_plugins.gruclip.work import StackWork

#: A job's, where submitit puts the job's number in the place of the sign.
JOB_FOLDER = "%A"

#: Parameters of every executor of submitit's; the others carry the executor's name.
SHARED = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")


@dataclass
class Submitted:
    """A job of submitit's, and the runs that it trains."""

    handle: Any
    stack: list[Job]

    @property
    def name(self) -> str:
        return str(self.handle.job_id)

    def unfinished(self) -> list[Job]:
        return [job for job in self.stack if not job.folder.is_finished()]

    def last_words(self) -> str:
        """The last line that the job wrote to its log of errors, and where that is."""
        path = self.handle.paths.stderr
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        said = f", which ends with: {lines[-1].removeprefix('gruclip: ')}" if lines else ""
        return f"its log is {path}{said}"


@dataclass(frozen=True)
class Submission:
    """How the stacks of a sweep are submitted: by which executor of submitit's, with which parameters, from where."""

    executor: str
    parameters: Mapping[str, Any]
    folder: Path  #: of what submitit writes for its jobs, and of what they print
    defaults: Mapping[str, RunConfig]
    all_at_a_time: bool  #: else as many of a stack's runs as fit where it is trained

    def submit(self, stacks: Sequence[list[Job]], **parameters: Any) -> list[Submitted]:
        """Submit a job for each stack. Raises `UserError` with submitit's or SLURM's words where that is refused."""
        import submitit
        from submitit.core.utils import FailedJobError

        own = {name: value for name, value in {**self.parameters, **parameters}.items() if value is not None}
        retries = {f"{self.executor}_max_num_timeout": own.pop("max_num_timeout")}
        own = {name if name in SHARED else f"{self.executor}_{name}": value for name, value in own.items()}
        runs = [[job.config for job in stack] for stack in stacks]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints there what it raises
                executor = submitit.AutoExecutor(self.folder / JOB_FOLDER, cluster=self.executor, **retries)
                executor.update_parameters(**own)
                handles = executor.map_array(StackWork(self.defaults, self.all_at_a_time), runs)
        except (FailedJobError, OSError, RuntimeError, ValueError) as error:
            _remove_drafts(self.folder)
            said = "; ".join(line.split("error: ")[-1] for line in str(error).splitlines())
            raise UserError(f"hydra/launcher={self.executor}: not submitted: {said}") from error
        return [Submitted(handle, stack) for handle, stack in zip(handles, stacks, strict=True)]


#: Parameters with which no job would do anything at 0 or below.
ABOVE_ZERO = ("timeout_min", "cpus_per_task", "nodes", "tasks_per_node", "mem_gb")


def checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the types that hydra-submitit-launcher gives them."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    types = OmegaConf.structured(SlurmQueueConf)
    for name, value in parameters.items():
        try:
            OmegaConf.update(types, name, value)
        except OmegaConfBaseException as error:
            what = str(error).splitlines()[0]
            raise UserError(f"hydra.launcher.{name}={value}: {what}; see conf/hydra/launcher") from None
        if name in ABOVE_ZERO and value is not None and not types[name] > 0:
            raise UserError(f"hydra.launcher.{name}={value}: should be above 0")
    return {name: OmegaConf.to_container(types)[name] for name in parameters}  # type: ignore[index,call-overload]


def _remove_drafts(folder: Path) -> None:
    """What submitit wrote for jobs that it could not submit."""
    if folder.is_dir():
        for draft in [*folder.glob("*.pkl"), *folder.glob("*.sh")]:
            draft.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def report(ended: Sequence[Submitted], display: Display) -> None:
    for one in ended:
        left = len(one.unfinished())
        display.done += len(one.stack) - left
        what = f"{left} of its {len(one.stack)} runs are unfinished" if left else f"{len(one.stack)} runs finished"
        display.note(f"[{display.done}/{display.total}] job {one.name}: {what}")


def check_finished(submitted: Sequence[Submitted]) -> None:
    left = {one.name: unfinished for one in submitted if (unfinished := one.unfinished())}
    if left:
        first = next(one for one in submitted if one.name in left)
        raise UserError(
            f"{sum(map(len, left.values()))} runs of {len(left)} jobs are unfinished, the first of job {first.name}: "
            f"{first.last_words()}; the same command continues them"
        )
