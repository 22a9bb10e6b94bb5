"""What a run is: plain dataclasses, each setting with its default, its rule and its meaning.

A *run* is one model trained with one configuration and one seed. Everything here is plain data;
no setting names a class or a function. ``RunConfig.check`` raises `ConfigError` for the first
setting whose value cannot be, in one line. ``conf/README.md`` is written from the rules and meanings given here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gruclip import checks
from gruclip.choices import (
    ALGORITHMS,
    BUDGETS,
    CELLS,
    DATASETS,
    DEVICES,
    LOGGERS,
    OPTIMIZERS,
    PRECISIONS,
    RESUMES,
    SCHEDULES,
    foreign_settings,
)
from gruclip.rules import (
    NOT_BELOW_ONE,
    PATH,
    PLAIN_NAME,
    PLAIN_PATH,
    POSITIVE,
    SEED,
    SHARE,
    at_least,
    build,
    check_rules,
    one_of,
    setting,
)

#: Settings that cannot change a number of a run, and so are no part of its identity.
NOT_IDENTITY = ("experiment", "device", "output_dir", "resume", "dataset.root", "logger", "trainer.checkpoint_minutes")

#: Settings that came when runs had been kept already, each with the value that those were trained with: at that value
#: it is no part of an identity, and collected files need not have its column. So older runs stay what they were.
ADDED: dict[str, Any] = {}

SMOKE_STEPS = 20
SHORT_PATIENCE = 3
BUDGET_MEANING = (
    f"length of a run; `short`: `short_epochs` epochs, patience {SHORT_PATIENCE}; `smoke`: {SMOKE_STEPS} iterations"
)


@dataclass(frozen=True)
class DatasetConfig:
    """The corpus, and where its files lie."""

    name: str = setting("pydoc", "the corpus", one_of(DATASETS))
    root: str | None = setting(
        None,
        "folder of the corpora; null: `$GRUCLIP_DATA`, the user's cache, the network; of `text` and `piano_roll` "
        "the corpus itself",
        PATH,
    )
    vocabulary: int = setting(10_000, "most different words of `text`, `<unk>` among them", at_least(3, 10**6))
    unit: str = setting("word", "what `text` is a sequence of", one_of(("word", "character")))
    steps_per_beat: int = setting(2, "time steps of a quarter note in the MIDI files of `piano_roll`", at_least(1, 96))


@dataclass(frozen=True)
class ModelConfig:
    """The recurrent model: `gruclip.model` has its equations."""

    cell: str = setting("gru", "the recurrent cell; `gru` is the paper's, `gru_reset_after` torch's", one_of(CELLS))
    hidden_size: int = setting(200, "units of each recurrent layer, n", at_least(1, 100_000))
    num_layers: int = setting(1, "recurrent layers", at_least(1, 1000))
    dropout: float = setting(0.5, "share of units set to zero, on each layer's input and before the output", SHARE)
    input_scale: float = setting(0.01, "factor on what the input layer hands to the recurrent one", POSITIVE)


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with what is clipped after the gradient is known, or after the step."""

    name: str = setting("spectral_clipping", "the method", one_of(OPTIMIZERS))
    lr: float = setting(1.0, "learning rate at the start of training", POSITIVE)
    threshold: float | None = setting(
        None, "largest global gradient norm, for gradient and combined clipping", POSITIVE
    )
    delta: float | None = setting(None, "sigma_1 <= limit of the cell - delta, for spectral and combined clipping")
    algorithm: str = setting("auto", "algorithm of the projection; `gruclip/spectral` has them", one_of(ALGORITHMS))


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate falls.

    exponential: after the first ``hold_epochs`` epochs divided by ``factor`` each epoch (Table 1).
    plateau: divided by ``factor`` after ``patience`` epochs in a row whose validation loss is not below
    the best so far; training stops below ``min_lr`` (Table 2).
    constant: it does not.
    """

    name: str = setting("constant", "how the learning rate falls", one_of(SCHEDULES))
    factor: float = setting(1.1, "what the rate is divided by, `exponential` and `plateau`", NOT_BELOW_ONE)
    hold_epochs: int = setting(10, "epochs before the rate first falls, `exponential`", at_least(0))
    patience: int = setting(10, "epochs in a row without a better validation loss, `plateau`", at_least(1))
    min_lr: float = setting(1e-4, "training stops below this rate, `plateau`", POSITIVE)


@dataclass(frozen=True)
class TrainerConfig:
    """How long a run is, and how its data are cut into windows."""

    budget: str = setting("full", BUDGET_MEANING, one_of(BUDGETS))
    max_epochs: int | None = setting(5, "epochs; null: until the `plateau` schedule stops", at_least(1))
    short_epochs: int = setting(10, "takes the place of `max_epochs` under `trainer.budget=short`", at_least(1))
    max_steps: int | None = setting(None, "iterations; the run then ends with a validation", at_least(1))
    bptt: int = setting(35, "time steps of a window, T", at_least(1, 10**6))
    batch_size: int = setting(20, "lanes, B", at_least(1, 10**6))
    radius_every: int = setting(50, "iterations between two spectral radii of each layer's Jacobian", at_least(1))
    checkpoint_minutes: float = setting(
        10.0, "minutes between checkpoints; on a CPU also at each epoch's end", POSITIVE
    )


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a run; ``conf/README.md`` lists them.

    `check` and `from_dict` raise `ConfigError` for a value that cannot be. The names are those of the command line:
    ``RunConfig(optimizer=OptimizerConfig(delta=0.5))`` is ``gruclip train optimizer.delta=0.5``.

    >>> config = RunConfig.from_dict({"optimizer": {"delta": 0.5}, "trainer": {"budget": "short"}})
    >>> config.spectral_limit, config.max_epochs
    (1.5, 10)
    >>> RunConfig.from_dict({"optimizer": {"delta": 2.5}})
    Traceback (most recent call last):
    gruclip.errors.ConfigError: optimizer.delta=2.5: should be inside (0, 2), the stability limit of gru, by 2e-06 of it
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(delta=0.2))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = setting(0, "of the initial weights, the dropout masks and the order of tunes", SEED)
    device: str = setting("auto", "where the run is trained; `auto`: on a GPU where there is one", one_of(DEVICES))
    precision: str = setting("fp32", "numbers of the products; `tf32` on CUDA alone", one_of(PRECISIONS))
    experiment: str = setting(
        "demo", "a folder in `output_dir`; on the command line the option of the group", PLAIN_NAME
    )
    output_dir: str = setting("outputs", "folder of all results", PLAIN_PATH)
    resume: str = setting(
        "strict",
        "whether a run begun with other versions of torch and the like is refused or continued",
        one_of(RESUMES),
    )
    logger: tuple[str, ...] = setting(("csv",), "what metrics are written to", one_of(LOGGERS))

    # -- what follows from the settings ---------------------------------------------------------------

    @property
    def max_epochs(self) -> int | None:
        """Epochs as the budget leaves them; None: until the schedule or `max_steps` stops."""
        return self.trainer.short_epochs if self.trainer.budget == "short" else self.trainer.max_epochs

    @property
    def max_steps(self) -> int | None:
        """Iterations as the budget leaves them; None: as many as the epochs have."""
        if self.trainer.max_steps is not None:
            return self.trainer.max_steps
        return SMOKE_STEPS if self.trainer.budget == "smoke" else None

    def total_steps(self, epoch_steps: int) -> int | None:
        """Iterations to the run's end, with `epoch_steps` in an epoch; None where the schedule decides."""
        in_epochs = None if self.max_epochs is None else self.max_epochs * epoch_steps
        return min((steps for steps in (self.max_steps, in_epochs) if steps is not None), default=None)

    @property
    def patience(self) -> int:
        """Epochs of patience as the budget leaves them."""
        return SHORT_PATIENCE if self.trainer.budget == "short" else self.schedule.patience

    @property
    def spectral_limit(self) -> float | None:
        """The largest singular value that the projection leaves in ``W_hh``; None where there is none."""
        if self.optimizer.delta is None:
            return None
        return CELLS[self.model.cell].bias_free_limit - self.optimizer.delta

    # -- checks ---------------------------------------------------------------------------------------

    def check(self) -> RunConfig:
        """The same run with every value of its setting's type, so that lr=1 and lr=1.0 are one run.

        Raises `ConfigError` for the first setting that cannot be.
        """
        return self.from_dict(self.to_dict())

    def _check(self) -> RunConfig:
        check_rules(self)
        checks.check_together(self)
        return self

    # -- identity -------------------------------------------------------------------------------------

    def flat(self) -> dict[str, Any]:
        """All settings by their dotted names, e.g. ``{"optimizer.lr": 1.0, ...}``."""
        return dict(_flatten("", vars(self)))

    def identity_settings(self) -> dict[str, Any]:
        """The settings that can change a number of the run; of those `ADDED` the ones that make it another."""
        left_out = foreign_settings(self.dataset.name).union(NOT_IDENTITY)
        return {
            name: value
            for name, value in self.flat().items()
            if name not in left_out and not (name in ADDED and value == ADDED[name])
        }

    def identity(self, data_checksum: str) -> str:
        """Hash (hex, 64 digits) of everything that can change a number of the run, its data included."""
        content = {**self.identity_settings(), "data": data_checksum}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All settings as nested plain data, lists for tuples: what `from_dict` takes."""
        listed = isinstance(self.logger, tuple)
        return {**dataclasses.asdict(self), "logger": list(self.logger) if listed else self.logger}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`, with every value's type checked; unknown names are refused."""
        run: RunConfig = build(cls, settings)
        return run._check()


def _flatten(prefix: str, settings: Mapping[str, Any]) -> typing.Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if dataclasses.is_dataclass(value):
            yield from _flatten(f"{prefix}{name}.", vars(value))
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


#: All settings that can be part of an identity, by their dotted names.
IDENTITY_SETTINGS = tuple(name for name in RunConfig().flat() if name not in NOT_IDENTITY)
