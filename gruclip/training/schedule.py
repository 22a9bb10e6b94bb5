"""How a run's learning rate falls, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gruclip.config import RunConfig


@dataclass
class Schedule:
    """The learning rate of one run, epoch by epoch (`gruclip.config.ScheduleConfig` says how it falls)."""

    lr: float
    best: float = math.inf
    waited: int = 0

    def after_epoch(self, config: RunConfig, epoch: int, valid_loss: float) -> None:
        """Set the rate for the next epoch."""
        schedule = config.schedule
        if schedule.name == "exponential":
            try:
                self.lr = config.optimizer.lr / schedule.factor ** max(0, epoch + 1 - schedule.hold_epochs)
            except OverflowError:  # the quotient is below every number there is
                self.lr = 0.0
        elif schedule.name == "plateau":
            if valid_loss < self.best:
                self.best, self.waited = valid_loss, 0
            else:
                self.waited += 1
            if self.waited == config.patience:
                self.lr, self.waited = self.lr / schedule.factor, 0

    def is_exhausted(self, config: RunConfig) -> bool:
        """Whether there is no next epoch, because the rate fell below ``min_lr``."""
        return config.schedule.name == "plateau" and self.lr < config.schedule.min_lr
