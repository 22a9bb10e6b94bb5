"""``hydra/launcher=stacked``: all runs of a multirun in one process, those of one shape side by side."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gruclip.jobs import settings_of
from hydra_plugins.gruclip.settings import defaults_of, to_run


class StackedLauncher(Launcher):
    """Hands all runs to `gruclip.train` as one list; `stack_size` of them side by side, None for as many as fit."""

    def __init__(self, stack_size: int | None = None) -> None:
        self.stack_size = stack_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from gruclip.training.runner import train

        settings = list(settings_of(job_overrides, self.loader, self.config))
        runs = [to_run(one) for one in settings]
        results = train(runs, defaults=defaults_of(runs, self.loader), stack=True, stack_size=self.stack_size)
        return [
            JobReturn(overrides=list(overrides), cfg=cfg, status=JobStatus.COMPLETED, _return_value=result.status)
            for overrides, cfg, result in zip(job_overrides, settings, results, strict=True)
        ]
