"""Run folders in, one data frame out: a row per run, settings by their dotted names beside the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gruclip.config import WORD_DATASETS, RunConfig
from gruclip.errors import UserError
from gruclip.runs.records import read_config, read_summary

STATUSES = ("success", "failed", "diverged", "unfinished")

#: What summary.json holds (losses in nats per token or per time step), with the values of a run that has none yet.
SUMMARY: dict[str, Any] = {
    "status": "unfinished",
    "epochs": 0,
    "steps": 0,
    "best_epoch": None,
    "initial_valid_loss": None,
    "valid_loss": None,
    "test_loss": None,
    "unit": None,
    "exploded": False,
    "first_exploded_step": None,
    "max_grad_norm": None,
}
NUMBERS = ("best_epoch", "initial_valid_loss", "valid_loss", "test_loss", "first_exploded_step", "max_grad_norm")


def read_runs(output_dir: Path, experiment: str, remedy: str = "train some first") -> pd.DataFrame:
    """One row for every run folder below ``output_dir/experiment``, at any depth, in the order of their paths.

    Columns: ``folder``, ``identity``, ``data_sha256``; every setting of `RunConfig` by its dotted name;
    ``max_epochs`` and ``max_steps`` as the budget leaves them; what summary.json holds. A run that has no
    summary yet is unfinished. Raises `UserError` where there is no run, with the `remedy` for that, for a folder that
    cannot be read, and for two folders that hold the same run, which would be counted twice.
    """
    root = Path(output_dir) / experiment
    # W&B keeps files of that name in a folder of its own, inside the run's.
    folders = sorted(path.parent for path in root.rglob("config.yaml") if "wandb" not in path.relative_to(root).parts)
    if not folders:
        raise UserError(f"{root}: no runs there; {remedy}")
    runs = frame([_read_run(folder) for folder in folders])
    for identity, same in runs.groupby("identity"):
        if len(same) > 1:
            raise UserError(f"{' and '.join(same.folder)}: hold the same run ({str(identity)[:8]}); remove one of them")
    return runs


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a data frame whose numbers are numbers: None is NaN, as are the "nan" of JSON."""
    runs = pd.DataFrame(rows)
    numbers = [*NUMBERS, "optimizer.threshold", "optimizer.delta", "max_epochs", "max_steps"]
    return runs.astype(dict.fromkeys(numbers, float))


def row(
    config: RunConfig, summary: Mapping[str, Any], *, folder: Path, identity: str, data_sha256: str
) -> dict[str, Any]:
    """One run as a row of the frame that `read_runs` returns."""
    where = {"folder": str(folder), "identity": identity, "data_sha256": data_sha256}
    length = {"max_epochs": config.max_epochs, "max_steps": config.max_steps}
    unit = "nats per token" if config.dataset.name in WORD_DATASETS else "nats per time step"
    values = {name: summary[name] for name in SUMMARY}
    values |= {name: float(values[name]) for name in NUMBERS if values[name] is not None}
    return {**where, **config.flat(), **length, **values, "unit": unit}


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        config, sums = read_config(folder)
        summary = read_summary(folder) if (folder / "summary.json").exists() else SUMMARY
        run = row(config, summary, folder=folder, identity=sums["identity"], data_sha256=sums["data_sha256"])
    except KeyError as error:
        raise UserError(f"{folder}: summary.json lacks {error}; remove the folder to run it anew") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: not a run that can be read ({error}); remove it to run it anew") from error
    if run["status"] not in STATUSES:
        raise UserError(f"{folder}: status={run['status']}: should be one of {', '.join(STATUSES)}")
    return run


def read_steps(folder: str | Path) -> pd.DataFrame:
    """A run's gradient norm and spectral radius over its iterations.

    Columns ``step``, ``grad_norm`` (before clipping), ``radius`` (the largest over the layers: in a GRU of
    several layers the Jacobian at the origin is block triangular) and ``measured`` (the radius was computed
    at this step). NaN and infinity are kept as the run met them.
    """
    path = Path(folder) / "steps.csv"
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
        radii = text[[name for name in text if name.startswith("spectral_radius_l")]]
        measured = (radii != "").all(axis="columns")
        radius = radii.where(measured, "nan").astype(float).max(axis="columns", skipna=False)
        return pd.DataFrame(
            {
                "step": text["step"].astype(int),
                "grad_norm": text["grad_norm"].astype(float),
                "radius": radius,
                "measured": measured,
            }
        )
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder to run it anew") from error


def read_timing(folder: str | Path) -> pd.DataFrame:
    """A run's timing.csv: seconds per epoch and phase, iterations and stack size, a row for each epoch that ended."""
    path = Path(folder) / "timing.csv"
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder to run it anew") from error


def read_machine(folder: str | Path) -> str:
    """What a run's times were taken on: processor or accelerator, and threads."""
    path = Path(folder) / "environment.json"
    try:
        environment = json.loads(path.read_text())
        device = environment["processor"] if environment["device"] == "cpu" else environment["device"]
        threads = environment["threads"]
        return f"{device}, {threads} thread{'s' * (threads != 1)}"
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder to run it anew") from error
