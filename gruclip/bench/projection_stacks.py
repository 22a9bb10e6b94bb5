"""``gruclip bench projection --stacks``: many matrices at once, by the programs that training calls on a GPU.

They are replayed there as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, median

import pandas as pd
import torch
from torch import Tensor

from gruclip.bench.output import number
from gruclip.bench.projection_peers import Projection
from gruclip.bench.sequences import MatrixSequence
from gruclip.bench.timing import seconds_of
from gruclip.kernels.graphs import Phase, capture_on
from gruclip.report.render import Table
from gruclip.spectral import ClipResult, SubspaceState, clip_singular_values_deferred_, redo_uncertified_
from gruclip.spectral.program import widths
from gruclip.spectral.tracked import SKETCH

#: Steps that are not counted: of what they begin with little is known.
BEGINNING = 2


class Deferred:
    """`clip_singular_values_deferred_` on matrices (..., n, n) of one shape: by ``program`` with a state, else by
    ``products``. On memory of its own, and captured where the device has graphs.
    """

    def __init__(self, like: Tensor, limit: float, state: SubspaceState | None = None) -> None:
        self.memory, self.state = like.clone(), state
        self.limits = torch.full(like.shape[:-2], limit, dtype=torch.float64, device=like.device)
        self.result: ClipResult
        self._replay: Phase | None = None

    def take(self, weight: Tensor) -> None:
        self.memory.copy_(weight)

    def project(self) -> None:
        if self._replay is None:
            self._project()  # libraries set themselves up, which a graph cannot hold
            capture = capture_on(self.memory.device)
            self._replay = capture([self._project])[0] if capture else self._project
        else:
            self._replay()

    def _project(self) -> None:
        self.result = clip_singular_values_deferred_(self.memory, self.limits, self.state)

    def redo(self) -> float:
        """What has no certificate; the share of the others."""
        certified = float(self.result.certified.double().mean())
        redo_uncertified_(self.memory, self.limits, self.result, self.state)
        return certified


def deferred(limit: float) -> Projection:
    """``products`` without waiting for the device, as a contestant among others."""
    held: list[Deferred] = []

    def project(weight: Tensor) -> None:
        if not held:
            held.append(Deferred(weight, limit))
            held[0].project()  # captured, on a copy
        held[0].take(weight)
        held[0].project()
        weight.copy_(held[0].memory)

    return project


def measure_stacks(sequence: MatrixSequence, counts: Iterable[int], device: torch.device) -> pd.DataFrame:
    """Every program on so many matrices at once, all of them the sequence's: median seconds of a step, and the share of
    steps that had a certificate; what has none is redone, untimed."""
    rows = []
    for count in counts:
        start = sequence.matrices[:1].expand(count, -1, -1).to(device, copy=True)
        programs: dict[str, Deferred] = {"products": Deferred(start, sequence.limit)}
        for carried in widths(*start.shape[-2:]):
            state = SubspaceState(start, carried)
            programs[f"program, {carried + SKETCH} columns"] = Deferred(start, sequence.limit, state)
        for name, program in programs.items():
            program.project()  # captured, which by itself runs nothing
            program.redo()
            seconds, certified = [], []
            for matrix in sequence.matrices:
                program.take(matrix.to(device).expand_as(start))
                seconds.append(seconds_of(program.project, device))
                certified.append(program.redo())
            taken = median(seconds[BEGINNING:])
            shown = fmean(certified[BEGINNING:])
            row = {"algorithm": name, "matrices": count, "seconds": taken, "each": taken / count, "certified": shown}
            rows.append(row)
    return pd.DataFrame(rows)


def stack_table(frame: pd.DataFrame, sequence: MatrixSequence) -> Table:
    cells = pd.DataFrame(
        {
            "algorithm": frame["algorithm"],
            "matrices at once": frame["matrices"].astype(str),
            "ms": [number(1e3 * seconds) for seconds in frame["seconds"]],
            "ms a matrix": [number(1e3 * seconds) for seconds in frame["each"]],
            "certified": [f"{share:.0%}" for share in frame["certified"]],
        }
    )
    caption = (
        f"As training calls them on a GPU, without waiting for the device; {sequence.name}, the same for every matrix."
    )
    return Table("Stacks", caption, cells, frame, [])
