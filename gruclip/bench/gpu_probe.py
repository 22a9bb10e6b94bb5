"""What only a card can tell, in the first seconds of a loan: a line each, whatever fails.

Whether the projection's factorisations can be captured in a CUDA graph, and what those and other small parts take whose
times `gruclip.bench.budget` does not know: decompositions, norms of rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from gruclip.bench.timing import seconds_of
from gruclip.kernels.graphs import cuda_graphs
from gruclip.spectral.program import widths
from gruclip.spectral.tracked import SKETCH


def main(argv: list[str]) -> int:
    """``--tiny``: with small shapes, where there is no card."""
    tiny = "--tiny" in argv
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, runs = ((20,), (1, 2)) if tiny else ((200, 650), (1, 9, 90))
    for count in runs:
        for q in (carried + SKETCH for carried in widths(650, 650)):
            _tell(f"{count} factorisations and solves of {q} x {q} in a graph", partial(captured, count, q, device))
    _tell("ldexp of float64 is exact", partial(exact_powers, device))
    for n in sizes:
        _tell(f"n = {n}, a decomposition in float64", partial(decompositions, n, device))
    _tell("norms of bf16 rows", partial(norms_of_rows, device, 100 if tiny else 10_000))
    return 0


def _tell(what: str, found: Callable[[], str]) -> None:
    try:
        print(f"{what}: {found()}", flush=True)
    except Exception as error:  # the other questions are still open
        print(f"{what}: FAILED, {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)


def milliseconds(call: Callable[[], object], device: torch.device, times: int = 5) -> float:
    call()
    return 1e3 * median(seconds_of(call, device) for _ in range(times))


def captured(count: int, q: int, device: torch.device) -> str:
    """`gruclip.spectral.program`'s Cholesky factors and their inverses, replayed on other matrices, of which one is not
    positive definite, and on NaN."""

    def positive() -> Tensor:
        x = torch.randn(count, 3 * q, q, dtype=torch.float64, device=device)
        return x.mT @ x / (3 * q)

    memory, identity = positive(), torch.eye(q, dtype=torch.float64, device=device)
    made: list[Tensor] = []

    def factorise() -> None:
        factor, info = torch.linalg.cholesky_ex(memory, upper=True)
        made[:] = [torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=True), info]

    for _ in range(3):
        factorise()
    replay = cuda_graphs([factorise])[0] if device.type == "cuda" else factorise
    memory.copy_(positive())
    replay()
    inverse = made[0]
    error = float((inverse.mT @ memory @ inverse - identity).abs().max())
    memory[-1, 5, 5] = -1.0
    replay()
    flags = [int(flag) for flag in made[1].tolist()]
    memory.fill_(torch.nan)
    replay()
    of_nan = set(made[1].tolist())
    memory.copy_(positive())
    return (
        f"error {error:.0e}; not positive definite: {flags[-1]}, the others: {set(flags[:-1])}; NaN: {of_nan}; "
        f"{milliseconds(replay, device, 20):.3f} ms"
    )


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
