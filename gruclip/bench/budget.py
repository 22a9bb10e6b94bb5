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
    forward: input products                1.77     11.6        6   0.01   0.06   0.09   0.16   0.31
    forward: recurrence                    1.77    106.9      350   0.70   0.70   0.86   1.44   2.87
    forward: logits                        9.10     27.9        2   0.01   0.21   0.31   0.52   1.04
    forward: softmax and its gradient      0.00     28.0        2   0.01   0.15   0.23   0.38   0.75
    backward: logits                      18.20     70.7        6   0.02   0.41   0.62   1.04   2.07
    backward: recurrence                   1.77    128.8      385   0.77   0.77   1.04   1.73   3.46
    backward: input and weights            5.32     50.8       16   0.03   0.27   0.41   0.68   1.37
    update: gradient norms                 0.00     19.9       16   0.03   0.11   0.16   0.27   0.53
    update: step and copies                0.00    113.9       10   0.03   0.61   0.92   1.53   3.06
    clipping: clip                        37.35    689.5      301   0.62  11.20  16.81  28.01  56.02
    all                                   75.30   1251.7     1096   2.25  14.52  21.48  35.79  71.59

The float64 products of the projection are three quarters of it: without them R = 27 takes 4.7 ms and R = 90 16, with
every second run only measured 14 and 47. In float32 without TF32 a run's other products are at 50 TFLOP/s, under
``precision=tf32`` at 390.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from gruclip.bench.floor import gru_work, output_work
from gruclip.bench.gpu_runs import DEFAULTS
from gruclip.bench.gpu_study import RECORD_SECONDS
from gruclip.training.capacity import run_bytes

RUNS = (1, 18, 27, 45, 90)

#: Kernels of a step of the recurrence, forward and backward, as `GRULayer` starts them: two products, what is between.
STEP_KERNELS = {"bf16": (10, 11), "fp32": (6, 7), "tf32": (6, 7), "fp64": (6, 7)}

#: Products of n^3 multiply-adds in float64 that clip a matrix, and that measure one, as `gruclip.spectral.products` has
#: them; and the kernels that are started for one and the other.
CLIP_PRODUCTS, MEASURE_PRODUCTS, CLIP_KERNELS, MEASURE_KERNELS = 68, 15, 301, 124


@dataclass(frozen=True)
class Card:
    """What a card does at its best."""

    rates: dict[str, float]  #: operations a second of products, by precision
    bandwidth: float  #: bytes a second
    cache: float  #: bytes that stay between two steps
    kernel: float  #: seconds from the start of one kernel of a graph to the next one's, at least


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

    def seconds(self, card: Card) -> float:
        products, memory = self.operations / card.rates[self.precision], self.bytes / card.bandwidth
        return max(products, memory, self.kernels * card.kernel)


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
    forward, backward = STEP_KERNELS[precision]
    # Read anew at each step where the matrices of all runs are more than the cache holds.
    recurrent = runs * 3 * n * n * each
    streamed = recurrent * (steps if recurrent > card.cache else 1)
    logits, output, layer = runs * rows * words * each, runs * n * words, shape.layers * runs * 6 * n * n
    few = runs * rows * n  # numbers of an array (T, B, n)
    copies = each if each < held else 0
    lines: list[tuple[str, str, float, float, int]] = [
        ("forward", "dropout masks", 0, (shape.layers + 1) * few * held, 2),
        ("forward", "input products", 2 * few * 3 * n, runs * 3 * n * n * each + few * (2 * held + 3 * held), 6),
        ("forward", "recurrence", 2 * few * 3 * n, streamed + few * 10 * held, steps * forward),
        ("forward", "logits", 2 * few * words, output * each + logits + few * each, 2),
        ("forward", "softmax and its gradient", 0, 2 * logits, 2),
        ("backward", "logits", 4 * few * words, 3 * logits + 2 * output * each + few * (each + held), 6),
        ("backward", "recurrence", 2 * few * 3 * n, streamed + few * 22 * held, steps * backward),
        ("backward", "input and weights", 6 * few * 3 * n, few * 14 * held + layer * (each + 2 * held), 16),
        ("update", "gradient norms", 0, (output + layer) * held / 2 + few * held, 16),
        # Read and written, with the gradient read and the copy written.
        ("update", "step and copies", 0, (output + layer) * (2 * held + each + copies) + 3 * few * held, 10),
        ("clipping", "clip", 2 * CLIP_PRODUCTS * n**3 * clipped, CLIP_PRODUCTS * 3 * 8 * n * n * clipped,
         CLIP_KERNELS * (clipped > 0)),
        ("clipping", "measure", 2 * MEASURE_PRODUCTS * n**3 * (runs - clipped),
         MEASURE_PRODUCTS * 3 * 8 * n * n * (runs - clipped), MEASURE_KERNELS * (clipped < runs)),
    ]  # fmt: skip
    repeated = ("input products", "recurrence", "input and weights", "clip", "measure")
    made = []
    for phase, name, operations, passed, kernels in lines:
        times = shape.layers if name in repeated else 1
        dtype = "fp64" if phase == "clipping" else precision
        made.append(Line(phase, name, float(times * operations), float(times * passed), times * kernels, dtype))
    return made


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
        return Card({**dict.fromkeys(H100.rates, rate), "fp64": rate / 2}, bandwidth, 32e6, 0.0)
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


def products_of_an_iteration(shape: Shape) -> float:
    """Operations of a run's products but for the projection's, as `gruclip.bench.floor` counts them."""
    layer = gru_work(shape.steps, shape.batch, shape.n, shape.n)
    return (layer + output_work(shape.steps * shape.batch, shape.n, shape.words)).operations


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
