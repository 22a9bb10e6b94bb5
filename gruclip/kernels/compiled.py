"""Compiled kernels for the CPU: optional, compiled once for this processor by the C++ compiler that is there.

What they compute is in the `build.SOURCES`; the modules that call them where they can compute the same with torch's own
operations elsewhere. They are plain C++ without torch's headers, bound by ctypes, and not an extension of torch's:
compiling takes seconds and not forty, and needs neither ninja nor setuptools.

``GRUCLIP_NATIVE=0`` in the environment turns them off (1, or nothing: on). Without a compiler there is one warning, and
`description` says what is in use: the runner stores it with each run.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import warnings
from pathlib import Path

import torch
from torch import Tensor

from gruclip.errors import UserError
from gruclip.kernels import build
from gruclip.kernels.arguments import KERNELS, check


class NativeWarning(RuntimeWarning):
    """The kernels could not be compiled; everything works without them, slower."""


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels can work on these: float32 on the CPU, and compiled."""
    for tensor in tensors:
        if tensor is not None and not (tensor.dtype is torch.float32 and tensor.is_cpu):
            return False
    return library() is not None


def call(name: str, tensors: list[Tensor | None], counts: list[int], *flags: int) -> None:
    """Call a kernel on tensors laid out as `KERNELS` says; None is a null pointer.

    Raises ValueError, naming kernel and argument, where one is of another type, shape or layout: a kernel gets bare
    addresses, and would read and write beyond it.
    """
    kernels = library()
    assert kernels is not None
    check(name, tensors, counts, flags)
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
        library, path, note = _found(shlex.split(os.environ.get("CXX") or "c++"))
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
    if note is not None:
        warnings.warn(f"{note}; they are compiled anew by each process until then", NativeWarning, stacklevel=2)
    return library, path.stem


def _found(compiler: list[str]) -> tuple[ctypes.CDLL, Path, str | None]:
    """The library with all its functions declared. One that lacks some is compiled anew.

    Raises OSError or `subprocess.SubprocessError` where it cannot be compiled or loaded.
    """
    found = build.built(compiler)
    try:
        return _declared(found.path), found.path, found.note
    except AttributeError:
        found = build.built(compiler, anew=True)
        return _declared(found.path), found.path, found.note


def _declared(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, kernel in KERNELS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = kernel.signature, None
    return library
