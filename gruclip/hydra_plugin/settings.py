"""From a configuration that Hydra composed to a run, and to its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gruclip.checks import check_idle
from gruclip.config import RunConfig
from gruclip.errors import ConfigError
from gruclip.rules import PLAIN_NAME

CONFIG_MODULE = "gruclip.conf"
CONFIG_NAME = "config"

#: Top-level entries of a composed configuration that are no settings of a run.
NOT_SETTINGS = ("hydra", "protocol")


def run_job(settings: DictConfig) -> str:
    """Train one run of a sweep and return its status: Hydra's task function, importable wherever a launcher runs it."""
    return train_one(settings, GlobalHydra.instance().config_loader())


def check_typed(runs: Sequence[RunConfig], overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for a setting that was typed and does nothing in any of the runs, and for an experiment whose
    file gives its runs another's name, and so another's folder.
    """
    typed = [(name.lstrip("+"), value) for name, _, value in (text.partition("=") for text in overrides)]
    check_idle(runs, [name for name, _ in typed])
    trained = {run.experiment for run in runs}
    for name, value in typed:
        for one in value.split(",") if name == "experiment" else ():
            if PLAIN_NAME.holds(one) and one not in trained:
                raise ConfigError(f"experiment={one}: its file should hold the line experiment: {one}")


def train_one(settings: DictConfig, loader: ConfigLoader, overrides: Sequence[str] = ()) -> str:
    """Train the run that a composed configuration describes; its status. `overrides`: what was typed for this run."""
    from gruclip.training.interrupts import held_back

    with held_back():
        from gruclip.training.runner import train as train_runs

    run = to_run(settings)
    check_typed([run], overrides)
    (result,) = train_runs([run], defaults=defaults_of([run], loader))
    return result.status


def to_run(settings: DictConfig) -> RunConfig:
    """The run that a composed configuration describes, checked."""
    values: dict[str, Any] = {
        str(name): OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in settings.items()
        if name not in NOT_SETTINGS
    }
    for group in ("experiment", "sweep"):
        if not isinstance(values.get(group, ""), str):
            raise ConfigError(f"{group}: the file of this {group} should begin with the line # @package _global_")
    logger = values.get("logger")
    if isinstance(logger, dict) and not logger.get("csv", True):
        raise ConfigError("logger.csv=false: metrics are always written as CSV; leave it out")
    if isinstance(logger, dict):  # the files of the group say ``csv: true``, so that several can be chosen
        values["logger"] = tuple(name for name, chosen in logger.items() if chosen)
    return RunConfig.from_dict(values)


def defaults_of(runs: Sequence[RunConfig], loader: ConfigLoader) -> dict[str, RunConfig]:
    """For each experiment among `runs` what its file alone gives; folders are named by what differs from it."""
    return {
        name: to_run(loader.load_configuration(CONFIG_NAME, [f"+experiment={name}"], run_mode=RunMode.RUN))
        for name in dict.fromkeys(run.experiment for run in runs)
    }
