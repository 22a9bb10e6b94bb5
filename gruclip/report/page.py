"""One self-contained HTML page of an experiment: its tables, figures, settings, and every run.

The template escapes whatever it is given: names come from folders and files that others may have written. The page asks
nothing of a network, which its own Content-Security-Policy forbids.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from gruclip.choices import DATASET_NAMES
from gruclip.config import IDENTITY_SETTINGS
from gruclip.errors import UserError
from gruclip.report import style
from gruclip.report.collect import read_epochs, read_seconds
from gruclip.report.figures import FIGURES
from gruclip.report.findings import findings
from gruclip.report.recalled import BESIDE, PROTOCOL, SOURCES, source
from gruclip.report.render import Table
from gruclip.report.rows import STATUSES
from gruclip.report.sections import value
from gruclip.report.tables import TABLES

#: Columns of the table of all runs: what a reader sorts by, and its column in the frame.
COLUMNS = {
    "run": "folder",
    "status": "status",
    "exploded": "exploded",
    "validation loss": "valid_loss",
    "test loss": "test_loss",
    "largest gradient norm": "max_grad_norm",
    "best epoch": "best_epoch",
    "epochs": "epochs",
    "seed": "seed",
    "seconds": "seconds",
    "machine": "machine",
    "revision": "revision",
}

_TITLES = {
    "1": "Figure 1: gradient norm and spectral radius",
    "2": "Figure 2: computation time",
    "lr": "Success and loss by learning rate",
}


@dataclass(frozen=True)
class Multiple:
    """The curves of one run as the points of two polylines."""

    name: str
    status: str
    colour: str
    loss: str
    norm: str


def page(experiment: str, runs: pd.DataFrame, places: Sequence[Path], where: str = "") -> str:
    """The page of the runs that `collect.read_runs` gives; `where` is what a command needs to find them."""
    runs = runs.reset_index(drop=True)
    runs = runs.assign(seconds=[read_seconds(folder) for folder in runs["folder"]]).astype({"seconds": float})
    counts = runs["status"].value_counts()
    exploded = int(runs["exploded"].sum())
    words = [f"{counts[kind]} {kind}" for kind in STATUSES if kind in counts]
    missing: list[str] = []
    multiples, loss_range, norm_range = _multiples(runs, missing)
    options = f" --experiment {experiment}{where}"
    tables = _made(runs, missing)
    return _template().render(
        title=f"{experiment}: {', '.join(DATASET_NAMES[name] for name in runs['dataset.name'].unique())}",
        counts=f"{len(runs)} runs: {', '.join(words)}; in {exploded} of them the gradient exploded.",
        command=f"gruclip report{options}",
        places=" and ".join(map(str, places)),
        findings=findings(runs, tables),
        settings=_settings(runs),
        sources=SOURCES,
        tables=_tables(tables, options),
        figures=_figures(runs, options, missing),
        columns=list(COLUMNS),
        runs=[{"cells": _cells(run)} for run in runs.to_dict("records")],
        multiples=multiples,
        loss_range=loss_range,
        norm_range=norm_range,
        missing=list(dict.fromkeys(missing)),
    )


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string((files("gruclip.report") / "page.html").read_text(encoding="utf-8"))


def _settings(runs: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Every setting, its values among the runs, and the protocol's with its source where it has one."""
    dataset = runs["dataset.name"].iloc[0]
    protocol = PROTOCOL[dataset] | BESIDE if dataset in PROTOCOL else {}
    rows = []
    for name in (*IDENTITY_SETTINGS, "data_sha256"):
        values = sorted({value(one) for one in runs[name]}, key=_in_order)
        expected, letter = "", ""
        if name in protocol:
            wanted = protocol[name]
            expected = ", ".join(map(value, wanted if isinstance(wanted, range) else [wanted]))
            letter = source(name, dataset)
        rows.append((name, ", ".join(values), expected, letter))
    return rows


def _in_order(text: str) -> tuple[bool, float, str]:
    """Numbers by their size, and then words."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _made(runs: pd.DataFrame, missing: list[str]) -> dict[str, list[Table]]:
    """Every table that these runs can give, by name; why there is no other one goes into `missing`."""
    made = {}
    for which, make in TABLES.items():
        if which == "cells" and runs["model.cell"].nunique() < 2:
            continue
        try:
            made[which] = make(runs)
        except UserError as error:  # they are of another kind, or all at one rate
            missing.append(str(error))
    return made


def _tables(made: Mapping[str, list[Table]], options: str) -> list[dict[str, Any]]:
    found = []
    for which, tables in made.items():
        for table in tables:
            content = table.cells.astype(str)
            which_of = f": {table.settings}" if len(tables) > 1 else ""  # of several the headings say which
            found.append(
                {
                    "title": table.title + which_of, "caption": table.caption, "notes": table.notes,
                    "columns": list(content.columns), "rows": content.to_numpy().tolist(),
                    "command": f"gruclip table {which}{options}",
                }
            )  # fmt: skip
    return found


def _figures(runs: pd.DataFrame, options: str, missing: list[str]) -> list[dict[str, str]]:
    """Every figure that these runs can give, as the base64 of its SVG: as an image its names cannot meet another's."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for which, draw in FIGURES.items():
            try:
                paths = draw(runs, Path(folder), ("svg",))
            except UserError as error:  # the runs lack what it shows, or their times do not compare
                missing.append(str(error))
                continue
            found += [
                {
                    # Of several the files' names say which.
                    "title": ", ".join([_TITLES[which], *path.stem.split(",")[1:]]),
                    "svg": base64.b64encode(path.read_bytes()).decode(),
                    "command": f"gruclip figure {which}{options}",
                }
                for path in paths
            ]
    return found


def _cells(run: Mapping[str, Any]) -> list[str]:
    cells = []
    for name, column in COLUMNS.items():
        content = run[column]
        if name == "run":
            cells.append(Path(str(content)).name)
        elif name == "exploded":
            cells.append("exploded" if content else "")
        elif isinstance(content, float):
            cells.append("" if math.isnan(content) else f"{content:.6g}")
        else:
            cells.append("" if content is None else str(content))
    return cells


def _multiples(runs: pd.DataFrame, missing: list[str]) -> tuple[list[Multiple], str, str]:
    """The curves of the runs that have some, all on the same two axes; and what these span."""
    curves = []
    for run in runs.to_dict("records"):
        try:
            epochs = read_epochs(run["folder"])
        except UserError as error:
            missing.append(f"curves: {error}")
            continue
        curves.append((run, epochs["valid_loss"].to_numpy(float), epochs["grad_norm_max"].to_numpy(float)))
    losses, norms = (_limits([curve[index] for curve in curves]) for index in (1, 2))
    multiples = [
        Multiple(
            Path(str(run["folder"])).name, str(run["status"]), style.COLOURS[run["optimizer.name"]],
            _points(loss, losses), _points(norm, norms),
        )
        for run, loss, norm in curves
    ]  # fmt: skip
    return multiples, "{:.3g} to {:.3g} nats".format(*losses), "{:.3g} to {:.3g}".format(*norms)


def _limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """What holds all but the most extreme hundredth of the positive values."""
    values = np.concatenate([*curves, np.ones(0)])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 1.0, 10.0
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    return low, max(high, 1.01 * low)


def _points(values: np.ndarray, limits: tuple[float, float]) -> str:
    """A curve in a box of 100 by 40, logarithmic; infinity at the upper edge, what was not measured left out."""
    low, high = (math.log(limit) for limit in limits)
    points = []
    for place, one in enumerate(values):
        if math.isnan(one) and place == 0:
            continue  # before training there is no gradient
        shown = high if not one > 0 or math.isinf(one) else min(max(math.log(one), low), high)
        points.append(f"{100 * place / max(len(values) - 1, 1):.1f},{39 - 38 * (shown - low) / (high - low):.1f}")
    return " ".join(points)
