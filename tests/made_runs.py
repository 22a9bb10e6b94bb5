"""Made runs with known answers: rows, frames and run folders as the runner writes them, without training anything."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from gruclip.config import RunConfig
from gruclip.report import rows

DATA_SHA256 = "d" * 64

PTB = {
    "experiment": "ptb",
    "dataset": {"name": "ptb"},
    "model": {"hidden_size": 650},
    "schedule": {"name": "exponential"},
    "trainer": {"max_epochs": 75},
}
NOTTINGHAM = {
    "experiment": "nottingham",
    "dataset": {"name": "nottingham"},
    "model": {"hidden_size": 200, "num_layers": 2},
    "schedule": {"name": "plateau", "factor": 1.25},
    "trainer": {"max_epochs": None, "short_epochs": 40},
    "optimizer": {"lr": 0.1},
}
DEMO: dict[str, Any] = {"experiment": "demo"}


def config(base: Mapping[str, Any], name: str, parameter: float | None = None, **settings: Any) -> RunConfig:
    """A run of `base` by the method `name` with its threshold or delta; other settings by their dotted names
    with "__" for the dot, e.g. ``optimizer__lr=0.3``.
    """
    content = {group: dict(value) if isinstance(value, Mapping) else value for group, value in base.items()}
    kind = {"gradient_clipping": "threshold", "spectral_clipping": "delta"}.get(name)
    optimizer = {"name": name, **({kind: parameter} if kind else {})}
    content["optimizer"] = {**content.get("optimizer", {}), **optimizer}
    for dotted, value in settings.items():
        *group, last = dotted.split("__")
        (content.setdefault(group[0], {}) if group else content)[last] = value
    return RunConfig.from_dict(content)


def summary(status: str = "success", valid: float = 4.6, test: float = 4.5, **values: Any) -> dict[str, Any]:
    """summary.json of a run with validation and test loss in nats; diverged and unfinished runs have what they have."""
    return {
        **rows.SUMMARY,
        "status": status,
        "epochs": 5,
        "steps": 100,
        "best_epoch": None if status in ("diverged", "unfinished") else 5,
        "initial_valid_loss": 9.2,
        "valid_loss": None if status in ("diverged", "unfinished") else valid,
        "test_loss": None if status in ("diverged", "unfinished") else test,
        "unit": "nats per token",
        "max_grad_norm": 12.5,
        **values,
    }


def perplexity(value: float) -> float:
    """The loss in nats whose perplexity is `value`."""
    return math.log(value)


def frame(runs: Iterable[tuple[RunConfig, dict[str, Any]]]) -> pd.DataFrame:
    """What `reading.read_runs` returns for these runs."""
    made = [
        rows.row(run, result, folder=Path(folder_name(run)), identity=run.identity(""), data_sha256=DATA_SHA256)
        for run, result in runs
    ]
    return rows.frame(made)


def folder_name(run: RunConfig) -> str:
    optimizer = run.optimizer
    parts = [optimizer.name]
    parts += [f"{name}={getattr(optimizer, name):g}" for name in ("threshold", "delta") if getattr(optimizer, name)]
    return ",".join([*parts, f"lr={optimizer.lr:g}", f"seed={run.seed}"])


def write_run(
    output_dir: Path,
    run: RunConfig,
    result: Mapping[str, Any] | None,
    steps: pd.DataFrame | None = None,
    timing: pd.DataFrame | None = None,
) -> Path:
    """A run's folder as the runner writes it; without `result` the run has only just begun."""
    folder = output_dir / run.experiment / folder_name(run)
    folder.mkdir(parents=True)
    settings = json.loads(json.dumps(dataclasses.asdict(run)))
    settings |= {"identity": run.identity(DATA_SHA256), "data_sha256": DATA_SHA256}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if result is not None:
        (folder / "summary.json").write_text(json.dumps(result))
    environment = {"processor": "made processor", "device": "cpu", "threads": 2}
    (folder / "environment.json").write_text(json.dumps(environment))
    for name, table in (("steps.csv", steps), ("timing.csv", timing)):
        if table is not None:
            table.to_csv(folder / name, index=False, na_rep="nan")
    return folder


def steps(count: int, *, explodes_at: int | None = None, radius_every: int = 5, seed: int = 0) -> pd.DataFrame:
    """A steps.csv: a gradient norm around 3 whose radius grows to 0.95, or passes 1 where the norm explodes."""
    generator = np.random.default_rng(seed)
    step = np.arange(1, count + 1)
    norm = 3 * np.exp(0.25 * generator.standard_normal(count))
    radius = 0.76 + 0.19 * (1 - np.exp(-step / (count / 3)))
    if explodes_at is not None:
        past = np.clip(step - explodes_at, 0, None)
        norm = norm * np.exp(np.minimum(past, 60) / 4)
        radius = radius + 0.06 * np.minimum(past, 60)
    text = [f"{value:.6g}" if number % radius_every == 0 else "" for number, value in zip(step, radius, strict=True)]
    columns = {"step": step, "loss": 200.0, "grad_norm": norm, "spectral_norm_l0": 1.8, "spectral_radius_l0": text}
    return pd.DataFrame({**columns, "values_clipped": 0})


def timing(epochs: int, *, iterations: int = 1327, clipping: float = 1.0, stack_size: int = 1) -> pd.DataFrame:
    """A timing.csv of an epoch that takes 60 s forward, 110 s backward, 20 s for the update, and the clipping."""
    share = iterations / 1327
    phases = {"data": 0.1, "forward": 60.0, "backward": 110.0, "update": 20.0, "clipping": clipping}
    return pd.DataFrame(
        {
            "epoch": range(1, epochs + 1),
            "iterations": iterations,
            **{name: seconds * share for name, seconds in phases.items()},
            "metrics": 1.0 * share,
            "evaluation": 9.0,
            "stack_size": stack_size,
        }
    )
