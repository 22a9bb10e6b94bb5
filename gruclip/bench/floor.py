"""The floor under a measured time: its operations at this machine's best rate, its bytes at its bandwidth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gruclip.bench.timing import Contestant, interleave
from gruclip.products import matmul, repeated_product

Shape = tuple[int, int, int]  #: (m, k) @ (k, n)

#: Bytes of each of the three arrays that the bandwidth is measured with: far more than a cache holds.
BANDWIDTH_BYTES = 1 << 27


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without."""

    products: Counter[Shape]  #: how often each product is taken
    bytes: float  #: that pass between memory and processor if every array stays in the cache while it is in use

    @property
    def operations(self) -> int:
        return sum(2 * m * k * n * count for (m, k, n), count in self.products.items())


@dataclass(frozen=True)
class Floor:
    """Seconds below which a computation cannot come here; products and memory may overlap."""

    products: float
    memory: float

    @property
    def seconds(self) -> float:
        return max(self.products, self.memory)


def gru_work(steps: int, batch: int, inputs: int, n: int, bytes_each: int = 4) -> Work:
    """Forward and backward of one layer: 9 T B n (n + k) multiply-adds."""
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
    return Work(products, bytes_each * (3 * weights + 2 * rows * (inputs + n)))


def language_model_work(steps: int, batch: int, n: int, vocabulary: int, bytes_each: int = 4) -> Work:
    """A training step of the language model: one layer and the softmax; the embedding is next to nothing.

    `bytes_each`: of an operand of the softmax's products; its weights and gradients are float32.
    """
    layer, rows, weights = gru_work(steps, batch, n, n), steps * batch, n * vocabulary
    softmax = Counter({(rows, n, vocabulary): 1, (rows, vocabulary, n): 1})
    softmax[n, rows, vocabulary] += 1
    # The weight read forward and backward; its gradient, float32, written and read; the weight read and written
    # by the update. The logits written and read forward, read twice backward.
    moved = 2 * weights * bytes_each + 4 * weights * 4 + 4 * rows * vocabulary * bytes_each
    return Work(layer.products + softmax, layer.bytes + moved)


def product_rates(shapes: Iterable[Shape], dtype: torch.dtype, rounds: int = 7) -> dict[Shape, dict[str, float]]:
    """Operations a second of each product: torch's own, oneDNN's, and oneDNN's with the weight packed beforehand.

    The last two as `gruclip.products` chooses them; in bfloat16 torch calls oneDNN itself.
    """
    rates = {}
    for m, k, n in dict.fromkeys(shapes):
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        repeats = max(1, round(2e8 / (2 * m * k * n)))
        kernels = {"torch": lambda a=a, b=b: torch.mm(a, b)}
        if dtype == torch.float32:
            packed = repeated_product(b, m)
            kernels |= {"matmul": lambda a=a, b=b: matmul(a, b), "packed": lambda a=a, f=packed: f(a, None)}
        contestants = {name: _repeat(kernel, repeats) for name, kernel in kernels.items()}
        timings = interleave(contestants, rounds, warmup=1)
        rates[m, k, n] = {name: 2 * m * k * n * repeats / timing.median for name, timing in timings.items()}
    return rates


def _repeat(kernel: Contestant, repeats: int) -> Contestant:
    def run() -> None:
        for _ in range(repeats):
            kernel()

    return run


def bandwidth(rounds: int = 7) -> float:
    """Bytes a second of c = a + b over arrays that no cache holds: two read, one written."""
    a, b, c = (torch.ones(BANDWIDTH_BYTES // 4) for _ in range(3))
    timing = interleave({"add": lambda: torch.add(a, b, out=c)}, rounds)["add"]
    return 3 * BANDWIDTH_BYTES / timing.median


def floor(work: Work, rates: dict[Shape, dict[str, float]], bytes_per_second: float) -> Floor:
    """`rates` hold at least one product; the best of all of them stands for the machine."""
    best = max(rate for kernels in rates.values() for rate in kernels.values())
    return Floor(work.operations / best, work.bytes / bytes_per_second)
