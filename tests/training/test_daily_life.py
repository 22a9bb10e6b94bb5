"""What happens to runs: settings written as ints, readers that leave, signals at the end, one run damaged."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gruclip import compose, load
from gruclip.cli import commands, main
from gruclip.cli.training import planned_runs
from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.errors import ConfigError, Interrupted, UserError
from gruclip.runs.ownership import LockedError
from gruclip.runs.verify import faults
from gruclip.training import active_run
from gruclip.training.display import Display
from gruclip.training.engine import Engine
from gruclip.training.interrupts import held_back
from gruclip.training.jobs import Job
from gruclip.training.runner import train
from hydra_plugins.gruclip.settings import check_typed

TYPED = ["model.hidden_size=8", "trainer.max_steps=4", "trainer.max_epochs=1"]


def config(path: Path, seed: int = 0, **changes: Any) -> RunConfig:
    base = RunConfig(
        model=ModelConfig(hidden_size=8),
        trainer=TrainerConfig(max_epochs=1, max_steps=4),
        output_dir=str(path),
        device="cpu",
        seed=seed,
    )
    return dataclasses.replace(base, **changes)


# -- from Python ------------------------------------------------------------------------------------------


def test_a_run_written_with_ints_numpy_numbers_and_paths_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    run = config(
        tmp_path,
        seed=np.int64(3),
        output_dir=tmp_path,
        optimizer=OptimizerConfig("combined_clipping", lr=1, threshold=5, delta=np.float64(0.5)),
        trainer=TrainerConfig(max_epochs=1, max_steps=4.0, checkpoint_minutes=10),
    )
    [result] = train([run], quiet=True)
    assert [again.skipped for again in train([run], quiet=True)] == [True]
    assert list(faults(result.folder)) == []
    assert sum(parameter.numel() for parameter in load(result.folder).parameters()) > 0
    typed = ["optimizer=combined_clipping", "optimizer.threshold=5", "optimizer.delta=0.5", "seed=3"]
    assert main(["train", *TYPED, *typed, f"output_dir={tmp_path}"]) == 0
    assert len(list(tmp_path.glob("demo/*"))) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": True}, "seed=True: should be a whole number"),
        ({"seed": None}, "seed=None: should be a whole number"),
        ({"seed": "3"}, "seed=3: should be a whole number"),
        ({"seed": 10**400}, "should be a whole number from 0"),
        ({"logger": 3}, "logger=3: should be a list of words"),
        ({"logger": "cvs"}, "logger=cvs: should be one of"),
        ({"model": ModelConfig(hidden_size=8.5)}, r"model.hidden_size=8.5: should be a whole number"),
        ({"trainer": TrainerConfig(max_steps=2.5)}, r"trainer.max_steps=2.5: should be a whole number"),
        ({"optimizer": OptimizerConfig(lr=None, delta=0.5)}, "optimizer.lr=None: should be a number"),
        ({"optimizer": OptimizerConfig(lr=10**400, delta=0.5)}, "optimizer.lr=1000.*should be a number below 1e308"),
        ({"optimizer": {"delta": 5.0}}, "optimizer.delta=5.0: should be inside"),
        ({"optimizer": 3}, "optimizer=3: should be a group of settings"),
    ],
)
def test_a_value_of_another_kind_is_refused_and_nothing_is_written(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        train([config(tmp_path, **changes)], quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_beyond_float32_diverges_and_is_recorded(tmp_path: Path) -> None:
    run = config(tmp_path, optimizer=OptimizerConfig("sgd", lr=1e39))
    assert [result.status for result in train([run], quiet=True)] == ["diverged"]


def test_the_length_told_is_what_the_epochs_allow() -> None:
    trainer = TrainerConfig(max_epochs=2, max_steps=500)
    assert RunConfig(trainer=trainer).total_steps(100) == 200
    assert RunConfig(trainer=trainer).total_steps(1000) == 500


# -- who looks on -----------------------------------------------------------------------------------------


class Gone(io.StringIO):
    """A terminal or a pipe whose other end is closed."""

    error: type[BaseException] = BrokenPipeError

    def write(self, text: str) -> int:
        raise self.error(5, "gone")

    def flush(self) -> None:
        self.write("")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
@pytest.mark.parametrize("writes", [0, 1, 3, 10])
def test_a_run_goes_on_when_nobody_reads_what_it_shows(
    writes: int, error: type[BaseException], terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class File(Gone):
        left = writes

        def write(self, text: str) -> int:
            self.left -= 1
            return len(text) if self.left >= 0 else super().write(text)

    File.error = error
    shown = Display(1, console=Console(file=File(), force_terminal=terminal))
    monkeypatch.setattr("gruclip.training.runner.Display", lambda *_, **__: shown)
    # Whose descriptor rich makes that of /dev/null where a pipe is broken: pytest's own would be of no use to it then.
    with (tmp_path / "stdout").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert [result.status for result in train([config(tmp_path)])] == ["success"]
        assert sys.stdout is stdout  # which rich's live display replaces
        monkeypatch.undo()


def test_a_command_whose_pipe_is_closed_trains_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gruclip", "train", "-m", "seed=0,1", *TYPED, f"output_dir={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stderr is not None
        process.stderr.read(1)
        process.stderr.close()
        process.wait(120)
    assert len(list(tmp_path.glob("demo/*/SHA256SUMS"))) == 2


# -- when it is stopped -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_run_is_evaluated_for_the_last_time_stops_the_sweep(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = active_run.evaluate_weights

    def interrupted(*arguments: Any) -> float:
        os.kill(os.getpid(), number)
        return evaluate(*arguments)

    monkeypatch.setattr(active_run, "evaluate_weights", interrupted)
    with pytest.raises(Interrupted):
        train([config(tmp_path, seed) for seed in range(3)], quiet=True)
    assert len(list(tmp_path.glob("demo/*/SHA256SUMS"))) == 1
    assert len(list(tmp_path.glob("demo/*/config.yaml"))) == 1


def test_a_signal_in_the_last_evaluation_of_a_single_run_is_told_and_the_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = active_run.evaluate_weights
    monkeypatch.setattr(
        active_run, "evaluate_weights", lambda *given: (os.kill(os.getpid(), signal.SIGINT), evaluate(*given))[1]
    )
    assert main(["train", *TYPED, f"output_dir={tmp_path}"]) == 130
    assert [result.skipped for result in train([config(tmp_path)], quiet=True)] == [True]


# -- one among many ---------------------------------------------------------------------------------------


def interrupted_runs(path: Path, seeds: range, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs that have a checkpoint after two iterations."""
    step, steps = Engine.step, iter(range(10**6))

    def stop(engine: Engine, *arguments: Any) -> Any:
        if next(steps) % 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(engine, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stop)
        for seed in seeds:
            with pytest.raises(Interrupted):
                train([config(path, seed)], quiet=True)
    return sorted(path.glob("demo/*"))


HOW: dict[str, dict[str, bool]] = {
    "alone": {},
    "in processes": {"stack": True},
    "as one program": {"stack": True, "batched": True},
}


@pytest.mark.parametrize("how", HOW)
def test_damaged_runs_are_all_told_of_and_a_locked_one_is_waited_for(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = interrupted_runs(tmp_path, range(2), monkeypatch)
    for checkpoint in tmp_path.glob("demo/*/checkpoint/last*"):
        checkpoint.write_bytes(b"")
    locked = Job(config(tmp_path, 2), RunConfig())
    locked.folder.lock()
    thread = threading.Timer(2.0, locked.folder.close)
    thread.start()
    # Of two processes either may come first.
    with pytest.raises(UserError, match=rf"^2 runs are not trained; the first one: ({folders[0]}|{folders[1]})/"):
        train([config(tmp_path, seed) for seed in range(4)], **HOW[how])
    thread.join()
    told = capsys.readouterr().err
    assert [told.count(f"{folder}/checkpoint/last.safetensors: ") for folder in folders] == [1, 1], told
    finished = [bool(list(folder.glob("SHA256SUMS"))) for folder in sorted(tmp_path.glob("demo/*"))]
    assert finished == [False, False, True, True]


@pytest.mark.parametrize("how", HOW)
def test_one_damaged_run_keeps_no_other_from_being_trained(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = interrupted_runs(tmp_path, range(2), monkeypatch)
    for checkpoint in folders[0].glob("checkpoint/last*"):
        checkpoint.write_bytes(b"")
    with pytest.raises(UserError, match=f"^{folders[0]}"):
        train([config(tmp_path, seed) for seed in range(4)], quiet=True, **HOW[how])
    assert [bool(list(folder.glob("SHA256SUMS"))) for folder in sorted(tmp_path.glob("demo/*"))] == [False] + 3 * [True]


def test_a_sweep_waits_for_the_run_that_another_process_trains(tmp_path: Path) -> None:
    job = Job(config(tmp_path), RunConfig())
    job.folder.lock()
    others_done = threading.Event()

    def other() -> None:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("demo/*seed=1*/SHA256SUMS")) and time.monotonic() < end:
            time.sleep(0.05)
        others_done.set()
        job.folder.close()

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(LockedError):
        train([config(tmp_path)], quiet=True)  # by itself it is refused
    code = main(["train", "-m", "seed=0,1", *TYPED, f"output_dir={tmp_path}", "device=cpu"])
    thread.join()
    assert (code, others_done.is_set()) == (0, True)
    assert len(list(tmp_path.glob("demo/*/SHA256SUMS"))) == 2


def test_options_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", TYPED[0], "-m", "seed=0,1", *TYPED[1:], f"output_dir={tmp_path}"]) == 0
    assert len(list(tmp_path.glob("demo/*"))) == 2
    capsys.readouterr()
    for asked in (["--cfg", "job"], ["--cfg=job"]):
        assert main(["train", "seed=5", *asked, "model.hidden_size=9"]) == 0
        shown = capsys.readouterr().out
        assert "seed: 5" in shown
        assert "hidden_size: 9" in shown
    assert main(["train", "seed=5", "--info"]) == 0


SWEEPS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "sweep").glob("*.yaml"))
EXPERIMENTS, BUDGETS = ("demo", "ptb", "nottingham"), ("full", "short", "smoke")
#: Each two of an experiment, a sweep and a budget, once at least.
PAIRED = [(one, two, BUDGETS[(i + j) % 3]) for i, one in enumerate(EXPERIMENTS) for j, two in enumerate(SWEEPS)]


@pytest.mark.parametrize(("experiment", "sweep", "budget"), PAIRED)
def test_every_sweep_of_the_repository_can_be_trained_at_every_budget(experiment: str, sweep: str, budget: str) -> None:
    typed = [f"experiment={experiment}", f"sweep={sweep}", f"trainer.budget={budget}"]
    runs = planned_runs(typed)
    check_typed(runs, typed)
    assert runs


def test_an_interrupt_during_imports_acts_when_they_are_done() -> None:
    done = []

    def imports() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        imports()
    assert done


def test_a_signal_that_comes_as_the_wait_for_it_begins_or_ends_ends_it() -> None:
    code = """if True:
        import random, signal
        from gruclip.training.interrupts import deferred_interrupts
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        for _ in range(500):
            with deferred_interrupts() as interrupted:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
                while not interrupted.wait(1e-6):
                    pass
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_runs_are_composed_by_several_threads_at_once() -> None:
    with ThreadPoolExecutor(6) as pool:
        seeds = [run.seed for runs in pool.map(lambda seed: compose(f"seed={seed}"), range(12)) for run in runs]
    assert seeds == list(range(12))


def test_a_sweep_whose_runs_are_all_finished_writes_nothing(tmp_path: Path) -> None:
    sweep = ["train", "-m", "seed=0,1", *TYPED, f"output_dir={tmp_path / 'o'}"]
    assert main(sweep) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(sweep) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_page_is_written_whole_where_a_link_leads_and_into_a_device_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    link.symlink_to(page)
    commands._write(link, "old")
    assert (link.is_symlink(), page.read_text()) == (True, "old")
    commands._write(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()
    monkeypatch.setattr("gruclip.runs.files.sync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        commands._write(link, "new")
    assert page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html"]
