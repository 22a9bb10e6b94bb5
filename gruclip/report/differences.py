"""Is one method better than another? Each at its own best rate, the runs of one seed against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gruclip.errors import UserError
from gruclip.report import origins, render
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, in_order, sections, setting
from gruclip.report.statistics import SEEDS_FOR_INTERVAL, best_rate, bootstrap_interval, reported, successful, summarise


def table_differences(runs: pd.DataFrame) -> list[render.Table]:
    """Test loss of every method at its own best rate less that of the best gradient clipping, paired by seed.

    Raises `UserError` where there are no two methods or rates to be compared.
    """
    parts = [
        part
        for part in sections(runs, (*METHOD, "optimizer.lr"))
        if len(part.runs.groupby([*METHOD, "optimizer.lr"], dropna=False)) > 1
    ]
    if not parts:
        raise UserError(f"table differences: no two methods among these {len(runs)} runs have otherwise equal settings")
    return [_differences(part) for part in parts]


def _differences(part: Section) -> render.Table:
    chosen = _at_best_rates(part.runs)
    reference = _reference(chosen)
    lines = [_line(row, reference) for row in chosen]
    one_rate = part.runs["optimizer.lr"].nunique() == 1
    rate = "the only rate run" if one_rate else "the highest success rate, then the lowest mean validation loss"
    caption = (
        f"{part.caption}. Each method at its best rate: {rate}. Difference: {part.loss_and_unit.lower()} on the test "
        f"split less that of {_name(reference)} at its best rate, the gradient clipping of the lowest mean validation "
        "loss among those with the most seeds; mean over the seeds with which both succeeded, with its 95 % bootstrap "
        f"interval over these seeds. Open: fewer than {SEEDS_FOR_INTERVAL} such seeds, or an interval that holds 0."
    )
    frame = pd.DataFrame(lines)
    return render.Table("Differences", caption, frame, frame, origins.notes(part.runs))


def _at_best_rates(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Each method's summary at the rate that is best for it, with the test loss by seed."""
    chosen = []
    for _, mine in in_order(runs).groupby(list(METHOD), dropna=False, sort=False):
        rates = summarise(mine, (*METHOD, "optimizer.lr"))
        best = best_rate(rates)
        if best is not None:
            row: dict[str, Any] = rates[rates["optimizer.lr"] == best].iloc[0].to_dict()
            there = successful(mine[mine["optimizer.lr"] == best])
            row["by_seed"] = dict(zip(there["seed"], reported(there, "test"), strict=True))
            chosen.append(row)
    return chosen


def _reference(chosen: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Gradient clipping at its best, by the same measure as rates are chosen, of the settings with the most seeds: what
    one seed did is no measure for others.
    """
    clipped = [row for row in chosen if row["optimizer.name"] == "gradient_clipping"]
    best = max((row["succeeded"] / row["finished"] for row in clipped), default=0.0)
    rows = [row for row in clipped if row["succeeded"] / row["finished"] == best]
    most = max((len(row["by_seed"]) for row in rows), default=0)
    rows = [row for row in rows if len(row["by_seed"]) == most]
    return min(rows, key=lambda row: row["valid_mean"], default=None)


def _name(row: dict[str, Any] | None) -> str:
    return "none" if row is None else f"{METHOD_NAMES[row['optimizer.name']]}, {setting(row)}"


def _line(row: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, str]:
    line = {
        "method": METHOD_NAMES[row["optimizer.name"]],
        "setting": setting(row),
        "best rate": f"{row['optimizer.lr']:g}",
        "success there": f"{row['succeeded']}/{row['finished']}",
        "seeds": "",
        "difference": "",
        "verdict": "",
    }
    if reference is None or row is reference:
        return line | {"verdict": "reference" if row is reference else "nothing to compare with"}
    seeds = sorted(row["by_seed"].keys() & reference["by_seed"].keys())
    pairs = np.array([row["by_seed"][seed] - reference["by_seed"][seed] for seed in seeds])
    line["seeds"] = str(len(seeds))
    if len(seeds) < SEEDS_FOR_INTERVAL:
        shown = ", ".join(f"{pair:+.3g}" for pair in pairs)
        return line | {"difference": shown, "verdict": "open"}
    low, high = bootstrap_interval(pairs)
    verdict = "lower loss" if high < 0 else "higher loss" if low > 0 else "open"
    return line | {"difference": f"{pairs.mean():+.3g} [{low:+.3g}, {high:+.3g}]", "verdict": verdict}
