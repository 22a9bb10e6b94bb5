"""TensorBoard, MLflow and Weights & Biases: each gets the run's numbers, without a network, and goes on with them."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gruclip.config import ModelConfig, RunConfig, TrainerConfig
from gruclip.errors import ConfigError, UserError
from gruclip.runs import loggers
from gruclip.runs.loggers import Loggers, MLflowLogger, TensorBoardLogger, WandbLogger, check_loggers
from gruclip.training.runner import train

CONFIG = RunConfig().flat()
IDENTITY = "0123456789abcdef" * 4
EPOCH = {"epoch": 1, "lr": 1.0, "train_loss": 5.5, "valid_loss": None, "values_clipped": 3}
SUMMARY = {"status": "success", "epochs": 1, "test_loss": 4.5, "max_grad_norm": math.inf, "exploded": False}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No server, no account, no telemetry; W&B's own folders below the test's."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "demo" / "spectral_clipping,seed=0"
    path.mkdir(parents=True)
    return path


def log(kind, folder, *, first=1, last=3, resume_step=0, status="success"):
    """A run's life as the runner leads it."""
    logger = kind(folder, CONFIG, IDENTITY, resume_step)
    for step in range(first, last + 1):
        logger.step(step, {"loss": 10.0 - step, "grad_norm": 0.5})
    logger.epoch(1, last, EPOCH)
    logger.close(status, SUMMARY)


def test_csv_needs_no_logger_and_the_others_are_told_in_their_order(folder):
    told = []
    loggers = Loggers(told.append)
    loggers.open(["mlflow", "csv", "tensorboard"], folder, CONFIG, IDENTITY, 0)
    loggers._each(lambda logger: told.append(type(logger)))
    assert told == [MLflowLogger, TensorBoardLogger]
    loggers.close("success", SUMMARY)
    loggers.open(["csv"], folder, CONFIG, IDENTITY, 0)
    loggers.step(1, {"loss": 5.0})
    assert len(told) == 2


class Failing:
    """A logger whose server goes away after a step."""

    def __init__(self, *_):
        self.steps = 0

    def step(self, step, values):
        self.steps += 1
        if self.steps > 1:
            raise ConnectionError("the server\nis gone")

    epoch = close = lambda self, *_: None


def test_a_logger_that_fails_is_told_of_once_and_takes_nothing_with_it(folder, monkeypatch):
    monkeypatch.setitem(loggers.OPENERS, "mlflow", Failing)
    told = []
    both = Loggers(told.append)
    both.open(["mlflow", "tensorboard"], folder, CONFIG, IDENTITY, 0)
    for step in range(1, 5):
        both.step(step, {"loss": 5.0})
    both.close("success", SUMMARY)
    assert told == ["logger=mlflow: failed (the server is gone), and is told no more; the run goes on"]
    assert list((folder / "tensorboard").iterdir())


def test_a_logger_is_told_once_how_its_run_has_ended(tmp_path, monkeypatch):
    """And not that it is unfinished when its folder is closed after that: MLflow would call it killed."""
    told = []

    class Told(Failing):
        def step(self, step, values):
            pass

        def close(self, status, summary):
            told.append(status)

    monkeypatch.setitem(loggers.OPENERS, "mlflow", Told)
    run = RunConfig(output_dir=str(tmp_path), logger=("csv", "mlflow"), model=ModelConfig(hidden_size=8))
    train([dataclasses.replace(run, trainer=TrainerConfig(max_steps=2))], quiet=True)
    assert told == ["success"]


def test_a_logger_that_cannot_be_opened_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.OPENERS, "tensorboard", lambda *_: 1 / 0)
    run = RunConfig(output_dir=str(tmp_path), logger=("csv", "tensorboard"), model=ModelConfig(hidden_size=8))
    with pytest.raises(UserError, match=r"^logger=tensorboard: cannot be opened \(division by zero\); mend that or"):
        train([run], quiet=True)
    assert not list(tmp_path.rglob("steps.csv"))
    # And without it, or once it is mended, the same run goes on, though another logger had written by then.
    monkeypatch.undo()
    monkeypatch.setitem(loggers.OPENERS, "mlflow", lambda *_: 1 / 0)
    run = dataclasses.replace(run, logger=("tensorboard", "mlflow"), trainer=TrainerConfig(max_steps=2))
    with pytest.raises(UserError, match=r"^logger=mlflow: cannot be opened"):
        train([run], quiet=True)
    assert list(tmp_path.rglob("tensorboard"))
    assert [one.status for one in train([dataclasses.replace(run, logger=("csv",))], quiet=True)] == ["success"]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_logger_whose_package_is_missing_is_refused_by_name(name, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"^logger={name}: the package .* pip install 'gruclip\[{name}\]'$"):
        check_loggers(["csv", name])


def test_loggers_that_are_there_pass_the_check():
    check_loggers(["csv", "tensorboard", "mlflow", "wandb"])


# -- TensorBoard ---------------------------------------------------------------------------------------


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_tensorboard_holds_every_step_and_what_an_epoch_has(folder):
    log(TensorBoardLogger, folder)
    found = events(folder)
    assert [(e.step, e.value) for e in found.Scalars("step/loss")] == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert [(e.step, e.value) for e in found.Scalars("epoch/train_loss")] == [(1, 5.5)]
    # A value that is not there is no zero.
    assert "epoch/valid_loss" not in found.Tags()["scalars"]
    assert {"config/text_summary", "status/text_summary"} <= set(found.Tags()["tensors"])


def test_tensorboard_shows_a_step_once_that_was_logged_again_after_a_checkpoint(folder):
    log(TensorBoardLogger, folder, last=5)
    log(TensorBoardLogger, folder, first=3, last=6, resume_step=2)
    assert [e.step for e in events(folder).Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]


# -- MLflow --------------------------------------------------------------------------------------------


def mlflow_client(folder: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=(folder.parent / "mlruns").as_uri())


def mlflow_runs(folder: Path):
    client = mlflow_client(folder)
    experiment = client.get_experiment_by_name("gruclip-demo")
    return client.search_runs([experiment.experiment_id])


def test_mlflow_s_default_store_is_a_folder_beside_the_runs(folder):
    log(MLflowLogger, folder)
    (run,) = mlflow_runs(folder)
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "success"
    assert run.data.tags["gruclip_identity"] == IDENTITY
    assert run.data.params["optimizer.delta"] == "0.2"
    history = mlflow_client(folder).get_metric_history(run.info.run_id, "step/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert run.data.metrics["epoch/train_loss"] == 5.5
    assert "epoch/valid_loss" not in run.data.metrics


def test_mlflow_s_folder_is_not_taken_for_a_run(folder):
    log(MLflowLogger, folder)
    assert not list(folder.parent.rglob("config.yaml"))


def test_mlflow_gets_more_metrics_than_it_takes_in_one_call(folder):
    log(MLflowLogger, folder, last=1200)
    (run,) = mlflow_runs(folder)
    history = mlflow_client(folder).get_metric_history(run.info.run_id, "step/grad_norm")
    assert sorted(metric.step for metric in history) == list(range(1, 1201))


def test_an_interrupted_run_is_killed_in_mlflow_and_goes_on_as_the_same_run(folder):
    log(MLflowLogger, folder, last=2, status="unfinished")
    (run,) = mlflow_runs(folder)
    assert run.info.status == "KILLED"
    log(MLflowLogger, folder, first=3, last=4, resume_step=2)
    (again,) = mlflow_runs(folder)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    history = mlflow_client(folder).get_metric_history(run.info.run_id, "step/loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4]


def test_a_diverged_run_is_finished_in_mlflow_with_its_status_as_a_tag(folder):
    log(MLflowLogger, folder, status="diverged")
    (run,) = mlflow_runs(folder)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "diverged")


def test_mlflow_takes_a_loss_that_is_not_finite(folder):
    logger = MLflowLogger(folder, CONFIG, IDENTITY, 0)
    logger.step(1, {"loss": math.nan, "grad_norm": math.inf})
    logger.close("diverged", SUMMARY)
    (run,) = mlflow_runs(folder)
    assert math.isnan(run.data.metrics["step/loss"])
    assert run.data.metrics["step/grad_norm"] > 1e300


def test_mlflow_writes_where_the_environment_says(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    log(MLflowLogger, folder)
    assert (tmp_path / "elsewhere").is_dir()
    assert not (folder.parent / "mlruns").exists()


# -- Weights & Biases ----------------------------------------------------------------------------------


def wandb_records(folder: Path) -> list:
    """The records of the offline run's file, in order, once the last one, the run's exit, is there.

    wandb's service, a process of its own, may write them a moment after `finish` has returned.
    """
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(100):
        records = list(read_log(path.read_bytes()))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    pytest.fail(f"{path} holds no exit record after ten seconds: {records}")


def read_log(content: bytes):
    """The records in LevelDB's log format, of which wandb has no reader in Python."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, pieces = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # the rest of a block that holds no header is padding
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(content):  # not written to its end yet
            return
        if kind in (1, 4):  # whole, or the last of several
            if position > len(content):
                return  # under way
            yield Record.FromString(pieces)
            pieces = b""


def wandb_history(folder: Path) -> list[dict[str, float]]:
    """The steps that were logged: their items by name, numbers as JSON has them."""
    rows = [record.history.item for record in wandb_records(folder) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_wandb_offline_keeps_steps_and_epochs_in_the_run_s_folder(folder):
    log(WandbLogger, folder)
    history = wandb_history(folder)
    assert [(row["_step"], row["step/loss"]) for row in history] == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert history[-1]["epoch/train_loss"] == 5.5
    assert "epoch/valid_loss" not in history[-1]


def test_the_wandb_run_has_the_run_s_identity_and_name(folder):
    log(WandbLogger, folder)
    run = next(record.run for record in wandb_records(folder) if record.HasField("run"))
    assert (run.run_id, run.display_name, run.project) == (IDENTITY[:32], folder.name, "gruclip")


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("diverged", 0), ("unfinished", 1)])
def test_wandb_is_told_whether_a_run_was_recorded_to_its_end(folder, status, code):
    log(WandbLogger, folder, status=status)
    assert [record.exit.exit_code for record in wandb_records(folder) if record.HasField("exit")] == [code]


def test_wandb_online_without_an_account_is_refused_before_anything_is_written(monkeypatch):
    import wandb

    loggers._check_wandb_account.cache_clear()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "setup", lambda: _Setup("online"))
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(ConfigError, match=r"^logger=wandb: not logged in \(no API key\); .*WANDB_MODE=offline$"):
        check_loggers(["wandb"])


def test_a_wandb_server_that_cannot_be_asked_is_told_in_one_line(monkeypatch):
    import wandb

    def fail(prompt):
        raise wandb.Error("cannot reach\nthe server")

    loggers._check_wandb_account.cache_clear()
    monkeypatch.setattr(wandb, "setup", lambda: _Setup("online"))
    monkeypatch.setattr(wandb, "login", fail)
    with pytest.raises(ConfigError, match=r"not logged in \(cannot reach the server\)"):
        check_loggers(["wandb"])


class _Setup:
    """What `wandb.setup` returns, as far as it is asked."""

    def __init__(self, mode: str) -> None:
        self.settings = type("Settings", (), {"mode": mode})


# -- without the packages ------------------------------------------------------------------------------


def test_no_logger_s_package_is_imported_where_none_is_asked_for():
    packages = ("tensorboard", "mlflow", "wandb")
    script = f"import sys, gruclip.training.runner; print([n for n in {packages} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
