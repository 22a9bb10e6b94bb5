"""A sweep in submitted jobs: which runs make a job, what is refused, and what becomes of a preempted job.

SLURM itself is in ``scripts/slurm-check``; here submitit's local executor starts the same jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gruclip import compose, train
from gruclip.cli import main
from gruclip.config import ModelConfig, OptimizerConfig, RunConfig
from gruclip.errors import ConfigError, Interrupted
from gruclip.runs.ownership import read_owner
from gruclip.runs.sweeps import sweeps
from gruclip.training.interrupts import Interrupts
from gruclip.training.jobs import Job, check_runs
from hydra_plugins.gruclip import on_slurm, work
from hydra_plugins.gruclip.stacks import stacks_for_job, stacks_here
from hydra_plugins.gruclip.submission import Submitted

SWEEP = ["seed=0,1,2,3", "model.hidden_size=24", "trainer.bptt=12", "trainer.max_steps=200", "trainer.radius_every=20"]
COMPARED = ("epochs.csv", "steps.csv", "summary.json")


def jobs_of(*runs: RunConfig) -> list[Job]:
    return check_runs(runs)


def seeds(count: int, **settings: object) -> list[RunConfig]:
    return [RunConfig(seed=seed, **settings) for seed in range(count)]  # type: ignore[arg-type]


# -- which runs make a job ------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=12), st.integers(1, 5))
def test_a_job_has_runs_of_one_shape_as_many_as_asked_and_no_run_is_lost(sizes: list[int], asked: int) -> None:
    jobs = jobs_of(*(RunConfig(seed=seed, model=ModelConfig(hidden_size=n)) for seed, n in enumerate(sizes)))
    for stacks in (stacks_for_job(jobs, asked, None, {}), stacks_here(jobs, asked)):
        assert sorted(job.config.seed for stack in stacks for job in stack) == list(range(len(sizes)))
        assert all(len({job.shape() for job in stack}) == 1 for stack in stacks)
        assert all(len(stack) <= asked for stack in stacks)
        assert len(stacks) == sum(-(-sizes.count(size) // asked) for size in set(sizes))


def test_what_a_run_may_differ_in_does_not_part_a_stack() -> None:
    methods = [OptimizerConfig("sgd"), OptimizerConfig("spectral_clipping", delta=0.2), OptimizerConfig("sgd", lr=3.0)]
    jobs = jobs_of(*(RunConfig(optimizer=optimizer) for optimizer in methods))
    assert stacks_for_job(jobs, 3, None, {}) == [jobs]


def test_without_a_size_a_cpu_job_has_a_run_for_each_core_within_its_memory() -> None:
    jobs = jobs_of(*seeds(6))
    assert [len(stack) for stack in stacks_for_job(jobs, None, None, {"cpus_per_task": 4})] == [4, 2]
    assert [len(stack) for stack in stacks_for_job(jobs, None, None, {"cpus_per_task": 4, "mem_gb": 2})] == [3, 3]
    assert [len(stack) for stack in stacks_for_job(jobs, None, None, {})] == [1] * 6


def test_runs_that_take_all_cores_of_a_cpu_job_have_a_job_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    large = jobs_of(*seeds(2, model=ModelConfig(hidden_size=300), device="cpu"))
    assert [len(stack) for stack in stacks_for_job(large, None, None, {"cpus_per_task": 4})] == [1, 1]


def test_without_a_size_a_gpu_job_has_what_fits_into_the_gpu_that_is_named() -> None:
    jobs = jobs_of(*seeds(6))
    with pytest.raises(ConfigError, match=r"what fits on a GPU .* give hydra.launcher.gpu_memory_gb"):
        stacks_for_job(jobs, None, None, {"gpus_per_node": 1})
    with pytest.raises(ConfigError, match=r"gpu_memory_gb=0.001: a run needs 0\.\d GiB"):
        stacks_for_job(jobs, None, 0.001, {"gres": "gpu:1"})
    assert [len(stack) for stack in stacks_for_job(jobs, None, 80, {"gpus_per_node": 1})] == [6]
    on_the_cpu = jobs_of(*seeds(2, device="cpu"))
    assert [len(stack) for stack in stacks_for_job(on_the_cpu, None, None, {"gpus_per_node": 1})] == [1, 1]


# -- what is refused ------------------------------------------------------------------------------------


@pytest.fixture
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of SLURM's names: sbatch refuses in SLURM's words; the file is where they note that they were called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, does in {
        "sbatch": "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1",
        "srun": "exit 1",
        "scontrol": "echo 'MaxArraySize            = 1001'",
        "squeue": "echo '7_0 RUNNING None'",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\necho {name} >>{programs}/called\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return programs / "called"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("stack_size=0", "hydra.launcher.stack_size=0: should be a whole number of at least 1, or null"),
        ("stack_size=many", "hydra.launcher.stack_size=many: should be a whole number of at least 1, or null"),
        ("gpu_memory_gb=-1", "hydra.launcher.gpu_memory_gb=-1: should be a number above 0, or null"),
        ("timeout_min=soon", "hydra.launcher.timeout_min=soon: Value 'soon' of type 'str' could not be converted"),
        ("array_parallelism=0", "hydra.launcher.array_parallelism=0: should be a whole number of at least 1"),
        ("partitions=main", "hydra.launcher.partitions: no such setting of this launcher"),
    ],
)
@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_a_wrong_setting_is_one_line_and_nothing_is_submitted_or_written(
    launcher: str, typed: str, says: str, no_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if launcher == "local" and typed.startswith("gpu_memory_gb"):
        says = "hydra.launcher.gpu_memory_gb: no such setting of this launcher"
    assert main(["train", "-m", f"hydra/launcher={launcher}", f"hydra.launcher.{typed}", "seed=0,1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gruclip: {says}")
    assert not no_cluster.exists()
    assert not Path("outputs").exists()


def test_what_slurm_refuses_is_told_in_its_words(no_cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "hydra/launcher=slurm", "hydra.launcher.partition=nope", "seed=0,1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "gruclip: hydra/launcher=slurm: not submitted: invalid partition specified: nope"
    assert not [path for path in Path("outputs").rglob("*") if path.is_file()]


def test_where_there_is_no_slurm_or_no_submitit_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", "-m", "hydra/launcher=slurm", "seed=0,1"]) == 2
    assert "there is no sbatch here; start this on a machine of a SLURM cluster" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "-m", "hydra/launcher=local", "seed=0,1"]) == 2
    expected = "hydra/launcher=local: needs hydra-submitit-launcher: pip install 'gruclip[slurm]'"
    assert capsys.readouterr().err == f"gruclip: {expected}\n"


def test_runs_that_are_queued_already_are_not_submitted_again(
    no_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gruclip.runs.sweeps import record_sweeps

    folders = [job.folder.path for job in jobs_of(*seeds(2))]
    record_sweeps(folders, [Path("outputs")] * 2, ["7"])
    (sweep,) = sweeps(Path("outputs"))
    assert sweep.is_running()
    assert main(["train", "-m", "hydra/launcher=slurm", "seed=1,2"]) == 2
    assert "1 of these runs are in 1 jobs of SLURM already" in capsys.readouterr().err
    assert "sbatch" not in no_cluster.read_text()


def test_a_sweep_larger_than_an_array_is_several_and_all_are_cancelled_where_one_is_refused(
    tmp_path: Path, no_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = no_cluster.parent
    (programs / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 3'\n")
    (programs / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (programs / "scancel").write_text(f"#!/bin/sh\necho $* >{programs}/cancelled\n")
    (programs / "sbatch").write_text(
        f"#!/bin/sh\n[ -e {programs}/second ] && {{ echo 'error: too many jobs' >&2; exit 1; }}\n"
        f"grep -h array= $1 >{programs}/second\necho Submitted batch job 41\n"
    )
    for name in ("scancel", "sbatch"):
        (programs / name).chmod(0o755)
    sized = ["hydra.launcher.stack_size=1", "hydra.launcher.array_parallelism=3"]
    assert main(["train", "-m", "hydra/launcher=slurm", *sized, "seed=range(5)"]) == 2
    assert "not submitted: too many jobs" in capsys.readouterr().err
    assert (programs / "second").read_text().strip() == "#SBATCH --array=0-2%2"
    assert (programs / "cancelled").read_text().strip() == "41"


def test_of_a_job_that_ended_early_only_what_it_finished_is_counted() -> None:
    from gruclip.training.display import Display
    from hydra_plugins.gruclip.submission import Submitted, report

    stack: list[Any] = [
        SimpleNamespace(folder=SimpleNamespace(is_finished=lambda done=done: done)) for done in (True, False, True)
    ]
    with Display(total=3, quiet=True) as display:
        report([Submitted(SimpleNamespace(job_id="7_0"), stack)], display)
        assert display.done == 2


def test_the_limit_of_an_array_is_slurms(no_cluster: Path) -> None:
    assert on_slurm._largest_array() == 1001


# -- preemption -----------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() for name in COMPARED for path in folder.glob(f"demo/*/{name}")
    }


def train_by(launcher: str, output_dir: Path, *typed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gruclip", "train", "-m", f"hydra/launcher={launcher}", *typed, *SWEEP]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, f"output_dir={output_dir}"], stderr=subprocess.PIPE, text=True, env=environment)


def a_run_in_the_middle(output_dir: Path) -> int:
    """Its process, when it has trained for some iterations."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for steps in output_dir.glob("demo/*/steps.csv"):
            if len(steps.read_bytes().splitlines()) > 20 and (steps.parent / ".owner").exists():
                return int(read_owner(steps.parent)["pid"])
        time.sleep(0.05)
    raise AssertionError("no run came so far")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.xdist_group("long")  # begun first
def test_a_preempted_job_is_started_again_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Two jobs of two runs each; the first one gets SIGUSR1, as a cluster sends it before it takes the machine."""
    sweep = train_by("local", tmp_path / "jobs", "hydra.launcher.stack_size=2")
    try:
        os.kill(parent(a_run_in_the_middle(tmp_path / "jobs")), signal.SIGUSR1)
        said = sweep.communicate(timeout=300)[1]
    finally:
        sweep.kill()
    assert sweep.returncode == 0, said
    first, *others = said.splitlines()
    assert first.endswith("4 runs in 2 jobs of this machine, 1 at a time; gruclip status --watch follows them")
    assert [line.split(": ")[1] for line in others] == ["2 runs finished"] * 2
    logs = sorted((tmp_path / "jobs/.submitit").glob("*/*_log.out"), key=lambda path: path.stat().st_mtime)
    assert [log.read_text().count("Loading pickle") for log in logs] == [2, 1]
    assert {log.parent for log in logs} == set((tmp_path / "jobs/.submitit").iterdir())
    assert "Requeued job" in logs[0].read_text()
    (record,) = sweeps(tmp_path / "jobs")
    assert (len(record.runs), record.pid) == (4, sweep.pid)
    torch.set_num_threads(1)
    train(compose(*SWEEP, f"output_dir={tmp_path / 'whole'}"), quiet=True)
    assert content(tmp_path / "jobs") == content(tmp_path / "whole")
    assert len(content(tmp_path / "whole")) == 12


def test_an_interrupted_command_ends_its_local_jobs_with_checkpoints(tmp_path: Path) -> None:
    sweep = train_by("local", tmp_path, "hydra.launcher.stack_size=2")
    pid = a_run_in_the_middle(tmp_path)
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate(timeout=120)[1]
    assert sweep.returncode == 128 + signal.SIGTERM
    assert "interrupted; the same command continues where it stopped" in said
    assert not Path(f"/proc/{pid}").exists()
    begun = list(tmp_path.glob("demo/*/checkpoint/last.safetensors"))
    assert begun
    assert not list(tmp_path.glob("demo/*/.owner"))


def test_who_stops_waiting_for_jobs_of_slurm_is_told_that_they_go_on(no_cluster: Path) -> None:
    interrupts = Interrupts()
    interrupts.set(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        on_slurm._wait([Submitted(SimpleNamespace(job_id="7_0"), [])], None, interrupts)  # type: ignore[arg-type]
    assert caught.value.signal == signal.SIGTERM
    assert caught.value.then == "the jobs go on: gruclip status --watch follows them, scancel 7 ends them"


@pytest.mark.parametrize(
    ("queue", "wanted"),
    [("7_1 RUNNING None", True), ("7_1 COMPLETING None", False), ("7_1 PENDING BeginTime", False), ("", False)],
)
def test_a_job_starts_itself_again_only_while_slurm_has_it_running(queue: str, wanted: bool, no_cluster: Path) -> None:
    """scancel and scontrol requeue send SIGTERM too, and have decided already."""
    (no_cluster.parent / "squeue").write_text(f"#!/bin/sh\necho '{queue}'\n" if queue else "#!/bin/sh\n")

    class Environment:
        cluster, job_id = "slurm", "7_1"

    assert work._is_wanted(Environment()) is wanted
