"""What a run is: plain dataclasses, each setting with its range.

A *run* is one model trained with one configuration and one seed. Everything here is plain data;
no setting names a class or a function. ``RunConfig.check`` raises `ConfigError` for the first
setting whose value cannot be, in one line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gruclip.errors import ConfigError

DATASETS = ("pydoc", "ptb", "nottingham", "jsb_chorales", "musedata", "piano_midi")
WORD_DATASETS = ("pydoc", "ptb")
CELLS = ("gru", "gru_reset_after", "lstm", "tanh_rnn")
OPTIMIZERS = ("gradient_clipping", "spectral_clipping", "combined_clipping", "sgd")
SCHEDULES = ("exponential", "plateau", "constant")
BUDGETS = ("full", "short", "smoke")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "bf16", "fp64")
LOGGERS = ("csv", "tensorboard", "mlflow", "wandb")

#: Settings that cannot change a number of a run, and so are no part of its identity.
NOT_IDENTITY = ("experiment", "device", "output_dir", "dataset.root", "logger", "trainer.checkpoint_minutes")

SMOKE_STEPS = 20
SHORT_PATIENCE = 3
_hints = functools.cache(typing.get_type_hints)  # asked for every run that is read


@dataclass(frozen=True)
class DatasetConfig:
    name: str = "pydoc"
    root: str | None = None  #: folder laid out like shared/data; None: $GRUCLIP_DATA, the cache, the network


@dataclass(frozen=True)
class ModelConfig:
    cell: str = "gru"
    hidden_size: int = 200
    num_layers: int = 1
    dropout: float = 0.5
    input_scale: float = 0.01


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = "spectral_clipping"
    lr: float = 1.0
    threshold: float | None = None  #: global gradient norm, for gradient and combined clipping
    delta: float | None = None  #: sigma_1 <= limit of the cell - delta, for spectral and combined clipping
    algorithm: str = "auto"  #: of the projection


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate falls.

    exponential: after the first ``hold_epochs`` epochs divided by ``factor`` each epoch (Table 1).
    plateau: divided by ``factor`` after ``patience`` epochs in a row whose validation loss is not below
    the best so far; training stops below ``min_lr`` (Table 2).
    constant: it does not.
    """

    name: str = "constant"
    factor: float = 1.1
    hold_epochs: int = 10
    patience: int = 10
    min_lr: float = 1e-4


@dataclass(frozen=True)
class TrainerConfig:
    budget: str = "full"
    max_epochs: int | None = 5  #: None: until the schedule stops
    short_epochs: int = 10  #: what ``budget=short`` puts in the place of ``max_epochs``
    max_steps: int | None = None  #: iterations; the run then ends with a validation
    bptt: int = 35
    batch_size: int = 20
    radius_every: int = 50  #: iterations between two eigenvalue decompositions of each layer's Jacobian
    checkpoint_minutes: float = 10.0  #: beside the checkpoint at each epoch's end


@dataclass(frozen=True)
class RunConfig:
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(delta=0.2))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    experiment: str = "demo"
    output_dir: str = "outputs"
    logger: tuple[str, ...] = ("csv",)

    # -- what follows from the settings ---------------------------------------------------------------

    @property
    def max_epochs(self) -> int | None:
        return self.trainer.short_epochs if self.trainer.budget == "short" else self.trainer.max_epochs

    @property
    def max_steps(self) -> int | None:
        if self.trainer.max_steps is not None:
            return self.trainer.max_steps
        return SMOKE_STEPS if self.trainer.budget == "smoke" else None

    @property
    def patience(self) -> int:
        return SHORT_PATIENCE if self.trainer.budget == "short" else self.schedule.patience

    @property
    def spectral_limit(self) -> float | None:
        """The largest singular value that the projection leaves in ``W_hh``; None where there is none."""
        if self.optimizer.delta is None:
            return None
        return _stability_limit(self.model.cell) - self.optimizer.delta

    # -- checks ---------------------------------------------------------------------------------------

    def check(self) -> RunConfig:
        """Return self, or raise `ConfigError` for the first setting that cannot be."""
        _one_of("dataset.name", self.dataset.name, DATASETS)
        model, optimizer, schedule, trainer = self.model, self.optimizer, self.schedule, self.trainer
        _one_of("model.cell", model.cell, CELLS)
        _at_least("model.hidden_size", model.hidden_size, 1)
        _at_least("model.num_layers", model.num_layers, 1)
        _require("model.dropout", model.dropout, 0 <= model.dropout < 1, "a number from 0 up to, not including, 1")
        _positive("model.input_scale", model.input_scale)
        _one_of("optimizer.name", optimizer.name, OPTIMIZERS)
        _positive("optimizer.lr", optimizer.lr)
        _one_of("optimizer.algorithm", optimizer.algorithm, _algorithms())
        self._check_threshold()
        self._check_delta()
        _one_of("schedule.name", schedule.name, SCHEDULES)
        _require("schedule.factor", schedule.factor, 1 <= schedule.factor < math.inf, "a number of at least 1")
        _at_least("schedule.hold_epochs", schedule.hold_epochs, 0)
        _at_least("schedule.patience", schedule.patience, 1)
        _positive("schedule.min_lr", schedule.min_lr)
        _one_of("trainer.budget", trainer.budget, BUDGETS)
        if trainer.max_epochs is not None:
            _at_least("trainer.max_epochs", trainer.max_epochs, 1)
        elif schedule.name != "plateau" and self.max_steps is None and self.max_epochs is None:
            raise ConfigError(
                f"trainer.max_epochs=null: the {schedule.name} schedule never stops; give a number of epochs"
            )
        _at_least("trainer.short_epochs", trainer.short_epochs, 1)
        if trainer.max_steps is not None:
            _at_least("trainer.max_steps", trainer.max_steps, 1)
        _at_least("trainer.bptt", trainer.bptt, 1)
        _at_least("trainer.batch_size", trainer.batch_size, 1)
        _at_least("trainer.radius_every", trainer.radius_every, 1)
        _positive("trainer.checkpoint_minutes", trainer.checkpoint_minutes)
        _require("seed", self.seed, 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1")
        _one_of("device", self.device, DEVICES)
        _one_of("precision", self.precision, PRECISIONS)
        if not self.output_dir:
            raise ConfigError("output_dir='': give a folder")
        for name in self.logger:
            _one_of("logger", name, LOGGERS)
        return self

    def _check_threshold(self) -> None:
        name, threshold = self.optimizer.name, self.optimizer.threshold
        if name in ("gradient_clipping", "combined_clipping"):
            if threshold is None:
                raise ConfigError(f"optimizer.threshold=null: {name} needs a threshold, a positive number")
            _positive("optimizer.threshold", threshold)
        elif threshold is not None:
            raise ConfigError(
                f"optimizer.threshold={threshold:g}: {name} has no threshold; "
                "drop it, or take optimizer=gradient_clipping or combined_clipping"
            )

    def _check_delta(self) -> None:
        name, delta, limit = self.optimizer.name, self.optimizer.delta, _stability_limit(self.model.cell)
        if name in ("spectral_clipping", "combined_clipping"):
            if delta is None:
                raise ConfigError(f"optimizer.delta=null: {name} needs a delta inside (0, {limit:g})")
            _require(
                "optimizer.delta",
                delta,
                0 < delta < limit,
                f"a number inside (0, {limit:g}), the stability limit of {self.model.cell}",
            )
        elif delta is not None:
            raise ConfigError(
                f"optimizer.delta={delta:g}: {name} has no delta; "
                "drop it, or take optimizer=spectral_clipping or combined_clipping"
            )

    # -- identity -------------------------------------------------------------------------------------

    def flat(self) -> dict[str, Any]:
        """All settings by their dotted names, e.g. ``{"optimizer.lr": 1.0, ...}``."""
        return dict(_flatten("", vars(self)))

    def identity_settings(self) -> dict[str, Any]:
        """The settings that can change a number of the run."""
        return {name: value for name, value in self.flat().items() if name not in NOT_IDENTITY}

    def identity(self, data_checksum: str) -> str:
        """Hash (hex, 64 digits) of everything that can change a number of the run, its data included."""
        content = {**self.identity_settings(), "data": data_checksum}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The inverse of ``dataclasses.asdict``, with every value's type checked; unknown names are refused."""
        return _build(cls, settings, "").check()


# Of the library below, which loads torch: imported when a configuration is checked, and not to print a page of help.


def _stability_limit(cell: str) -> float:
    from gruclip.dynamics import BIAS_FREE_LIMIT

    return BIAS_FREE_LIMIT[cell]


def _algorithms() -> tuple[str, ...]:
    from gruclip.spectral import ALGORITHMS

    return ALGORITHMS


def _flatten(prefix: str, settings: Mapping[str, Any]) -> typing.Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if dataclasses.is_dataclass(value):
            yield from _flatten(f"{prefix}{name}.", vars(value))
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _build(cls: Any, settings: Mapping[str, Any], prefix: str) -> Any:
    hints = _hints(cls)
    unknown = [name for name in settings if name not in hints]
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]}: no such setting; there are {', '.join(hints)}")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{name}={value!r}: should be a group of settings")
            values[name] = _build(hints[name], value, f"{prefix}{name}.")
        else:
            values[name] = _convert(f"{prefix}{name}", value, hints[name])
    return cls(**values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` asks for, so that lr=1 and lr=1.0 are one run and "ten" is refused."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return tuple(str(item) for item in ([value] if isinstance(value, str) else value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint is str and isinstance(value, str):
        return value
    kind = {float: "a number", int: "a whole number", str: "a word"}[hint]
    raise ConfigError(f"{name}={value}: should be {kind}")


def _require(name: str, value: Any, holds: bool, right: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value}: should be {right}")


def _one_of(name: str, value: str, names: tuple[str, ...]) -> None:
    _require(name, value, value in names, f"one of {', '.join(names)}")


def _at_least(name: str, value: int, least: int) -> None:
    _require(name, value, value >= least, f"a whole number of at least {least}")


def _positive(name: str, value: float) -> None:
    _require(name, value, math.isfinite(value) and value > 0, "a positive, finite number")
