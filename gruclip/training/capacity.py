"""How many runs fit side by side: what one needs, estimated from its shapes, against the memory that is free."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gruclip.choices import CELLS
from gruclip.config import RunConfig
from gruclip.errors import ConfigError, UserError
from gruclip.model.evaluation import EVALUATION_STEPS

#: Where the system says which control groups there are, and which this process is in.
GROUPS, CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

#: Share of the free memory that a stack may take: allocators round up, and others may want some.
SHARE = 0.9

#: A process of a stack on the CPU before it has a model: Python, torch and a corpus.
PROCESS_BYTES = 500 << 20

#: Arrays (T, B, n) alive at once in a layer, forward and backward, beside its gates and their gradients.
LAYER_ARRAYS = 12

#: Arrays (n, n) in float64 that a full decomposition takes at its peak; and of the model's precision, kept by a state.
DECOMPOSITION, TRACKED = 8, 2


def run_bytes(config: RunConfig, num_outputs: int) -> int:
    """Memory that the training of one run takes at its peak, without the program and the corpus."""
    model, trainer = config.model, config.trainer
    each = 8 if config.precision == "fp64" else 4
    n, gates, layers = model.hidden_size, len(CELLS[model.cell].gates), model.num_layers
    weights = 2 * num_outputs * n + num_outputs + layers * 2 * gates * n * n
    rows = trainer.bptt * trainer.batch_size
    activations = layers * rows * n * (LAYER_ARRAYS + 2 * gates)
    # Evaluation reads longer windows, without anything kept but the logits.
    logits = num_outputs * max(rows, EVALUATION_STEPS * trainer.batch_size)
    projection = layers * (TRACKED * n * n * each + DECOMPOSITION * n * n * 8)  # on a GPU of all layers at once
    # Weights, their gradients, and the copies that a checkpoint is written from.
    return each * (3 * weights + activations + 2 * logits) + projection


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: the device's, or the machine's within this process' control groups."""
    if device.type == "cuda":
        # What torch holds and does not use is as good as free.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return min([free, *_free_in_groups()])


def _free_in_groups() -> Iterator[int]:
    """Bytes free in each control group (version 2) with a limit that this process is in, files in its cache not counted
    as used: they go when memory is asked for, and fill any group in time."""
    here = CGROUP.read_text() if CGROUP.exists() else ""
    path = next((line.removeprefix("0::/") for line in here.splitlines() if line.startswith("0::/")), "")
    for group in (GROUPS / path, *(GROUPS / path).parents):
        limit = group / "memory.max"
        if group.is_relative_to(GROUPS) and limit.exists() and (most := limit.read_text().strip()) != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(stat["active_file"]) + int(stat["inactive_file"])
            yield int(most) - int((group / "memory.current").read_text()) + cached


def check_stack_size(asked: object) -> None:
    """Raise `ConfigError` for what is no number of runs, nor None for as many as fit."""
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ConfigError(f"hydra.launcher.stack_size={asked}: should be a whole number of at least 1, or null")


def stack_size(needs: Sequence[int], device: torch.device, asked: int | None) -> int:
    """How many of the runs that need so many bytes each to train side by side.

    `asked`, or as many as fit; on a CPU each is a process, and there are no more than cores. Raises `UserError` where
    `asked` runs, or one, do not fit.
    """
    # A run alone trains in this process, which is there already.
    each = max(needs) + (PROCESS_BYTES if device.type == "cpu" and len(needs) > 1 else 0)
    free = int(SHARE * free_bytes(device))
    fit = free // each
    wanted = min(asked or 1, len(needs))
    if wanted > fit:
        name = f"hydra.launcher.stack_size={asked}" if asked else f"a run on {device.type}"
        remedy = f"at most {fit} fit" if fit else "take a smaller model.hidden_size or trainer.batch_size"
        raise UserError(
            f"{name}: needs {_gib(wanted * each)} GiB, and of the memory of {device.type} {_gib(free)} GiB are free "
            f"for it; {remedy}"
        )
    if asked is not None:
        return wanted
    return min(fit, len(needs), cores() if device.type == "cpu" else fit)


def cores() -> int:
    """Cores that this process may use: under SLURM those of its job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
