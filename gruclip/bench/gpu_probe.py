"""What only a card can tell, in the first seconds of a loan: a line each, whatever fails.

What the projection's parts take in a CUDA graph, with and without Triton, and others whose times `gruclip.bench.budget`
does not know: decompositions, norms of rows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from gruclip.bench.timing import seconds_of
from gruclip.kernels import program
from gruclip.kernels.graphs import cuda_graphs
from gruclip.spectral.bound import PROBES
from gruclip.spectral.program import COLUMNS, ROOT, SHIFT, SIGN, SQUARINGS, widths
from gruclip.spectral.tracked import SKETCH


def main(argv: list[str]) -> int:
    """``--tiny``: with small shapes, where there is no card."""
    tiny = "--tiny" in argv
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, runs = ((20,), (1, 2)) if tiny else ((200, 650), (1, 9, 90))
    for count in runs:
        for q in (COLUMNS,) if tiny else (carried + SKETCH for carried in widths(650, 650)):
            _tell(f"{count} matrices, {q} columns", partial(program_kernels, count, q, 64 if tiny else 656, device))
    _tell("ldexp of float64 is exact", partial(exact_powers, device))
    for n in sizes:
        _tell(f"n = {n}, a decomposition in float64", partial(decompositions, n, device))
    _tell("norms of bf16 rows", partial(norms_of_rows, device, 100 if tiny else 10_000))
    return 0


def _tell(what: str, found: Callable[[], str]) -> None:
    try:
        print(f"{what}: {found()}", flush=True)
    except Exception as error:  # the other questions are still open
        print(f"{what}: FAILED, {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)


def milliseconds(call: Callable[[], object], device: torch.device, times: int = 5) -> float:
    call()
    return 1e3 * median(seconds_of(call, device) for _ in range(times))


def program_kernels(count: int, q: int, n: int, device: torch.device) -> str:
    """What `gruclip.kernels.program` does, replayed from a graph: by Triton's kernels / by torch's operations, ms."""
    W, x = torch.randn(count, n, n, device=device) / n**0.5, torch.randn(count, n, q, device=device).mT.contiguous().mT
    probes, scale = x[..., :PROBES].mT.contiguous().mT, torch.ones(count, device=device)
    x = (program.inverse_factor(program.gram(x), SHIFT).mT.float() @ x.mT).mT
    positive = program.gram(program.exact_product(W, x)) / 8 + torch.eye(q, dtype=torch.float64, device=device) / 16
    calls: dict[str, Callable[[], object]] = {
        "filter step": partial(program.filter_step, W, x, x, scale),
        "bound step": partial(program.filter_step, W, probes, probes, scale),
        "exact product": partial(program.exact_product, W, x),
        "Gram matrix": partial(program.gram, x),
        "inverse factor": partial(program.inverse_factor, positive, SHIFT),
        "sign": partial(program.sign, positive, SIGN),
        "roots": partial(program.coupled_roots, positive, ROOT),
        "power": partial(program.high_power, positive, SQUARINGS),
    }
    found = []
    for name, call in calls.items():
        times = []
        for kernels in ("1", "0"):
            os.environ["GRUCLIP_TRITON"] = kernels
            call()
            replay = cuda_graphs([call])[0] if device.type == "cuda" else call
            times.append(f"{milliseconds(replay, device, 20):.3f}")
        found.append(f"{name} {' / '.join(times)}")
    del os.environ["GRUCLIP_TRITON"]
    return ", ".join(found)


def exact_powers(device: torch.device) -> str:
    exponents = torch.arange(-120, 121, dtype=torch.int32)
    powers = torch.ldexp(torch.ones(len(exponents), dtype=torch.float64, device=device), exponents.to(device)).tolist()
    return str(powers == [2.0**exponent for exponent in exponents.tolist()])


def decompositions(n: int, device: torch.device) -> str:
    matrix = torch.randn(n, n, dtype=torch.float64, device=device) / n**0.5 + torch.eye(n, device=device)
    host, found = matrix.cpu(), []
    for name in ("svd", "eigvals", "eigh"):
        call = getattr(torch.linalg, name)
        here, there = (milliseconds(partial(call, one), device, 2) for one in (matrix, host))
        found.append(f"{name} {here:.1f} ms ({there:.1f} on the host)")
    return ", ".join(found)


def norms_of_rows(device: torch.device, width: int) -> str:
    rows = torch.randn(18, 650, width, device=device).bfloat16()
    norms = [partial(torch.linalg.vector_norm, rows, dim=-1, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    single, double = (milliseconds(norm, device) for norm in norms)
    return f"in float32 {single:.3f} ms, in float64 {double:.3f} ms"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
