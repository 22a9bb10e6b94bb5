"""Training with `auto` and with `full`, side by side: ``python -m gruclip.bench.agreement``.

On Penn Treebank by default, 300 iterations in float64, as the claim is stated: the losses agree to 1e-6. At delta 1.4,
where every step clips; at 0.2 nothing passes the limit in the first two hundred, and agreement would say little.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from gruclip.bench.options import positive, prepare
from gruclip.choices import PRECISIONS
from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig
from gruclip.data import load
from gruclip.training.engine import Engine

#: The paper's language model.
BASE = RunConfig(
    dataset=DatasetConfig("ptb"),
    model=ModelConfig(hidden_size=650),
    optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=1.4),
    device="cpu",
)


def agreement(iterations: int, precision: str, base: RunConfig) -> list[tuple[float, float]]:
    """The losses of each iteration in nats per token, of `base` trained with `auto` and with `full`.

    From the same seed, in turn: an iteration of one and then of the other. Epochs follow one another as needed.
    Raises `ConfigError` for settings that are out of range.
    """
    corpus = load(base.dataset.name, base.dataset.root)
    engines = [
        Engine(
            [replace(base, precision=precision, optimizer=replace(base.optimizer, algorithm=algorithm)).check()],
            corpus,
            torch.device("cpu"),
        )
        for algorithm in ("auto", "full")
    ]
    losses: list[tuple[float, float]] = []
    epoch = 0
    while len(losses) < iterations:
        epoch += 1
        available, _ = (engine.begin_epoch([epoch]) for engine in engines)
        for i in range(min(available, iterations - len(losses))):
            auto, full = (float(engine.step(i, False).loss[0]) for engine in engines)
            losses.append((auto, full))
    return losses


def parting(losses: Sequence[tuple[float, float]]) -> list[float]:
    """The largest difference of the two losses up to each iteration."""
    return list(accumulate((abs(auto - full) for auto, full in losses), max))


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m gruclip.bench.agreement", description=__doc__)
    options.add_argument("--iterations", type=positive, default=300, help="default: 300")
    options.add_argument("--precision", choices=PRECISIONS, default="fp64", help="default: fp64")
    options.add_argument("--threads", type=positive, default=2, help="default: 2")
    chosen = options.parse_args(arguments)
    prepare(chosen.threads)
    losses = agreement(chosen.iterations, chosen.precision, BASE)
    print("iteration  loss, auto  loss, full  largest difference so far")
    shown = {10, *range(50, len(losses), 50), len(losses)}
    for i, ((auto, full), largest) in enumerate(zip(losses, parting(losses), strict=True), 1):
        if i in shown:
            print(f"{i:9d}  {auto:10.6f}  {full:10.6f}  {largest:.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
