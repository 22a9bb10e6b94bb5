"""Kill the runner at random instants and between any two system calls that change a file, restart it, and compare.

Every attack ends with the sweep trained to its end; then every run must be finished once, its files what an undisturbed
sweep leaves, bit for bit (but for the seconds that it took), and `gruclip verify` must find nothing. Prints a table of
what was attacked, how often, and what was lost; exits with 1 if anything was. ``scripts/soak`` runs it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.errors import UserError
from gruclip.kernels import compiled
from gruclip.runs.checkpoints import read_checkpoint
from gruclip.runs.records import read_config
from gruclip.runs.verify import faults, run_folders
from gruclip.training.runner import train

RESULTS = ("epochs.csv", "steps.csv", "summary.json", "checkpoint/best.safetensors")
SEEDS = (0, 1, 2)
#: Attempts of one sweep that are killed before it is left alone.
ATTEMPTS = 6
#: What a run calls to change a file for good: the places at which a kill can leave something half done.
CALLS = ("replace", "fsync", "link", "unlink", "open")


def sweep(folder: Path, seeds: tuple[int, ...] = SEEDS) -> list[RunConfig]:
    """Small runs with a checkpoint after every iteration."""
    trainer = TrainerConfig(max_epochs=None, max_steps=60, bptt=5, radius_every=20, checkpoint_minutes=1e-9)
    optimizers = (OptimizerConfig("spectral_clipping", delta=1.05), OptimizerConfig("gradient_clipping", threshold=2.0))
    return [
        RunConfig(
            model=ModelConfig(hidden_size=8),
            optimizer=optimizers[seed % 2],
            trainer=trainer,
            seed=seed,
            output_dir=str(folder),
            device="cpu",
        )
        for seed in seeds
    ]


def command(folder: Path, *more: str) -> list[str]:
    """`sweep` as it is typed."""
    return [
        *(sys.executable, "-m", "gruclip", "train", "-m", "optimizer=spectral_clipping", "optimizer.delta=1.05"),
        *("model.hidden_size=8", "trainer.max_epochs=null", "trainer.max_steps=60", "trainer.bptt=5", "device=cpu"),
        *("trainer.radius_every=20", "trainer.checkpoint_minutes=1e-9", "seed=0,2", f"output_dir={folder}", *more),
    ]


STACKED = ("hydra/launcher=stacked", "hydra.launcher.stack_size=2")


@dataclass
class Attack:
    """What was done, how often, and what went wrong."""

    name: str
    kills: int = 0
    lost: list[str] = field(default_factory=list)


def in_child(work: Callable[[], object]) -> int:
    """The process of a fork that does `work` and exits with 0; with 2 for a `UserError`, with 1 for anything else."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        code = 0
    except UserError:
        code = 2
    finally:
        os._exit(code)


def dies_at(call: str, count: int) -> None:
    """This process is killed by the `count`-th call of an operation of `os`, before it is done."""
    real, left = getattr(os, call), [count]

    def counted(*arguments: object, **named: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(os, call, counted)


def compare(folder: Path, whole: Path, seeds: tuple[int, ...]) -> Iterator[str]:
    """What differs from the undisturbed sweep."""
    found = {path.name: path for path in run_folders(folder)}
    wanted = {path.name: path for path in run_folders(whole) if any(f"seed={seed}," in path.name for seed in seeds)}
    if found.keys() != wanted.keys():
        yield f"{folder}: runs {sorted(found)} and not {sorted(wanted)}"
        return
    for name, run in found.items():
        yield from faults(run)
        for file in RESULTS:
            if (run / file).read_bytes() != (wanted[name] / file).read_bytes():
                yield f"{run / file}: differs"
        identity = read_config(run)[1]["identity"]
        one, other = (
            read_checkpoint(path / "checkpoint" / "last.safetensors", identity).tensors for path in (run, wanted[name])
        )
        if not all(torch.equal(tensor, other[key]) for key, tensor in one.items()):
            yield f"{run}: the last state differs"
        leftovers = [path for path in run.rglob("*") if path.name.endswith(".partial") or ".before" in path.name]
        if leftovers:
            yield f"{leftovers[0]}: left behind"


def finish(attack: Attack, folder: Path, whole: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Train what is left, compare, clean up."""
    try:
        train(sweep(folder, seeds), quiet=True)
        attack.lost += compare(folder, whole, seeds)
    except Exception as error:
        attack.lost.append(f"{folder}: {error!r}")
    shutil.rmtree(folder, ignore_errors=True)


def killed_at_random(attack: Attack, kills: int, base: Path, whole: Path, chance: random.Random) -> None:
    while attack.kills < kills:
        folder = Path(tempfile.mkdtemp(dir=base))
        for _ in range(ATTEMPTS):
            child = in_child(lambda folder=folder: train(sweep(folder), quiet=True))
            time.sleep(chance.uniform(0.01, 0.9))
            os.kill(child, signal.SIGKILL)
            attack.kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        finish(attack, folder, whole)


def killed_between_calls(attack: Attack, kills: int, base: Path, whole: Path, chance: random.Random) -> None:
    while attack.kills < kills:
        folder = Path(tempfile.mkdtemp(dir=base))
        for _ in range(ATTEMPTS):
            call, count = chance.choice(CALLS), chance.randint(1, 40)

            def work(folder: Path = folder, call: str = call, count: int = count) -> None:
                dies_at(call, count)
                train(sweep(folder), quiet=True)

            attack.kills += os.waitpid(in_child(work), 0)[1] == signal.SIGKILL
        finish(attack, folder, whole)


def two_at_once(attack: Attack, kills: int, base: Path, whole: Path, chance: random.Random) -> None:
    """Two processes on the same sweep, in opposite orders, one of them killed again and again."""
    while attack.kills < kills:
        folder = Path(tempfile.mkdtemp(dir=base))
        steady = in_child(lambda folder=folder: train(sweep(folder), quiet=True))
        while not os.waitpid(steady, os.WNOHANG)[0]:
            child = in_child(lambda folder=folder: train(sweep(folder)[::-1], quiet=True))
            time.sleep(chance.uniform(0.05, 0.6))
            os.kill(child, signal.SIGKILL)
            attack.kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        finish(attack, folder, whole)


def stacked(only_a_worker: bool) -> Callable[..., None]:
    """A stack on the command line, killed whole or a worker of it."""

    def run(attack: Attack, kills: int, base: Path, whole: Path, chance: random.Random) -> None:
        while attack.kills < kills:
            folder = Path(tempfile.mkdtemp(dir=base))
            for _ in range(2):
                process = subprocess.Popen(command(folder, *STACKED), stderr=subprocess.DEVNULL)
                time.sleep(chance.uniform(3.0, 9.0))
                victims = _children(process.pid)[:1] if only_a_worker else [process.pid]
                for victim in victims:
                    if process.poll() is None:
                        os.kill(victim, signal.SIGKILL)
                        attack.kills += 1
                code = process.wait()
                if only_a_worker and code not in (0, 2):
                    attack.lost.append(f"{folder}: exit code {code} after a worker was killed")
            _let_workers_end(folder)
            finish(attack, folder, whole, (0, 2))

    return run


def _children(parent: int) -> list[int]:
    """The workers of a stack: its children that are no helpers of multiprocessing's own."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _let_workers_end(folder: Path) -> None:
    """Workers of a parent that was killed write their checkpoints first."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            train(sweep(folder, (0, 2)), quiet=True)
            return
        except UserError:
            time.sleep(0.2)


def asked_to_stop(attack: Attack, kills: int, base: Path, whole: Path, chance: random.Random) -> None:
    """SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 to the command: a checkpoint, and 128 and the signal, in seconds."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
    while attack.kills < kills:
        folder, number = Path(tempfile.mkdtemp(dir=base)), signals[attack.kills % len(signals)]
        launcher = STACKED if chance.random() < 0.3 else ()
        process = subprocess.Popen(command(folder, *launcher), stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(folder.glob("*/*/environment.json")):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is None:
            process.send_signal(number)
            asked = time.monotonic()
            code, took = process.wait(), time.monotonic() - asked
            attack.kills += 1
            if code not in (128 + number, 0) or took > 10:
                attack.lost.append(f"{folder}: {number.name}: exit code {code} after {took:.1f} s")
        finish(attack, folder, whole, (0, 2))


def full_disk(attack: Attack, kills: int, base: Path, whole: Path, chance: random.Random) -> None:
    """A file system of a few hundred kilobytes, as root can mount one; then the same one with room."""
    while attack.kills < kills:
        folder = Path(tempfile.mkdtemp(dir=base))
        size = chance.randint(60, 1500)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], check=True)
        try:
            status = os.waitpid(in_child(lambda folder=folder: train(sweep(folder), quiet=True)), 0)[1]
            attack.kills += 1
            if os.waitstatus_to_exitcode(status) not in (0, 2):
                attack.lost.append(f"{folder}: {size} kB: exit code {os.waitstatus_to_exitcode(status)}")
            subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
            train(sweep(folder), quiet=True)
            attack.lost += compare(folder, whole, SEEDS)
        finally:
            subprocess.run(["umount", str(folder)], check=True)


ATTACKS: dict[str, tuple[float, Callable[..., None]]] = {
    "SIGKILL of a sweep at random instants": (0.4, killed_at_random),
    "SIGKILL at a rename, sync, link, removal or truncation": (0.4, killed_between_calls),
    "SIGKILL of one of two processes on the same sweep": (0.1, two_at_once),
    "SIGKILL of a whole stack": (0.02, stacked(only_a_worker=False)),
    "SIGKILL of a worker of a stack": (0.02, stacked(only_a_worker=True)),
    "SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2": (0.04, asked_to_stop),
    "a disk that is full": (0.04, full_disk),
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=500, help="in all; default: %(default)s")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", metavar="WORD", help="attacks whose name holds it")
    chosen = options.parse_args()
    if not any(chosen.only is None or chosen.only in name for name in ATTACKS):
        options.error(f"--only {chosen.only}: in the name of none of these: {', '.join(ATTACKS)}")
    torch.set_num_threads(1)
    compiled.library()
    chance, begun, done = random.Random(chosen.seed), time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="gruclip-soak-") as place:
        base = Path(place)
        train(sweep(base / "whole", (0, 1, 2)), quiet=True)
        for name, (share, attack_by) in ATTACKS.items():
            if chosen.only is None or chosen.only in name:
                attack = Attack(name)
                attack_by(attack, max(1, round(share * chosen.kills)), base, base / "whole", chance)
                done.append(attack)
                print(f"{name}: {attack.kills}, lost: {len(attack.lost)}", file=sys.stderr, flush=True)
    print("| attack | how often | lost |\n|---|---|---|")
    for attack in done:
        print(f"| {attack.name} | {attack.kills} | {len(attack.lost) or 'nothing'} |")
    print(f"\n{sum(attack.kills for attack in done)} attacks in {time.monotonic() - begun:.0f} s, seed {chosen.seed}")
    for fault in [fault for attack in done for fault in attack.lost]:
        print(fault)
    return 1 if any(attack.lost for attack in done) else 0


if __name__ == "__main__":
    sys.exit(main())
