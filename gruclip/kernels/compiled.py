"""Compiled kernels for the CPU: optional, loaded once, called by one function that checks what they are given.

Their sources are `build.SOURCES`; where they cannot be used the modules that call them compute the same with torch's
operations. They are plain C++ without torch's headers, bound by ctypes, and not an extension of torch's:
compiling takes seconds and not forty, and needs neither ninja nor setuptools.

The first available is taken: a wheel's library for the best instruction level of this processor; one compiled here for
this processor and kept in the user's cache; none, with one
warning. ``GRUCLIP_NATIVE=0`` in the environment turns them off (1, or nothing: on). `description`
says what is in use: the runner stores it with each run, since a number's last bits may depend on it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from gruclip.errors import UserError
from gruclip.kernels import build, cache
from gruclip.kernels.arguments import KERNELS, check

#: What takes seconds is announced here; the command line shows it.
LOGGER = logging.getLogger(__name__)

#: Of a wheel: LEVEL-SHA256.so.
PREBUILT = Path(__file__).parent / "prebuilt"


class NativeWarning(RuntimeWarning):
    """The kernels are unavailable, or could not be cached; all works the same, slower."""


class Loaded(NamedTuple):
    """What is in use."""

    library: ctypes.CDLL | None
    description: str  #: for a run's record
    origin: str  #: in words
    file: Path | None = None
    refused: tuple[str, ...] = ()  #: why what comes before it was not taken

    @property
    def checksum(self) -> str:
        """SHA-256 of the library, in hexadecimal; empty where there is none."""
        return "" if self.file is None else self.file.stem.rpartition("-")[2]


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels can work on these: float32 on the CPU, and compiled.

    Not under a dispatch mode (FakeTensor, make_fx, a FLOP counter), nor for tensor subclasses: they would not see what
    a kernel does to bare memory, or have none.
    """
    for tensor in tensors:
        if tensor is not None and not (
            tensor.dtype is torch.float32
            and tensor.is_cpu
            and type(tensor) in (Tensor, Parameter)
            and not tensor.is_neg()  # a view whose memory holds the opposite numbers
        ):
            return False
    return torch._C._len_torch_dispatch_stack() == 0 and library() is not None


def has_pairs() -> bool:
    """Whether the kernels multiply pairs of bfloat16 by an instruction of the processor."""
    kernels = library()
    return kernels is not None and bool(ctypes.c_int.in_dll(kernels, "gruclip_has_pairs").value)


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
    """What is in use, for a run's record: the level and checksum of a prebuilt library, the key of a compiled one, or
    why there is none."""
    return loaded().description


def library() -> ctypes.CDLL | None:
    """The kernels, compiled if need be; None where they are turned off or cannot be had."""
    return loaded().library


@functools.cache
def loaded() -> Loaded:
    """The kernels, found or made by the first call, which warns where they cannot be had.

    Raises `UserError` for a GRUCLIP_NATIVE that is neither 0 nor 1, and where the compiler is ended from outside.
    """
    wanted = os.environ.get("GRUCLIP_NATIVE", "1")
    if wanted not in ("0", "1"):
        raise UserError(f"GRUCLIP_NATIVE={wanted}: should be 0 or 1")
    if wanted == "0":
        return Loaded(None, "off: GRUCLIP_NATIVE=0", "off: GRUCLIP_NATIVE=0")
    refused: list[str] = []
    for name, candidate in (("prebuilt", _prebuilt), ("compiled", _compiled)):
        try:
            return candidate()._replace(refused=tuple(refused))
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a quotation without end
            written = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
            if isinstance(error, subprocess.CalledProcessError) and error.returncode < 0:
                # Without kernels a run would begin with other bits than those it is continued with.
                raise UserError(
                    f"{error.cmd[0]} was ended by signal {-error.returncode} as it compiled gruclip's kernels; start "
                    "the same command again"
                ) from None
            refused.append(f"not {name}: {(written or str(error)).strip()}")
    _warn(
        f"gruclip's kernels for the CPU are {refused[-1]}; install a C++ compiler, or set GRUCLIP_NATIVE=0 to do "
        "without them and without this warning"
    )
    return Loaded(None, refused[-1], "none: torch's operations in their place", refused=tuple(refused))


def _prebuilt() -> Loaded:
    """The wheel's library for the best level that this processor has. Raises OSError where there is none."""
    if not PREBUILT.is_dir():
        raise FileNotFoundError("this installation holds none")
    for level in build.levels_of(build.processor_flags()):
        for path in PREBUILT.glob(f"{level}-{'[0-9a-f]' * 64}.so"):
            wrong = cache.damage(path.name, path.read_bytes())
            if wrong:
                _warn(f"{path} {wrong}; install gruclip again")
                raise OSError(f"{path} {wrong}")
            runtime = build.openmp_runtime()
            if runtime is None:
                raise OSError("torch has loaded no OpenMP runtime")
            # It is there already; from now on its functions are found by a library that does not name it.
            ctypes.CDLL(str(runtime), mode=os.RTLD_GLOBAL | os.RTLD_NOLOAD)
            short = path.stem[: len(level) + 17]
            return Loaded(_opened(path), f"prebuilt {short}", f"prebuilt for {level}", path)
    raise FileNotFoundError(f"none of {', '.join(build.LEVELS)} is for this processor")


def _compiled() -> Loaded:
    """A library for this processor, by this compiler, with torch's OpenMP runtime: from the cache, or compiled now.

    Raises OSError, ValueError or `subprocess.SubprocessError` where it cannot be had.
    """
    compiler = build.compiler()
    key, compile_to = build.key(compiler), functools.partial(build.compile_for_this_processor, command=compiler)
    origin = "compiled for this processor"
    try:
        where = cache.folder()
        cache.remove_leftovers(where)
        refused = []
        for path in sorted(where.glob(f"{key}-*.so")):
            wrong = cache.fault(path)
            try:
                if wrong is None:
                    return Loaded(_opened(path), key, origin, path)
            except OSError as error:
                wrong = str(error)
            _warn(f"{path} {wrong}; the kernels are compiled again")
            refused.append(path)
        LOGGER.info("compiling gruclip's kernels for this processor, once: 10 to 60 seconds; kept in %s", where)
        path = cache.store(where, key, compile_to)
        for other in refused:
            if other != path:
                other.unlink(missing_ok=True)
        return Loaded(_opened(path), key, origin, path)
    except OSError as error:
        _warn(f"gruclip's kernels for the CPU are compiled for this process alone, and not kept: {error}")
    # A library stays when its file goes.
    with tempfile.TemporaryDirectory(prefix="gruclip-native-") as scratch:
        path = cache.store(Path(scratch), key, compile_to)
        return Loaded(_opened(path), key, f"{origin} and this process alone", path)


def _opened(path: Path) -> ctypes.CDLL:
    """The library with its functions declared. Raises OSError where it is none, or lacks one of them."""
    kernels = ctypes.CDLL(str(path))
    for name, kernel in KERNELS.items():
        function = getattr(kernels, name, None)
        if function is None:
            raise OSError(f"has no function {name}")
        function.argtypes, function.restype = kernel.signature, None
    return kernels


def _warn(message: str) -> None:
    warnings.warn(message, NativeWarning, stacklevel=2)
