"""Which runs a submitted job trains: those of one shape, as many as were asked for or as the job has room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gruclip.errors import ConfigError
from gruclip.training.capacity import PROCESS_BYTES, SHARE, check_stack_size, run_bytes, stack_size
from gruclip.training.jobs import Job


def check_sizes(asked: object, gpu_memory_gb: object) -> None:
    """Raise `ConfigError` for a stack_size or a gpu_memory_gb that cannot be one."""
    check_stack_size(asked)
    number = isinstance(gpu_memory_gb, int | float) and not isinstance(gpu_memory_gb, bool) and gpu_memory_gb > 0
    if gpu_memory_gb is not None and not number:
        raise ConfigError(f"hydra.launcher.gpu_memory_gb={gpu_memory_gb}: should be a number above 0, or null")


def stacks_here(jobs: Sequence[Job], asked: int | None) -> list[list[Job]]:
    """Stacks for jobs on this machine, by its memory and cores. Raises `UserError` where a stack does not fit."""
    return _stacks(jobs, lambda shape: stack_size(_needs(shape), shape[0].device, asked if len(shape) > 1 else None))


def stacks_for_job(
    jobs: Sequence[Job], asked: int | None, gpu_memory_gb: float | None, parameters: Mapping[str, Any]
) -> list[list[Job]]:
    """Stacks for jobs on machines that are not seen from here, by what `parameters` ask of them.

    On a CPU a run for each of ``cpus_per_task`` within ``mem_gb``; on a GPU what fits into `gpu_memory_gb`. Raises
    `ConfigError` where that is not known, or not one run fits.
    """
    on_gpu = parameters.get("gpus_per_node") or "gpu" in str(parameters.get("gres"))

    def fit(shape: Sequence[Job]) -> int:
        if asked is not None:
            return asked
        if on_gpu and shape[0].config.device != "cpu":
            if gpu_memory_gb is None:
                raise ConfigError(
                    "hydra.launcher.stack_size=null: what fits on a GPU of the cluster is not known here; give "
                    "hydra.launcher.gpu_memory_gb, the memory of one, or a hydra.launcher.stack_size"
                )
            return _within("gpu_memory_gb", gpu_memory_gb, max(_needs(shape)))
        cores = parameters.get("cpus_per_task") or 1
        # More than one thread means that runs follow each other; see `gruclip.model.device.choose_threads`.
        runs = cores if shape[0].threads == 1 else 1
        if (memory := parameters.get("mem_gb")) is None:
            return runs
        return min(runs, _within("mem_gb", memory, max(_needs(shape)) + PROCESS_BYTES))

    return _stacks(jobs, fit)


def _stacks(jobs: Sequence[Job], size_of: Callable[[Sequence[Job]], int]) -> list[list[Job]]:
    shapes: dict[Any, list[Job]] = {}
    for job in jobs:
        shapes.setdefault(job.shape(), []).append(job)
    stacks = []
    for shape in shapes.values():
        size = size_of(shape)
        stacks += [shape[start : start + size] for start in range(0, len(shape), size)]
    return stacks


def _needs(shape: Sequence[Job]) -> list[int]:
    return [run_bytes(job.config, job.corpus.num_outputs) for job in shape]


def _within(name: str, gigabytes: float, each: int) -> int:
    fit = int(SHARE * gigabytes * 2**30) // each
    if not fit:
        raise ConfigError(
            f"hydra.launcher.{name}={gigabytes:g}: a run needs {each / 2**30:.1f} GiB; give more, or take a smaller "
            "model.hidden_size or trainer.batch_size"
        )
    return fit
