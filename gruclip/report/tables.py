"""Tables 1 and 2 of the paper, the table of learning rates, and the table of recurrent cells.

Each is a pure function of the frame that `reading.read_runs` makes. Runs whose settings differ in more than
the method and the seed stand in separate tables, one below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gruclip.choices import CELLS, WORD_DATASETS
from gruclip.errors import MissingRuns, UserError
from gruclip.report import origins, render
from gruclip.report.costs import table_cost
from gruclip.report.differences import table_differences
from gruclip.report.recalled import HEADING, LOSS, VALUES, Recalled, paper_rate
from gruclip.report.sections import (
    METHOD,
    METHOD_NAMES,
    Section,
    by_method,
    delta_fraction,
    in_order,
    label,
    rate_sweeps,
    sections,
    setting,
)
from gruclip.report.stability import table_explosions
from gruclip.report.statistics import (
    BEST_RATE,
    SEEDS_FOR_INTERVAL,
    best,
    bootstrap_interval,
    edge_notes,
    is_at_edge,
    succeeding_rates,
    summarise,
)

FORMATS = {"md": render.markdown, "tex": render.latex, "csv": render.csv}

SUCCESS = "Success: the validation loss at every epoch's end at or below its value before training."
EXPLODED = (
    "Exploded: a gradient norm, before clipping, that is not finite or above 100 times its median over the "
    "preceding 200 iterations; the largest is over all finished runs."
)

#: Settings that every row of a CSV file carries.
_VALUES = (
    "dataset.name",
    "model.cell",
    "model.num_layers",
    "model.hidden_size",
    "optimizer.lr",
    "precision",
    "trainer.budget",
    "max_epochs",
    "max_steps",
)


def table(which: str, runs: pd.DataFrame, format: str = "md") -> str:
    """Table `which`, of `TABLES`, as "md", "tex" or "csv".

    Raises `UserError` for an unknown table or format, and where `runs` holds nothing that the table is about.
    """
    if which not in TABLES:
        raise UserError(f"table {which}: no such table; there are {', '.join(TABLES)}")
    if format not in FORMATS:
        raise UserError(f"format {format}: no such format of a table; there are {', '.join(FORMATS)}")
    return FORMATS[format](TABLES[which](runs.reset_index(drop=True)))


def table_1(runs: pd.DataFrame) -> list[render.Table]:
    """Success rate and perplexity of the language model by method."""
    return _method_tables("Table 1", of_words(runs), METHOD)


def table_2(runs: pd.DataFrame) -> list[render.Table]:
    """Success rate and negative log-likelihood per time step of the music model by method."""
    return _method_tables("Table 2", of_music(runs), METHOD)


def of_words(runs: pd.DataFrame) -> pd.DataFrame:
    """Those on texts; `MissingRuns` where there are none."""
    words = runs[runs["dataset.name"].isin(WORD_DATASETS)]
    if words.empty:
        raise MissingRuns(
            f"table 1: is of words, these runs are of {runs['dataset.name'].iloc[0]}; take gruclip table 2"
        )
    return words


def of_music(runs: pd.DataFrame) -> pd.DataFrame:
    """Those on piano rolls; `MissingRuns` where there are none."""
    music = runs[~runs["dataset.name"].isin(WORD_DATASETS)]
    if music.empty:
        raise MissingRuns(
            f"table 2: is of music, these runs are of {runs['dataset.name'].iloc[0]}; take gruclip table 1"
        )
    return music


def table_cells(runs: pd.DataFrame) -> list[render.Table]:
    """Tables 1 and 2 over recurrent cells, delta also as a fraction of each cell's stability limit.

    Of the settings in which several cells were run, or of all where there are none.
    """
    free = ("model.cell", *METHOD)
    several = [part.runs for part in sections(runs, free) if part.runs["model.cell"].nunique() > 1]
    return _method_tables("Recurrent cells", pd.concat(several) if several else runs, free)


def table_lr(runs: pd.DataFrame) -> list[render.Table]:
    """Each method at its own best learning rate and at the protocol's, and the rates at which it succeeds."""
    return [_rates(part) for part in rate_sweeps(runs)]


TABLES: dict[str, Callable[[pd.DataFrame], list[render.Table]]] = {
    "1": table_1,
    "2": table_2,
    "lr": table_lr,
    "cells": table_cells,
    "differences": table_differences,
    "explosions": table_explosions,
    "cost": table_cost,
}


# -- Tables 1 and 2, and the recurrent cells ------------------------------------------------------------


def _method_tables(title: str, runs: pd.DataFrame, rows: Sequence[str]) -> list[render.Table]:
    kept, rates_left = _at_protocol_rate(runs)
    tables = [_method_table(title, part, rows) for part in sections(kept, rows)]
    if rates_left:
        rates = ", ".join(f"{rate:g}" for rate in rates_left)
        tables[-1].notes.append(f"Runs at other learning rates ({rates}) are in `gruclip table lr`.")
    return tables


def _at_protocol_rate(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[float]]:
    """The runs at the protocol's rate, or at every rate where that was not run, and the rates thereby left out."""
    kept = []
    for part in sections(runs, (*METHOD, "optimizer.lr")):
        protocol = part.runs[part.runs["optimizer.lr"] == paper_rate(part.dataset)]
        kept.append(part.runs if protocol.empty else protocol)
    is_kept = runs.index.isin(pd.concat(kept).index)
    return runs[is_kept], sorted(runs.loc[~is_kept, "optimizer.lr"].unique())


def _method_table(title: str, part: Section, rows: Sequence[str]) -> render.Table:
    summary = in_order(summarise(part.runs, rows))
    if "model.cell" in rows:
        summary = summary.sort_values("model.cell", key=lambda cells: cells.map(list(CELLS).index), kind="stable")
    records = summary.to_dict("records")
    cells = pd.DataFrame(
        {
            "method": [METHOD_NAMES[row["optimizer.name"]] for row in records],
            "setting": [setting(row) for row in records],
            "success": [_success(row, "") for row in records],
            "exploded": [f"{row['exploded']}/{row['finished']}" for row in records],
            "largest gradient norm": [f"{row['max_grad_norm']:.3g}" if row["finished"] else "N/A" for row in records],
            f"validation {part.loss}": [_plus_minus(row, "valid", part) for row in records],
            f"test {part.loss}": [_plus_minus(row, "test", part) for row in records],
        }
    )
    values = _values(part, summary)
    if "model.cell" in rows:
        fractions = [delta_fraction(row) for row in records]
        cells.insert(2, "delta / limit", ["" if np.isnan(fraction) else f"{fraction:.3g}" for fraction in fractions])
        cells.insert(0, "cell", [row["model.cell"] for row in records])
        values["delta_fraction"] = fractions
    elif part.dataset in VALUES and part.is_whole and not part.departures:
        paper = [_recalled(part, row) for row in records]
        recalled = {
            f"{HEADING}: success": [value.success for value in paper],
            f"{HEADING}: {LOSS[part.dataset]}": [value.loss for value in paper],
        }
        cells, values = cells.assign(**recalled), values.assign(**recalled)
    mean = f"{part.loss_and_unit}: mean ± standard deviation (n - 1) over the successful runs."
    caption = f"{part.caption}. {SUCCESS} {EXPLODED} {mean}"
    return render.Table(title, caption, cells, values, _notes(part))


def _plus_minus(row: Mapping[str, Any], split: str, part: Section) -> str:
    mean, std = row[f"{split}_mean"], row[f"{split}_std"]
    if np.isnan(mean):
        return "N/A"
    return part.number(mean) if np.isnan(std) else f"{part.number(mean)} ± {part.number(std)}"


def _recalled(part: Section, row: Mapping[str, Any]) -> Recalled:
    parameter = row["optimizer.delta"] if np.isnan(row["optimizer.threshold"]) else row["optimizer.threshold"]
    return VALUES[part.dataset].get((row["optimizer.name"], parameter), Recalled("", ""))


# -- learning rates -------------------------------------------------------------------------------------


def _rates(part: Section) -> render.Table:
    summary = summarise(part.runs, (*METHOD, "optimizer.lr"))
    rate = paper_rate(part.dataset)
    lines, values, at_edge = [], [], []
    for rates in by_method(summary):
        rates = rates.sort_values("optimizer.lr")
        by_rate = {row["optimizer.lr"]: row for row in rates.to_dict("records")}
        row = best(rates)
        at = None if row is None else row["optimizer.lr"]
        if is_at_edge(rates, at):
            at_edge.append(label(rates.iloc[0]))
        at_protocol = (
            {
                f"success at rate {rate:g}": _success(by_rate.get(rate), "not run"),
                f"test {part.loss} at rate {rate:g}": _test(by_rate.get(rate), part, "not run"),
            }
            if rate is not None
            else {}
        )
        lines.append(
            {
                "method": METHOD_NAMES[rates["optimizer.name"].iloc[0]],
                "setting": setting(rates.iloc[0]),
                "best rate": "none" if at is None else f"{at:g}",
                "success there": _success(by_rate.get(at), "N/A"),
                f"test {part.loss} there": _test(by_rate.get(at), part, "N/A"),
                "succeeds at rates": ", ".join(map(_stretch, succeeding_rates(rates))) or "none",
                **at_protocol,
            }
        )
        values.append(rates.assign(best=rates["optimizer.lr"] == at))
    protocol = "" if rate is None else f"; the protocol's rate is {rate:g}"
    caption = (
        f"{part.caption}. Best rate: {BEST_RATE}{protocol}. {SUCCESS} {part.loss_and_unit}: "
        "mean over the successful runs with its 95 % bootstrap interval; of fewer than "
        f"{SEEDS_FOR_INTERVAL} successful runs the values themselves. A method succeeds at a rate where all its "
        "finished runs do; a range holds every rate tried within it."
    )
    notes = [*edge_notes(at_edge), *_notes(part)]
    return render.Table("Learning rates", caption, pd.DataFrame(lines), _values(part, pd.concat(values)), notes)


def _success(row: Mapping[str, Any] | None, absent: str) -> str:
    return f"{row['succeeded']}/{row['finished']}" if row else absent


def _test(row: Mapping[str, Any] | None, part: Section, absent: str) -> str:
    """The mean test loss with its interval, or the runs' test losses where they are few."""
    if row is None or not len(row["test"]):
        return "N/A" if row else absent
    if len(row["test"]) < SEEDS_FOR_INTERVAL:
        return ", ".join(map(part.number, row["test"]))
    low, high = bootstrap_interval(row["test"])
    return f"{part.number(row['test_mean'])} [{part.number(low)}, {part.number(high)}]"


def _stretch(stretch: tuple[float, float]) -> str:
    low, high = stretch
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# -- what all tables share ------------------------------------------------------------------------------


def _values(part: Section, summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as it goes into a CSV file: with the settings that part its runs from other tables' runs."""
    names = [name for name in dict.fromkeys((*_VALUES, *part.differing)) if name not in summary]
    fixed = part.runs[names].iloc[[0] * len(summary)].set_axis(summary.index)
    norms = summary["max_grad_norm"].map("{:.6g}".format).where(summary["finished"] > 0, "")
    tests = [" ".join(f"{value:.6g}" for value in values) for values in summary["test"]]
    return pd.concat([fixed, summary.assign(max_grad_norm=norms, test=tests)], axis="columns")


def _notes(part: Section) -> list[str]:
    """What stands below a table: the runs that are in no number of it, and in what else the others differ."""
    folders = part.runs.loc[part.runs["status"] == "unfinished", "folder"]
    names = ", ".join(f"`{name}`" for name in sorted(Path(folder).name for folder in folders))
    unfinished = [f"Unfinished, in no number of this table: {names}."] if names else []
    return [*unfinished, *origins.notes(part.runs)]
