"""``gruclip --version -v``: what would compute here, line by line."""

from __future__ import annotations

import platform

import torch

import gruclip
from gruclip.kernels import compiled
from gruclip.runs.environment import git_revision, processor_family, processor_name


def describe() -> str:
    """Versions, revision, threads, and which compiled kernels are in use; compiles them if need be."""
    kernels = compiled.loaded()
    capability = torch.backends.cpu.get_cpu_capability()
    lines = {
        "gruclip": gruclip.__version__,
        "revision": git_revision() or "not a checkout",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": ", ".join(filter(None, (processor_name(), processor_family(), f"{capability} in torch"))),
        "threads": str(torch.get_num_threads()),
        "kernels": kernels.origin,
    }
    if kernels.file is not None:
        gone = "" if kernels.file.exists() else " (removed once loaded)"
        lines |= {"file": f"{kernels.file}{gone}", "sha256": kernels.checksum[:16], "record": kernels.description}
    width = max(map(len, lines))
    rows = [f"{name:{width}}  {value}" for name, value in lines.items()]
    return "\n".join([*rows, *(f"{'':{width}}  {reason}" for reason in kernels.refused)])
