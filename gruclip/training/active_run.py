"""One run while it is trained: its progress, and what of it goes into its folder and to its loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gruclip.model.evaluation import evaluate_weights
from gruclip.runs.environment import describe_environment
from gruclip.runs.folder import CSV_FILES
from gruclip.runs.loggers import Logger, open_loggers
from gruclip.training.display import Display
from gruclip.training.engine import parameters_of
from gruclip.training.jobs import Job
from gruclip.training.progress import EPOCH_COLUMNS, TIMING_COLUMNS, EpochTotals, Progress, step_columns


class ActiveRun:
    """One run while it is trained: its progress and its folder."""

    def __init__(self, job: Job, display: Display) -> None:
        self.job, self.config, self.folder, self.display = job, job.config, job.folder, display
        self.stack_size = 1
        self.name = str(job.folder.path)
        self.ended = False
        self.loggers: list[Logger] = []
        self.last_checkpoint = time.monotonic()
        checkpoint = self.folder.load_checkpoint("last")
        self.tensors = None if checkpoint is None else checkpoint[0]
        self.progress = Progress.of(self.config) if checkpoint is None else Progress.from_json(checkpoint[1])
        columns = (EPOCH_COLUMNS, step_columns(self.config.model.num_layers), TIMING_COLUMNS)
        self.folder.open(
            dict(zip(CSV_FILES, columns, strict=True)), None if checkpoint is None else self.progress.offsets
        )
        if self.folder.write_environment(describe_environment(job.device), continued=checkpoint is not None):
            display.note(f"{self.name}: not all of it with one machine, revision, kernels, threads and versions")
        self.loggers = open_loggers(
            self.config.logger, self.folder.path, self.config.flat(), self.folder.identity, self.progress.step
        )

    def begin(self, initial_valid_loss: float) -> None:
        self.progress.initial_valid_loss = initial_valid_loss
        self.folder.append("epochs.csv", [0, None, None, initial_valid_loss, None, None, None])
        self._write_summary(finished=False)

    def begin_epoch(self) -> None:
        if self.progress.iteration == 0:
            self.progress.epoch += 1
            self.progress.totals = EpochTotals()

    def announce(self, iterations: int) -> None:
        epochs, steps = self.config.max_epochs, self.config.max_steps
        total = steps if steps is not None else None if epochs is None else epochs * iterations
        self.display.start(self.name, iterations, total)

    def record(
        self,
        time_steps: int,
        loss: float,
        grad_norm: float,
        clipped: int,
        spectral_norms: list[float],
        radii: Sequence[float | None],
    ) -> None:
        """Take one iteration's numbers; a loss that is not finite ends the run."""
        progress = self.progress
        progress.iteration += 1
        progress.step += 1
        progress.explosions.observe(progress.step, grad_norm)
        progress.totals.add(loss, time_steps, grad_norm, clipped)
        self.folder.append("steps.csv", [progress.step, loss, grad_norm, *spectral_norms, *radii, clipped])
        norm = max(spectral_norms)
        self.display.step(
            self.name, epoch=progress.epoch, step=progress.step, loss=loss, grad_norm=grad_norm, spectral_norm=norm
        )
        for logger in self.loggers:
            values = {"loss": loss, "grad_norm": grad_norm, "spectral_norm": norm, "values_clipped": clipped}
            logger.step(progress.step, values)
        progress.diverged = not math.isfinite(loss)

    def diverge(self, tensors: dict[str, Tensor]) -> None:
        """End the run at a loss that is not finite; what its epoch took until then is kept."""
        self.folder.append("timing.csv", self.progress.timing_row())
        self.end(f"the loss is not finite at iteration {self.progress.step}", tensors)

    def stops_now(self) -> bool:
        return self.config.max_steps is not None and self.progress.step >= self.config.max_steps

    def checkpoint_due(self) -> bool:
        return time.monotonic() - self.last_checkpoint > 60 * self.config.trainer.checkpoint_minutes

    def end_epoch(self, valid_loss: float, tensors: dict[str, Tensor]) -> None:
        """Take the validation loss of an epoch's end; ends the run after its last."""
        progress = self.progress
        lr = progress.schedule.lr
        if progress.validated(valid_loss):
            record = {"epoch": progress.epoch, "valid_loss": valid_loss}
            self.folder.save_checkpoint("best", parameters_of(tensors), record)
        row = progress.epoch_row(lr, valid_loss)
        self.folder.append("epochs.csv", row)
        self.folder.append("timing.csv", progress.timing_row())
        named = dict(zip(EPOCH_COLUMNS, row, strict=True))
        self.display.epoch(self.name, named)
        for logger in self.loggers:
            logger.epoch(progress.epoch, progress.step, named)
        exhausted = progress.schedule.after_epoch(self.config, progress.epoch, valid_loss)
        progress.iteration = 0
        if not math.isfinite(valid_loss):
            progress.diverged = True
        last = self.config.max_epochs is not None and progress.epoch >= self.config.max_epochs
        if progress.diverged or exhausted or last or self.stops_now():
            self.end("", tensors)

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint that the run can be continued from."""
        self.progress.offsets = self.folder.offsets()
        self.folder.save_checkpoint("last", tensors, self.progress.to_json())
        self._write_summary(finished=False)
        self.last_checkpoint = time.monotonic()

    def end(self, message: str, tensors: dict[str, Tensor]) -> None:
        """Take the test loss of the best epoch's weights and write the run's summary and last state."""
        self.ended = True
        best = self.folder.load_checkpoint("best")
        if best is not None and self.progress.best_epoch is not None:
            device = self.job.device
            self.progress.test_loss = evaluate_weights(best[0], self.config, self.job.corpus, "test", device)
        self.progress.offsets = self.folder.offsets()
        self._write_summary(finished=True)
        # After the summary: a state from which to go on would make a run that is interrupted here train too long.
        self.folder.save_checkpoint("last", tensors, self.progress.to_json())
        status = self._summary(finished=True)["status"]
        self.display.finish(self.name, status, message)
        for logger in self.loggers:
            logger.close(status, self._summary(finished=True))
        self.loggers = []

    def _summary(self, finished: bool) -> dict[str, Any]:
        return self.progress.summary(self.job.corpus.unit, finished)

    def _write_summary(self, finished: bool) -> None:
        self.folder.write_summary(self._summary(finished))

    def close(self) -> None:
        for logger in self.loggers:
            logger.close("unfinished", self._summary(finished=False))
        self.folder.close()
