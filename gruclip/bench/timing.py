"""Timing several callables side by side, so that a noisy machine disturbs them all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median, quantiles

import torch

WARMUP = 2

Contestant = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What one contestant took, in seconds, one entry a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def mean(self) -> float:
        return fmean(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def ratio(self, base: Timing) -> float:
        """Time as a share of `base`'s: the median over the rounds, each held against the same round of `base`."""
        return median(mine / other for mine, other in zip(self.seconds, base.seconds, strict=True))


def interleave(contestants: Mapping[str, Contestant], rounds: int, warmup: int = WARMUP) -> dict[str, Timing]:
    """Call every contestant `warmup` times untimed, then once in each of `rounds` rounds, timed.

    Each round has an order of its own, so that none always runs in the wake of the same other, whose threads may still
    be looking for work.
    """
    for contestant in contestants.values():
        for _ in range(warmup):
            contestant()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in shuffled(contestants, turn):
            started = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def alone(contestant: Contestant, rounds: int, warmup: int = WARMUP) -> Timing:
    """`interleave` of one."""
    return interleave({"": contestant}, rounds, warmup)[""]


def shuffled(names: Iterable[str], turn: int) -> list[str]:
    """The names in an order of its own for every turn, the same whenever it is asked for."""
    order = list(names)
    random.Random(turn).shuffle(order)
    return order


def seconds_of(contestant: Contestant, device: torch.device) -> float:
    """What one call takes, to the end of its work on a GPU."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    contestant()
    wait()
    return time.perf_counter() - started
