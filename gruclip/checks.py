"""Which settings of a run can stand together; each alone is checked by its rule."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from gruclip.choices import CELLS, METHODS, MIN_DELTA, OWN_DATASETS, is_delta
from gruclip.errors import ConfigError

if TYPE_CHECKING:
    from gruclip.config import RunConfig

#: Which schedules each of their settings is for.
SCHEDULE_SETTINGS = {
    "factor": ("exponential", "plateau"),
    "hold_epochs": ("exponential",),
    "patience": ("plateau",),
    "min_lr": ("plateau",),
}


def check_together(run: RunConfig) -> None:
    """Raise `ConfigError` for the first setting that the others do not allow."""
    _check_dataset(run)
    _check_threshold(run)
    _check_delta(run)
    _check_end(run)
    if run.precision == "bf16" and run.model.cell != "gru":
        raise ConfigError(f"precision=bf16: is for model.cell=gru, this is {run.model.cell}; leave it out")


def check_idle(runs: Sequence[RunConfig], typed: Collection[str]) -> None:
    """Raise `ConfigError` for a setting that was `typed` and does nothing in any of the runs: it would make others of
    the same numbers.
    """
    reasons = [_idle(run) for run in runs]
    for name in typed:
        if reasons and all(name in one for one in reasons):
            value = runs[0].flat()[name]
            raise ConfigError(f"{name}={value}: does nothing here ({reasons[0][name]}); leave it out")


def _idle(run: RunConfig) -> dict[str, str]:
    """The settings on which nothing of a run depends, and why."""
    idle = {
        f"schedule.{name}": f"schedule={run.schedule.name} has none"
        for name, schedules in SCHEDULE_SETTINGS.items()
        if run.schedule.name not in schedules
    }
    if run.trainer.budget == "short":
        idle["trainer.max_epochs"] = "trainer.budget=short takes trainer.short_epochs in its place"
        idle["schedule.patience"] = f"trainer.budget=short takes {run.patience} in its place"
    else:
        idle["trainer.short_epochs"] = "is for trainer.budget=short"
    if run.trainer.budget == "smoke" and run.trainer.max_steps is not None:
        idle["trainer.budget"] = f"trainer.max_steps={run.trainer.max_steps} takes its place"
    if not METHODS[run.optimizer.name].delta:
        idle["optimizer.algorithm"] = f"{run.optimizer.name} projects nothing"
    if run.dataset.name == "pydoc":
        idle["dataset.root"] = "pydoc comes with Python; a corpus of your own is dataset=text or dataset=piano_roll"
    return idle


def _check_dataset(run: RunConfig) -> None:
    name, settings, usual = run.dataset.name, run.flat(), _defaults(type(run))  # type: ignore[arg-type]
    if name in OWN_DATASETS and run.dataset.root is None:
        raise ConfigError(f"dataset.root=null: dataset={name} is a corpus of your own; say where it lies")
    for owner, names in OWN_DATASETS.items():
        for one in names:
            if owner != name and settings[one] != usual[one]:
                raise ConfigError(f"{one}={settings[one]}: is for dataset={owner}, this is {name}; leave it out")


@functools.cache  # thousands of runs are read at once
def _defaults(kind: type[RunConfig]) -> dict[str, Any]:
    return kind().flat()


def _check_threshold(run: RunConfig) -> None:
    name, threshold = run.optimizer.name, run.optimizer.threshold
    if METHODS[name].threshold and threshold is None:
        raise ConfigError(f"optimizer.threshold=null: {name} needs a threshold, a positive number")
    if not METHODS[name].threshold and threshold is not None:
        others = " or ".join(other for other, method in METHODS.items() if method.threshold)
        raise ConfigError(
            f"optimizer.threshold={threshold:g}: {name} has no threshold; drop it, or take optimizer={others}"
        )


def _check_delta(run: RunConfig) -> None:
    name, delta, limit = run.optimizer.name, run.optimizer.delta, CELLS[run.model.cell].bias_free_limit
    if METHODS[name].delta:
        if delta is None:
            raise ConfigError(f"optimizer.delta=null: {name} needs a delta inside (0, {limit:g})")
        if not is_delta(delta, limit):
            whose = f"the stability limit of {run.model.cell}"
            raise ConfigError(
                f"optimizer.delta={delta}: should be inside (0, {limit:g}), {whose}, by {MIN_DELTA:g} of it"
            )
    elif delta is not None:
        others = " or ".join(other for other, method in METHODS.items() if method.delta)
        raise ConfigError(f"optimizer.delta={delta:g}: {name} has no delta; drop it, or take optimizer={others}")


def _check_end(run: RunConfig) -> None:
    if run.max_steps is not None or run.max_epochs is not None:
        return
    if run.schedule.name != "plateau":
        raise ConfigError(
            f"trainer.max_epochs=null: the {run.schedule.name} schedule never stops; give a number of epochs"
        )
    if run.schedule.factor == 1:
        raise ConfigError(
            "schedule.factor=1: the rate never falls, and without trainer.max_epochs no run ends; give either"
        )
