"""What the tests share."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Triton: without a GPU its kernels are interpreted, in the tests that ask for them.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers of pytest-xdist share the cores: a thread each, and their children too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

from gruclip.data import FILES
from gruclip.kernels import compiled

# A shell starts what goes to the background with SIGINT ignored, by which runs are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, so that a failure comes from a change; no deadline, since cores are shared.
hypothesis.settings.register_profile(
    "gruclip", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gruclip")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are numbered: those of a .mat hold the second that they were made in, and two workers that collect in
    different seconds would not have the same tests.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def logging_of_hydra() -> Iterator[None]:
    """Hydra sets up logging for the whole process, on the streams that a test has: later tests would log to these."""
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real corpora that $GRUCLIP_DATA names."""
    root = Path(os.environ.get("GRUCLIP_DATA", "data that nobody has named")).resolve()
    missing = [file.path for files in FILES.values() for file in files if not (root / file.path).is_file()]
    if missing:
        pytest.fail(f"needs {', '.join(missing)} in $GRUCLIP_DATA, a folder laid out as gruclip.data.files.FILES")
    return root


@pytest.fixture(params=["compiled", "by torch"])
def kernels_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test for each: with the compiled kernels, and with torch's operations in their place."""
    if request.param == "by torch":
        monkeypatch.setattr(compiled, "takes", lambda *_: False)
    else:
        assert compiled.library() is not None, compiled.description()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands set torch's number of threads for their process. Left behind in one of two workers on two cores, more
    threads than one make later tests up to ten times as slow: they wait for each other on cores that they have not.
    """
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
