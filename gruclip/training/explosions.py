"""When a run counts as exploded: gradient norms, before any clipping, that tower above those before them."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from typing import Any

#: Norms that one is compared with: at most, and at least.
MAX_RECENT, MIN_RECENT = 200, 20


@dataclass
class ExplosionDetector:
    """Exploded: a gradient norm not finite, or above 100 times the median of the up to 200 before it (at least 20)."""

    recent: deque[float] = field(default_factory=deque)
    first_step: int | None = None
    max_norm: float = 0.0

    def __post_init__(self) -> None:
        # Kept in order: to sort them at each iteration of a hundred runs takes a millisecond.
        self._ordered = sorted(self.recent)

    def observe(self, step: int, norm: float) -> bool:
        """Take the norm of iteration `step`; whether it exploded."""
        norm = math.inf if math.isnan(norm) else norm
        exploded = not math.isfinite(norm) or (len(self.recent) >= MIN_RECENT and norm > 100 * self._median())
        if exploded and self.first_step is None:
            self.first_step = step
        self.max_norm = max(self.max_norm, norm)
        self.recent.append(norm)
        insort(self._ordered, norm)
        if len(self.recent) > MAX_RECENT:
            del self._ordered[bisect_left(self._ordered, self.recent.popleft())]
        return exploded

    def _median(self) -> float:
        middle, odd = divmod(len(self._ordered), 2)
        return self._ordered[middle] if odd else (self._ordered[middle - 1] + self._ordered[middle]) / 2

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "first_step": self.first_step, "max_norm": self.max_norm}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ExplosionDetector:
        return cls(deque(state["recent"]), state["first_step"], state["max_norm"])
