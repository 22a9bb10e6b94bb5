"""What an iteration of a stack should take on a card, by arithmetic from the model's shape; no card was needed for it.

A line is a piece of an iteration: its floating-point operations, the bytes that pass the card's memory, the kernels
that are started. It takes the longest of the three: operations at the rate of the products' precision, bytes at the
bandwidth, kernels at `Card.kernel` each. A phase is the sum of its lines, and has the name under which the engine's
clock books it, so that ``gruclip bench stack`` prints what was measured beside it. `H100` has the figures of the maker:
bf16 790 TFLOP/s as large products reach it, float64 by the tensor cores, HBM3; the kernels of a graph are taken to be 2
microseconds apart at least.

Penn Treebank's model (T = 35, B = 20, n = 650, 10,000 words, dropout, every run clipped spectrally) on an H100 in bf16.
``python -m gruclip.bench.budget`` prints it, and a test holds this to what that prints:

                                               of a run:           milliseconds for R =
                                          GFLOP       MB  kernels      1     18     27     45     90
    forward: dropout masks                 0.00      3.6        2   0.00   0.02   0.03   0.05   0.10
    forward: input products                1.77     11.6        9   0.02   0.06   0.09   0.16   0.31
    forward: recurrence                    1.77    110.6       70   0.14   0.14   0.89   1.49   2.97
    forward: logits                        9.10     27.9        2   0.01   0.21   0.31   0.52   1.04
    forward: softmax and its gradient      0.00     28.0        2   0.01   0.15   0.23   0.38   0.75
    backward: logits                      18.20     70.7        6   0.02   0.41   0.62   1.04   2.07
    backward: recurrence                   1.77    116.0       70   0.14   0.16   0.94   1.56   3.12
    backward: input and weights            5.32     37.0       15   0.03   0.20   0.30   0.50   1.00
    metrics: gradient norms                0.00     19.9       16   0.03   0.11   0.16   0.27   0.53
    update: step and copies                0.00    113.9       10   0.03   0.61   0.92   1.53   3.06
    clipping: the filter                   4.30     57.2       26   0.05   0.31   0.46   0.77   1.54
    clipping: the bound                    0.99     44.3       24   0.05   0.24   0.36   0.59   1.19
    clipping: W times 64 columns           0.17      9.6        3   0.01   0.06   0.09   0.15   0.30
    clipping: W times 64, float64          0.11      4.1        2   0.00   0.03   0.05   0.08   0.17
    clipping: W times 8                    0.02      5.3        3   0.01   0.03   0.04   0.07   0.14
    clipping: whole matrices               0.00     25.8        6   0.01   0.14   0.21   0.35   0.69
    clipping: thin arrays                  0.05      6.7       29   0.06   0.06   0.06   0.09   0.18
    clipping: 64 x 64, float64             0.11     11.5      334   1.01   1.01   1.01   1.01   1.01
    all                                   43.70    703.9      629   1.64   3.95   6.76  10.59  20.17

The projection's lines are those of `gruclip.spectral.program`, which `auto` takes for float32 matrices from n = 256
on, and below those of `gruclip.spectral.products`. In float32 without TF32 a run's other products are at 50 TFLOP/s,
under ``precision=tf32`` at 390. A kernel of 64 x 64 has one multiprocessor for each matrix: 89 products follow one
another there, and 12 factorisations of 20 microseconds each, by the instructions that they were compiled to.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from gruclip.bench.gpu_runs import DEFAULTS
from gruclip.bench.gpu_study import RECORD_SECONDS
from gruclip.kernels.program import STEP
from gruclip.spectral.bound import PROBES
from gruclip.spectral.deferred import MIN_SIZE_PROGRAM
from gruclip.spectral.program import BOUND_DEGREE, COLUMNS, DEGREES
from gruclip.spectral.tracked import SKETCH
from gruclip.training.capacity import run_bytes

RUNS = (1, 18, 27, 45, 90)

#: Kernels of a step of the recurrence, forward and backward, as `GRULayer` starts them: two products, what is between.
#: By Triton's kernels, in bf16 with the products in them; float64 by torch's operations.
STEP_KERNELS = {"bf16": (2, 2), "fp32": (4, 4), "tf32": (4, 4), "fp64": (6, 7)}
#: And of a layer beside its steps.
LAYER_KERNELS = {"bf16": (9, 15), "fp32": (5, 12), "tf32": (5, 12), "fp64": (5, 23)}

#: Products of n^3 multiply-adds in float64 that clip a float32 matrix, and that measure one, as
#: `gruclip.spectral.products` has them; and the kernels that are started for one and the other.
CLIP_PRODUCTS, MEASURE_PRODUCTS, CLIP_KERNELS, MEASURE_KERNELS = 76, 16, 252, 130

#: What `gruclip.spectral.program` does to a matrix, clipped or only measured, with q = `COLUMNS`. By Triton's kernels,
#: in three parts of TF32, products of W with q columns (the filter's) and with `PROBES` (the bound's), two for each
#: degree; the thin arrays that these read and write.
FILTERING, PROBING = 2 * sum(DEGREES), 2 * BOUND_DEGREE
FILTER_PASSES, PROBE_PASSES = 2 * FILTERING + 22, 2 * PROBING + 23
#: By torch's in float32: products with q columns (the way back, the correction, what the columns leave out), and with
#: `SKETCH` (the change's).
WIDE, SKETCHING = 3, 3
#: What W makes of the subspace, before and after clipping, in float64.
PRECISE = 2
#: In float64, products q x q and Gram matrices of (n, q). Arrays that all else reads or writes, in units of a whole
#: matrix, of a thin one (n, q) in float32 and of one q x q in float64; multiply-adds of thin products in units of
#: n q^2. And the kernels of each.
SQUARES, GRAMS, WHOLE_PASSES, THIN_PASSES, SMALL_PASSES, THIN_PRODUCTS = 116, 10, 15, 40, 301, 10
WHOLE_KERNELS, THIN_KERNELS, SMALL_KERNELS = 6, 29, 334
#: Of these the products that follow one another within a kernel, where one multiprocessor has a matrix, and the
#: factorisations; what one of them takes, by the instructions that it was compiled to.
CHAINED, FACTORS, FACTOR_SECONDS = 89, 12, 20e-6


@dataclass(frozen=True)
class Card:
    """What a card does at its best."""

    rates: dict[str, float]  #: operations a second of products, by precision
    bandwidth: float  #: bytes a second
    cache: float  #: bytes that stay between two steps
    kernel: float  #: seconds from the start of one kernel of a graph to the next one's, at least
    processors: int = 132


H100 = Card({"bf16": 790e12, "tf32": 390e12, "fp32": 50e12, "fp64": 60e12}, 3.35e12, 50e6, 2e-6)


@dataclass(frozen=True)
class Line:
    """A piece of an iteration of R runs."""

    phase: str
    name: str
    operations: float
    bytes: float
    kernels: int
    precision: str = "fp32"
    path: float = 0.0  #: seconds beside the starts, where each matrix has one multiprocessor alone

    def seconds(self, card: Card) -> float:
        products, memory = self.operations / card.rates[self.precision], self.bytes / card.bandwidth
        return max(products, memory, self.kernels * card.kernel + self.path)


@dataclass(frozen=True)
class Shape:
    """Of a model: steps, lanes, units, words or notes, recurrent layers."""

    steps: int
    batch: int
    n: int
    words: int
    layers: int = 1


PTB, NOTTINGHAM = Shape(35, 20, 650, 10_000), Shape(35, 20, 200, 88, layers=2)


def budget(shape: Shape, runs: int, precision: str, card: Card, clipped: int | None = None) -> list[Line]:
    """The lines of an iteration of `runs` runs, of which `clipped` (None: all) are clipped spectrally."""
    steps, n, words, rows = shape.steps, shape.n, shape.words, shape.steps * shape.batch
    clipped = runs if clipped is None else clipped
    each = {"bf16": 2, "fp64": 8}.get(precision, 4)  #: bytes of an operand
    held = 8 if precision == "fp64" else 4  #: of all else
    (forward, backward), (before, after) = STEP_KERNELS[precision], LAYER_KERNELS[precision]
    # Read anew at each step where the matrices of all runs are more than the cache holds.
    recurrent = runs * 3 * n * n * each
    streamed = recurrent * (steps if recurrent > card.cache else 1)
    logits, output, one_layer = runs * rows * words * each, runs * n * words, runs * 6 * n * n
    layer = shape.layers * one_layer
    few = runs * rows * n  # numbers of an array (T, B, n)
    copies = each if each < held else 0
    # Where a product is a kernel of its own it writes its sums, which another one reads.
    apart = 0 if precision == "bf16" else each
    lines: list[tuple[str, str, float, float, int]] = [
        ("forward", "dropout masks", 0, (shape.layers + 1) * few * held, 2),
        ("forward", "input products", 2 * few * 3 * n, runs * 3 * n * n * each + few * (2 * held + 3 * held), before),
        ("forward", "recurrence", 2 * few * 3 * n, streamed + few * (10 * held + 4 * each + 6 * apart),
         steps * forward),
        ("forward", "logits", 2 * few * words, output * each + logits + few * each, 2),
        ("forward", "softmax and its gradient", 0, 2 * logits, 2),
        ("backward", "logits", 4 * few * words, 3 * logits + 2 * output * each + few * (each + held), 6),
        ("backward", "recurrence", 2 * few * 3 * n, streamed + few * (11 * held + 8 * each + 4 * apart),
         steps * backward),
        ("backward", "input and weights", 6 * few * 3 * n,
         few * (18 * each + 2 * copies + 2 * held) + 3 * one_layer * each, after),
        ("metrics", "gradient norms", 0, (output + layer) * held / 2 + few * held, 16),
        # Read and written, with the gradient read and the copy written.
        ("update", "step and copies", 0, (output + layer) * (2 * held + each + copies) + 3 * few * held, 10),
    ]  # fmt: skip
    repeated = ("input products", "recurrence", "input and weights")
    made = []
    for phase, name, operations, passed, kernels in lines:
        times = shape.layers if name in repeated else 1
        made.append(Line(phase, name, float(times * operations), float(times * passed), times * kernels, precision))
    followed = n >= MIN_SIZE_PROGRAM and precision != "fp64"
    projection = program_lines(n, runs, card) if followed else products_lines(n, clipped, runs - clipped)
    for line in projection:
        times = shape.layers
        amounts = {name: times * getattr(line, name) for name in ("operations", "bytes", "kernels", "path")}
        made.append(replace(line, **amounts))
    return made


def program_lines(n: int, matrices: int, card: Card = H100) -> list[Line]:
    """The projection of so many matrices by ``program``, which `auto` takes from `MIN_SIZE_PROGRAM` on: whether they
    are clipped or only measured is the same to it."""
    n += -n % STEP
    q = COLUMNS
    float64 = 2 * (SQUARES * q**3 + GRAMS * n * q * q)
    lines = (
        ("the filter", 3 * 2 * FILTERING * n * n * q, 4 * (FILTERING * n * n + FILTER_PASSES * n * q), FILTERING,
         "tf32"),
        ("the bound", 3 * 2 * PROBING * n * n * PROBES, 4 * (PROBING * n * n + PROBE_PASSES * n * PROBES), PROBING,
         "tf32"),
        # Two of them write a matrix.
        ("W times 64 columns", 2 * WIDE * n * n * q, 4 * (n * n * (WIDE + 2) + 2 * WIDE * n * q), WIDE, "fp32"),
        ("W times 64, float64", 2 * PRECISE * n * n * q, 4 * PRECISE * (n * n + 2 * n * q), PRECISE, "fp64"),
        ("W times 8", 2 * SKETCHING * n * n * SKETCH, 4 * SKETCHING * (n * n + 2 * n * SKETCH), SKETCHING, "fp32"),
        ("whole matrices", 0, 4 * WHOLE_PASSES * n * n, WHOLE_KERNELS, "fp32"),
        ("thin arrays", 2 * THIN_PRODUCTS * n * q * q, 4 * THIN_PASSES * n * q, THIN_KERNELS, "fp32"),
        ("64 x 64, float64", float64, 8 * SMALL_PASSES * q * q + 4 * GRAMS * n * q, SMALL_KERNELS, "fp64"),
    )  # fmt: skip
    chain = CHAINED * 2 * q**3 * card.processors / card.rates["fp64"] + FACTORS * FACTOR_SECONDS
    path = math.ceil(matrices / card.processors) * chain
    made = [
        Line("clipping", name, float(matrices * operations), float(matrices * passed), kernels, precision)
        for name, operations, passed, kernels, precision in lines
    ]
    return [*made[:-1], replace(made[-1], path=path)]


def products_lines(n: int, clipped: int, measured: int) -> list[Line]:
    """The projection by ``products``, which `auto` takes below, and the norms of those that have no limit."""
    lines = (
        ("clip", CLIP_PRODUCTS, clipped, CLIP_KERNELS),
        ("measure", MEASURE_PRODUCTS, measured, MEASURE_KERNELS),
    )
    return [
        Line("clipping", name, 2.0 * count * n**3 * matrices, 24.0 * count * n * n * matrices,
             kernels * (matrices > 0), "fp64")
        for name, count, matrices, kernels in lines
    ]  # fmt: skip


def phases(lines: Iterable[Line], card: Card) -> dict[str, float]:
    """Seconds of each phase, in the order of an iteration."""
    seconds: dict[str, float] = {}
    for line in lines:
        seconds[line.phase] = seconds.get(line.phase, 0.0) + line.seconds(card)
    return seconds


def measured_card(rate: float, bandwidth: float, precision: str, device: torch.device) -> Card:
    """A card of which the rate of products and the bandwidth were measured; of the rest the H100's figures, or on a CPU
    none, where a call costs what its work costs."""
    if device.type == "cpu":
        return Card({**dict.fromkeys(H100.rates, rate), "fp64": rate / 2}, bandwidth, 32e6, 0.0, processors=1)
    cache = float(torch.cuda.get_device_properties(device).L2_cache_size)
    return Card({**H100.rates, precision: rate}, bandwidth, cache, H100.kernel)


def table(shape: Shape = PTB, precision: str = "bf16", card: Card = H100) -> str:
    """The budget as the head of this file has it."""
    made = {runs: budget(shape, runs, precision, card) for runs in RUNS}
    one = made[1]
    heading = f"    {'':34}{'of a run:':>18}{'':>9}  milliseconds for R =\n"
    heading += f"    {'':34}{'GFLOP':>9}{'MB':>9}{'kernels':>9}" + "".join(f"{runs:>7}" for runs in RUNS) + "\n"
    rows = []
    for index, line in enumerate(one):
        cells = "".join(f"{1e3 * made[runs][index].seconds(card):7.2f}" for runs in RUNS)
        last = made[RUNS[-1]][index]
        if last.kernels:
            name = f"{line.phase}: {line.name}"
            figures = f"{last.operations / RUNS[-1] / 1e9:9.2f}{last.bytes / RUNS[-1] / 1e6:9.1f}{last.kernels:9}"
            rows.append(f"    {name:34}{figures}{cells}")
    sums = "".join(f"{1e3 * sum(phases(made[runs], card).values()):7.2f}" for runs in RUNS)
    last_lines = made[RUNS[-1]]
    operations, passed = sum(x.operations for x in last_lines), sum(x.bytes for x in last_lines)
    kernels = sum(line.kernels for line in last_lines)
    rows.append(f"    {'all':34}{operations / RUNS[-1] / 1e9:9.2f}{passed / RUNS[-1] / 1e6:9.1f}{kernels:9}{sums}")
    return heading + "\n".join(rows) + "\n"


#: What a user plans: a table, its runs, those clipped spectrally, its model, its precision, iterations of a run, and
#: the runs trained side by side. Nottingham's kept runs had 360 epochs of 253 iterations, Penn Treebank's 75 of 1,328.
PLANS = (
    ("1, two seeds", 18, 10, PTB, "bf16", 75 * 1328, 18),
    ("1, ten seeds", 90, 50, PTB, "bf16", 75 * 1328, 90),
    ("1, ten seeds", 90, 50, PTB, "tf32", 75 * 1328, 90),
    ("2, ten seeds and combined clipping", 100, 60, NOTTINGHAM, "fp32", 360 * 253, 100),
    ("lr, on Nottingham", 350, 210, NOTTINGHAM, "fp32", 360 * 253, 350),
)


def plan() -> str:
    """Minutes and memory of the study's tables on an H100, as the page has them."""
    rows = ["| table | precision | runs side by side | iteration, ms | of it the projection | minutes | GiB |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, runs, clipped, shape, precision, iterations, side in PLANS:
        config = replace(DEFAULTS["ptb" if shape is PTB else "nottingham"], precision=precision)
        seconds = phases(budget(shape, side, precision, H100, clipped * side // runs), H100)
        step = sum(seconds.values())
        minutes = (step + RECORD_SECONDS * side) * iterations * runs / side / 60
        memory = side * run_bytes(config, shape.words) / 2**30
        rows.append(
            f"| {name} | {precision} | {side} | {1e3 * step:.1f} | {1e3 * seconds['clipping']:.1f} "
            f"| {minutes:.0f} | {memory:.0f} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n{plan()}")
