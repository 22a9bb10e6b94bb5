"""A job: a checked configuration with its folder, its data, its device and threads, ready to be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gruclip.config import RunConfig
from gruclip.data import check_window, load
from gruclip.errors import UserError
from gruclip.model.device import choose_device, choose_threads
from gruclip.runs.folder import RunFolder
from gruclip.runs.loggers import check_loggers


def check_runs(runs: Sequence[RunConfig], defaults: Mapping[str, RunConfig] | None = None) -> list[Job]:
    """The jobs of `train`, in order; raises `UserError` where one could not start, and writes nothing."""
    jobs = [Job(config.check(), (defaults or {}).get(config.experiment, RunConfig())) for config in runs]
    first: dict[Path, Job] = {}
    for job in jobs:
        other = first.setdefault(job.folder.path, job)
        if other.folder.identity != job.folder.identity:
            raise UserError(
                f"{job.folder.path}: would be the folder of two runs, of dataset.root={other.config.dataset.root} and "
                f"of {job.config.dataset.root}; give one of them another output_dir or experiment"
            )
    return jobs


class Job:
    """A checked run: its folder, its data, its device and threads."""

    def __init__(self, config: RunConfig, default: RunConfig) -> None:
        self.config, self.default = config, default
        self.device = choose_device(config)
        self.threads = choose_threads(config, self.device)
        check_loggers(config.logger)
        self.corpus = load(**vars(config.dataset))
        check_window(self.corpus, config.trainer.batch_size, config.trainer.bptt)
        self.folder = RunFolder(config, default, self.corpus.checksum)
        self.folder.check()

    def shape(self) -> tuple[Any, ...]:
        """What runs must have in common to share an engine."""
        c = self.config
        trainer = (c.trainer.bptt, c.trainer.batch_size, c.trainer.radius_every)
        return c.dataset, c.model, trainer, c.precision, c.optimizer.algorithm, str(self.device)
