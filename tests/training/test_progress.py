"""What a run records of itself: an epoch against its iterations, the best epoch, checkpoints, times."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainerConfig
from gruclip.data import load
from gruclip.training import active_run
from gruclip.training.active_run import ActiveRun
from gruclip.training.progress import EpochTotals, Progress
from gruclip.training.runner import train


def config(path: Path, trainer: TrainerConfig, optimizer: OptimizerConfig | None = None, seed: int = 0) -> RunConfig:
    return RunConfig(
        model=ModelConfig(hidden_size=12),
        optimizer=optimizer or OptimizerConfig("spectral_clipping", lr=1.0, delta=1.05),
        schedule=ScheduleConfig("exponential", factor=2.0, hold_epochs=1),
        trainer=trainer,
        output_dir=str(path),
        device="cpu",
        seed=seed,
    )


def columns(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file, NaN for what is empty."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]}


def test_a_row_of_an_epoch_is_made_of_its_iterations(tmp_path: Path) -> None:
    bptt, length = 70, load("pydoc").splits["train"].numel() // TrainerConfig().batch_size - 1
    count = -(-length // bptt)
    last = length - (count - 1) * bptt  # time steps of an epoch's last window
    radius_every = 8 if count % 8 else 7  # an epoch is no multiple: it is counted over the run
    trainer = TrainerConfig(max_epochs=2, bptt=bptt, radius_every=radius_every)
    (result,) = train([config(tmp_path, trainer)], quiet=True)
    epochs, steps = columns(result.folder / "epochs.csv"), columns(result.folder / "steps.csv")
    assert columns(result.folder / "timing.csv")["iterations"] == [count, count]
    assert len(steps["step"]) == 2 * count
    assert epochs["lr"][1:] == [1.0, 0.5]
    for epoch in (1, 2):
        mine = {name: values[(epoch - 1) * count : epoch * count] for name, values in steps.items()}
        loss = (sum(mine["loss"][:-1]) * bptt + mine["loss"][-1] * last) / length
        assert epochs["train_loss"][epoch] == pytest.approx(loss, rel=1e-9)
        assert epochs["grad_norm_mean"][epoch] == pytest.approx(sum(mine["grad_norm"]) / count, rel=1e-9)
        assert epochs["grad_norm_max"][epoch] == max(mine["grad_norm"])
        assert epochs["values_clipped"][epoch] == sum(mine["values_clipped"])
    measured = [step for step, radius in zip(steps["step"], steps["spectral_radius_l0"], strict=True) if radius > 0]
    assert measured == list(range(radius_every, 2 * count + 1, radius_every))


def test_the_largest_norm_of_an_epoch_is_not_a_number_where_one_was_not() -> None:
    for norms in ([1.0, math.nan, 3.0], [math.nan, 1.0], [1.0, math.nan]):
        totals = EpochTotals()
        for norm in norms:
            totals.add(loss=1.0, time_steps=1, grad_norm=norm, values_clipped=0)
        assert math.isnan(totals.grad_norm_max)


def test_a_run_has_failed_where_a_loss_is_above_its_start_and_its_best_epoch_is_the_first_of_equals() -> None:
    progress = Progress(epoch=1, initial_valid_loss=5.0)
    assert progress.validated(5.0)
    progress.epoch = 2
    assert not progress.validated(5.0)
    assert (progress.best_epoch, progress.rose_above_start) == (1, False)
    assert progress.summary("", finished=True)["status"] == "success"
    for loss in (5.000001, math.nan):
        above = Progress(epoch=1, initial_valid_loss=5.0)
        above.validated(loss)
        assert above.summary("", finished=True)["status"] == "failed"


def test_a_checkpoint_is_due_so_long_after_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is read: once at an iteration, and once at a checkpoint."""
    seconds = itertools.count()
    monkeypatch.setattr(active_run, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    real, saved = ActiveRun.save, list[int]()

    def save(run: ActiveRun, tensors: Any) -> None:
        saved.append(run.progress.step)
        real(run, tensors)

    monkeypatch.setattr(ActiveRun, "save", save)
    trainer = TrainerConfig(max_epochs=1, max_steps=40, bptt=10, checkpoint_minutes=10.5 / 60)
    train([config(tmp_path, trainer)], quiet=True)
    assert saved == [11, 22, 33]


def test_times_tell_how_many_runs_were_trained_side_by_side(tmp_path: Path) -> None:
    trainer = TrainerConfig(max_epochs=1, max_steps=3)
    together = train([config(tmp_path / "a", trainer, seed=seed) for seed in (0, 1)], stack=True, stack_size=2)
    (alone,) = train([config(tmp_path / "b", trainer)])
    sizes = [columns(result.folder / "timing.csv")["stack_size"] for result in (*together, alone)]
    assert sizes == [[2.0], [2.0], [1.0]]


def test_what_measuring_takes_is_no_clipping(tmp_path: Path) -> None:
    trainer = TrainerConfig(max_epochs=1, max_steps=3)
    plain, clipped = train([config(tmp_path, trainer, OptimizerConfig("sgd", lr=1.0)), config(tmp_path, trainer)])
    assert columns(plain.folder / "timing.csv")["clipping"] == [0.0]
    assert columns(clipped.folder / "timing.csv")["clipping"] > [0.0]


def test_the_times_of_the_epoch_in_which_a_run_diverges_are_kept(tmp_path: Path) -> None:
    trainer = TrainerConfig(max_epochs=1, max_steps=40, bptt=10)
    (result,) = train([config(tmp_path, trainer, OptimizerConfig("sgd", lr=1e38))])
    assert result.status == "diverged"
    assert columns(result.folder / "timing.csv")["iterations"] == [result.summary["steps"]]
