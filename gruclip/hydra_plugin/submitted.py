"""``hydra/launcher=slurm`` and ``hydra/launcher=local``: jobs of submitit's, each of which trains one stack of runs.

The process that submits has checked every run; it records the sweep, waits for the jobs, and says what has become of
them from the runs' folders.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from gruclip.errors import UserError
from hydra_plugins.gruclip.jobs import settings_of
from hydra_plugins.gruclip.settings import defaults_of, to_run

if TYPE_CHECKING:
    from gruclip.training.display import Display
    from gruclip.training.interrupts import Interrupts
    from gruclip.training.jobs import Job
    from hydra_plugins.gruclip.submission import Submission

#: Below output_dir: what submitit writes for its jobs, and what they print.
FOLDER = ".submitit"


class SubmittedLauncher(Launcher):
    """Hands the runs that are not finished to jobs of submitit's, a stack of one shape to each."""

    EXECUTOR: ClassVar[str]

    def __init__(self, stack_size: int | None = None, gpu_memory_gb: float | None = None, **parameters: Any) -> None:
        from hydra_plugins.gruclip.stacks import check_sizes
        from hydra_plugins.gruclip.submission import checked

        check_sizes(stack_size, gpu_memory_gb)
        self.stack_size, self.gpu_memory_gb = stack_size, gpu_memory_gb
        self.parameters = checked(parameters)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from gruclip.training.display import Display
        from gruclip.training.interrupts import deferred_interrupts
        from gruclip.training.jobs import check_runs
        from gruclip.training.runner import results_of
        from hydra_plugins.gruclip.submission import Submission

        settings = list(settings_of(job_overrides, self.loader, self.config))
        runs = [to_run(one) for one in settings]
        defaults = defaults_of(runs, self.loader)
        jobs = check_runs(runs, defaults)
        pending = list({job.folder.path: job for job in jobs if not job.folder.is_finished()}.values())
        skipped = {job.folder.path for job in jobs} - {job.folder.path for job in pending}
        stacks = self._stacks(pending)
        folder = Path(self.config.hydra.sweep.dir) / FOLDER
        submission = Submission(self.EXECUTOR, self.parameters, folder, defaults, self.stack_size is not None)
        with Display(total=len(pending)) as display, deferred_interrupts() as interrupted:
            if skipped:
                display.note(f"{len(skipped)} of {len(jobs)} runs were finished before, skipped")
            if stacks:
                self._train(stacks, jobs, submission, display, interrupted)
        return [
            JobReturn(overrides=list(overrides), cfg=cfg, status=JobStatus.COMPLETED, _return_value=result.status)
            for overrides, cfg, result in zip(job_overrides, settings, results_of(jobs, skipped), strict=True)
        ]

    @abstractmethod
    def _stacks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The runs of each job to submit."""

    @abstractmethod
    def _train(
        self,
        stacks: Sequence[list[Job]],
        jobs: Sequence[Job],
        submission: Submission,
        display: Display,
        interrupted: Interrupts,
    ) -> None:
        """Submit `stacks`, record all `jobs` as a sweep, and wait; `UserError` where a run is unfinished then."""


class SlurmLauncher(SubmittedLauncher):
    """Jobs of SLURM."""

    EXECUTOR = "slurm"

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        _check_parallelism(self.parameters["array_parallelism"])
        if shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: there is no sbatch here; start this on a machine of a SLURM cluster, or take "
                "hydra/launcher=local or hydra/launcher=stacked"
            )

    def _stacks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        from hydra_plugins.gruclip.stacks import stacks_for_job

        return stacks_for_job(jobs, self.stack_size, self.gpu_memory_gb, self.parameters)

    def _train(self, *arguments: Any) -> None:
        from hydra_plugins.gruclip.on_slurm import train

        train(*arguments)


class LocalLauncher(SubmittedLauncher):
    """Processes of this machine."""

    EXECUTOR = "local"

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.side_by_side = self.parameters.pop("array_parallelism")
        _check_parallelism(self.side_by_side)

    def _stacks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        from hydra_plugins.gruclip.stacks import stacks_here

        return stacks_here(jobs, self.stack_size)

    def _train(self, stacks: Any, jobs: Any, submission: Any, *shown: Any) -> None:
        from hydra_plugins.gruclip.on_this_machine import train

        train(stacks, jobs, submission, self.side_by_side, *shown)


def _check_parallelism(jobs: int) -> None:
    if jobs < 1:
        raise UserError(f"hydra.launcher.array_parallelism={jobs}: should be a whole number of at least 1")
