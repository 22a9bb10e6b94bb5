"""The floor under a measured time: its operations at this machine's best rate, its bytes at its bandwidth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from gruclip.bench.timing import Contestant, alone, interleave
from gruclip.kernels import compiled
from gruclip.kernels.products import has_bf16_products, onednn_product, our_product

CPU = torch.device("cpu")

Shape = tuple[int, int, int]  #: (m, k) @ (k, n)

#: Bytes of each of the three arrays that the bandwidth is measured with: far more than a cache holds.
BANDWIDTH_BYTES = 1 << 27

LARGE = (2048, 2048, 2048)
OPERATIONS_A_ROUND, MAX_REPEATS = 2e8, 200
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

#: Said where bf16 is left out of a bench: it would take the time of float32, and torch's own takes sixty times that.
NO_BF16 = "This processor has no bf16 products; bf16 was left out."


def precisions(device: torch.device = CPU) -> tuple[str, ...]:
    """Those whose products the device has."""
    return tuple(DTYPES) if has_bf16_products(device) else ("fp32",)


def precision_of(contestant: str) -> str:
    """By its name, which says bf16 where its products are."""
    return "bf16" if "bf16" in contestant else "fp32"


def notes(device: torch.device = CPU) -> list[str]:
    """What a table should say of contestants that are missing."""
    return [NO_BF16] if precisions(device) == ("fp32",) else []


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without."""

    products: Counter[Shape]  #: how often each product is taken
    bytes: float  #: that pass between memory and processor if every array stays in the cache while it is in use
    spared: float = 0.0  #: of the operations, those with a factor that dropout set to zero

    @property
    def operations(self) -> float:
        return sum(2 * m * k * n * count for (m, k, n), count in self.products.items()) - self.spared

    def telling_products(self) -> tuple[Shape, Shape]:
        """The largest product, and the one taken most often."""
        return max(self.products, key=math.prod), max(self.products, key=self.products.__getitem__)

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.bytes + other.bytes, self.spared + other.spared)

    def __mul__(self, times: int) -> Work:
        products = Counter({shape: times * count for shape, count in self.products.items()})
        return Work(products, times * self.bytes, times * self.spared)


@dataclass(frozen=True)
class Floor:
    """Seconds below which a computation cannot come here; products and memory may overlap."""

    products: float
    memory: float

    @property
    def seconds(self) -> float:
        return max(self.products, self.memory)


def gru_work(steps: int, batch: int, inputs: int, n: int, bytes_each: int = 4, dropout: float = 0.0) -> Work:
    """Forward and backward of one layer: 9 T B n (n + k) multiply-adds.

    `dropout`: the share of its inputs that is zero and left out of the two products that read them.
    """
    rows = steps * batch
    products = Counter(
        {
            (rows, inputs, 3 * n): 1,  # W_x x of all gates
            (batch, n, 2 * n): steps,  # W_h h of both gates
            (batch, n, n): 2 * steps,  # W_hh (r h), and back
            (batch, 2 * n, n): steps,  # both gates, back
            (rows, 3 * n, inputs): 1,  # the input's gradient
        }
    )
    # Gradients of the weights. Added, since a shape can be there already.
    for m, k, columns in ((3 * n, rows, inputs), (2 * n, rows, n), (n, rows, n)):
        products[m, k, columns] += 1
    weights = 3 * n * (inputs + n)
    # Weights read forward and backward, their gradient written; inputs, states and the gradients of both once.
    spared = dropout * 2 * 2 * rows * inputs * 3 * n
    return Work(products, bytes_each * (3 * weights + 2 * rows * (inputs + n)), spared)


def output_work(rows: int, n: int, outputs: int, bytes_each: int = 4, dropout: float = 0.0) -> Work:
    """A training step of the output layer, its update included.

    `dropout` as in `gru_work`. `bytes_each`: of an operand of the products; the weights' gradient and update are
    float32.
    """
    products = Counter({(rows, n, outputs): 1, (rows, outputs, n): 1})
    products[n, rows, outputs] += 1
    # The weight read forward and backward; its gradient written and read; the weight read and written by the update.
    # The logits written and read forward, read twice backward.
    weights = n * outputs
    passed = 2 * weights * bytes_each + 4 * weights * 4 + 4 * rows * outputs * bytes_each
    return Work(products, passed, dropout * 3 * 2 * rows * n * outputs)


def product_rates(
    shapes: Iterable[Shape], dtype: torch.dtype, rounds: int = 7, device: torch.device = CPU
) -> dict[Shape, dict[str, float]]:
    """Operations a second of each product, at its fastest: by torch's default and, in float32 on a CPU, by oneDNN and
    ours.

    `gruclip.kernels.products` has the rule which of them gruclip takes; in bfloat16 torch calls oneDNN itself.
    """
    rates = {}
    for m, k, n in dict.fromkeys(shapes):
        a, b = torch.randn(m, k).to(device, dtype), torch.randn(k, n).to(device, dtype)
        repeats = min(MAX_REPEATS, max(1, round(OPERATIONS_A_ROUND / (2 * m * k * n))))
        kernels: dict[str, Contestant] = {"torch": partial(torch.mm, a, b)}
        if dtype == torch.float32 and device.type == "cpu":
            kernels["oneDNN"] = partial(onednn_product, a, b)
            if compiled.library() is not None:
                kernels["compiled"] = partial(our_product, a, b)
        timings = interleave({name: partial(_repeat, kernel, repeats) for name, kernel in kernels.items()}, rounds)
        rates[m, k, n] = {name: 2 * m * k * n * repeats / min(taken.seconds) for name, taken in timings.items()}
    return rates


def _repeat(kernel: Contestant, repeats: int) -> None:
    for _ in range(repeats):
        kernel()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def bandwidth(device: torch.device = CPU, rounds: int = 7) -> float:
    """Bytes a second, at the fastest, of c = a + b over arrays that no cache holds: two read, one written."""
    a, b, c = (torch.ones(BANDWIDTH_BYTES // 4, device=device) for _ in range(3))
    repeats = 1 if device.type == "cpu" else 20
    add = partial(_repeat, partial(torch.add, a, b, out=c), repeats)
    return 3 * BANDWIDTH_BYTES * repeats / min(alone(add, rounds).seconds)


@dataclass(frozen=True)
class Machine:
    """What this machine does at its best, measured: products by precision, shape and kernel; memory."""

    rates: dict[str, dict[Shape, dict[str, float]]]  #: operations a second
    bandwidth: float  #: bytes a second

    def floor(self, work: Work, precision: str) -> Floor:
        """The best of all products of a precision stands for the machine."""
        best = max(rate for kernels in self.rates[precision].values() for rate in kernels.values())
        return Floor(work.operations / best, work.bytes / self.bandwidth)


def measure_machine(works: Iterable[Work], device: torch.device = CPU) -> Machine:
    """Rates of a large square product and of those that tell most about `works`."""
    shapes = [LARGE, *(shape for work in works for shape in work.telling_products())]
    rates = {precision: product_rates(shapes, DTYPES[precision], device=device) for precision in precisions(device)}
    return Machine(rates, bandwidth(device))
