"""When a run counts as exploded: gradient norms, before any clipping, that tower above those before them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class ExplosionDetector:
    """Exploded: a gradient norm not finite, or above 100 times the median of the up to 200 before it (at least 20)."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    first_step: int | None = None
    max_norm: float = 0.0

    def observe(self, step: int, norm: float) -> bool:
        """Take the norm of iteration `step`; whether it exploded."""
        norm = math.inf if math.isnan(norm) else norm
        exploded = not math.isfinite(norm) or (len(self.recent) >= 20 and norm > 100 * median(self.recent))
        if exploded and self.first_step is None:
            self.first_step = step
        self.max_norm = max(self.max_norm, norm)
        self.recent.append(norm)
        return exploded

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "first_step": self.first_step, "max_norm": self.max_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=200)
        self.first_step, self.max_norm = state["first_step"], state["max_norm"]
