"""A run's folder while it is written: who may write it, its CSV files, its checkpoints, its records.

    config.yaml  epochs.csv  steps.csv  timing.csv  environment.json  summary.json  SHA256SUMS
    checkpoint/last.safetensors  checkpoint/best.safetensors

CSV files are appended to, and cut back to the checkpoint's offsets when a run is continued; every other file is written
whole or not at all. What a checkpoint refers to is on the disk before it. A lock keeps two processes from writing one
folder, and whoever has it looks again at what the folder holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from torch import Tensor

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.runs.checkpoints import Checkpoint, DamagedCheckpoint, before, read_checkpoint, write_checkpoint
from gruclip.runs.files import PARTIAL, remove_leftovers, sync, told_by_name, write_whole
from gruclip.runs.names import folder_name
from gruclip.runs.ownership import LOCK, OWNER, LockedError, Ownership
from gruclip.runs.records import FINISHED, MOVE_AWAY, read_config, read_environment, read_summary, strict, yaml_text
from gruclip.runs.sums import SUMS, sums_of

CSV_FILES = ("epochs.csv", "steps.csv", "timing.csv")

#: What of a run's environment its bits depend on.
DECISIVE = ("processor", "device", "threads", "versions", "revision", "kernels")


def check_lengths(folder: Path, checkpoint: Checkpoint) -> None:
    """Raise `DamagedCheckpoint` where a CSV file of the run ends before this one of its checkpoints."""
    for name in CSV_FILES:
        path, offset = folder / name, checkpoint.progress["offsets"][name]
        length = path.stat().st_size if path.is_file() else 0
        if length < offset:
            raise DamagedCheckpoint(f"{path}: {length} bytes long, and had {offset} at the checkpoint")


class RunFolder:
    """One run's folder. Nothing is written before `lock`, nor after another host has taken it over: what writes
    raises `LockedError` then, and shows until then that the run is being written."""

    def __init__(self, config: RunConfig, default: RunConfig, data_checksum: str) -> None:
        self.config = config
        self.data_checksum = data_checksum
        self.identity = config.identity(data_checksum)
        self.path = Path(config.output_dir) / config.experiment / folder_name(config, default, self.identity)
        self._ownership = Ownership(self.path)
        self._files: dict[str, BufferedWriter] = {}
        #: Of the checkpoints those that the run could be continued from: what is in the place of another is not kept.
        self._sound: set[str] = set()
        self._paths = {name: self.path / name for name in CSV_FILES}  # made once: rows are appended at every iteration

    # -- before the lock ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `UserError` where the folder cannot be written, is another configuration's, or was altered."""
        try:
            existing = next(path for path in (self.path, *self.path.absolute().parents) if os.path.lexists(path))
            # Of a finished run nothing is written any more, also on a disk that can only be read.
            if not existing.is_dir() or not (os.access(existing, os.W_OK | os.X_OK) or self.is_finished()):
                raise UserError(
                    f"output_dir={self.config.output_dir}: {existing} is not a folder that can be written to"
                )
            entries = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise UserError(f"output_dir={self.config.output_dir}: {self.path}: {error.strerror}") from None
        if "config.yaml" in entries:
            found = read_config(self.path)[1]["identity"]
            if found != self.identity:
                raise UserError(
                    f"{self.path}: belongs to another configuration or other data; "
                    "move it away or choose another output_dir"
                )
        elif any(name not in (LOCK, OWNER) and not name.endswith(PARTIAL) for name in entries):
            raise UserError(
                f"{self.path}: holds files and no config.yaml, so it is no run's folder; "
                "move it away or choose another output_dir"
            )

    def summary(self) -> dict[str, Any] | None:
        path = self.path / "summary.json"
        return read_summary(self.path) if os.path.lexists(path) else None

    def is_finished(self) -> bool:
        summary = self.summary()
        return summary is not None and summary["status"] in FINISHED

    # -- under the lock -------------------------------------------------------------------------------

    def lock(self) -> None:
        """Make the folder and take it for this process. Raises `LockedError` where another one has it."""
        with told_by_name(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._ownership.take()
        self._sound.clear()
        remove_leftovers(self.path)

    def is_taken(self) -> bool:
        """Whether another process has the folder, which exists."""
        try:
            self.lock()
        except LockedError:
            return True
        self.close()
        return False

    def checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """What the run can be continued from, None where it has to begin; and what is wrong with what was passed over.

        The last checkpoint, or where that is damaged, or a CSV file ends before it, the one before it. Raises
        `UserError` where there are some and none can be used.
        """
        last, faults = self.path / "checkpoint" / "last.safetensors", []
        for path in (last, before(last)):
            if os.path.lexists(path):
                try:
                    found = read_checkpoint(path, self.identity)
                    check_lengths(self.path, found)
                except DamagedCheckpoint as error:
                    faults.append(str(error))
                    continue
                if path == last:
                    self._sound.add("last")
                return found, faults
        if faults:
            raise UserError(f"{'; '.join(faults)}; no checkpoint is left to continue from: {MOVE_AWAY}")
        return None, []

    def best(self, epoch: int) -> Checkpoint | None:
        """The weights of epoch `epoch`, the best so far; None where they are gone, damaged, or another epoch's."""
        best = self.path / "checkpoint" / "best.safetensors"
        for path in (best, before(best)):
            if os.path.lexists(path):
                with suppress(DamagedCheckpoint):
                    found = read_checkpoint(path, self.identity)
                    if found.progress.get("epoch") == epoch:
                        if path == best:
                            self._sound.add("best")
                        return found
        return None

    def write_config(self) -> None:
        """``config.yaml``, before anything else: by it the folder is a run's."""
        record = {"identity": self.identity, "data_sha256": self.data_checksum}
        write_whole(self.path / "config.yaml", yaml_text({**self.config.to_dict(), **record}))

    def open(self, columns: Mapping[str, Sequence[str]], offsets: Mapping[str, int] | None) -> None:
        """Open the CSV files at `offsets` (None: anew)."""
        for name in CSV_FILES:
            with told_by_name(self.path / name):
                file = (self.path / name).open("ab")
                self._files[name] = file
                file.truncate(0 if offsets is None else offsets[name])
                file.seek(0, os.SEEK_END)
            if offsets is None:
                self.append(name, columns[name])

    def beat(self) -> None:
        """Keep the folder through what takes long and writes nothing. Raises `LockedError` where it was taken over."""
        self._ownership.beat()

    def append(self, name: str, values: Sequence[Any]) -> None:
        """A row of a CSV file; None becomes an empty field, a float keeps every digit."""
        self.beat()
        with told_by_name(self._paths[name]):
            self._files[name].write((",".join("" if v is None else str(v) for v in values) + "\n").encode())

    def offsets(self) -> dict[str, int]:
        """Lengths in bytes of the CSV files, everything appended so far being on the disk."""
        self.beat()
        for name, file in self._files.items():
            with told_by_name(self.path / name):
                file.flush()
                sync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def save(self, which: str, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write ``checkpoint/{which}.safetensors``, and keep the one before it: of two the one that can be used."""
        self.beat()
        path = self.path / "checkpoint" / f"{which}.safetensors"
        write_checkpoint(path, self.identity, tensors, progress, keep=which in self._sound)
        self._sound.add(which)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``summary.json``; of a finished run after the sums of all files, so that it is the last one written."""
        text = json.dumps(strict(summary), indent=2) + "\n"
        if summary["status"] in FINISHED:
            for which in ("last", "best"):
                with told_by_name(self.path), suppress(FileNotFoundError):
                    before(self.path / "checkpoint" / f"{which}.safetensors").unlink()
            with told_by_name(self.path):
                sums = sums_of(self.path, {"summary.json": text.encode()})
            write_whole(self.path / SUMS, sums)
        write_whole(self.path / "summary.json", text)

    def environment(self) -> dict[str, Any] | None:
        """What the run was last trained in; None where that is not known."""
        return read_environment(self.path) if os.path.lexists(self.path / "environment.json") else None

    def write_environment(self, environment: Mapping[str, Any], continued: bool) -> bool:
        """Write ``environment.json``; whether the run has been trained in another one, on which its bits may depend.

        Of a run that is `continued`, all that it was trained in before are kept under ``before``, the first one first.
        """
        now, last = strict(environment), self.environment() if continued else None
        earlier: list[Any] = []
        if last is not None:
            earlier = last.pop("before", [])
            if any(last.get(name) != now.get(name) for name in DECISIVE):
                earlier.append(last)
        content = {**now, **({"before": earlier} if earlier else {})}
        write_whole(self.path / "environment.json", json.dumps(content, indent=2) + "\n")
        return bool(earlier)

    def close(self) -> None:
        for file in self._files.values():
            # What a checkpoint needs is on the disk already; the rest would go into what may be another's file by now.
            with suppress(OSError):
                file.raw.close()
        self._files.clear()
        self._ownership.release()
