"""What a bench leaves: a Markdown table on the terminal and in a file, all numbers in a JSON file beside it."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from gruclip.bench.floor import Floor, Machine
from gruclip.bench.timing import Timing
from gruclip.errors import UserError
from gruclip.report.render import Table, markdown
from gruclip.runs.environment import describe_environment, processor_family


def timing_table(
    title: str,
    caption: str,
    timings: Mapping[str, Timing],
    base: str,
    floors: Mapping[str, Floor] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """A row a contestant, times in ms; its ratio to `base` round by round, and its median over its floor."""
    rows, cells = [], []
    for name, timing in timings.items():
        (lower, upper), ratio = timing.quartiles, timing.ratio(timings[base])
        row: dict[str, Any] = {
            "contestant": name,
            "median": timing.median,
            "lower_quartile": lower,
            "upper_quartile": upper,
            "mean": timing.mean,
            "ratio": ratio,
            "rounds": list(timing.seconds),
        }
        cell = {
            "": name,
            "median, ms": number(1e3 * timing.median),
            "quartiles": f"{number(1e3 * lower)} to {number(1e3 * upper)}",
            "mean": number(1e3 * timing.mean),
            f"ratio to {base}": f"{ratio:.2f}",
        }
        if floors is not None:
            floor = floors.get(name)
            row |= {"floor_products": floor and floor.products, "floor_memory": floor and floor.memory}
            text = "" if floor is None else f"{number(1e3 * floor.products)} / {number(1e3 * floor.memory)}"
            cell["floor: products / memory, ms"] = text
            cell["times the floor"] = "" if floor is None else f"{timing.median / floor.seconds:.1f}"
        rows.append(row)
        cells.append(cell)
    return Table(title, caption, pd.DataFrame(cells), pd.DataFrame(rows), list(notes))


def machine_table(machine: Machine) -> Table:
    """The rate of each product by kernel, and the memory's."""
    rows = [
        {"precision": precision, "product": f"({m}, {k}) @ ({k}, {n})", "kernel": kernel, "rate": rate}
        for precision, by_shape in machine.rates.items()
        for (m, k, n), kernels in by_shape.items()
        for kernel, rate in kernels.items()
    ]
    values = pd.DataFrame(rows)
    wide = values.pivot_table(index=["precision", "product"], columns="kernel", values="rate", sort=False) / 1e9
    cells = wide.map(lambda rate: "" if pd.isna(rate) else number(rate)).reset_index()
    caption = (
        "GFLOP/s of products at their fastest; the floors take the best of a precision. "
        f"Memory: {number(machine.bandwidth / 1e9)} GB/s."
    )
    return Table("Products", caption, cells, values, [])


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def write(
    bench: str,
    tables: Sequence[Table],
    arguments: Namespace,
    device: torch.device | None = None,
    quiet: bool = False,
) -> None:
    """Write ``<bench>.md`` and ``<bench>.json``, with the `arguments`, into the folder that these call ``out``; of a
    GPU where `device` is one. Printed unless `quiet`.
    """
    out = arguments.out
    environment = describe_environment(device or torch.device("cpu"))
    versions = f"{environment['threads']} threads, torch {torch.__version__}"
    environment["processor_family"] = processor_family()
    processor = ", ".join(filter(None, (environment["processor"], environment["processor_family"])))
    machine = processor if environment["device"] == "cpu" else environment["device"]
    name = bench.replace("step_", "step --experiment ").replace("_grid", " --grid")
    head = f"`gruclip bench {name}`: {machine}, {versions}"
    text = f"{head}\n\n{markdown(tables)}"
    content = {
        "bench": bench,
        "environment": environment,
        "settings": {
            name: value if isinstance(value, (int, float)) else str(value) for name, value in vars(arguments).items()
        },
        "tables": {table.title: table.values.to_dict("records") for table in tables},
    }
    if not quiet:
        print(text)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{bench}.md").write_text(text, encoding="utf-8")
        (out / f"{bench}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    if not quiet:
        print(f"bench {bench}: {out / f'{bench}.md'}, {out / f'{bench}.json'}")
