"""Where the time goes: seconds booked to the parts of an epoch."""

from __future__ import annotations

import time

import torch

PARTS = ("data", "forward", "backward", "update", "clipping", "metrics", "evaluation")


def phase_parts(clips_gradients: bool, clips_weights: bool) -> tuple[str, ...]:
    """Where the phases of an iteration are booked: forward, backward, the gradient's norm, update, projection. What a
    method does not need, that norm or a spectral norm, is a metric."""
    norm, projection = ("clipping" if clips else "metrics" for clips in (clips_gradients, clips_weights))
    return "forward", "backward", norm, "update", projection


class Clock:
    """Books the time since the last call to a part; on a GPU by events, so that nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._cuda = device.type == "cuda"
        self._last: float | torch.cuda.Event = 0.0
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        self._last = self._now()

    def book(self, part: str) -> None:
        now = self._now()
        if isinstance(now, float):
            assert isinstance(self._last, float)
            self.seconds[part] += now - self._last
        else:
            assert not isinstance(self._last, float)
            self._pending.append((part, self._last, now))
        self._last = now

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading."""
        if self._pending:
            torch.cuda.synchronize()
            for part, start, stop in self._pending:
                self.seconds[part] += start.elapsed_time(stop) / 1000
            self._pending.clear()
        seconds, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
