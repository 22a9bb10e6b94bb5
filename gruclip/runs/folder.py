"""A run's folder: configuration, metrics, checkpoints, state; and what is read back from it.

    config.yaml  epochs.csv  steps.csv  timing.csv  environment.json  summary.json
    checkpoint/last.safetensors  checkpoint/best.safetensors

CSV files are appended to, and cut back to the checkpoint's offsets when a run is continued; every other
file is written whole or not at all. A lock keeps two processes from writing one folder.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from torch import Tensor

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.runs.checkpoints import read_checkpoint, write_checkpoint
from gruclip.runs.records import read_json, read_summary, read_yaml, strict, write_whole

FINISHED = ("success", "failed", "diverged")
NAME_LENGTH = 150
CSV_FILES = ("epochs.csv", "steps.csv", "timing.csv")

#: What of a run's environment its bits depend on.
DECISIVE = ("processor", "device", "threads", "versions", "revision", "kernels")

#: Named first in a folder's name, in this order, where they are set.
LEADING_SETTINGS = ("optimizer.threshold", "optimizer.delta", "optimizer.lr", "seed")


def folder_name(config: RunConfig, default: RunConfig, identity: str) -> str:
    """E.g. ``spectral_clipping,delta=0.2,lr=1,seed=3``: the optimizer with its own parameters, rate and seed,
    then every identity setting that differs from `default`, the experiment file's."""
    settings, usual = config.identity_settings(), default.identity_settings()
    parts = [config.optimizer.name]
    parts += [f"{_short(name)}={_text(settings[name])}" for name in LEADING_SETTINGS if settings[name] is not None]
    named = (*LEADING_SETTINGS, "optimizer.name")
    parts += [
        f"{_short(name)}={_text(value)}"
        for name, value in settings.items()
        if name not in named and value != usual[name]
    ]
    name = ",".join(parts)
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}-{identity[:8]}"


def _short(name: str) -> str:
    """The last part of a dotted name, where that says enough: ``delta``, but ``dataset.name``."""
    last = name.rpartition(".")[2]
    return name if last == "name" else last


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "null" if value is None else str(value)


class RunFolder:
    """One run's folder. Nothing is written before `open`."""

    def __init__(self, config: RunConfig, default: RunConfig, data_checksum: str) -> None:
        self.config = config
        self.data_checksum = data_checksum
        self.identity = config.identity(data_checksum)
        self.path = Path(config.output_dir) / config.experiment / folder_name(config, default, self.identity)
        self._lock: IO[str] | None = None
        self._files: dict[str, IO[bytes]] = {}

    def check(self) -> None:
        """Raise `UserError` where the folder cannot be written or belongs to another configuration."""
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"output_dir={self.config.output_dir}: {existing} is not a folder that can be written to")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        found = read_yaml(self.path / "config.yaml").get("identity") if (self.path / "config.yaml").exists() else None
        if found is None and {entry.name for entry in self.path.iterdir()} <= {".lock"}:
            return
        if found != self.identity:
            raise UserError(
                f"{self.path}: belongs to another configuration or other data; "
                "move it away or choose another output_dir"
            )

    def summary(self) -> dict[str, Any] | None:
        path = self.path / "summary.json"
        return read_summary(self.path) if path.exists() else None

    def is_finished(self) -> bool:
        summary = self.summary()
        return summary is not None and summary["status"] in FINISHED

    def open(self, columns: Mapping[str, Sequence[str]], offsets: Mapping[str, int] | None) -> None:
        """Lock the folder, write ``config.yaml``, and open the CSV files at `offsets` (None: anew)."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"{self.path}: another process is writing this run; wait for it or stop it") from None
        write_whole(
            self.path / "config.yaml",
            yaml.safe_dump(
                {
                    **_plain(dataclasses.asdict(self.config)),
                    "identity": self.identity,
                    "data_sha256": self.data_checksum,
                },
                sort_keys=False,
            ),
        )
        for name in CSV_FILES:
            file = (self.path / name).open("ab")
            file.truncate(0 if offsets is None else offsets[name])
            file.seek(0, os.SEEK_END)
            self._files[name] = file
            if offsets is None:
                self.append(name, columns[name])

    def append(self, name: str, values: Sequence[Any]) -> None:
        """A row of a CSV file; None becomes an empty field, a float keeps every digit."""
        self._files[name].write((",".join("" if v is None else str(v) for v in values) + "\n").encode())

    def offsets(self) -> dict[str, int]:
        """Lengths in bytes of the CSV files, everything appended so far being on disk."""
        for file in self._files.values():
            file.flush()
        return {name: file.tell() for name, file in self._files.items()}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_whole(self.path / "summary.json", json.dumps(strict(summary), indent=2) + "\n")

    def write_environment(self, environment: Mapping[str, Any], continued: bool) -> bool:
        """Write ``environment.json``; whether the run has been trained in another one, on which its bits may depend.

        Of a run that is `continued`, all that it was trained in before are kept under ``before``, the first one first.
        """
        path, now = self.path / "environment.json", strict(environment)
        before: list[Any] = []
        if continued and path.exists():
            last = read_json(path)
            before = last.pop("before", [])
            if any(last.get(name) != now.get(name) for name in DECISIVE):
                before.append(last)
        write_whole(path, json.dumps({**now, **({"before": before} if before else {})}, indent=2) + "\n")
        return bool(before)

    def save_checkpoint(self, which: str, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write ``checkpoint/{which}.safetensors`` with `progress` as JSON in its header."""
        write_checkpoint(self.path / "checkpoint" / f"{which}.safetensors", tensors, progress)

    def load_checkpoint(self, which: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.path / "checkpoint" / f"{which}.safetensors"
        return read_checkpoint(path) if path.exists() else None

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
