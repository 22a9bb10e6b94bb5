"""Compiled kernels for the CPU: optional, compiled once for this processor by the C++ compiler that is there.

What they compute is in the `SOURCES`; the modules that call them where they can compute the same with torch's own
operations elsewhere. They are plain C++ without torch's headers, bound by ctypes, and not an extension of torch's:
compiling takes seconds and not forty, and needs neither ninja nor setuptools.

``GRUCLIP_NATIVE=0`` in the environment turns them off (1, or nothing: on). Without a compiler there is one warning, and
`description` says what is in use: the runner stores it with each run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from gruclip.errors import UserError

SOURCES = ("band.cpp", "dense.cpp", "dropout.cpp", "eigen.cpp", "gru.cpp", "ritz.cpp", "softmax.cpp", "thin.cpp")
HEADERS = ("band.h", "pairs.h", "panels.h", "thin.h", "vectors.h")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

TENSOR, COUNT, FLAG = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
SIGNATURES: dict[str, list[type]] = {
    "gruclip_band": [TENSOR] * 3 + [COUNT] * 2 + [FLAG],
    "gruclip_chebyshev": [TENSOR] * 7 + [COUNT] * 3,
    "gruclip_column_squares": [TENSOR] * 2 + [COUNT] * 3 + [FLAG],
    "gruclip_count_above": [TENSOR] * 3 + [COUNT],
    "gruclip_eigenpairs": [TENSOR] * 5 + [COUNT] * 3 + [FLAG],
    "gruclip_expand": [TENSOR] * 8 + [COUNT] * 6 + [FLAG],
    "gruclip_gram": [TENSOR] * 2 + [COUNT] * 2 + [FLAG],
    "gruclip_gru_forward": [TENSOR] * 4 + [COUNT] * 3 + [FLAG] * 2,
    "gruclip_gru_backward": [TENSOR] * 9 + [COUNT] * 3 + [FLAG] * 2,
    "gruclip_mask": [TENSOR] * 3 + [COUNT] * 2 + [FLAG],
    "gruclip_orthonormalise": [TENSOR] * 2 + [COUNT] * 3,
    "gruclip_product": [TENSOR] * 3 + [COUNT] * 8 + [FLAG] * 2,
    "gruclip_product_of_kept": [TENSOR] * 3 + [COUNT] * 9 + [FLAG],
    "gruclip_product_where_kept": [TENSOR] * 4 + [COUNT] * 5 + [FLAG],
    "gruclip_random_bits": [TENSOR] * 2 + [COUNT] * 2 + [FLAG],
    "gruclip_ritz_triplets": [TENSOR] * 9 + [COUNT] * 6 + [FLAG],
    "gruclip_softmax_nll": [TENSOR] * 5 + [COUNT] * 2 + [FLAG] * 2,
    "gruclip_there_and_back": [TENSOR] * 4 + [COUNT] * 4 + [FLAG],
    "gruclip_there_and_back_one": [TENSOR] * 4 + [COUNT] * 3 + [FLAG],
    "gruclip_thin_product": [TENSOR] * 3 + [COUNT] * 5 + [FLAG],
    "gruclip_squared_distance": [TENSOR] * 3 + [COUNT] * 4 + [FLAG],
}


class NativeWarning(RuntimeWarning):
    """The kernels could not be compiled; everything works without them, slower."""


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels can work on these: float32 on the CPU, and compiled."""
    for tensor in tensors:
        if tensor is not None and not (tensor.dtype is torch.float32 and tensor.is_cpu):
            return False
    return library() is not None


def call(name: str, tensors: list[Tensor | None], counts: list[int], *flags: int) -> None:
    """Call a kernel on tensors laid out as it expects; None is a null pointer."""
    kernels = library()
    assert kernels is not None
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    getattr(kernels, name)(*addresses, *counts, *flags)


def description() -> str:
    """What is in use, for a run's record: the compiled file's key, or why there is none."""
    return _load()[1]


def library() -> ctypes.CDLL | None:
    """The kernels, compiled if need be; None where they are turned off or cannot be had."""
    return _load()[0]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    wanted = os.environ.get("GRUCLIP_NATIVE", "1")
    if wanted not in ("0", "1"):
        raise UserError(f"GRUCLIP_NATIVE={wanted}: should be 0 or 1")
    if wanted == "0":
        return None, "off: GRUCLIP_NATIVE=0"
    try:
        path = _compiled(shlex.split(os.environ.get("CXX") or "c++"))
        kernels = ctypes.CDLL(str(path))
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a quotation without end
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) and error.stderr else error
        reason = f"not compiled: {detail}"
        warnings.warn(
            f"gruclip's kernels for the CPU are {reason}; install a C++ compiler, or set GRUCLIP_NATIVE=0 to do "
            "without them and without this warning",
            NativeWarning,
            stacklevel=2,
        )
        return None, reason
    for name, arguments in SIGNATURES.items():
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, None
    return kernels, path.stem


def _compiled(compiler: list[str]) -> Path:
    """The shared library for these sources, this processor, this compiler and torch's OpenMP runtime.

    Raises OSError or `subprocess.SubprocessError` where it cannot be compiled.
    """
    here = Path(__file__).parent
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256()
    parts = [*compiler, *FLAGS, version, _processor(), str(_openmp_runtime()), *map(_read, (*SOURCES, *HEADERS))]
    for part in parts:
        key.update(part.encode() + b"\0")
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gruclip" / "native"
    path = folder / f"{key.hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            sources = [str(here / name) for name in SOURCES]
            command = [*compiler, *FLAGS, *sources, *_openmp_flags(), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            # Whole or not at all, whoever else compiles it at the same time.
            made.replace(path)
    return path


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _openmp_flags() -> list[str]:
    """With torch's own OpenMP runtime: two of them, with a pool of threads each, would fight for the cores."""
    if platform.system() == "Darwin":
        return []  # Apple's compiler has no OpenMP: one thread
    runtime = _openmp_runtime()
    return ["-fopenmp"] if runtime is None else ["-fopenmp", str(runtime), f"-Wl,-rpath,{runtime.parent}"]


@functools.cache
def _openmp_runtime() -> Path | None:
    """The file of the OpenMP runtime that this process has loaded with torch."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    found = re.search(r"\S*/lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*$", maps.read_text(), re.MULTILINE)
    return None if found is None else Path(found.group())


def _processor() -> str:
    """What ``-march=native`` depends on: a home folder may be shared by machines of several kinds."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    lines = re.findall(r"^(?:model name|cpu family|model|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    return platform.machine() + "\n" + "\n".join(sorted(set(lines)))
