"""One run while it is trained: its progress, and what of it goes into its folder and to its loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gruclip.errors import UserError
from gruclip.model.evaluation import evaluate_weights
from gruclip.runs.environment import check_versions, describe_environment
from gruclip.runs.folder import CSV_FILES
from gruclip.runs.loggers import Loggers
from gruclip.runs.records import MOVE_AWAY
from gruclip.training.display import AnyDisplay
from gruclip.training.jobs import Job
from gruclip.training.operands import parameters_of
from gruclip.training.progress import EPOCH_COLUMNS, TIMING_COLUMNS, EpochTotals, Progress, step_columns


class ActiveRun:
    """One run while it is trained: its progress and its folder."""

    def __init__(self, job: Job, display: AnyDisplay) -> None:
        """Lock the run's folder and read where it stands. Raises `UserError` where it cannot be continued."""
        self.job, self.config, self.folder, self.display = job, job.config, job.folder, display
        self.stack_size = 1
        self.name = str(job.folder.path)
        self.ended = False
        self.loggers = Loggers(display.note)
        self.last_checkpoint = time.monotonic()
        self.tensors: dict[str, Tensor] | None = None
        #: The best epoch's parameters and record, not written yet.
        self._best: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.progress = Progress.of(self.config)
        self.folder.lock()
        try:
            # Another process may have finished it since this one last looked.
            self.ended = self.folder.is_finished()
            if not self.ended:
                self._continue_or_begin()
        except BaseException:
            self.close()
            raise

    def _continue_or_begin(self) -> None:
        checkpoint, faults = self.folder.checkpoint()
        environment = describe_environment(self.job.device)
        for fault in faults:
            self.display.note(f"{fault}; continued from the checkpoint before it")
        if checkpoint is not None:
            self.tensors, self.progress = checkpoint.tensors, Progress.from_json(checkpoint.progress)
            best = self.progress.best_epoch
            if best is not None and self.folder.best(best) is None:
                raise UserError(f"{self.name}: checkpoint/best, of epoch {best}, is gone or damaged; {MOVE_AWAY}")
            if self.config.resume == "strict":
                check_versions(self.name, self.folder.environment(), environment)
        self.folder.write_config()
        # Raises if one cannot be opened: no run goes without it.
        self.loggers.open(
            self.config.logger, self.folder.path, self.config.flat(), self.folder.identity, self.progress.step
        )
        columns = (EPOCH_COLUMNS, step_columns(self.config.model.num_layers), TIMING_COLUMNS)
        self.folder.open(
            dict(zip(CSV_FILES, columns, strict=True)), None if checkpoint is None else self.progress.offsets
        )
        if self.folder.write_environment(environment, continued=checkpoint is not None):
            self.display.note(f"{self.name}: not all of it with one machine, revision, kernels, threads and versions")
        if self.progress.is_over(self.config):
            # It ended, and its summary is gone: there is nothing to train.
            assert self.tensors is not None
            self.end("its summary was missing", self.tensors)

    def begin(self, initial_valid_loss: float) -> None:
        self.progress.initial_valid_loss = initial_valid_loss
        self.folder.append("epochs.csv", [0, None, None, initial_valid_loss, None, None, None])
        self.folder.write_summary(self._summary(finished=False))

    def begin_epoch(self) -> None:
        if self.progress.iteration == 0:
            self.progress.epoch += 1
            self.progress.totals = EpochTotals()

    def announce(self, iterations: int) -> None:
        self.display.start(self.name, iterations, self.config.total_steps(iterations))

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
        values = {"loss": loss, "grad_norm": grad_norm, "spectral_norm": norm, "values_clipped": clipped}
        self.loggers.step(progress.step, values)
        progress.diverged = not math.isfinite(loss)

    def diverge(self, tensors: dict[str, Tensor]) -> None:
        """End the run at a loss that is not finite; what its epoch took until then is kept."""
        self.folder.append("timing.csv", self.progress.timing_row())
        self.end(f"the loss is not finite at iteration {self.progress.step}", tensors)

    def checkpoint_due(self) -> bool:
        return time.monotonic() - self.last_checkpoint > 60 * self.config.trainer.checkpoint_minutes

    def epoch_checkpoint_due(self) -> bool:
        """Whether to save at an epoch's end: on a CPU always; on a GPU, where a stack's epochs take seconds and
        a hundred runs' files longer, only if `checkpoint_due`."""
        return self.job.device.type == "cpu" or self.checkpoint_due()

    def end_epoch(self, valid_loss: float, tensors: dict[str, Tensor]) -> None:
        """Take the validation loss of an epoch's end; ends the run after its last."""
        progress = self.progress
        lr = progress.schedule.lr
        if progress.validated(valid_loss):
            self._best = parameters_of(tensors), {"epoch": progress.epoch, "valid_loss": valid_loss}
        row = progress.epoch_row(lr, valid_loss)
        self.folder.append("epochs.csv", row)
        self.folder.append("timing.csv", progress.timing_row())
        named = dict(zip(EPOCH_COLUMNS, row, strict=True))
        self.display.epoch(self.name, named)
        self.loggers.epoch(progress.epoch, progress.step, named)
        progress.schedule.after_epoch(self.config, progress.epoch, valid_loss)
        progress.iteration = 0
        if not math.isfinite(valid_loss):
            progress.diverged = True
        if progress.is_over(self.config):
            self.end("", tensors)

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint that the run can be continued from."""
        self._save(tensors)
        self.folder.write_summary(self._summary(finished=False))
        self.last_checkpoint = time.monotonic()

    def _save(self, tensors: dict[str, Tensor]) -> None:
        self._save_best()
        self.progress.offsets = self.folder.offsets()
        self.folder.save("last", tensors, self.progress.to_json())

    def _save_best(self) -> None:
        """Before the checkpoint that refers to it."""
        if self._best is not None:
            self.folder.save("best", *self._best)
            self._best = None

    def end(self, message: str, tensors: dict[str, Tensor]) -> None:
        """Take the test loss of the best epoch's weights and write the run's last state and its summary."""
        progress = self.progress
        self._save_best()
        if progress.best_epoch is not None and progress.test_loss is None:
            best = self.folder.best(progress.best_epoch)
            if best is None:
                raise UserError(
                    f"{self.name}: checkpoint/best, of epoch {progress.best_epoch}, is gone or damaged; {MOVE_AWAY}"
                )
            progress.test_loss = evaluate_weights(
                best.tensors, self.config, self.job.corpus, "test", self.job.device, self.folder.beat
            )
        # If interrupted after this save, the run is found to be over and not trained on.
        self._save(tensors)
        summary = self._summary(finished=True)
        self.folder.write_summary(summary)
        self.ended = True  # only now: before that it can run out of memory, and goes on from its checkpoint
        self.display.finish(self.name, summary["status"], message)
        self.loggers.close(summary["status"], summary)

    def _summary(self, finished: bool) -> dict[str, Any]:
        return self.progress.summary(self.job.corpus.unit, finished)

    def close(self) -> None:
        self.loggers.close("unfinished", self._summary(finished=False))
        self.folder.close()
