"""The grid of ``gruclip bench projection --grid``: `auto` against the best alternative, cell by cell.

A cell is a shape, a number of values above the limit, and whether the matrix is known (a drifting sequence, with a
state) or not. Cells go to a CSV file one by one, so that a measurement that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from gruclip.bench.output import number
from gruclip.bench.projection_peers import NAIVE, Projection, svd_clip
from gruclip.bench.sequences import MatrixSequence, drifting, unknown
from gruclip.bench.timing import seconds_of, shuffled
from gruclip.errors import UserError
from gruclip.report.render import Table
from gruclip.runs.environment import git_revision, processor_family, processor_name
from gruclip.spectral import SpectralState, clip_singular_values_

SIZES = (64, 128, 256, 512, 650, 1024)
#: Rows and columns over n, the shorter side; beyond `MAX_RECTANGLE` the square alone.
SHAPES = {"n x n": (1, 1), "2n x n": (2, 1), "n x 8n": (1, 8)}
MAX_RECTANGLE = 1024
#: Values above the limit: a share of n, or as many.
SHARES: dict[str, float | int] = {"0": 0, "0.01": 0.01, "10": 10, "0.1": 0.1, "0.5": 0.5, "1": 1.0}
#: Beyond this size a cell takes minutes: these shares alone.
MAX_WHOLE, LARGE_SHARES = 2048, ("10", "0.5")

AUTO, ALTERNATIVES = "auto", (NAIVE, "gram", "truncated")
#: A factor above this is marked.
MARKED = 1.1

#: A contestant that takes so many times the best's time is not repeated; nor one that took so many seconds, after
#: `MIN_ROUNDS` rounds.
HOPELESS, SECONDS, MIN_ROUNDS = 5.0, 2.0, 3
#: Rounds that are not timed, of a known matrix (a state settles) and of others.
SETTLING = {True: 2, False: 1}
#: From here on, seconds, the first round of what has no state counts too.
LONG = 0.5


@dataclass(frozen=True)
class Cell:
    shape: str  #: of `SHAPES`
    n: int
    share: str  #: of `SHARES`
    known: bool

    @property
    def above(self) -> int:
        share = SHARES[self.share]
        return min(self.n, share if isinstance(share, int) else round(share * self.n))

    def sequence(self, steps: int) -> MatrixSequence:
        rows, columns = (factor * self.n for factor in SHAPES[self.shape])
        make = drifting if self.known else unknown
        return make(columns, self.above, steps, rows=rows)


def cells(sizes: Iterable[int]) -> Iterator[Cell]:
    for n in sizes:
        for shape in SHAPES if n <= MAX_RECTANGLE else ("n x n",):
            for share in SHARES if n <= MAX_WHOLE else LARGE_SHARES:
                for known in (False, True):
                    yield Cell(shape, n, share, known)


def rounds_of(n: int) -> int:
    return 31 if n <= 128 else 15 if n <= 256 else 9 if n <= 650 else 5


def contestants(limit: float, known: bool) -> dict[str, Projection]:
    """`auto` and what it is held against, each with a state of its own where the matrix is `known`."""

    def ours(algorithm: str) -> Projection:
        state = SpectralState() if known else None
        return partial(clip_singular_values_, limit=limit, algorithm=algorithm, state=state)

    alternatives = {name: partial(svd_clip, limit=limit) if name == NAIVE else ours(name) for name in ALTERNATIVES}
    return {AUTO: ours(AUTO), **alternatives}


def measure_cell(cell: Cell, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each contestant, by turns on copies of the same matrices."""
    settling = SETTLING[cell.known]
    sequence = cell.sequence(settling + rounds)
    running = contestants(sequence.limit, cell.known)
    taken: dict[str, list[float]] = {name: [] for name in running}
    latest: dict[str, float] = {}
    for turn, matrix in enumerate(sequence.matrices):
        for name in shuffled(running, turn):
            try:
                needed = seconds_of(partial(running[name], matrix.to(device, copy=True)), device)
            except torch.linalg.LinAlgError:  # float32's SVD finds no singular values of some matrices
                if name == AUTO:
                    raise
                taken[name], latest[name] = [math.inf], math.inf
                del running[name]
                continue
            latest[name] = needed
            stateless = name == NAIVE or not cell.known
            if turn >= settling or (needed > LONG and stateless):
                taken[name].append(needed)
        best = min(median(taken[name] or [latest[name]]) for name in taken)
        for name in [name for name in running if taken[name]]:
            used_up = sum(taken[name]) > SECONDS and len(taken[name]) >= MIN_ROUNDS
            if used_up or (name != AUTO and median(taken[name]) > HOPELESS * best):
                del running[name]
    return {name: median(seconds) for name, seconds in taken.items()}


COLUMNS = (*(field.name for field in fields(Cell)), "above", AUTO, *ALTERNATIVES, "factor", "revision", "machine")


def measure_grid(sizes: Iterable[int], path: Path, device: torch.device, tell: Callable[[str], object]) -> pd.DataFrame:
    """A row for each cell, seconds in columns by contestant; what `path` holds of this revision and machine is kept."""
    here = {"revision": git_revision() or "", "machine": f"{processor_name()}, {processor_family()}"}
    if device.type == "cuda":
        here["machine"] = torch.cuda.get_device_name(device)
    frame = _read(path)
    frame = frame[(frame["revision"] == here["revision"]) & (frame["machine"] == here["machine"])]
    done = {Cell(*row) for row in frame[list(COLUMNS[:4])].itertuples(index=False)}
    rows = frame.to_dict("records")
    for cell in cells(sizes):
        if cell in done:
            continue
        seconds = measure_cell(cell, rounds_of(cell.n), device)
        factor = seconds[AUTO] / min(seconds[name] for name in ALTERNATIVES)
        rows.append(
            {**dict(zip(COLUMNS, (*astuple(cell), cell.above), strict=False)), **seconds, "factor": factor, **here}
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
        except OSError as error:
            raise UserError(f"--out {path.parent}: cannot be written ({error.strerror})") from error
        tell(f"{cell.shape}, n = {cell.n}, {cell.above} above, {_word(cell.known)}: {factor:.2f}")
    return pd.DataFrame(rows, columns=COLUMNS)


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        frame = pd.read_csv(path, dtype={"share": str, "revision": str, "machine": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); move it away") from None
    if tuple(frame.columns) != COLUMNS:
        raise UserError(f"{path}: is no grid of this bench; move it away")
    return frame


def grid_tables(frame: pd.DataFrame) -> list[Table]:
    """The factors, a row a shape and size; and the times of the cells whose factor is marked."""
    rows = []
    for (shape, n), group in frame.groupby(["shape", "n"], sort=False):
        factors = {(row.known, row.share): row.factor for row in group.itertuples()}
        texts = {
            f"{_word(known)}, {share}": _marked(factors.get((known, share)))
            for known in (False, True)
            for share in SHARES
        }
        rows.append({"shape": shape, "n": str(n), **texts})
    caption = (
        f"Time of `auto` over the best of {NAIVE} (float32), `gram` and `truncated`, medians of turns in one process, "
        "by the values above the limit (a share of n, the shorter side, or 10). Unknown: no state, the values above "
        f"spread from 1.001 to 1.3 limits. Known: a drifting sequence with a state. Above {MARKED} in bold."
    )
    worse = frame[frame["factor"] > MARKED].sort_values("factor", ascending=False)
    slow = pd.DataFrame(
        {
            "shape": worse["shape"],
            "n": worse["n"].astype(str),
            "values above": worse["above"].astype(str),
            "": [_word(known) for known in worse["known"]],
            **{f"{name}, ms": [number(1e3 * seconds) for seconds in worse[name]] for name in (AUTO, *ALTERNATIVES)},
            "factor": [f"{factor:.2f}" for factor in worse["factor"]],
        }
    )
    count = f"{len(worse)} of {len(frame)} cells"
    return [
        Table("Grid", caption, pd.DataFrame(rows), frame, []),
        Table(f"Above {MARKED}", f"{count}.", slow, worse, []),
    ]


def _word(known: bool) -> str:
    return "known" if known else "unknown"


def _marked(factor: float | None) -> str:
    if factor is None:
        return ""
    return f"**{factor:.2f}**" if factor > MARKED else f"{factor:.2f}"
