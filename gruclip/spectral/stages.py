"""``products`` for values far above the limit: clipped at falling limits, each in its range of the last.

Clipping at one limit and then at a lower one is clipping at the lower one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gruclip.kernels.graphs import Capture, Phase
from gruclip.spectral.products import MAX_RATIO, ClipResult, clip_by_products_, norms_by_products

#: Limits at which a matrix is clipped one after another, at most, each a quarter of the one before.
MAX_STAGES = 12
#: Matrices of a captured batch, at most: in larger ones kernels take longer than their launch.
MAX_CAPTURED = 32


class Stages:
    """Clips batches (R, m, n) of finite float64 matrices in as many stages as they need.

    `capture`: records a stage as a graph, replayed for later batches of its size on memory kept for it; None: no
    graphs.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture
        self._batches: dict[tuple[float, ...], _Batch] = {}

    def __call__(self, matrices: Tensor, limit: Tensor, tolerance: float) -> ClipResult:
        """Each matrix at its limit (R,), in place; up to limit (1 + tolerance) is inside."""
        batch = self._batch(matrices, tolerance)
        batch.take(matrices, limit)
        batch.measure()
        for _ in range(MAX_STAGES):
            batch.stage()
            if bool(batch.ended):
                break
        return batch.give(matrices)

    def _batch(self, matrices: Tensor, tolerance: float) -> _Batch:
        count, *shape = matrices.shape
        if self._capture is None or count > MAX_CAPTURED:
            return _Batch(matrices, count, tolerance)
        size = _rounded(count)
        key = (size, *shape, tolerance)
        if key not in self._batches:
            self._batches[key] = _Batch(matrices, size, tolerance)
        else:  # libraries are initialised, which no graph can record
            self._batches[key].replay_by(self._capture)
        return self._batches[key]


class _Batch:
    """A batch in memory of its own, filled up with zeros."""

    def __init__(self, like: Tensor, size: int, tolerance: float) -> None:
        self.matrices = like.new_zeros(size, *like.shape[1:])
        self.limit, self.norm = like.new_ones(size), like.new_zeros(size)
        self.counts = torch.zeros(size, dtype=torch.int64, device=like.device)
        self.certified = torch.zeros(size, dtype=torch.bool, device=like.device)
        self.ended = torch.zeros((), dtype=torch.bool, device=like.device)
        self._tolerance = tolerance
        # Empty until captured: its own bound methods would keep it alive until Python collects cycles.
        self._replays: list[Phase] = []

    def replay_by(self, capture: Capture) -> None:
        self._replays = self._replays or capture([self._measure, self._stage])

    def take(self, matrices: Tensor, limit: Tensor) -> None:
        count = len(matrices)
        self.matrices[:count], self.limit[:count] = matrices, limit
        self.matrices[count:], self.limit[count:] = 0.0, 1.0

    def measure(self) -> None:
        (self._replays[0] if self._replays else self._measure)()

    def stage(self) -> None:
        (self._replays[1] if self._replays else self._stage)()

    def _measure(self) -> None:
        self.norm.copy_(norms_by_products(self.matrices))
        self.counts.zero_()

    def _stage(self) -> None:
        now = torch.maximum(self.limit, self.norm * (1.01 / MAX_RATIO))
        result = clip_by_products_(self.matrices, now, self._tolerance)
        self.norm.copy_(result.spectral_norm)
        self.counts.copy_(torch.maximum(self.counts, result.values_clipped))
        self.certified.copy_(result.certified & (now <= self.limit))
        self.ended.copy_((~result.certified | (now <= self.limit)).all())

    def give(self, matrices: Tensor) -> ClipResult:
        count = len(matrices)
        matrices.copy_(self.matrices[:count])
        counts, norm, certified = (part[:count].clone() for part in (self.counts, self.norm, self.certified))
        finite = torch.ones_like(certified)
        return ClipResult(counts, norm, certified, finite, ~finite)


def _rounded(count: int) -> int:
    """Up to a power of two or three quarters of one: 1, 2, 3, 4, 6, 8, 12."""
    power = 1 << (count - 1).bit_length()
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power
