"""``hydra/sweeper=grids``: the union of a sweep file's grids; every run is checked before the first starts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from gruclip.config import RunConfig
from gruclip.errors import ConfigError, UserError
from gruclip.runs.files import told_by_name
from gruclip.runs.ownership import LockedError
from gruclip.runs.sweeps import record_sweeps
from hydra_plugins.gruclip.jobs import planned_jobs, settings_of
from hydra_plugins.gruclip.launcher import StackedLauncher
from hydra_plugins.gruclip.settings import check_typed, defaults_of, run_job, to_run
from hydra_plugins.gruclip.submitted import SubmittedLauncher


class GridSweeper(Sweeper):
    """Launches the jobs of ``hydra.sweeper.grids``: mappings from keys to values, or lists of values."""

    def __init__(self, grids: list[dict[str, Any]]) -> None:
        # `planned_jobs` reads the grids from the configuration, which may hold others for each experiment.
        super().__init__()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.composed = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        from gruclip.training.interrupts import held_back

        with held_back():
            from gruclip.training.runner import check_fits, check_runs, train_jobs

        loader = self.context.config_loader
        jobs = planned_jobs(loader, self.composed)
        # Choices that a run does not depend on, as of a value of `protocol`, give it several times.
        first: dict[RunConfig, tuple[str, ...]] = {}
        for settings, job in zip(settings_of(jobs, loader, self.composed), jobs, strict=True):
            first.setdefault(to_run(settings), job)
        runs = list(first)
        check_typed(runs, self.composed.hydra.overrides.task)
        # Hydra's own task function only composes a single run; see `gruclip.cli.training.train`.
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=run_job, config=self.composed
        )
        if self.composed.hydra.launcher.get("n_jobs") == 0:  # joblib's own error comes after the first file
            raise ConfigError("hydra.launcher.n_jobs=0: should be a number of processes, or -1 for one a core")
        planned = check_runs(runs, defaults_of(runs, loader))
        if isinstance(launcher, StackedLauncher):
            check_fits(planned, stack=True, stack_size=launcher.stack_size)
        elif not isinstance(launcher, SubmittedLauncher):  # whose jobs may run on other machines
            check_fits(planned)
        folders = [Path(folder) for folder in dict.fromkeys(run.output_dir for run in runs)]
        new = [folder for folder in folders if not folder.exists()]
        for folder in folders:
            with told_by_name(folder):  # Hydra's launchers make it too, without a word for what forbids it
                folder.mkdir(parents=True, exist_ok=True)
        begins = any(not job.folder.is_finished() for job in planned)
        if begins and not isinstance(launcher, SubmittedLauncher):  # which records what it has submitted
            record_sweeps([job.folder.path for job in planned], [Path(run.output_dir) for run in runs])
        if type(launcher) is BasicLauncher:  # which would announce and show each run as the only one
            return train_jobs(planned, part_of_sweep=True)
        try:
            returns = launcher.launch(list(first.values()), initial_job_idx=0)
        except UserError:
            for folder in new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise
        # JobReturn.return_value would print a line of its own before it raises the same.
        failed = {index: job._return_value for index, job in enumerate(returns) if job.status is JobStatus.FAILED}
        # Those that other processes were training are waited for.
        locked = [index for index, error in failed.items() if isinstance(error, LockedError)]
        if locked:
            results = train_jobs([planned[index] for index in locked], part_of_sweep=True)
            for index, result in zip(locked, results, strict=True):
                returns[index].status, returns[index]._return_value = JobStatus.COMPLETED, result.status
                del failed[index]
        for error in failed.values():
            raise error
        return returns
