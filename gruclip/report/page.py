"""One self-contained HTML page of an experiment: its tables, figures, settings, and every run.

The template escapes whatever it is given: names come from folders and files that others may have written. The page asks
nothing of a network, which its own Content-Security-Policy forbids.
"""

from __future__ import annotations

import base64
import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from gruclip.choices import DATASET_NAMES, foreign_settings
from gruclip.config import IDENTITY_SETTINGS
from gruclip.errors import UserError
from gruclip.report.figures import FIGURES
from gruclip.report.figures.cost import TIMED
from gruclip.report.findings import findings
from gruclip.report.multiples import multiples
from gruclip.report.reading import read_runs, read_seconds
from gruclip.report.recalled import BESIDE, PROTOCOL, SOURCES, source
from gruclip.report.render import Table
from gruclip.report.rows import STATUSES
from gruclip.report.sections import SETTING, value
from gruclip.report.tables import TABLES
from gruclip.rules import plural

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

_UNTIMED = "for Figure 2 runs are timed alone, with: gruclip reproduce figure2"

_TITLES = {
    "1": "Figure 1: gradient norm and spectral radius",
    "2": "Figure 2: computation time",
    "lr": "Success and loss by learning rate",
}


def page(experiment: str, runs: pd.DataFrame, places: Sequence[Path], named: str | None = None) -> str:
    """The page of the runs that `reading.read_runs` gives of these places, or of the one `named` as ``--runs``."""
    runs = runs.reset_index(drop=True)
    runs = runs.assign(seconds=[read_seconds(folder) for folder in runs["folder"]]).astype({"seconds": float})
    counts = runs["status"].value_counts()
    exploded = int(runs["exploded"].sum())
    words = [f"{counts[kind]} {kind}" for kind in STATUSES if kind in counts]
    settings = runs.groupby(list(SETTING), dropna=False, sort=False).ngroup()
    missing: list[str] = []
    panels, loss_range, norm_range = multiples(runs, settings, missing)
    options = _options(experiment, named)
    tables = _made(runs, missing)
    return _template().render(
        title=f"{experiment}: {', '.join(DATASET_NAMES[name] for name in runs['dataset.name'].unique())}",
        counts=f"{plural(len(runs), 'run')}: {', '.join(words)}; in {exploded} of them the gradient exploded.",
        command=f"gruclip report{options}",
        places=" and ".join(map(str, places)),
        findings=findings(runs, tables),
        settings=_settings(runs),
        sources=SOURCES,
        tables=_tables(tables, options),
        figures=_figures(experiment, runs, places, named, missing),
        columns=list(COLUMNS),
        runs=list(zip(settings, map(_cells, runs.to_dict("records")), strict=True)),
        multiples=panels,
        loss_range=loss_range,
        norm_range=norm_range,
        missing=list(dict.fromkeys(missing)),
    )


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string((files("gruclip.report") / "page.html").read_text(encoding="utf-8"))


def _settings(runs: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Every setting that this corpus has, its values among the runs, and the protocol's with its source where it has
    one."""
    dataset = runs["dataset.name"].iloc[0]
    foreign = foreign_settings(dataset)
    protocol = PROTOCOL[dataset] | BESIDE if dataset in PROTOCOL else {}
    rows = []
    for name in (one for one in (*IDENTITY_SETTINGS, "data_sha256") if one not in foreign):
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


def _figures(
    experiment: str, runs: pd.DataFrame, places: Sequence[Path], named: str | None, missing: list[str]
) -> list[dict[str, str]]:
    """Every figure that these runs can give, as the base64 of its SVG: as an image its names cannot meet another's.

    Figure 2 is of the runs that were timed alone, which lie apart (`TIMED`).
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for which, draw in FIGURES.items():
            timed = which == "2"
            try:
                shown = _timed(experiment, places, missing) if timed else runs
                paths = draw(shown, Path(folder), ("svg",))
            except UserError as error:  # the runs lack what it shows, or their times do not compare
                missing.append(str(error))
                continue
            options = _options(experiment, str(Path(named, TIMED)) if named and timed else named)
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


def _timed(experiment: str, places: Sequence[Path], missing: list[str]) -> pd.DataFrame:
    differing: list[str] = []
    runs = read_runs([place / TIMED for place in places], experiment, _UNTIMED, differing=differing)
    if differing:
        missing.append(
            f"figure 2: {len(differing)} runs of {places[1] / TIMED}, since {places[0] / TIMED} has them too"
        )
    return runs


def _options(experiment: str, named: str | None) -> str:
    return f" --experiment {shlex.quote(experiment)}{f' --runs {shlex.quote(named)}' if named else ''}"


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
