"""How far a run has come and what it has seen: everything the runner keeps about it beside its tensors."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from gruclip.config import RunConfig
from gruclip.training.clock import PARTS
from gruclip.training.explosions import ExplosionDetector
from gruclip.training.schedule import Schedule

EPOCH_COLUMNS = ("epoch", "lr", "train_loss", "valid_loss", "grad_norm_mean", "grad_norm_max", "values_clipped")
TIMING_COLUMNS = ("epoch", "iterations", *PARTS, "stack_size")


def step_columns(num_layers: int) -> tuple[str, ...]:
    layers = range(num_layers)
    norms, radii = [f"spectral_norm_l{k}" for k in layers], [f"spectral_radius_l{k}" for k in layers]
    return ("step", "loss", "grad_norm", *norms, *radii, "values_clipped")


def larger(one: float, other: float) -> float:
    """NaN where either is, which Python's max does not say."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


@dataclass
class EpochTotals:
    """Sums over the iterations of the epoch under way."""

    iterations: int = 0
    loss: float = 0.0  #: summed over time steps, so that a short last window counts as what it is
    time_steps: int = 0
    grad_norm: float = 0.0
    grad_norm_max: float = 0.0
    values_clipped: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    stack_size: int = 1

    def add(self, loss: float, time_steps: int, grad_norm: float, values_clipped: int) -> None:
        self.iterations += 1
        self.loss += loss * time_steps
        self.time_steps += time_steps
        self.grad_norm += grad_norm
        self.grad_norm_max = larger(self.grad_norm_max, grad_norm)
        self.values_clipped += values_clipped

    def add_seconds(self, seconds: dict[str, float], stack_size: int) -> None:
        for part, value in seconds.items():
            self.seconds[part] += value
        self.stack_size = max(self.stack_size, stack_size)


@dataclass
class Progress:
    """One run's, saved with every checkpoint as JSON."""

    epoch: int = 0  #: the epoch under way, from 1; 0 before training
    iteration: int = 0  #: iterations done in it
    step: int = 0  #: iterations done in all
    epochs_done: int = 0
    schedule: Schedule = field(default_factory=lambda: Schedule(lr=math.nan))
    explosions: ExplosionDetector = field(default_factory=ExplosionDetector)
    totals: EpochTotals = field(default_factory=EpochTotals)
    initial_valid_loss: float | None = None
    best_valid_loss: float | None = None
    best_epoch: int | None = None
    rose_above_start: bool = False
    diverged: bool = False
    projections_redone: int = 0  #: in full, since the algorithm had no certificate
    test_loss: float | None = None
    offsets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig) -> Progress:
        return cls(schedule=Schedule(lr=config.optimizer.lr))

    def validated(self, loss: float) -> bool:
        """Take the validation loss of an epoch's end; whether it is the best so far."""
        assert self.initial_valid_loss is not None
        self.epochs_done += 1
        if not loss <= self.initial_valid_loss:
            self.rose_above_start = True
        if math.isfinite(loss) and (self.best_valid_loss is None or loss < self.best_valid_loss):
            self.best_valid_loss, self.best_epoch = loss, self.epoch
            return True
        return False

    def is_over(self, config: RunConfig) -> bool:
        """Whether there is nothing left to train or to validate, by what a checkpoint holds."""
        validated = self.iteration == 0 and self.epochs_done > 0
        last = config.max_epochs is not None and self.epoch >= config.max_epochs
        at_end = last or self.stops_now(config) or self.schedule.is_exhausted(config)
        return self.diverged or (validated and at_end)

    def stops_now(self, config: RunConfig) -> bool:
        """Whether the run ends here, be it within an epoch."""
        return config.max_steps is not None and self.step >= config.max_steps

    def epoch_row(self, lr: float, valid_loss: float) -> list[Any]:
        totals = self.totals
        means = totals.loss / max(1, totals.time_steps), totals.grad_norm / max(1, totals.iterations)
        return [self.epoch, lr, means[0], valid_loss, means[1], totals.grad_norm_max, totals.values_clipped]

    def timing_row(self) -> list[Any]:
        totals = self.totals
        seconds = [round(totals.seconds[part], 6) for part in PARTS]
        return [self.epoch, totals.iterations, *seconds, totals.stack_size]

    def summary(self, unit: str, finished: bool) -> dict[str, Any]:
        """The content of ``summary.json``."""
        status = "unfinished"
        if finished:
            status = "diverged" if self.diverged else "failed" if self.rose_above_start else "success"
        return {
            "status": status,
            "epochs": self.epochs_done,
            "steps": self.step,
            "best_epoch": self.best_epoch,
            "initial_valid_loss": self.initial_valid_loss,
            "valid_loss": self.best_valid_loss,
            "test_loss": self.test_loss,
            "unit": unit,
            "projections_redone": self.projections_redone,
            "exploded": self.explosions.first_step is not None,
            "first_exploded_step": self.explosions.first_step,
            "max_grad_norm": self.explosions.max_norm,
        }

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "explosions": self.explosions.state_dict()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Progress:
        return cls(
            **{
                **content,
                "schedule": Schedule(**content["schedule"]),
                "explosions": ExplosionDetector.from_state(content["explosions"]),
                "totals": EpochTotals(**content["totals"]),
            }
        )
