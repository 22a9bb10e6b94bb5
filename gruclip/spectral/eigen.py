"""The leading eigenpairs of a symmetric matrix in single precision, as many as are wanted."""

from __future__ import annotations

import time
from collections import defaultdict, deque

import torch
from torch import Tensor

from gruclip.kernels import compiled
from gruclip.kernels.arguments import ROOM, WIDTH, band_rows
from gruclip.spectral.thin import FEW_COLUMNS, column_gram, thin_product

#: Share of the pairs above which `eigh` is cheaper: inverse iteration costs their number squared.
MAX_SHARE = 0.5
#: Floats that the length of the compiled band's rows is a multiple of.
ROW_STEP = 16
#: Deviation from orthonormality, and residual relative to the largest entry of the matrix or to a pair's own value,
#: beyond which it is not trusted.
PRECISION = 4e-6
#: Eigenvalues within this share of the norm from zero are found in float64.
NEAR_ZERO = 1e-5


#: After so many reductions of one size to a band the slower number of threads is tried again; each number counts by the
#: shortest of so many recent times.
TRIED_AGAIN, LAST_TIMES = 20, 3


class Pace:
    """Whether one thread reduces a matrix faster than all: these wait for each other n / 4 times, which costs more than
    they save where other work, or another guest of the host, has the second core. No bit depends on it.
    """

    def __init__(self) -> None:
        self.calls = 0
        #: Seconds of the last reductions by one thread, and by all; 0: not tried yet.
        self.seconds = [deque([0.0], LAST_TIMES), deque([0.0], LAST_TIMES)]

    def all_threads(self) -> bool:
        """Whether the next one uses all."""
        self.calls += 1
        alone, together = map(min, self.seconds)
        return (together < alone) != (self.calls % TRIED_AGAIN == 0)

    def took(self, together: bool, seconds: float) -> None:
        if self.seconds[together][0] == 0:
            self.seconds[together] = deque([seconds], LAST_TIMES)  # never empty, for other Python threads
        else:
            self.seconds[together].append(seconds)


#: By n and the number of threads.
_PACES: defaultdict[tuple[int, int], Pace] = defaultdict(Pace)


class Spectrum:
    """The eigenvalues, in units of `unit`, and eigenvectors of a symmetric matrix (n, n), float32, of which the lower
    half is read; the other one may be written over.

    With compiled kernels it is reduced to a band, and pairs are computed on demand; without them, all at once.
    """

    def __init__(self, matrix: Tensor, unit: float = 1.0) -> None:
        self.matrix, self.unit = matrix.contiguous(), unit
        self._all: tuple[Tensor, Tensor] | None = None
        if not compiled.takes(matrix):
            self._all = self._eigh()
            return
        n = matrix.shape[0]
        stride = -(-(n + ROOM) // ROW_STEP) * ROW_STEP
        self._reflections = matrix.new_empty(band_rows(n), stride)
        self._scales = matrix.new_empty(n)
        self._band = matrix.new_empty(n, WIDTH, dtype=torch.float64)
        size = torch.empty((), dtype=torch.float64)
        made: list[Tensor | None] = [self._reflections, self._band, self._scales, size, self.matrix]
        threads = torch.get_num_threads()
        pace = _PACES[n, threads]
        together = pace.all_threads()
        begin = time.perf_counter()
        compiled.call("gruclip_band", made, [n, stride], threads if together else 1)
        pace.took(together, time.perf_counter() - begin)
        self._size = float(size) / unit

    def count_above(self, *thresholds: float) -> list[int]:
        """The numbers of eigenvalues above each of the `thresholds`."""
        if self._all is not None:
            return [int((self._all[0] > threshold).sum()) for threshold in thresholds]
        bounds = torch.tensor([threshold / self._size for threshold in thresholds], dtype=torch.float64)
        counts = torch.empty_like(bounds, dtype=torch.int64)
        compiled.call("gruclip_count_above", [counts, self._band, bounds], [len(self._band), len(bounds)])
        found: list[int] = counts.tolist()
        return found

    def leading(self, count: int, rough: bool = False) -> tuple[list[float], Tensor]:
        """The largest `count` eigenvalues, descending, and their eigenvectors (n, count), float32.

        `rough`: the vectors need not be orthogonal, and are not checked.
        """
        n = self.matrix.shape[0]
        if self._all is None and count <= MAX_SHARE * n:
            values, vectors = torch.empty(count, dtype=torch.float64), self.matrix.new_empty(n, count)
            made: list[Tensor | None] = [values, vectors, self._reflections, self._band, self._scales]
            counts = [n, self._reflections.stride(0), count]
            compiled.call("gruclip_eigenpairs", made, counts, int(rough), torch.get_num_threads())
            values *= self._size
            if rough or self._is_precise(values, vectors):
                return values.tolist(), vectors
        if self._all is None:
            self._all = self._eigh()
        return self._all[0][:count].tolist(), self._all[1][:, :count]

    def _is_precise(self, values: Tensor, vectors: Tensor) -> bool:
        """Whether the pairs are eigenpairs to `PRECISION`: inverse iteration may fail in a cluster."""
        compiled.call("gruclip_mirror", [self.matrix], [len(self.matrix)], torch.get_num_threads())
        sizes = values * self.unit
        residuals = thin_product(self.matrix, vectors, roughly=True).addcmul_(vectors, sizes.float(), value=-1)
        allowed = PRECISION * sizes.abs().clamp(min=self._size * self.unit)
        if not bool((residuals.abs_().amax(0) <= allowed).all()):
            return False
        apart = column_gram(vectors) if vectors.shape[1] <= FEW_COLUMNS else vectors.mT @ vectors
        apart.diagonal().sub_(1)
        return float(apart.abs_().max()) <= PRECISION

    def _eigh(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix)
        values, vectors = values.flip(0).double(), vectors.flip(1)
        # LAPACK's float32 values may be 1e-6 of the norm off, where those near zero, the limit, are told to 5e-7; their
        # vectors' Rayleigh quotients are not.
        near = values.abs() <= NEAR_ZERO * values.abs().amax()
        near[:1] = True
        some, below = vectors[:, near].double(), self.matrix.tril().double()
        images = (below + below.tril(-1).mT) @ some
        values[near] = (some * images).sum(0) / some.square().sum(0)
        values, order = values.sort(descending=True, stable=True)
        return values / self.unit, vectors.mT[order].mT
