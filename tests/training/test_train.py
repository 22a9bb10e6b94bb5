"""The runner: what a run computes, how it is continued, and that neighbours do not matter."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from gruclip.choices import CELLS
from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainerConfig
from gruclip.data import Lanes, load
from gruclip.errors import ConfigError, Interrupted, UserError
from gruclip.runs.checkpoints import read_checkpoint
from gruclip.runs.environment import describe_environment
from gruclip.runs.records import read_config
from gruclip.runs.trained import RecurrentModel, evaluate_run
from gruclip.runs.trained import load as load_model
from gruclip.spectral import ClipResult
from gruclip.training import active_run, runner, workers
from gruclip.training.display import Display
from gruclip.training.engine import Engine
from gruclip.training.interrupts import Interrupts
from gruclip.training.jobs import Job
from gruclip.training.projections import ProjectionError
from gruclip.training.runner import RunResult, train
from gruclip.training.stack import train_stack
from gruclip.training.workers import WorkerError, train_in_processes

COMPARED = ("epochs.csv", "steps.csv", "summary.json")

#: Where the scripts that tests start find this file.
HERE = str(Path(__file__).parent)


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    """A small run on pydoc: 40 iterations of 12 units."""
    base = RunConfig(
        model=ModelConfig(hidden_size=12),
        optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=1.05),
        trainer=TrainerConfig(max_epochs=None, max_steps=40, bptt=10, radius_every=10),
        output_dir=str(tmp_path),
        device="cpu",
    )
    return dataclasses.replace(base, **changes)


def music(tmp_path: Path, data_root: Path, **changes: Any) -> RunConfig:
    """Two epochs of a small music model on JSB Chorales."""
    return config(
        tmp_path,
        dataset=DatasetConfig("jsb_chorales", str(data_root)),
        model=ModelConfig(hidden_size=8, num_layers=2),
        optimizer=OptimizerConfig("gradient_clipping", lr=0.1, threshold=15.0),
        schedule=ScheduleConfig("plateau", 1.25, patience=1),
        trainer=TrainerConfig(max_epochs=2, radius_every=7),
        **changes,
    )


def rows(result: RunResult, name: str) -> list[dict[str, str]]:
    with (result.folder / name).open() as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, Any]:
    """What a run leaves, but for the seconds it took."""
    best = (folder / "checkpoint" / "best.safetensors").read_bytes()
    identity = yaml.safe_load((folder / "config.yaml").read_text())["identity"]
    tensors, progress = read_checkpoint(folder / "checkpoint" / "last.safetensors", identity)
    last = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | {"step": progress["step"]}
    return {name: (folder / name).read_bytes() for name in COMPARED} | {"best": best, "last": last}


def test_a_run_leaves_the_folder_that_the_design_promises(tmp_path: Path) -> None:
    (result,) = train([config(tmp_path)], quiet=True)
    assert not result.skipped
    assert {path.name for path in result.folder.iterdir()} >= {
        "config.yaml", "epochs.csv", "steps.csv", "timing.csv", "environment.json", "summary.json", "checkpoint",
    }  # fmt: skip
    assert result.folder.parent == tmp_path / "demo"
    assert result.folder.name.startswith("spectral_clipping,delta=1.05,lr=1,seed=0,")
    steps = rows(result, "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, 41))
    assert all((row["spectral_radius_l0"] != "") == (int(row["step"]) % 10 == 0) for row in steps)
    epochs = rows(result, "epochs.csv")
    assert [row["epoch"] for row in epochs] == ["0", "1"]
    assert result.summary["initial_valid_loss"] == float(epochs[0]["valid_loss"])
    assert result.summary["valid_loss"] == float(epochs[1]["valid_loss"])
    assert result.status == "success"


def test_spectral_clipping_holds_every_layer_below_its_limit_after_every_update(tmp_path: Path) -> None:
    (result,) = train([config(tmp_path)], quiet=True)
    steps = rows(result, "steps.csv")
    assert all(float(row["spectral_norm_l0"]) <= 0.95 * (1 + 1e-5) for row in steps)
    # An orthogonal start above the limit: all twelve values are clipped at once.
    assert int(steps[0]["values_clipped"]) == 12
    (result,) = train([config(tmp_path, model=ModelConfig(hidden_size=12, num_layers=2))], quiet=True)
    steps = rows(result, "steps.csv")
    assert all(float(row[f"spectral_norm_l{layer}"]) <= 0.95 * (1 + 1e-5) for row in steps for layer in (0, 1))
    assert int(steps[0]["values_clipped"]) == 24  # of both layers


def test_evaluation_of_a_finished_run_repeats_its_numbers(tmp_path: Path) -> None:
    (result,) = train([config(tmp_path)], quiet=True)
    assert evaluate_run(result.folder, "valid")["loss"] == result.summary["valid_loss"]
    test = evaluate_run(result.folder, "test")
    assert test["loss"] == result.summary["test_loss"]
    assert test["perplexity"] == math.exp(test["loss"])


def test_the_loaded_model_computes_the_loss_that_was_reported(tmp_path: Path) -> None:
    (result,) = train([config(tmp_path)], quiet=True)
    model, tokens = load_model(result.folder), load("pydoc").splits["valid"]
    lanes, length = 20, tokens.numel() // 20
    states, targets = [], []
    for lane in range(lanes):
        stop = tokens.numel() if lane == lanes - 1 else (lane + 1) * length
        text = tokens[lane * length : stop]
        with torch.no_grad():
            logits, _ = model(text[:-1].unsqueeze(1))
        states.append(logits.flatten(0, 1))
        targets.append(text[1:])
    loss = torch.nn.functional.cross_entropy(torch.cat(states), torch.cat(targets))
    assert loss.item() == pytest.approx(result.summary["valid_loss"], rel=1e-5)


def test_dropout_acts_in_a_loaded_model_s_training_mode_alone_where_it_did_in_training() -> None:
    """On the input of every layer and of the output layer."""
    model = RecurrentModel(ModelConfig(hidden_size=40, num_layers=2, dropout=0.25), 30, words=True)
    assert model.recurrent.dropout == 0.25  # between the layers
    shares: list[float] = []
    for part in (model.recurrent, model.output):
        part.register_forward_pre_hook(lambda _, given: shares.append((given[0] == 0).double().mean().item()))
    words = torch.randint(30, (50, 20), generator=torch.Generator().manual_seed(0))
    model(words)
    assert shares == pytest.approx([0.25, 0.25], abs=0.02)
    model.eval()(words)
    assert shares[2:] == [0.0, 0.0]


def test_a_finished_run_is_skipped_and_a_changed_setting_is_another_run(tmp_path: Path) -> None:
    first, second = config(tmp_path), config(tmp_path, seed=1)
    train([first], quiet=True)
    results = train([first, second], quiet=True)
    assert [result.skipped for result in results] == [True, False]
    assert results[0].folder != results[1].folder


def test_a_run_interrupted_between_iterations_continues_to_the_same_bits(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in (lambda path: config(path), lambda path: music(path, data_root)):
        (whole,) = train([made(tmp_path / "whole")], quiet=True)
        step, calls = Engine.step, []

        def interrupted_step(engine: Engine, *arguments: Any, step: Any = step, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) in (7, 33):
                os.kill(os.getpid(), signal.SIGINT)
            return step(engine, *arguments)

        monkeypatch.setattr(Engine, "step", interrupted_step)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train([made(tmp_path / "broken")], quiet=True)
        (continued,) = train([made(tmp_path / "broken")], quiet=True)
        monkeypatch.undo()
        assert content(continued.folder) == content(whole.folder)


def test_a_run_interrupted_in_its_very_last_iteration_is_still_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`max_steps` falls on the end of an epoch, before whose validation the checkpoint is written."""

    def two_epochs(path: Path) -> RunConfig:
        return config(path, trainer=TrainerConfig(max_epochs=None, max_steps=14, bptt=700, radius_every=10))

    (whole,) = train([two_epochs(tmp_path / "whole")], quiet=True)
    assert len(rows(whole, "epochs.csv")) == 3

    step, calls = Engine.step, itertools.count(1)

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train([two_epochs(tmp_path / "broken")], quiet=True)
    (continued,) = train([two_epochs(tmp_path / "broken")], quiet=True)
    assert content(continued.folder) == content(whole.folder)


@pytest.mark.parametrize("at_epochs", [True, False])
def test_a_run_that_is_killed_continues_from_its_last_checkpoint_to_the_same_bits(
    tmp_path: Path, data_root: Path, at_epochs: bool
) -> None:
    """With a checkpoint at the end of each epoch, and with none so far, as on a GPU whose epochs take a second."""
    (whole,) = train([music(tmp_path / "whole", data_root)], quiet=True)
    broken = music(tmp_path / "broken", data_root)
    code = (
        "import os, gruclip.training.stack as t\nfrom pathlib import Path\n"
        "from gruclip import train\nfrom test_train import music\n"
        "from gruclip.training.active_run import ActiveRun\n"
        f"ActiveRun.epoch_checkpoint_due = lambda run: {at_epochs}\n"
        "real, calls = t.Engine.step, []\n"
        "def step(*a):\n    calls.append(1)\n    if len(calls) == 33: os._exit(9)\n    return real(*a)\n"
        "t.Engine.step = step\n"
        f"train([music(Path({str(tmp_path / 'broken')!r}), Path({str(data_root)!r}))], quiet=True)\n"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": HERE}
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, **threads}, check=False)
    assert killed.returncode == 9
    assert [path.name for path in (tmp_path / "broken").rglob("last.safetensors")] == ["last.safetensors"] * at_epochs
    (continued,) = train([broken], quiet=True)
    assert content(continued.folder) == content(whole.folder)


def test_five_runs_in_a_stack_leave_the_bits_that_each_leaves_alone(tmp_path: Path) -> None:
    def five(path: Path) -> list[RunConfig]:
        optimizers = [
            OptimizerConfig("spectral_clipping", lr=1.0, delta=1.05),
            OptimizerConfig("spectral_clipping", lr=0.5, delta=0.4),
            OptimizerConfig("gradient_clipping", lr=1.0, threshold=2.0),
            OptimizerConfig("combined_clipping", lr=2.0, threshold=5.0, delta=0.2),
            OptimizerConfig("sgd", lr=0.1),
        ]
        return [config(path, optimizer=optimizer, seed=seed) for seed, optimizer in enumerate(optimizers)]

    together = train(five(tmp_path / "together"), stack=True, quiet=True)
    for index, result in enumerate(together):
        (alone,) = train([five(tmp_path / "alone")[index]], quiet=True)
        assert content(result.folder) == content(alone.folder)


def long_run(path: Path, seed: int, steps: int = 100) -> RunConfig:
    """Long enough to be interrupted."""
    return config(path, seed=seed, trainer=TrainerConfig(max_epochs=None, max_steps=steps, bptt=10))


def test_an_interrupted_stack_continues_to_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "from pathlib import Path\nfrom gruclip import train\nfrom test_train import long_run\n"
        "if __name__ == '__main__':\n"
        f"    train([long_run(Path({str(tmp_path / 'broken')!r}), seed) for seed in (0, 1)], stack=True, quiet=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": HERE}, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "broken").glob("*/*/environment.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert "Interrupted: stopped by signal 15" in process.communicate(timeout=60)[1]
    summaries = [path.read_text() for path in (tmp_path / "broken").glob("*/*/summary.json")]
    assert any("unfinished" in summary for summary in summaries)
    continued = train([long_run(tmp_path / "broken", seed) for seed in (0, 1)], quiet=True)
    whole = train([long_run(tmp_path / "whole", seed) for seed in (0, 1)], quiet=True)
    assert [content(run.folder) for run in continued] == [content(run.folder) for run in whole]


def test_a_stack_whose_parent_is_killed_ends_with_checkpoints_and_continues_to_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "from pathlib import Path\nfrom gruclip import train\nfrom test_train import long_run\n"
        "if __name__ == '__main__':\n"
        f"    train([long_run(Path({str(tmp_path / 'broken')!r}), seed) for seed in (0, 1)], stack=True, quiet=True)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": HERE})
    while process.poll() is None and not list((tmp_path / "broken").glob("*/*/environment.json")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    runs, deadline = [long_run(tmp_path / "broken", seed) for seed in (0, 1)], time.monotonic() + 60
    continued: list[RunResult] = []
    while not continued and time.monotonic() < deadline:
        # The workers may still write their checkpoints.
        with contextlib.suppress(UserError):
            continued = train(runs, quiet=True)
    whole = train([long_run(tmp_path / "whole", seed) for seed in (0, 1)], quiet=True)
    assert [content(run.folder) for run in continued] == [content(run.folder) for run in whole]


def test_a_bug_in_a_process_of_a_stack_is_shown_with_its_traceback() -> None:
    nothing: Any = SimpleNamespace(config=None, default=None)
    with Display(total=1, quiet=True) as display, pytest.raises(WorkerError, match=r"Traceback (.|\n)*NoneType"):
        train_in_processes([nothing], 1, display, Interrupts(), print)


def signal_a_worker(tmp_path: Path, number: int, all_of_them: bool = False) -> threading.Thread:
    """Send a signal to the worker of the stack that has begun the first run in `tmp_path`, or to all workers."""

    def kill() -> None:
        while not (begun := list(tmp_path.glob("*/*/environment.json"))):
            time.sleep(0.02)
        trains = json.loads((begun[0].parent / ".owner").read_text())["pid"]
        for worker in multiprocessing.active_children():
            if worker.pid is not None and (all_of_them or worker.pid == trains):
                os.kill(worker.pid, number)

    killer = threading.Thread(target=kill)
    killer.start()
    return killer


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_run_of_a_worker_that_is_ended_from_outside_is_continued_by_another(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killer = signal_a_worker(tmp_path / "broken", number)
    results = train([long_run(tmp_path / "broken", seed, 300) for seed in (0, 1)], stack=True, stack_size=2)
    killer.join()
    assert "a process of the stack was ended from outside" in capsys.readouterr().err
    whole = train([long_run(tmp_path / "whole", seed, 300) for seed in (0, 1)], quiet=True)
    assert [content(run.folder) for run in results] == [content(run.folder) for run in whole]


def test_where_no_worker_is_left_that_is_said(tmp_path: Path) -> None:
    killer = signal_a_worker(tmp_path, signal.SIGKILL, all_of_them=True)
    with pytest.raises(UserError, match=r"ended from outside \(exit code -9\).*smaller hydra.launcher.stack_size"):
        train([long_run(tmp_path, seed, 300) for seed in (0, 1)], stack=True, stack_size=2, quiet=True)
    killer.join()


def test_a_run_that_its_worker_leaves_while_the_last_other_one_ends_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is killed when the other one has been told that there is nothing left, and ends of itself."""
    codes = iter([-9, 0])

    def start(*_: Any) -> Any:
        ours, theirs = multiprocessing.Pipe()
        theirs.send((workers.READY, False))
        theirs.close()
        process: Any = SimpleNamespace(join=lambda: None, exitcode=next(codes))
        return workers._Worker(process, ours)

    monkeypatch.setattr(workers._Pool, "_start", start)
    nothing: Any = SimpleNamespace(config=None, default=None)
    with (
        Display(total=1, quiet=True) as display,
        pytest.raises(UserError, match=r"ended from outside \(exit code -9\).*and none is left"),
    ):
        train_in_processes([nothing], 2, display, Interrupts(), print)


def test_no_process_is_started_to_see_that_a_run_is_still_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [config(tmp_path, seed=seed) for seed in (0, 1)]
    others = [Job(run, RunConfig()) for run in runs]
    for job in others:
        job.folder.lock()
    waits, starts = itertools.count(), []
    real = workers.train_in_processes
    monkeypatch.setattr(runner, "train_in_processes", lambda *given: (starts.append(1), real(*given))[1])

    def wait(interrupted: Interrupts, seconds: float) -> bool:
        if next(waits) == 10:
            for job in others:
                job.folder.close()
        return False

    monkeypatch.setattr(Interrupts, "wait", wait)
    assert len(train(runs, stack=True, stack_size=2, quiet=True)) == 2
    assert (len(starts), next(waits) > 10) == (2, True)


def test_a_script_without_a_main_guard_is_told_to_have_one(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from pathlib import Path\nfrom gruclip import train\nfrom test_train import config\n"
        f"train([config(Path({str(tmp_path)!r}), seed=seed) for seed in (0, 1)], stack=True, stack_size=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": HERE}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert 'needs `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_what_a_process_of_a_stack_refuses_is_refused_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The corpus disappears between the check and the workers' start.
    runs = [config(tmp_path, seed=seed) for seed in range(2)]
    monkeypatch.setattr("gruclip.training.runner.train_in_processes", _without_data)
    monkeypatch.setattr("gruclip.training.capacity.cores", lambda: 2)  # wherever this runs
    with pytest.raises(UserError, match=r"^dataset\.root=/nowhere: no such folder"):
        train(runs, stack=True, quiet=True)


def test_a_stack_size_for_runs_that_take_all_cores_is_noted_to_be_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("gruclip.model.device", "gruclip.training.runner"):
        monkeypatch.setattr(f"{module}.SMALL_MODEL", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(runner, "train_in_processes", None)  # of one thread each, which could change their bits
    trainer = TrainerConfig(max_epochs=None, max_steps=1, bptt=10)
    train([config(tmp_path, seed=seed, trainer=trainer) for seed in range(2)], stack=True, stack_size=2)
    assert "hydra.launcher.stack_size=2: on a CPU runs of more than 8 units take all cores" in capsys.readouterr().err


def test_a_run_continued_with_other_kernels_keeps_the_record_of_those_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted_step(engine: Engine, *arguments: Any, step: Any = Engine.step) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(engine, *arguments)

    for kernels in ("one", "two", "two"):
        described = describe_environment(torch.device("cpu")) | {"kernels": kernels}
        monkeypatch.setattr(
            "gruclip.training.active_run.describe_environment", lambda device, described=described: described
        )
        monkeypatch.setattr(Engine, "step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            train([config(tmp_path)])
    monkeypatch.undo()
    (path,) = tmp_path.glob("*/*/environment.json")
    record = json.loads(path.read_text())
    assert (record["kernels"], [before["kernels"] for before in record["before"]]) == ("two", ["one"])
    assert capsys.readouterr().err.count("not all of it with one machine, revision, kernels") == 2


def _without_data(jobs: Any, count: int, display: Any, interrupted: Any, refuse: Any) -> Any:
    ptb: list[Any] = [
        SimpleNamespace(config=dataclasses.replace(job.config, dataset=DatasetConfig("ptb", "/nowhere")), default=None)
        for job in jobs
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRUCLIP_DATA", "/nowhere")
        patch.setenv("XDG_CACHE_HOME", str(Path(jobs[0].config.output_dir) / "cache"))
        return train_in_processes(ptb, count, display, interrupted, refuse)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("words", [True, False])
def test_a_batched_stack_agrees_with_each_run_alone_in_float64_over_50_iterations(
    tmp_path: Path, data_root: Path, words: bool, cell: str
) -> None:
    made = config(tmp_path) if words else music(tmp_path, data_root)
    made = dataclasses.replace(made, precision="fp64", model=dataclasses.replace(made.model, cell=cell))
    optimizers = [
        OptimizerConfig("gradient_clipping", lr=0.1, threshold=2.0),
        OptimizerConfig("spectral_clipping", lr=0.2, delta=1.05 * CELLS[cell].bias_free_limit / 2),
        OptimizerConfig("combined_clipping", lr=0.1, threshold=5.0, delta=0.4),
    ]
    runs = [dataclasses.replace(made, seed=seed, optimizer=o) for seed, o in enumerate(optimizers)]
    corpus = load(made.dataset.name, made.dataset.root)
    stack, alone = Engine(runs, corpus, torch.device("cpu")), [Engine([r], corpus, torch.device("cpu")) for r in runs]
    steps = 50 if cell == "gru" else 20  # of the paper's cell as many as the name says
    iterations = stack.begin_epoch([1, 1, 1])
    for engine in alone:
        engine.begin_epoch([1])
    for iteration in range(steps):
        last = iteration == steps - 1
        together = stack.step(iteration % iterations, with_radius=last)
        singles = [engine.step(iteration % iterations, with_radius=last) for engine in alone]
        for name in ("loss", "grad_norm"):
            expected = torch.cat([getattr(single, name) for single in singles])
            torch.testing.assert_close(getattr(together, name), expected, rtol=1e-9, atol=0)
    together_valid = stack.evaluate("valid")
    for index, engine in enumerate(alone):
        assert together_valid[index] == pytest.approx(engine.evaluate("valid")[0], rel=1e-9)
        found = stack.run_state(index)
        for name, tensor in engine.run_state(0).items():
            if name.startswith(("parameters/", "hidden/")):
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)


def test_the_slots_of_runs_that_ended_are_filled_by_runs_that_wait(tmp_path: Path, data_root: Path) -> None:
    # What a GPU does, here in float64 on the CPU: two slots; runs of 1, 3, 2, 1 epochs and one that diverges.
    def five(path: Path) -> list[RunConfig]:
        trainers = [TrainerConfig(max_epochs=epochs, radius_every=7) for epochs in (1, 3, 2, 1, 3)]
        made = [
            dataclasses.replace(music(path, data_root), precision="fp64", seed=seed, trainer=trainer)
            for seed, trainer in enumerate(trainers)
        ]
        return [*made[:4], dataclasses.replace(made[4], optimizer=OptimizerConfig("sgd", lr=1e300))]

    jobs = [Job(run, RunConfig()) for run in five(tmp_path / "together")]
    with Display(total=5, quiet=True) as display:
        train_stack(jobs, 2, display, Interrupts(), print)
    alone = train(five(tmp_path / "alone"), quiet=True)
    assert [result.status for result in alone] == ["success"] * 4 + ["diverged"]
    for job, expected in zip(jobs, alone, strict=True):
        found = RunResult(job.folder.path, expected.status, False, job.folder.summary() or {})
        assert found.summary["status"] == expected.status
        for name in ("steps.csv", "epochs.csv"):
            pairs = list(zip(rows(found, name), rows(expected, name), strict=True))
            for one, other in pairs:
                assert one.keys() == other.keys()
                for key, value in other.items():
                    assert (one[key] == "") == (value == "")
                    if value:
                        assert float(one[key]) == pytest.approx(float(value), rel=1e-6, nan_ok=True)
        assert {row["stack_size"] for row in rows(found, "timing.csv")} <= {"1", "2"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_run_in_the_middle_of_an_epoch_shares_no_batched_stack_with_one_at_its_beginning(
    order: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TrainerConfig(max_epochs=None, max_steps=20, bptt=10, checkpoint_minutes=1e-9)
    runs = [config(tmp_path / "both", seed=seed, precision="fp64", trainer=trainer) for seed in (0, 1)]
    steps = itertools.count()

    def step(engine: Engine, *arguments: Any, step: Any = Engine.step) -> Any:
        if next(steps) == 7:
            raise Interrupted(15)
        return step(engine, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(Interrupted):
            train(runs[1:], quiet=True)
    train([runs[seed] for seed in order], stack=True, batched=True, quiet=True)
    alone = train([dataclasses.replace(run, output_dir=str(tmp_path / "alone")) for run in runs], quiet=True)
    for run, expected in zip(train(runs, quiet=True), alone, strict=True):
        losses = [[float(row["loss"]) for row in rows(result, "steps.csv")] for result in (run, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_run_whose_loss_is_not_finite_is_recorded_as_diverged_and_its_neighbours_go_on(tmp_path: Path) -> None:
    wild = config(tmp_path, optimizer=OptimizerConfig("sgd", lr=1e38))
    diverged, neighbour = train([wild, config(tmp_path)], quiet=True)
    assert diverged.status == "diverged"
    last = rows(diverged, "steps.csv")[-1]
    assert not math.isfinite(float(last["loss"]))
    assert int(last["step"]) < 40
    assert neighbour.status == "success"


def test_a_run_that_overflows_in_a_batched_stack_leaves_its_neighbour_clipped(tmp_path: Path) -> None:
    runs = [config(tmp_path, optimizer=OptimizerConfig("sgd", lr=1e38)), config(tmp_path)]
    engine = Engine(runs, load("pydoc"), torch.device("cpu"))
    engine.begin_epoch([1, 1])
    for iteration in range(6):
        metrics = engine.step(iteration, with_radius=iteration == 5)
        assert metrics.spectral_norm[0, 1].item() <= 0.95 * (1 + 1e-5)
    assert not math.isfinite(metrics.loss[0].item())
    assert math.isfinite(metrics.loss[1].item())
    assert torch.linalg.matrix_norm(engine.recurrent_blocks()[0][1], 2).item() <= 0.95 * (1 + 1e-5)


def test_a_run_whose_validation_loss_rises_above_its_start_is_failed(tmp_path: Path) -> None:
    (result,) = train([config(tmp_path, optimizer=OptimizerConfig("sgd", lr=300.0))], quiet=True)
    assert result.status in ("failed", "diverged")
    assert result.summary["valid_loss"] is None or result.summary["valid_loss"] > result.summary["initial_valid_loss"]


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    made = config(tmp_path)
    errors: list[BaseException] = []
    job = Job(made, RunConfig())
    job.folder.lock()
    try:
        train([made], quiet=True)
    except UserError as error:
        errors.append(error)
    finally:
        job.folder.close()
    assert "another process" in str(errors[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": "cuda"}, "device=cuda"),
        ({"precision": "tf32"}, "precision=tf32"),
        ({"trainer": TrainerConfig(bptt=100_000)}, "trainer.bptt=100000"),
        ({"dataset": DatasetConfig("wikitext")}, "dataset.name=wikitext"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        changes = {"precision": "fp8"}
        named = "precision=fp8"
    with pytest.raises(ConfigError, match=named):
        train([config(tmp_path), config(tmp_path, **changes)], quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match="not a folder that can be written to"):
        train([config(blocked)], quiet=True)


def test_a_folder_of_another_configuration_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (result,) = train([config(tmp_path)], quiet=True)
    path = result.folder / "config.yaml"
    other, checksum = config(tmp_path, seed=1), read_config(result.folder)[1]["data_sha256"]
    record = {**other.to_dict(), "identity": other.identity(checksum), "data_sha256": checksum}
    path.write_text(yaml.safe_dump(record))
    before = path.read_text()
    with pytest.raises(UserError, match="belongs to another configuration"):
        train([config(tmp_path)], quiet=True)
    assert path.read_text() == before


def test_train_works_in_a_thread_where_signals_cannot_be_handled(tmp_path: Path) -> None:
    results: list[RunResult] = []
    made = config(tmp_path, trainer=TrainerConfig(max_epochs=None, max_steps=2, bptt=5))
    thread = threading.Thread(target=lambda: results.extend(train([made], quiet=True)))
    thread.start()
    thread.join()
    assert results[0].status in ("success", "failed")


def test_a_checkpoint_at_a_time_interval_does_not_change_a_bit(tmp_path: Path) -> None:
    (plain,) = train([config(tmp_path / "a")], quiet=True)
    often = dataclasses.replace(config(tmp_path).trainer, checkpoint_minutes=1e-9)
    (checkpointed,) = train([config(tmp_path / "b", trainer=often)], quiet=True)
    assert content(plain.folder) == content(checkpointed.folder)


def test_a_projection_that_does_not_hold_its_limit_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Any, weight: torch.Tensor, state: Any) -> ClipResult:
        norms = torch.linalg.matrix_norm(weight.double(), 2)
        true = torch.ones(len(weight), dtype=torch.bool)
        return ClipResult(true.long(), norms.clamp(max=0.95), true, true, ~true)

    monkeypatch.setattr("gruclip.training.projections.Projections._clip_or_measure", nothing)
    with pytest.raises(ProjectionError, match=r"sigma_1 is .* after clipping at 0\.95 by auto"):
        train([config(tmp_path)], quiet=True)


def test_an_evaluation_that_leaves_out_a_target_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gruclip.model.evaluation.EVALUATION_STEPS", 7)  # so that there are several windows
    real = Lanes.window

    def shorter(lanes: Lanes, start: int, length: int, axis: int = 0) -> Lanes:
        return real(lanes, start, min(length, 6), axis)

    monkeypatch.setattr(Lanes, "window", shorter)
    with pytest.raises(RuntimeError, match="which are not the split's"):
        train([config(tmp_path)], quiet=True)


def test_a_stack_that_runs_out_of_memory_goes_on_with_half_as_many_runs_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batched stack, as on a GPU: an iteration of more than one run finds no memory in the second epoch."""

    def step(engine: Engine, iteration: int, *arguments: Any, step: Any = Engine.step) -> Any:
        if len(engine.configs) > 1 and iteration == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(engine, iteration, *arguments)

    monkeypatch.setattr(Engine, "step", step)
    jobs = [Job(config(tmp_path / "broken", seed=seed), RunConfig()) for seed in (0, 1)]
    with Display(total=2) as display:
        train_stack(jobs, 2, display, Interrupts(), print)
    assert "out of memory with 2 runs side by side: going on with 1" in capsys.readouterr().err
    whole = train([config(tmp_path / "whole", seed=seed) for seed in (0, 1)], quiet=True)
    assert [content(job.folder.path) for job in jobs] == [content(run.folder) for run in whole]


@pytest.mark.parametrize(
    ("owner", "name", "failing"),
    [(active_run, "evaluate_weights", 1), (Engine, "run_state", 6), (active_run, "describe_environment", 4)],
    ids=["as one ends", "as it makes room", "as another joins"],
)
def test_a_stack_that_runs_out_of_memory_between_epochs_loses_no_run(
    owner: Any, name: str, failing: int, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three places; the first run ends after one epoch, so that the fourth joins two others."""
    real, calls = getattr(owner, name), itertools.count(1)

    def fails(*arguments: Any) -> Any:
        if next(calls) == failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails)
    runs = [
        dataclasses.replace(music(tmp_path, data_root), seed=seed, trainer=TrainerConfig(max_epochs=epochs))
        for seed, epochs in enumerate((1, 2, 2, 1))
    ]
    results = train(runs, stack=True, stack_size=3, batched=True, quiet=True)
    assert [result.summary["epochs"] for result in results] == [1, 2, 2, 1]
    assert {result.status for result in results} <= {"success", "failed"}
    assert not list(tmp_path.rglob(".owner"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch on a GPU", "Python", "torch on a CPU", "driver", "cuBLAS"],
)
def test_a_run_that_finds_no_memory_alone_is_told_so(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(UserError, match=r"out of memory; take a smaller model\.hidden_size"):
        train([config(tmp_path)], quiet=True)


def test_two_overlapping_sweeps_train_every_run_once(tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text(
        "from pathlib import Path\nfrom gruclip import train\nfrom test_train import long_run\n"
        f"train([long_run(Path({str(tmp_path / 'shared')!r}), seed) for seed in (0, 1, 2)], quiet=True)\n"
    )
    other = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": HERE})
    while other.poll() is None and not list((tmp_path / "shared").glob("*/*/environment.json")):
        time.sleep(0.02)
    runs = train([long_run(tmp_path / "shared", seed) for seed in (2, 1, 0)], quiet=True)
    assert other.wait(timeout=60) == 0
    whole = train([long_run(tmp_path / "whole", seed) for seed in (2, 1, 0)], quiet=True)
    assert [content(run.folder) for run in runs] == [content(run.folder) for run in whole]
