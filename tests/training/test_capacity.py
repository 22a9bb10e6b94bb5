"""A stack is sized to the memory that is there, and one that does not fit is refused with the size that would."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gruclip.config import ModelConfig, RunConfig
from gruclip.errors import ConfigError, UserError
from gruclip.training import capacity
from gruclip.training.capacity import free_bytes, stack_size
from gruclip.training.runner import train

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB free, 64 cores."""
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 10 << 30)
    monkeypatch.setattr(capacity, "cores", lambda: 64)


def test_as_many_runs_as_fit_but_no_more_than_there_are(machine: None) -> None:
    cuda = torch.device("cuda")
    assert stack_size([1 << 30] * 20, cuda, None) == 9  # nine tenths of 10 GiB
    assert stack_size([1 << 30] * 3, cuda, None) == 3
    assert stack_size([1 << 30, 3 << 30], cuda, None) == 2
    assert stack_size([3 << 30] * 20, cuda, None) == 3
    assert stack_size([1 << 30] * 20, cuda, 9) == 9  # all that fit, asked for
    # On a CPU each is a process, which takes memory of its own.
    assert stack_size([1 << 30] * 20, CPU, None) == (9 << 30) // ((1 << 30) + capacity.PROCESS_BYTES)
    assert stack_size([9 << 30], CPU, None) == 1  # but one alone is trained in this one


def test_no_more_processes_than_cores_unless_asked_for(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "cores", lambda: 2)
    assert stack_size([1 << 20] * 20, CPU, None) == 2
    assert stack_size([1 << 20] * 20, CPU, 5) == 5


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 6})
    assert capacity.cores() == 3


def test_a_stack_that_does_not_fit_names_the_size_that_would(machine: None) -> None:
    with pytest.raises(
        UserError, match=r"stack_size=12: needs 12.0 GiB, and of .* cuda 9.0 GiB are free.*at most 9 fit"
    ):
        stack_size([1 << 30] * 20, torch.device("cuda"), 12)
    with pytest.raises(UserError, match=r"a run on cuda: needs 20.0 GiB.*take a smaller model.hidden_size"):
        stack_size([20 << 30] * 2, torch.device("cuda"), None)


def test_train_refuses_it_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(model=ModelConfig(hidden_size=4), output_dir=str(tmp_path / "outputs"), device="cpu")
    runs = [dataclasses.replace(run, seed=seed) for seed in range(3)]
    for wrong in (0, True, 1.5, "two"):
        with pytest.raises(
            ConfigError, match=f"hydra.launcher.stack_size={wrong}: should be a whole number of at least 1"
        ):
            train(runs, stack=True, stack_size=wrong, quiet=True)  # type: ignore[arg-type]
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(UserError, match=r"hydra.launcher.stack_size=3: needs .*at most 1 fit"):
        train(runs, stack=True, stack_size=3, quiet=True)
    # A run alone is asked for its memory, too.
    large = dataclasses.replace(runs[0], model=ModelConfig(hidden_size=50_000))
    for stack in (False, True):
        with pytest.raises(UserError, match=r"a run on cpu: needs .* take a smaller model.hidden_size"):
            train([large], stack=stack, stack_size=1 if stack else None, quiet=True)
    assert not (tmp_path / "outputs").exists()


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_bytes(CPU) <= total


def test_what_is_free_in_a_job_is_what_its_groups_leave_and_cached_files_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a job of SLURM, whose limit is that of a group above its processes', and in a container."""
    monkeypatch.setattr(capacity, "GROUPS", tmp_path)
    monkeypatch.setattr(capacity, "CGROUP", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("1:name=systemd:/elsewhere\n0::/job_5/step_0\n")

    def group(path: str, most: str, used: int, cached: int) -> None:
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached - 1}\nactive_file 1\n")

    group("job_5/step_0", "max", 100 << 20, 10)
    group("job_5", str(128 << 20), 120 << 20, 20 << 20)
    assert free_bytes(CPU) == 28 << 20
    group("job_5/step_0", str(64 << 20), 60 << 20, 1 << 20)
    assert free_bytes(CPU) == 5 << 20


MEASURE = """
import sys, torch
from pathlib import Path
from gruclip.bench.step import random_words
from gruclip.training.capacity import run_bytes
from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.training.engine import Engine
words, n, layers, algorithm = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
run = RunConfig(
    model=ModelConfig(hidden_size=n, num_layers=layers),
    optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=1.4, algorithm=algorithm),
    trainer=TrainerConfig(bptt=35, batch_size=20),
)
corpus = random_words(35, 20, words)
# Of this program alone: getrusage counts what the process was before it.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
torch.randn(64, 64) @ torch.randn(64, 64)
before = peak()
engine = Engine([run], corpus, torch.device("cpu"))
engine.begin_epoch([1])
for iteration in range(2):
    engine.step(iteration, True)
engine.evaluate("valid")
engine.run_state(0)
print(peak() - before, run_bytes(run, words))
"""


@pytest.mark.parametrize(("words", "n", "layers"), [(10_000, 200, 1), (88, 300, 2), (4000, 500, 1)])
def test_the_estimate_is_no_less_than_what_a_run_takes_and_not_three_times_as_much(
    words: int, n: int, layers: int
) -> None:
    command = [sys.executable, "-c", MEASURE, str(words), str(n), str(layers), "auto"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, reckoned = map(int, done.stdout.split())
    # The libraries' own buffers belong to the process: 7 to 34 MiB, from one time to the next.
    assert reckoned / 3 <= taken <= reckoned + (48 << 20)


def test_the_program_alone_takes_no_more_than_is_reckoned() -> None:
    code = "import gruclip.training.runner; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    taken = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) * 1024
    assert taken <= capacity.PROCESS_BYTES
