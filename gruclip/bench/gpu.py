"""``scripts/gpu``: what is to be found out on a GPU that is lent for minutes, in stages that end in time.

- ``check``: what only a card can tell (`gpu_probe`), and the tests that need one (`gpu_check`).
- ``bench``: what an iteration, a layer and a projection take.
- ``short1``, ``table2``, ``table1``, ``lr``: runs of the study (`gpu_runs`), whole ones only (`gpu_study`).

A stage leaves its files as it goes in the folder that ``$OUT`` names: ``gpu.md`` and ``gpu.json`` from the first two,
from the others ``EXPERIMENT.csv`` and ``curves/`` in the form of ``outputs/paper``, which ``gruclip collect --runs``
takes over. Runs that ``outputs/paper`` holds are skipped. ``--rehearse`` goes through all stages, on the
CPU and with tiny shapes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gruclip.bench import gpu_runs
from gruclip.bench import options as command
from gruclip.bench.gpu_check import FILES, check
from gruclip.bench.gpu_study import Deadline, train_study
from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.runs.environment import describe_environment

#: Minutes of each stage where nothing is said.
MINUTES = {"check": 2.5, "bench": 4.0, "short1": 9.0, "table2": 9.0, "table1": 9.0, "lr": 9.0}

#: What is in the names of the tests of captured projections; where one fails, the later stages capture all but these.
CAPTURED = "captured"

PAPER = Path("outputs/paper")

BENCHES = (
    ("stack", "--precision", "bf16", "--sizes", "1", "9", "90", "--device", "cuda"),
    ("stack", "--precision", "fp32", "--sizes", "1", "9", "90", "--device", "cuda"),
    ("gru", "--device", "cuda"),
    ("projection", "--device", "cuda", "--sizes", "650", "--fractions", "0.01", "0.2", "--repetitions", "5",
     "--seconds", "1", "--stacks", "1", "10", "45", "90"),
    ("transformer", "--device", "cuda", "--shape", "256,16,1024", "--layers", "12", "--repetitions", "20"),
)  # fmt: skip

#: What a rehearsal puts in the place of the above.
TINY = ("--repetitions", "2", "--threads", "1", "--device", "cpu")
TINY_BENCHES = (
    ("stack", "--precision", "bf16", "--sizes", "1", "2", "--shape", "5,2,16", "--vocabulary", "50", *TINY),
    ("gru", "--shapes", "5,2,16", *TINY),
    ("projection", "--sizes", "24", "--fractions", "--seconds", "0.1", "--stacks", "1", *TINY),
    ("transformer", "--shape", "5,2,16", "--layers", "1", "--warmup", "1", *TINY),
)


@dataclass(frozen=True)
class Stages:
    """Where a call of the stages keeps what it finds."""

    out: Path
    outputs: Path  #: of the runs' folders
    kept: Path  #: of runs that are not trained again
    seeds: int
    tiny: bool

    def run(self, stage: str, minutes: float) -> bool:
        """One stage; whether it went well."""
        deadline = Deadline(60 * minutes)
        print(f"== {stage}: {minutes:g} minutes", flush=True)
        if stage == "check":
            return self._check(deadline)
        if stage == "bench":
            return self._bench(deadline)
        train_study(self._runs(stage), deadline, self.out, self.kept, batched=self.tiny)
        return True

    def _runs(self, stage: str) -> list[RunConfig]:
        made = {
            "short1": gpu_runs.short1(),
            "table1": gpu_runs.table1(self.seeds),
            "table2": gpu_runs.table2(),
            "lr": gpu_runs.learning_rates(),
        }
        device = "cpu" if self.tiny else "cuda"
        runs = [replace(run, output_dir=str(self.outputs), device=device) for run in made[stage]]
        return [_tiny(run) for run in runs][:5:4] if self.tiny else runs

    def tell(self, text: str) -> None:
        """To the terminal, and to the end of gpu.md."""
        print(text, flush=True)
        with (self.out / "gpu.md").open("a", encoding="utf-8") as file:
            file.write(f"{text}\n\n")

    def _check(self, deadline: Deadline) -> bool:
        asked = [sys.executable, "-m", "gruclip.bench.gpu_probe", *(["--tiny"] if self.tiny else [])]
        try:
            found = subprocess.run(asked, capture_output=True, text=True, timeout=max(1.0, deadline.left() / 2))
            self.tell(found.stdout + found.stderr[-2000:])
        except subprocess.TimeoutExpired as error:
            self.tell(f"gpu_probe hung after: {error.stdout!r}")
        with tempfile.TemporaryDirectory() as scratch:
            # Without a card those that need one are skipped, which is right in a rehearsal alone; Triton's kernels
            # would be interpreted there, as they are in the tests.
            tests = (FILES[0], FILES[-1]) if self.tiny else FILES
            return check(deadline.left(), Path(scratch), self._tell_of_test, tests) or self.tiny

    def _tell_of_test(self, text: str) -> None:
        self.tell(text)
        if text.startswith("failed") and CAPTURED in text.splitlines()[0]:
            os.environ["GRUCLIP_GRAPHS"] = "unclipped"
            self.tell("from here on projections are not captured: GRUCLIP_GRAPHS=unclipped")

    def _bench(self, deadline: Deadline) -> bool:
        found, fine = [], True
        for arguments in TINY_BENCHES if self.tiny else BENCHES:
            with tempfile.TemporaryDirectory() as scratch:
                called = [sys.executable, "-m", "gruclip", "bench", *arguments, "--out", scratch]
                try:
                    done = subprocess.run(called, capture_output=True, text=True, timeout=max(1.0, deadline.left()))
                    error = None if done.returncode == 0 else done.stderr[-2000:]
                except subprocess.TimeoutExpired:
                    error = "the stage's minutes are over"
                # Also of one that did not come to its end: it writes as it goes.
                for path in sorted(Path(scratch).glob("*.md")):
                    self.tell(path.read_text(encoding="utf-8"))
                found += [json.loads(path.read_text()) for path in sorted(Path(scratch).glob("*.json"))]
            if error is not None:
                fine = False
                self.tell(f"bench {' '.join(arguments)}: {error}")
            (self.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        return fine


def _tiny(run: RunConfig) -> RunConfig:
    """The run in a rehearsal: its schedule and method, three iterations of a model of eight units; for words the
    demo's, since a look at every split over Penn Treebank's vocabulary takes a CPU half a minute."""
    model, trainer = replace(run.model, hidden_size=8), replace(run.trainer, max_epochs=1, max_steps=3, bptt=5)
    dataset = replace(run.dataset, name="pydoc") if run.dataset.name == "ptb" else run.dataset
    return replace(run, dataset=dataset, model=model, trainer=trainer)


def rehearse(out: Path, seeds: int) -> bool:
    """All stages on the CPU, and the last one again, which must find its runs kept."""
    with tempfile.TemporaryDirectory() as scratch:
        stages = Stages(out, Path(scratch) / "runs", Path(scratch) / "none", seeds, tiny=True)
        fine = [stages.run(stage, minutes) for stage, minutes in MINUTES.items()]
        again = replace(stages, out=Path(scratch) / "again", outputs=Path(scratch) / "others", kept=out)
        fine.append(again.run("lr", MINUTES["lr"]))
        if again.outputs.exists():
            raise AssertionError("runs that were kept have been trained again")
    return all(fine)


def main(argv: Sequence[str]) -> int:
    options = command.Parser(prog="scripts/gpu", description="What is to be found out on a lent GPU, in stages.")
    options.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(MINUTES)}; one after another")
    options.add_argument(
        "--minutes", type=command.number_above_0, help="of each stage; default: 2.5, 4, and 9 of others"
    )
    options.add_argument("--seeds", type=command.positive, default=2, help="of table1; default: 2")
    options.add_argument("--rehearse", action="store_true", help="all stages with tiny shapes on the CPU")
    arguments = options.parse_args(argv)
    if unknown := [stage for stage in arguments.stages if stage not in MINUTES]:
        raise UserError(f"{unknown[0]}: no such stage; there are {', '.join(MINUTES)}")
    if bool(arguments.stages) == arguments.rehearse:
        raise UserError(f"name stages, of {', '.join(MINUTES)}, or --rehearse")
    out = Path(os.environ.get("OUT") or "outputs/bench/gpu")
    out.mkdir(parents=True, exist_ok=True)
    if arguments.rehearse:
        return 0 if rehearse(out, arguments.seeds) else 1
    if not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; scripts/gpu --rehearse goes through the stages without one")
    environment = describe_environment(torch.device("cuda"))
    print(f"{environment['device']}, driver {environment['driver']}, revision {environment['revision']}", flush=True)
    stages = Stages(out, Path("outputs/gpu"), PAPER, arguments.seeds, tiny=False)
    fine = True
    for stage in arguments.stages:
        try:
            fine = stages.run(stage, arguments.minutes or MINUTES[stage]) and fine
        except Exception as error:  # the next stage has minutes of its own
            stages.tell(f"{stage}: {error}" if isinstance(error, UserError) else traceback.format_exc())
            fine = False
    return 0 if fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"scripts/gpu: {error}", file=sys.stderr)
        sys.exit(2)
