"""Which runs may share an engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainerConfig
from gruclip.training.jobs import Job


def config(path: Path, **changes: Any) -> RunConfig:
    optimizer = OptimizerConfig("spectral_clipping", lr=0.1, delta=0.2)
    return dataclasses.replace(RunConfig(optimizer=optimizer, output_dir=str(path), device="cpu"), **changes)


def shape(run: RunConfig) -> tuple[Any, ...]:
    return Job(run, RunConfig()).shape()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"optimizer": OptimizerConfig("spectral_clipping", lr=0.3, delta=1.4)},
        {"optimizer": OptimizerConfig("gradient_clipping", lr=0.1, threshold=5.0)},
        {"schedule": ScheduleConfig(min_lr=1e-3)},
        {"trainer": TrainerConfig(max_epochs=7)},
    ],
    ids=["seed", "rate and delta", "method", "schedule", "epochs"],
)
def test_an_engine_takes_runs_that_differ_in_numbers_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    assert shape(config(tmp_path, **changes)) == shape(config(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": DatasetConfig("pydoc", vocabulary=300)},
        {"model": ModelConfig(hidden_size=17)},
        {"model": ModelConfig(dropout=0.1)},
        {"trainer": TrainerConfig(bptt=7)},
        {"trainer": TrainerConfig(batch_size=7)},
        {"trainer": TrainerConfig(radius_every=7)},
        {"precision": "fp64"},
        {"optimizer": OptimizerConfig("spectral_clipping", lr=0.1, delta=0.2, algorithm="full")},
    ],
    ids=["data", "size", "dropout", "bptt", "batch", "radius", "precision", "algorithm"],
)
def test_an_engine_takes_no_run_that_computes_something_else(changes: dict[str, Any], tmp_path: Path) -> None:
    assert shape(config(tmp_path, **changes)) != shape(config(tmp_path))
