"""``gruclip train``: from what was typed, through Hydra, to `gruclip.train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gruclip.config import RunConfig
from gruclip.errors import UserError

CONFIG_MODULE = "gruclip.conf"
CONFIG_NAME = "config"
SWEEPER = "hydra/sweeper=grids"

#: Top-level entries of a composed configuration that are no settings of a run.
NOT_SETTINGS = ("hydra", "protocol")


def train(argv: Sequence[str]) -> int:
    """Train what the overrides in `argv` describe: one run, or with ``--multirun`` a sweep."""
    argv = _with_plus(argv)
    _refuse_what_hydra_would_take(argv)

    # Hydra only composes a single run, which is trained below: it prints a page for an error in its task function.
    # The runs of a sweep are trained by `run_job`, which the sweeper puts in this one's place.
    composed: list[tuple[DictConfig, ConfigLoader]] = []

    def compose(settings: DictConfig) -> None:
        composed.append((settings, GlobalHydra.instance().config_loader()))

    register_plugins()
    with _command_line(argv):
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)(compose)()
    for settings, loader in composed:
        for sweep in (argument for argument in argv if argument.startswith("+sweep=")):
            raise UserError(f"{sweep}: a sweep needs -m, as in gruclip train -m {sweep}")
        _train_one(settings, loader)
    return 0


def run_job(settings: DictConfig) -> str:
    """Train one run of a sweep and return its status: Hydra's task function, importable wherever a launcher runs it."""
    return _train_one(settings, GlobalHydra.instance().config_loader())


def _train_one(settings: DictConfig, loader: ConfigLoader) -> str:
    from gruclip.train import train as train_runs

    run = to_run(settings)
    (result,) = train_runs([run], defaults=defaults_of([run], loader))
    return result.status


def planned_runs(overrides: Sequence[str]) -> list[RunConfig]:
    """The runs that a sweep would train."""
    register_plugins()
    from hydra_plugins.gruclip.jobs import planned_jobs, settings_of

    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3", job_name="gruclip"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(CONFIG_NAME, _with_plus(overrides), run_mode=RunMode.MULTIRUN)
        jobs = planned_jobs(loader, config)
        return [to_run(settings) for settings in settings_of(jobs, loader, config)]


def to_run(settings: DictConfig) -> RunConfig:
    """The run that a composed configuration describes, checked."""
    values: dict[str, Any] = {
        str(name): OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in settings.items()
        if name not in NOT_SETTINGS
    }
    logger = values.get("logger")
    if isinstance(logger, dict):  # the files of the group say ``csv: true``, so that several can be chosen
        values["logger"] = tuple(name for name, chosen in logger.items() if chosen)
    return RunConfig.from_dict(values)


def defaults_of(runs: Sequence[RunConfig], loader: ConfigLoader) -> dict[str, RunConfig]:
    """For each experiment among `runs` what its file alone gives; folders are named by what differs from it."""
    return {
        name: to_run(loader.load_configuration(CONFIG_NAME, [f"+experiment={name}"], run_mode=RunMode.RUN))
        for name in dict.fromkeys(run.experiment for run in runs)
    }


def register_plugins() -> None:
    """Make the sweeper and the launcher known to Hydra, whose own search misses them in an editable install."""
    plugins = Plugins.instance()
    from hydra_plugins.gruclip.launcher import StackedLauncher
    from hydra_plugins.gruclip.sweeper import GridSweeper

    plugins.register(GridSweeper)
    plugins.register(StackedLauncher)


def _with_plus(argv: Sequence[str]) -> list[str]:
    """``experiment=ptb`` as ``+experiment=ptb``: no experiment or sweep is chosen by default, so Hydra wants a plus."""
    return [f"+{argument}" if argument.startswith(("experiment=", "sweep=")) else argument for argument in argv]


def _refuse_what_hydra_would_take(argv: Sequence[str]) -> None:
    options, unknown = get_args_parser().parse_known_args(argv)
    if unknown:
        raise UserError(f"{unknown[0]}: no such option; see gruclip train --help")
    for override in options.overrides:
        if override.startswith("hydra/sweeper=") and override != SWEEPER:
            raise UserError(f"{override}: gruclip's runs are launched by {SWEEPER} alone")


@contextmanager
def _command_line(argv: Sequence[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``, and lets its exceptions through where HYDRA_FULL_ERROR is set."""
    arguments, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["gruclip train", *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = arguments
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
