"""``gruclip bench sweep``: one sweep of short runs under Hydra's basic launcher, the stacked one, and joblib."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from gruclip.bench import options as command
from gruclip.bench.output import timing_table, write
from gruclip.bench.timing import interleave
from gruclip.data import FILES
from gruclip.errors import UserError

BASE = "basic"
LAUNCHERS = (BASE, "stacked", "joblib")
JOBLIB_MISSING = "joblib's launcher is not installed and was left out: pip install 'gruclip[joblib]'"


def arguments_of(launcher: str, runs: int, steps: int, experiment: str, threads: int) -> list[str]:
    """The arguments of ``gruclip train``: `runs` runs that differ in their seed, of `steps` iterations each."""
    jobs = [f"hydra.launcher.n_jobs={threads}"] if launcher == "joblib" else []
    return [
        "-m",
        f"+experiment={experiment}",
        f"seed=range({runs})",
        f"trainer.max_steps={steps}",
        f"hydra/launcher={launcher}",
        *jobs,
    ]


def environment_of(launcher: str, threads: int) -> dict[str, str]:
    """`threads` cores in all: joblib has as many processes with one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1" if launcher == "joblib" else str(threads)}


def sweep(arguments: Sequence[str], environment: Mapping[str, str], runs: int) -> None:
    """Train from nothing in a process of its own, in a folder that is removed; raises where a run is missing."""
    with tempfile.TemporaryDirectory(prefix="gruclip-bench-") as folder:
        called = [sys.executable, "-m", "gruclip", "train", *arguments, f"output_dir={folder}"]
        done = subprocess.run(called, env=dict(environment), capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"{' '.join(called[1:])}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        finished = len(list(Path(folder).rglob("summary.json")))
        if finished != runs:
            raise UserError(f"{' '.join(called[1:])}: {finished} of {runs} runs were recorded")


def main(argv: list[str]) -> int:
    parser = command.parser("sweep", "Wall time of a sweep of short runs by launcher, each in a fresh process.", 3)
    parser.add_argument("--runs", type=command.positive, default=12, help="default: 12")
    parser.add_argument("--steps", type=command.positive, default=100, help="iterations of each run; default: 100")
    parser.add_argument(
        "--experiment",
        choices=("demo", *(name for name in FILES if FILES[name])),
        default="nottingham",
        help="default: nottingham",
    )
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=LAUNCHERS, help="default: all")
    arguments = parser.parse_args(argv)
    command.prepare(arguments.threads)
    notes, launchers = [], list(dict.fromkeys((BASE, *arguments.launchers)))
    if "joblib" in launchers and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        launchers.remove("joblib")
        notes.append(JOBLIB_MISSING)
    runs, steps, experiment, threads = arguments.runs, arguments.steps, arguments.experiment, arguments.threads
    contestants = {
        launcher: partial(
            sweep, arguments_of(launcher, runs, steps, experiment, threads), environment_of(launcher, threads), runs
        )
        for launcher in launchers
    }
    # The first process reads files that the others then find in memory.
    sweep(arguments_of(BASE, 1, 1, experiment, threads), environment_of(BASE, threads), 1)
    timings = interleave(contestants, arguments.repetitions, warmup=0)
    caption = f"Wall time from the command to its end, start of Python included; {experiment}."
    table = timing_table(f"Sweep of {runs} runs of {steps} iterations", caption, timings, BASE, notes=notes)
    write("sweep", [table], arguments)
    return 0
