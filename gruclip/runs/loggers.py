"""TensorBoard, MLflow and Weights & Biases beside the CSV files: thin adapters over each library's own writer.

The runner writes the CSV files itself; these mirror them. A continued run continues its record: the
TensorBoard events in the same folder from the checkpoint's step on, the MLflow and W&B run of the same identity.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gruclip.errors import ConfigError

#: The package that each logger needs, and the extra that brings it.
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}

#: MLflow takes at most 1,000 metrics a call.
MLFLOW_BATCH = 1000


class Logger(Protocol):
    """Where a run's numbers also go. Steps count from 1 over the whole run."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resume_step: int) -> None: ...

    def step(self, step: int, values: Mapping[str, float]) -> None: ...

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, status: str, summary: Mapping[str, Any]) -> None: ...


def check_loggers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a logger whose package is not installed, and for W&B online without an account."""
    for name in names:
        package = PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(f"logger={name}: the package {package} is not installed; pip install 'gruclip[{name}]'")
        if name == "wandb":
            _check_wandb_account()


@functools.cache
def _check_wandb_account() -> None:
    """Once a process: a login is a question to the server."""
    import wandb

    if wandb.setup().settings.mode != "online":
        return
    try:
        logged_in, reason = wandb.login(prompt=False), "no API key"
    except wandb.Error as error:
        logged_in, reason = False, " ".join(str(error).split())
    if not logged_in:
        raise ConfigError(f"logger=wandb: not logged in ({reason}); run wandb login, or set WANDB_MODE=offline")


class Loggers:
    """The loggers of a run. One that fails is told of once and dropped: it takes nothing else with it."""

    def __init__(self, note: Callable[[str], object]) -> None:
        """None yet; `note` is told what has failed."""
        self._note = note
        self._open: dict[str, Logger] = {}

    def open(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], identity: str, resume_step: int
    ) -> None:
        """A logger for each name but "csv"; `folder` is the run's, `resume_step` the last step already logged.

        Raises `ConfigError` for one that cannot be opened.
        """
        for name in names:
            if name != "csv":
                try:
                    self._open[name] = OPENERS[name](folder, config, identity, resume_step)
                except Exception as error:
                    self.close("unfinished", {})
                    raise ConfigError(
                        f"logger={name}: cannot be opened ({_in_short(error)}); mend that or leave it out"
                    ) from error

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.step(step, values))

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.epoch(epoch, step, values))

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        """Once: what comes after it goes nowhere."""
        self._each(lambda logger: logger.close(status, summary))
        self._open = {}

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                tell(logger)
            except Exception as error:
                del self._open[name]
                self._note(f"logger={name}: failed ({_in_short(error)}), and is told no more; the run goes on")


def _in_short(error: Exception) -> str:
    lines = " ".join(str(error).split()) or type(error).__name__
    return lines if len(lines) <= 200 else f"{lines[:200]}..."


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


class TensorBoardLogger:
    """Events under ``tensorboard/`` in the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What lies behind the checkpoint is written again, and hidden from the reader until then.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)
        if not resume_step:
            self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(f"epoch/{name}", value, epoch)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


class MLflowLogger:
    """A run in $MLFLOW_TRACKING_URI, or in the folder ``mlruns`` beside the runs; metrics travel in batches."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resume_step: int) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._pending: list[Any] = []
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # The one store that needs neither a server nor more packages; MLflow asks for this word to open it.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder.parent / "mlruns").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        name = f"gruclip-{config['experiment']}"
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        query = f"tags.gruclip_identity = '{identity}'"
        found = self._client.search_runs([experiment_id], query, max_results=1) if resume_step else []
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {"gruclip_identity": identity, "mlflow.runName": folder.name}
            self._run_id = self._client.create_run(experiment_id, tags=tags).info.run_id
            self._client.log_batch(self._run_id, params=[Param(key, str(value)) for key, value in config.items()])

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._add("step", step, values)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._add("epoch", step, _numbers(values))
        self._flush()

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self._flush()
        self._client.set_tag(self._run_id, "status", status)
        self._client.set_terminated(self._run_id, "KILLED" if status == "unfinished" else "FINISHED")

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._pending += [self._metric(f"{group}/{name}", value, now, step) for name, value in values.items()]
        if len(self._pending) > MLFLOW_BATCH - 20:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._client.log_batch(self._run_id, metrics=self._pending)
            self._pending = []


class WandbLogger:
    """A W&B run whose id is the run's identity; without network set WANDB_MODE=offline."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resume_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project="gruclip",
            name=folder.name,
            id=identity[:32],
            resume="allow",
            dir=str(folder),
            config=dict(config),
            reinit="create_new",
        )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"step/{name}": value for name, value in values.items()}, step=step)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"epoch/{name}": value for name, value in _numbers(values).items()}, step=step)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        finite = {k: v for k, v in summary.items() if not isinstance(v, float) or math.isfinite(v)}
        self._run.summary.update(finite)
        self._run.finish(exit_code=1 if status == "unfinished" else 0)


OPENERS: dict[str, type[Logger]] = {"tensorboard": TensorBoardLogger, "mlflow": MLflowLogger, "wandb": WandbLogger}
