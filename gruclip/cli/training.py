"""``gruclip train``: from what was typed, through Hydra, to `gruclip.train`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig

from gruclip.cli.allowed import check_command_line, check_overrides, options_last
from gruclip.cli.commands import experiments
from gruclip.config import RunConfig
from gruclip.errors import UserError
from hydra_plugins.gruclip.settings import CONFIG_MODULE, CONFIG_NAME, defaults_of, to_run, train_one

#: Of a process, for all its threads.
ONE_HYDRA = threading.RLock()


def train(argv: Sequence[str]) -> int:
    """Train what the overrides in `argv` describe: one run, or with ``--multirun`` a sweep."""
    argv = options_last(_with_groups(argv))
    check_command_line(argv)

    # Hydra only composes a single run, which is trained below: it prints a page for an error in its task function.
    # The runs of a sweep are trained by `settings.run_job`, which the sweeper puts in this one's place.
    composed: list[tuple[DictConfig, ConfigLoader]] = []

    def compose(settings: DictConfig) -> None:
        composed.append((settings, GlobalHydra.instance().config_loader()))

    register_plugins()
    with _command_line(argv):
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)(compose)()
    for settings, loader in composed:
        for sweep in (argument for argument in argv if argument.startswith("+sweep=")):
            raise UserError(f"{sweep}: a sweep needs -m, as in gruclip train -m {sweep}")
        train_one(settings, loader, [argument for argument in argv if not argument.startswith("-")])
    return 0


def planned_runs(overrides: Sequence[str]) -> list[RunConfig]:
    """The runs that a sweep would train, each once."""
    check_overrides(overrides)
    from hydra_plugins.gruclip.jobs import planned_jobs, settings_of

    with _loader() as loader:
        config = loader.load_configuration(CONFIG_NAME, _with_groups(overrides), run_mode=RunMode.MULTIRUN)
        jobs = planned_jobs(loader, config)
        return list(dict.fromkeys(to_run(settings) for settings in settings_of(jobs, loader, config)))


@contextmanager
def _loader() -> Iterator[ConfigLoader]:
    """Of our configuration. A caller's Hydra, which has one instance a process, is put away for as long."""
    with ONE_HYDRA:
        register_plugins()
        kept, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
        name = JobRuntime.instance().get("name")
        try:
            with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3", job_name="gruclip"):
                yield GlobalHydra.instance().config_loader()
        finally:
            GlobalHydra.instance().hydra = kept
            JobRuntime.instance().set("name", name)


def usual_runs(runs: Iterable[RunConfig]) -> dict[str, RunConfig]:
    """`defaults_of` these runs, of those whose experiment has a file."""
    known = experiments()
    with _loader() as loader:
        return defaults_of([run for run in runs if run.experiment in known], loader)


def register_plugins() -> None:
    """Make the sweeper and the launchers known to Hydra, whose own search misses them in an editable install.

    Raises `UserError` where the configuration is not that of this code, as with another clone's on PYTHONPATH.
    """
    code, configuration = Path(__file__).resolve().parents[1], Path(str(files(CONFIG_MODULE) / "x")).resolve().parent
    if configuration.parent not in (code, code.parent):
        raise UserError(
            f"gruclip is run from {code}, its configuration from {configuration}, which is installed: run "
            f"scripts/setup in {code.parent}, or take that folder out of PYTHONPATH"
        )
    plugins = Plugins.instance()
    from hydra_plugins.gruclip.launcher import StackedLauncher
    from hydra_plugins.gruclip.submitted import LocalLauncher, SlurmLauncher
    from hydra_plugins.gruclip.sweeper import GridSweeper

    for plugin in (GridSweeper, StackedLauncher, LocalLauncher, SlurmLauncher):
        plugins.register(plugin)


def _with_groups(argv: Sequence[str]) -> list[str]:
    """``experiment=ptb`` as ``+experiment=ptb``: no experiment or sweep is chosen by default, so Hydra wants a plus.

    And a sweep last: Hydra lets the group that was typed later win, and a sweep's settings are the narrower ones.
    """
    typed = [f"+{argument}" if argument.startswith(("experiment=", "sweep=")) else argument for argument in argv]
    return sorted(typed, key=lambda argument: argument.startswith("+sweep="))


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
