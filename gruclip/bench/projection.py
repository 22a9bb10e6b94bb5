"""``gruclip bench projection``: every algorithm of the projection against its peers, on sequences made and recorded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median

import pandas as pd
import torch
from torch import Tensor

from gruclip.bench import grid
from gruclip.bench import options as command
from gruclip.bench.output import number, write
from gruclip.bench.projection_figure import grid_figure, projection_figure
from gruclip.bench.projection_peers import NAIVE, Projection, missing, peers
from gruclip.bench.projection_stacks import BEGINNING, deferred, measure_stacks, stack_table
from gruclip.bench.recorded import load_recorded, record, save_recorded
from gruclip.bench.sequences import MatrixSequence, drifting, late
from gruclip.bench.step import SHAPES, example_seconds, random_words
from gruclip.bench.timing import seconds_of, shuffled
from gruclip.errors import UserError
from gruclip.report.render import Table
from gruclip.spectral import (
    ALGORITHMS,
    ClipResult,
    SpectralState,
    clip_singular_values_,
)
from gruclip.training.progress import larger

SIZES = (100, 200, 350, 650, 1024, 2048)
LARGE = 4096
FRACTIONS = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
FEW_ABOVE = 10  #: values above the limit, where the size varies
FRACTIONS_AT = 650  #: the size where the fraction varies
STACK_STEPS = 8  #: of a stack, at most

#: ``products`` as training calls it on a GPU, and replays it there as a CUDA graph.
DEFERRED = "deferred"

#: Every contestant takes part in so many rounds, before it leaves because its time is used up.
MIN_ROUNDS = 3


@dataclass
class Measured:
    """What one algorithm took and missed on one sequence."""

    seconds: list[float] = field(default_factory=list)
    error: float = 0.0  #: Frobenius, against float64 SVD, over the larger of the input's norm and the limit
    excess: float = -1.0  #: sigma_1 / limit - 1 of a result, the largest
    certified: bool = False  #: whether the last result was shown to be inside the limit

    def row(self) -> dict[str, float | int | bool]:
        return {
            "median": median(self.seconds),
            "mean": fmean(self.seconds),
            "rounds": len(self.seconds),
            "error": self.error,
            "excess": self.excess,
            "certified": self.certified,
        }

    def compare(self, weight: Tensor, target: Tensor, scale: float, limit: float) -> None:
        """Take a result's errors; both in float64."""
        self.error = larger(self.error, float(torch.linalg.vector_norm(weight - target)) / scale)
        norm = float(torch.linalg.matrix_norm(weight, 2)) if bool(weight.isfinite().all()) else float("nan")
        self.excess = larger(self.excess, norm / limit - 1)


def projections(limit: float, device: torch.device) -> dict[str, Projection]:
    """Every contestant with a state of its own that knows nothing yet."""
    ours = {
        algorithm: partial(clip_singular_values_, limit=limit, algorithm=algorithm, state=SpectralState())
        for algorithm in ALGORITHMS
    }
    on_gpu = {} if device.type == "cpu" else {DEFERRED: deferred(limit)}
    return {**peers(limit, device), **ours, **on_gpu}


def exact(weight: Tensor, limit: float) -> tuple[Tensor, int]:
    """The projection in float64, and the number of values above the limit."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return (left * values.clamp(max=limit)) @ right, int((values > limit).sum())


def measure(sequence: MatrixSequence, seconds: float, device: torch.device) -> tuple[dict[str, Measured], int]:
    """Clip every matrix of a sequence by every algorithm in turn, each on a copy of its own on the device.

    A contestant leaves when it has used `seconds` and done `MIN_ROUNDS`. Its result is compared in the third
    round and in the last. The first matrix is not timed: nothing is known of it yet. Returns what was measured
    by algorithm, and the number of values above the limit in the third round, or the last.
    """
    contestants = projections(sequence.limit, device)
    measured = {name: Measured() for name in contestants}
    last, above = len(sequence.matrices) - 1, 0
    compared_first = min(MIN_ROUNDS, last)
    for turn, matrix in enumerate(sequence.matrices):
        results: dict[str, Tensor] = {}
        for name in shuffled(contestants, turn):
            taken = measured[name].seconds
            if len(taken) >= MIN_ROUNDS and sum(taken) > seconds:
                continue
            weight, said = matrix.to(device, copy=True), []
            needed = seconds_of(lambda: said.append(contestants[name](weight)), device)  # noqa: B023 (called at once)
            results[name] = weight
            measured[name].certified = isinstance(said[0], ClipResult) and bool(said[0].certified.all())
            if turn > 0:
                taken.append(needed)
        if turn == compared_first or (turn == last and results):
            target, count = exact(matrix, sequence.limit)
            above = count if turn == compared_first else above
            scale = max(float(torch.linalg.vector_norm(matrix)), sequence.limit)
            for name, weight in results.items():
                measured[name].compare(weight.cpu().double(), target, scale, sequence.limit)
    return measured, above


def measure_all(
    sequences: Iterable[MatrixSequence], seconds: float, step_seconds: float, device: torch.device
) -> pd.DataFrame:
    """A row for each sequence and algorithm."""
    rows = []
    for sequence in sequences:
        measured, above = measure(sequence, seconds, device)
        base = measured[NAIVE]
        for name, result in measured.items():
            row = {"sequence": sequence.name, "n": sequence.matrices.shape[-1], "above": above, "algorithm": name}
            shares = {
                "speedup": fmean(base.seconds) / fmean(result.seconds),
                "share_of_step": fmean(result.seconds) / step_seconds,
            }
            rows.append(row | result.row() | shares)
    return pd.DataFrame(rows)


def projection_table(frame: pd.DataFrame, step_seconds: float, device: torch.device) -> Table:
    """Markdown cells of what `measure_all` gave."""
    cells = pd.DataFrame(
        {
            "sequence": frame["sequence"],
            "values above": frame["above"].astype(str),
            "algorithm": frame["algorithm"],
            "median, ms": [number(1e3 * seconds) for seconds in frame["median"]],
            "mean, ms": [number(1e3 * seconds) for seconds in frame["mean"]],
            f"times faster than {NAIVE}": [number(ratio) for ratio in frame["speedup"]],
            "share of a step": [f"{share:.1%}" for share in frame["share_of_step"]],
            "relative error": [f"{error:.1e}" for error in frame["error"]],
            "sigma_1 / limit - 1": [f"{excess:+.1e}" for excess in frame["excess"]],
            "certified": ["yes" if certified else "no" for certified in frame["certified"]],
        }
    )
    caption = (
        f"Float32 matrices, the state carried along. Step: the PyTorch example's, {number(1e3 * step_seconds)} ms. "
        "Shares and ratios are of means, so that refreshes count. Relative error: Frobenius norm of the difference "
        "from the projection by float64 SVD, over the larger of the matrix's norm and the limit. `deferred` leaves its "
        "certificates unread."
    )
    return Table("Projection", caption, cells, frame, missing(device))


#: Options that are of everything but the grid.
BESIDE_NO_GRID = ["sizes", "fractions", "large", "late", "seconds", "record", "keep", "data", "stacks", "repetitions"]


def main(argv: list[str]) -> int:
    parser = command.parser("projection", "Every algorithm of the projection against its peers.", 30)
    parser.add_argument("--sizes", nargs="*", type=command.positive, default=SIZES, metavar="N", help="n")
    parser.add_argument("--fractions", nargs="*", type=command.fraction, default=FRACTIONS, help="above, at n = 650")
    parser.add_argument("--large", action="store_true", help=f"n = {LARGE} as well")
    parser.add_argument("--late", action="store_true", help="a made sequence as late in training as well, n = 650")
    parser.add_argument(
        "--seconds", type=command.number_above_0, default=5.0, help="for each algorithm and sequence; default: 5"
    )
    parser.add_argument(
        "--record", nargs="+", type=Path, default=[], metavar="RUN", help="record W_hh after these runs' checkpoints"
    )
    parser.add_argument(
        "--keep", type=command.positive, default=100, metavar="ITERATIONS", help="of each; default: 100"
    )
    parser.add_argument("--data", metavar="DIR", help="the folder with these runs' data; default: as the runs say")
    parser.add_argument(
        "--stacks",
        nargs="+",
        type=command.positive,
        metavar="R",
        help="R matrices at once, n = 650: the programs of a GPU",
    )
    parser.add_argument(
        "--grid", nargs="*", type=command.positive, metavar="N",
        help="only: auto against the best alternative, by n (default: 64 to 1024), shape, values above, state",
    )  # fmt: skip
    command.add_device(parser, "cpu")
    arguments = parser.parse_args(argv)
    device = command.device_of(arguments)
    command.prepare(arguments.threads)
    if arguments.grid is not None:
        command.refuse_idle(parser, arguments, BESIDE_NO_GRID, "beside --grid")
        return main_grid(arguments.grid or grid.SIZES, arguments, device)
    if not arguments.record:
        command.refuse_idle(parser, arguments, ("keep", "data"), "without --record")
    # All runs are read before the first is recorded in a file.
    for sequences in [record(run, arguments.keep, arguments.data) for run in arguments.record]:
        for sequence in sequences:
            print(f"bench projection: {save_recorded(sequence, arguments.out)}")
    recorded = any(arguments.out.glob("recorded_*.safetensors"))
    if not (recorded or arguments.late or arguments.sizes or arguments.large or arguments.fractions):
        raise UserError("--sizes and --fractions without a value: nothing is left to be measured; give one")
    words = random_words(*SHAPES["ptb"][:2], 10_000)
    step_seconds = example_seconds(words, SHAPES["ptb"], min(5, arguments.repetitions), device)
    sizes = (*arguments.sizes, LARGE) if arguments.large else arguments.sizes
    steps, n = arguments.repetitions + 1, FRACTIONS_AT
    kinds: dict[str, Iterable[MatrixSequence]] = {
        "recorded": load_recorded(arguments.out),
        "late": [late(n, steps)] if arguments.late else [],
        "by size": (drifting(n, min(FEW_ABOVE, n), steps) for n in sizes),
        "by share": (drifting(n, round(fraction * n), steps) for fraction in arguments.fractions),
    }
    frames = {kind: measure_all(some, arguments.seconds, step_seconds, device) for kind, some in kinds.items()}
    tables = [projection_table(pd.concat(frames.values(), ignore_index=True), step_seconds, device)]
    if arguments.stacks:
        sequence = late(n, min(STACK_STEPS, steps + BEGINNING))
        tables.append(stack_table(measure_stacks(sequence, arguments.stacks, device), sequence))
    write("projection", tables, arguments, device)
    if not (frames["by size"].empty and frames["by share"].empty):
        figure = projection_figure(frames["by size"], frames["by share"], arguments.out / "projection", ("png", "pdf"))
        for path in figure:
            print(f"bench projection: {path}")
    return 0


def main_grid(sizes: Iterable[int], arguments: Namespace, device: torch.device) -> int:
    """``--grid``"""
    frame = grid.measure_grid(sizes, arguments.out / "projection_grid.csv", device, print)
    settings = Namespace(**{name: one for name, one in vars(arguments).items() if name not in BESIDE_NO_GRID})
    write("projection_grid", grid.grid_tables(frame), settings, device)
    for path in grid_figure(frame, arguments.out / "projection_grid", ("png", "pdf")):
        print(f"bench projection: {path}")
    return 0
