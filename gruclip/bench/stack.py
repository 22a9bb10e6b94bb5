"""``gruclip bench stack``: an iteration of more and more runs as one batched program, which is what a GPU trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from gruclip.bench import options as command
from gruclip.bench.budget import Card, Shape, budget, measured_card, phases
from gruclip.bench.floor import bandwidth, gru_work, output_work, product_rates
from gruclip.bench.output import number, write
from gruclip.bench.step import EXAMPLE, SHAPES, engine_step, example_seconds, per_call, random_words, run_config
from gruclip.bench.timing import alone
from gruclip.choices import PRECISIONS
from gruclip.config import ModelConfig
from gruclip.kernels.products import has_bf16_products
from gruclip.model.device import COMPUTE_DTYPES, choose_device, round_products
from gruclip.report.render import Table
from gruclip.training.engine import WARM_UP, Engine

SIZES = (1, 2, 4, 8, 16, 32, 45, 64, 90)

#: Of the square product that the device's rate is measured with.
PRODUCT_SIZE = {"cuda": 8192, "cpu": 2048}

ON_CPU = (
    "On a CPU the runner gives each run of a stack a process of its own; this is the program that a GPU would be given."
)


def measured(engine: Engine, rounds: int) -> tuple[float, dict[str, float]]:
    """Median seconds of an iteration, and the mean of each part of it by the engine's clock; after those in which
    libraries set themselves up and an iteration is captured."""
    step = engine_step(engine)
    for _ in range(WARM_UP + 2):
        step()
    engine.clock.read()
    taken = alone(step, rounds, warmup=0).median
    return taken, per_call(engine, rounds)


def peak_bytes(device: torch.device) -> int | None:
    """Most memory that torch held of a GPU since the last call, what only a graph can use included."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def main(argv: list[str]) -> int:
    parser = command.parser("stack", "An iteration of the language model as its stack of runs grows.", 10)
    parser.add_argument("--sizes", nargs="+", type=command.positive, default=SIZES, help="runs; default: 1 to 90")
    parser.add_argument(
        "--shape", type=command.shape, default=SHAPES["ptb"], metavar="T,B,n", help="default: 35,20,650"
    )
    parser.add_argument("--vocabulary", type=command.positive, default=10_000, help="default: 10000")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    command.add_device(parser, "auto")
    arguments = parser.parse_args(argv)
    command.prepare(arguments.threads)
    (steps, batch, n), precision, rounds = arguments.shape, arguments.precision, arguments.repetitions
    base = replace(run_config("ptb", ModelConfig(hidden_size=n), 1.0, steps, batch, precision), device=arguments.device)
    device = choose_device(base)
    round_products(precision)
    corpus = random_words(steps, batch, arguments.vocabulary)
    work = gru_work(steps, batch, n, n) + output_work(steps * batch, n, arguments.vocabulary)
    square = (PRODUCT_SIZE[device.type],) * 3
    # What rounds to bf16 on a CPU without its products multiplies in float32.
    dtype = COMPUTE_DTYPES[precision] if precision != "bf16" or has_bf16_products(device) else torch.float32
    rate = max(product_rates([square], dtype, device=device)[square].values())

    example = example_seconds(corpus, arguments.shape, rounds, device)
    card = measured_card(rate, bandwidth(device), precision, device)
    title = f"Stack, T={steps}, B={batch}, n={n}, {arguments.vocabulary:,} words, {precision}"
    caption = (
        f"An iteration of a run is {work.operations / 1e9:.1f} GFLOP; products of {PRODUCT_SIZE[device.type]} squared "
        f"reach {number(rate / 1e9)} GFLOP/s here; a step of the {EXAMPLE} takes {number(1e3 * example)} ms."
    )
    rows: list[dict[str, Any]] = []
    notes = [ON_CPU] if device.type == "cpu" else []
    tables: list[Table] = []
    for runs in sorted(set(arguments.sizes)):
        peak_bytes(device)
        configs = [replace(base, seed=seed) for seed in range(runs)]
        try:
            taken, parts = measured(Engine(configs, corpus, device), rounds)
        except torch.OutOfMemoryError:
            notes.append(f"{runs} runs do not fit into the memory of {torch.cuda.get_device_name(device)}.")
            break
        done = work.operations * runs / taken
        row = {"runs": runs, "seconds": taken, "rate": done, "share": done / rate, "bytes": peak_bytes(device)}
        planned = phases(budget(Shape(steps, batch, n, arguments.vocabulary), runs, precision, card), card)
        rows.append(row | {"measured": parts, "budget": planned, "example_seconds": example, "product_rate": rate})
        tables = [Table(title, caption, _cells(rows, example), pd.DataFrame(rows), notes), _budget_table(rows, card)]
        # What is there is kept, should a later stack take too long.
        write("stack", tables, arguments, device, quiet=True)
    write("stack", tables, arguments, device)
    return 0


def _cells(rows: Sequence[Mapping[str, Any]], example: float) -> pd.DataFrame:
    first, alone = rows[0]["runs"], rows[0]["seconds"] / rows[0]["runs"]
    cells = [
        {
            "runs": row["runs"],
            "iteration, ms": number(1e3 * row["seconds"]),
            "of a run, ms": number(1e3 * row["seconds"] / row["runs"]),
            f"faster than {first} at a time": f"{row['runs'] * alone / row['seconds']:.2f}",
            f"ratio to {EXAMPLE}": f"{row['seconds'] / row['runs'] / example:.2f}",
            "GFLOP/s": number(row["rate"] / 1e9),
            "share of the product's": f"{row['share']:.2f}",
            "memory, GiB": "" if row["bytes"] is None else number(row["bytes"] / 2**30),
        }
        for row in rows
    ]
    return pd.DataFrame(cells)


def _budget_table(rows: Sequence[Mapping[str, Any]], card: Card) -> Table:
    """What each phase took, and by `gruclip.bench.budget` should take here."""
    cells = []
    for row in rows:
        pairs = {
            f"{phase}, ms": f"{number(1e3 * row['measured'][phase])} / {number(1e3 * planned)}"
            for phase, planned in row["budget"].items()
        }
        rest = sum(seconds for part, seconds in row["measured"].items() if part not in row["budget"])
        whole = f"{number(1e3 * row['seconds'])} / {number(1e3 * sum(row['budget'].values()))}"
        cells.append({"runs": row["runs"], **pairs, "rest, ms": number(1e3 * rest), "all, ms": whole})
    caption = (
        "Measured / by the arithmetic of gruclip.bench.budget, with the rate of the products above, "
        f"{number(card.bandwidth / 1e9)} GB/s of memory, measured here, and {number(1e6 * card.kernel)} microseconds "
        "between the starts of two kernels."
    )
    return Table("Budget", caption, pd.DataFrame(cells), pd.DataFrame(cells), [])
