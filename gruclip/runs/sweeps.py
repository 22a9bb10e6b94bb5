"""What a sweep was going to train: a small file for each in its output_dir, so that what has not begun is known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gruclip.errors import UserError
from gruclip.runs import scheduler
from gruclip.runs.files import told_by_name, write_whole
from gruclip.runs.ownership import this_host
from gruclip.runs.records import read_json

#: Below output_dir.
FOLDER = ".sweeps"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was begun: its runs' folders, by which command and where."""

    runs: tuple[str, ...]
    command: str | None
    host: str
    boot: str
    pid: int
    jobs: tuple[str, ...] = ()  #: the SLURM jobs that train it, arrays as one

    def is_running(self) -> bool | None:
        """Whether its process is there or SLURM has jobs of it; None where that cannot be seen, on another host."""
        here = {"host": self.host, "boot": self.boot} == this_host()
        if here and _command(self.pid) == self.command:
            return True
        if self.jobs:
            queued = scheduler.states(self.jobs)
            return None if queued is None else bool(queued)
        return False if here else None


def record_sweeps(folders: Sequence[Path], output_dirs: Sequence[Path], jobs: Sequence[str] = ()) -> None:
    """Note in each output_dir that this process is going to train the runs in those `folders` that are its own.

    jobs: the SLURM jobs that do it for this process, and go on without it.
    """
    runs: dict[Path, list[str]] = {}
    for folder, output_dir in zip(folders, output_dirs, strict=True):
        runs.setdefault(output_dir, []).append(os.path.relpath(folder, output_dir))
    for output_dir, names in runs.items():
        content = {
            "runs": sorted(names),
            **this_host(),
            "pid": os.getpid(),
            "command": _command("self"),
            "jobs": [*jobs],
        }
        key = hashlib.sha256(json.dumps(content["runs"]).encode()).hexdigest()[:24]
        place = output_dir / FOLDER / f"{key}.json"
        with told_by_name(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(content) + "\n")


def _command(pid: int | str) -> str | None:
    """A process's command line; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None


def sweeps(output_dir: Path) -> list[Sweep]:
    """The sweeps that were begun in `output_dir`; `UserError` for a file that is no record of one."""
    found = []
    for path in (output_dir / FOLDER).glob("*.json"):
        content = read_json(path, "remove it")
        try:
            runs = tuple(str(run) for run in content["runs"])
            host, boot, pid = str(content["host"]), str(content["boot"]), int(content["pid"])
            jobs = tuple(str(job) for job in content.get("jobs", ()))
            found.append(Sweep(runs, content["command"], host, boot, pid, jobs))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the record of a sweep ({error}); remove it") from None
    return found
