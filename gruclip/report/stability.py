"""The paper's first claim, that gradients explode where the spectral radius passes 1: explosions below it and above."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from gruclip.choices import METHODS
from gruclip.errors import UserError
from gruclip.report import origins, render
from gruclip.report.explosions import COUNTS
from gruclip.report.reading import read_explosions
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, by_method, known, sections, setting, uncounted
from gruclip.report.statistics import finished

#: Begins the note of what the table cannot know.
UNSEEN = "Without a delta nothing bounds the radius"


def table_explosions(runs: pd.DataFrame) -> list[render.Table]:
    """Explosions in a thousand iterations while the spectral radius of J was below 1, and while it was not, by method.

    Raises `UserError` where they are known of no run.
    """
    ended = finished(runs)
    counted = [read_explosions(folder) or {} for folder in ended["folder"]]
    counts = pd.DataFrame(counted, index=ended.index, columns=list(COUNTS))
    parts = known(sections(ended.join(counts), METHOD), COUNTS)
    if not parts:
        raise UserError(
            f"table explosions: of none of these {len(runs)} runs the explosions are known; collect finished runs anew "
            "from their folders with: gruclip collect"
        )
    return [_explosions(part) for part in parts]


def _explosions(part: Section) -> render.Table:
    lines, values = [], []
    runs = part.runs.dropna(subset=list(COUNTS))
    for mine in by_method(runs):
        first, sums = mine.iloc[0], mine[list(COUNTS)].sum().astype(int)
        lines.append(
            {
                "method": METHOD_NAMES[first["optimizer.name"]],
                "setting": setting(first),
                "runs": str(len(mine)),
                "iterations below 1": str(sums["iterations.below"]),
                "explosions there": _share(sums, "below"),
                "iterations at 1 or above": str(sums["iterations.above"]),
                "explosions at 1 or above": _share(sums, "above"),
            }
        )
        values.append({**{name: first[name] for name in (*METHOD, "optimizer.lr")}, "runs": len(mine), **sums})
    caption = (
        f"{part.caption}. Spectral radius of the Jacobian at the origin, the largest over the layers, as computed last "
        "before the iteration; an explosion is a gradient norm, before clipping, that is not finite or above 100 times "
        "its median over the preceding 200 iterations. In parentheses: in a thousand iterations."
    )
    notes = [*_unseen(runs), *uncounted(part, runs, "kept iterations"), *origins.notes(runs)]
    return render.Table("Explosions", caption, pd.DataFrame(lines), pd.DataFrame(values), notes)


def _unseen(runs: pd.DataFrame) -> list[str]:
    """What the table cannot know: where no delta bounds the radius, what it is between two that were computed."""
    free = ~runs["optimizer.name"].map(lambda name: METHODS[name].delta).astype(bool)
    every = sorted({int(steps) for steps in runs.loc[free, "trainer.radius_every"] if steps > 1})
    if not every:
        return []
    return [
        f"{UNSEEN}, which was computed every {' or '.join(map(str, every))} "
        "iterations: it may have passed 1 in between, and what is counted below 1 there may have been above it."
    ]


def _share(sums: Mapping[str, int] | pd.Series, side: str) -> str:
    iterations, explosions = int(sums[f"iterations.{side}"]), int(sums[f"explosions.{side}"])
    return f"{explosions} ({1e3 * explosions / iterations:.3g})" if iterations else "N/A"
