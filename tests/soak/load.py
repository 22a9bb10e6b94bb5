"""Load: a sweep of tiny runs, many run folders under the reports, a long steps.csv; seconds and peak memory of each."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import made_runs

from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.training.runner import train


def tiny_runs(folder: Path, count: int) -> None:
    """A sweep of `count` runs of one iteration of four units."""
    trainer = TrainerConfig(max_epochs=None, max_steps=1, bptt=5)
    runs = [
        RunConfig(
            model=ModelConfig(hidden_size=4),
            optimizer=OptimizerConfig("sgd", lr=0.1),
            trainer=trainer,
            seed=seed,
            output_dir=str(folder),
            device="cpu",
        )
        for seed in range(count)
    ]
    train(runs, quiet=True)


def folders(folder: Path, count: int) -> None:
    """`count` finished runs of Table 1."""
    for seed in range(count):
        config = made_runs.config(made_runs.PTB, "gradient_clipping", 5.0, seed=seed)
        made_runs.write_run(folder, config, made_runs.summary(valid=4.6 + seed * 1e-6))


def long_steps(folder: Path, lines: int) -> None:
    """A run for Figure 1 whose steps.csv has so many lines."""
    for name, parameter in (("gradient_clipping", 20.0), ("spectral_clipping", 0.2)):
        config = made_runs.config(made_runs.PTB, name, parameter)
        run = made_runs.write_run(folder, config, made_runs.summary())
        with (run / "steps.csv").open("w") as file:
            file.write("step,loss,grad_norm,spectral_norm_l0,spectral_radius_l0,values_clipped\n")
            for step in range(1, lines + 1):
                radius = "0.75" if step % 50 == 0 else ""
                file.write(f"{step},4.5,{3 + step % 7}.25,1.8,{radius},1\n")


def measured(what: str, command: list[str], cwd: Path) -> None:
    begun = time.monotonic()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"| {what} | {time.monotonic() - begun:.1f} | {peak:.0f} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=2000)
    options.add_argument("--folders", type=int, default=20_000)
    options.add_argument("--lines", type=int, default=10_000_000)
    options.add_argument("--make", nargs=3, metavar=("WHAT", "DIR", "COUNT"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.make:
        what, place, count = chosen.make
        {"tiny": tiny_runs, "folders": folders, "steps": long_steps}[what](Path(place), int(count))
        return
    gruclip = [sys.executable, "-m", "gruclip"]
    make = [sys.executable, __file__, "--make"]
    print("| load | seconds | largest process so far, MiB |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="gruclip-load-") as name:
        place = Path(name)
        for count in (chosen.runs // 4, chosen.runs):
            folder = str(place / f"tiny{count}")
            measured(f"a sweep of {count:,} runs of one iteration", [*make, "tiny", folder, str(count)], place)
        for count in (chosen.folders // 4, chosen.folders):
            folder = str(place / f"folders{count}")
            subprocess.run([*make, "folders", folder, str(count)], check=True)
            for time_ in ("the first time", "again"):
                measured(
                    f"table 1 of {count:,} run folders, {time_}", [*gruclip, "table", "1", "--runs", folder], place
                )
        for lines in (chosen.lines // 4, chosen.lines):
            folder = str(place / f"steps{lines}")
            subprocess.run([*make, "steps", folder, str(lines)], check=True)
            figure = [*gruclip, "figure", "1", "--runs", folder, "--format", "png"]
            measured(f"figure 1 of two runs of {lines:,} lines each", figure, place)


if __name__ == "__main__":
    main()
