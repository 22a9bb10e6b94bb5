"""What a number was made on: machine, threads, versions, revision, and the kernels chosen."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gruclip.errors import UserError
from gruclip.kernels import compiled
from gruclip.kernels.products import LARGEST, PACKED_ELEMENTS, onednn_is_faster, smallest_of_ours

PACKAGES = ("gruclip", "torch", "numpy", "scipy", "hydra-core", "omegaconf", "pandas", "matplotlib", "safetensors")

#: Those of them that a run's numbers depend on.
NUMERICAL = ("gruclip", "torch", "numpy", "scipy")

#: AMD's by family, each with its models from and to, as arch/x86/kernel/cpu/amd.c in Linux has them.
GENERATIONS: dict[int, dict[str, list[tuple[int, int]]]] = {
    0x17: {
        "Zen": [(0x00, 0x2F), (0x50, 0x5F)],
        "Zen 2": [(0x30, 0x4F), (0x60, 0x7F), (0x90, 0x91), (0xA0, 0xAF)],
    },
    0x19: {"Zen 3": [(0x00, 0x0F), (0x20, 0x5F)], "Zen 4": [(0x10, 0x1F), (0x60, 0xAF)]},
    0x1A: {
        "Zen 5": [(0x00, 0x2F), (0x40, 0x4F), (0x60, 0x7F)],
        "Zen 6": [(0x50, 0x5F), (0x80, 0xAF), (0xC0, 0xCF)],
    },
}


def _range(smallest: float) -> list[float] | None:
    return [smallest, LARGEST] if smallest <= LARGEST else None


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Plain data for ``environment.json`` and for the files of ``gruclip bench``."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": processor_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "driver": driver_version() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "revision": git_revision(),
        "kernels": {
            "float32_products": "oneDNN" if onednn_is_faster() else "torch default",
            "compiled_multiply_adds": _range(smallest_of_ours(turned=False)),
            "compiled_multiply_adds_of_transposes": _range(smallest_of_ours(turned=True)),
            "packed_from_elements": PACKED_ELEMENTS,
            "native": compiled.description(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "command": sys.argv,
    }


def check_versions(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise `UserError` where a run was trained by other versions of what its numbers depend on."""
    had = {} if before is None else before.get("versions", {})
    changed = [
        f"{package} {had[package]} is {now['versions'][package]} now"
        for package in NUMERICAL
        if package in had and had[package] != now["versions"][package]
    ]
    if changed:
        raise UserError(
            f"{name}: was begun with other versions ({', '.join(changed)}), so that its numbers would change on the "
            "way; install those, or continue all the same with resume=anyway, which is recorded"
        )


def processor_name() -> str:
    """The CPU's model name, as the kernel gives it."""
    return cpuinfo().get("model name") or platform.processor()


def processor_family(info: Mapping[str, str] | None = None) -> str:
    """Which processor it is where its name says nothing, as of virtual machines: "family 26 model 2 (Zen 5)".

    By `cpuinfo`, or what is given in its place; empty where that has no family, as on ARM.
    """
    info = cpuinfo() if info is None else info
    if not {"vendor_id", "cpu family", "model"} <= info.keys():
        return ""
    family, model = int(info["cpu family"]), int(info["model"])
    models = GENERATIONS.get(family, {}) if info["vendor_id"] == "AuthenticAMD" else {}
    names = [name for name, ranges in models.items() if any(low <= model <= high for low, high in ranges)]
    return f"family {family} model {model}" + "".join(f" ({name})" for name in names)


def cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").partition("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def git_revision() -> str | None:
    """What ``$GRUCLIP_REVISION`` says, where a copy of a checkout was sent to another machine; else the commit of the
    checkout this code runs from, with "+changes" where it differs, results aside; outside a checkout None."""
    if named := os.environ.get("GRUCLIP_REVISION"):
        return named
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        command = [*git, "describe", "--always", "--abbrev=12"]
        revision = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!outputs"], check=False)
        return f"{revision}+changes" if changes.returncode == 1 else revision
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def driver_version() -> str | None:
    """Of the NVIDIA driver, as the kernel or nvidia-smi gives it; None where neither does."""
    loaded = Path("/proc/driver/nvidia/version")
    if loaded.exists() and (found := re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", loaded.read_text())):
        return found[1]
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return text.splitlines()[0].strip() if text.strip() else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
