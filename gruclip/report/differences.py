"""Is one method better than another? Each at its own best rate, the runs of one seed against each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from gruclip.errors import UserError
from gruclip.report import origins, render
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, by_method, label, sections, setting
from gruclip.report.statistics import (
    BEST_RATE,
    SEEDS_FOR_INTERVAL,
    best,
    bootstrap_interval,
    edge_notes,
    is_at_edge,
    reported,
    some_finished,
    successful,
    summarise,
)


def table_differences(runs: pd.DataFrame) -> list[render.Table]:
    """Test loss of every method at its own best rate less that of the best gradient clipping, paired by seed.

    Raises `UserError` where there are no two methods or rates to be compared.
    """
    ended = some_finished(runs, "table differences")
    parts = [
        part
        for part in sections(ended, (*METHOD, "optimizer.lr"))
        if len(part.runs.groupby([*METHOD, "optimizer.lr"], dropna=False)) > 1
    ]
    if not parts:
        raise UserError(f"table differences: no two methods among these {len(runs)} runs have otherwise equal settings")
    return [_differences(part) for part in parts]


def _differences(part: Section) -> render.Table:
    chosen = pd.DataFrame([_at_best_rate(mine) for mine in by_method(part.runs)])
    clipped = chosen[chosen["optimizer.name"] == "gradient_clipping"]
    reference = None if clipped.empty else best(clipped)
    lines = pd.DataFrame([_line(row, reference) for _, row in chosen.iterrows()])
    rate = "the only rate run" if part.runs["optimizer.lr"].nunique() == 1 else BEST_RATE
    than = (
        "gradient clipping, of which no run succeeded"
        if reference is None
        else f"{_name(reference)} at its best rate, the gradient clipping that is best by the same measure"
    )
    caption = (
        f"{part.caption}. Each method at its best rate: {rate}. Difference: {part.loss_and_unit.lower()} on the test "
        f"split less that of {than}; mean over the seeds with which both succeeded, with its 95 % bootstrap interval "
        f"over these seeds, not corrected for how many are compared. Open: fewer than {SEEDS_FOR_INTERVAL} such seeds, "
        "or an interval that holds 0."
    )
    notes = [*edge_notes([label(row) for _, row in chosen[chosen["at_edge"]].iterrows()]), *origins.notes(part.runs)]
    return render.Table("Differences", caption, lines, lines, notes)


def _at_best_rate(mine: pd.DataFrame) -> dict[str, Any]:
    """A method's summary at the rate that is best for it, with the test loss by seed; over all its rates and without a
    test loss where no run succeeded.
    """
    rates = summarise(mine, (*METHOD, "optimizer.lr"))
    row = best(rates)
    at = None if row is None else row["optimizer.lr"]
    there = successful(mine[mine["optimizer.lr"] == at])
    whole = summarise(mine, METHOD).iloc[0] if row is None else row
    return {
        **whole.to_dict(),
        "optimizer.lr": math.nan if at is None else at,
        "setting": setting(mine.iloc[0]),
        "at_edge": is_at_edge(rates, at),
        "by_seed": dict(zip(there["seed"], reported(there, "test"), strict=True)),
    }


def _name(row: pd.Series) -> str:
    return f"{METHOD_NAMES[row['optimizer.name']]}, {row['setting']}"


def _line(row: pd.Series, reference: pd.Series | None) -> dict[str, str]:
    line = {
        "method": METHOD_NAMES[row["optimizer.name"]],
        "setting": row["setting"],
        "best rate": f"{row['optimizer.lr']:g}",
        "success there": f"{row['succeeded']}/{row['finished']}",
        "seeds": "",
        "difference": "",
    }
    if not row["succeeded"]:
        return line | {"best rate": "none", "difference": "N/A", "verdict": "never succeeds"}
    if reference is None or row.name == reference.name:
        return line | {"verdict": "nothing to compare with" if reference is None else "reference"}
    seeds = sorted(row["by_seed"].keys() & reference["by_seed"].keys())
    pairs = np.array([row["by_seed"][seed] - reference["by_seed"][seed] for seed in seeds])
    line["seeds"] = str(len(seeds))
    if len(seeds) < SEEDS_FOR_INTERVAL:
        return line | {"difference": ", ".join(f"{pair:+.3g}" for pair in pairs), "verdict": "open"}
    low, high = bootstrap_interval(pairs)
    verdict = "lower loss" if high < 0 else "higher loss" if low > 0 else "open"
    if verdict != "open" and any(one["succeeded"] < one["finished"] for one in (row, reference)):
        verdict += " where both succeed"
    return line | {"difference": f"{pairs.mean():+.3g} [{low:+.3g}, {high:+.3g}]", "verdict": verdict}
