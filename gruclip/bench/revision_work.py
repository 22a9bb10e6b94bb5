"""What `gruclip.bench.revisions` times, in a process that runs one revision's code: it asks for as little of that as it
can, so that earlier revisions have it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch

Contestant = Callable[[], object]


def _step() -> Contestant:
    from gruclip.bench.step import SHAPES, Engine, engine_step, random_words, run_config
    from gruclip.config import ModelConfig

    steps, batch, n = SHAPES["ptb"]
    config = run_config("ptb", ModelConfig(hidden_size=n), 1.0, steps, batch, "fp32")
    return engine_step(Engine([config], random_words(steps, batch, 10_000), torch.device("cpu")))


def _layer(steps: int, batch: int, n: int) -> Contestant:
    from gruclip import GRU

    layer, inputs = GRU(n, n, bias=False), torch.randn(steps, batch, n, requires_grad=True)

    def forward_and_backward() -> None:
        layer(inputs)[0].sum().backward()

    return forward_and_backward


def _projections(kind: str, *shape: int, followed: bool = True) -> Contestant:
    """Of all matrices of a sequence of this kind, one after the other."""
    from gruclip import SpectralState, clip_singular_values_
    from gruclip.bench import sequences

    made = getattr(sequences, kind)(*shape, 12)

    def project() -> None:
        state = SpectralState() if followed else None
        for matrix in made.matrices:
            clip_singular_values_(matrix.clone(), made.limit, state=state)

    return project


#: By what is printed; each makes what is timed.
WORK: dict[str, Callable[[], Contestant]] = {
    "step, Penn Treebank": _step,
    "layer 35, 20, 650": partial(_layer, 35, 20, 650),
    "layer 200, 20, 200": partial(_layer, 200, 20, 200),
    "layer 35, 20, 200": partial(_layer, 35, 20, 200),
    "12 projections, late, 650": partial(_projections, "late", 650),
    "12 projections, 10 above, 650": partial(_projections, "drifting", 650, 10),
    "12 projections, 10 above, 1024": partial(_projections, "drifting", 1024, 10),
    "12 of one matrix, half above, 128": partial(_projections, "unknown", 128, 64, followed=False),
    "12 of one matrix, half above, 650": partial(_projections, "unknown", 650, 325, followed=False),
}

WARMUP = 3


def main() -> None:
    """For each name read from stdin the seconds of one call; "without" for what this revision has not, and on stderr
    why."""
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    made: dict[str, Contestant] = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            if name not in made:
                made = {name: WORK[name]()}  # the last one's memory is free
                for _ in range(WARMUP):
                    made[name]()
            started = time.perf_counter()
            made[name]()
            print(time.perf_counter() - started, flush=True)
        except (AttributeError, ImportError, TypeError) as error:
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            print("without", flush=True)


if __name__ == "__main__":
    main()
