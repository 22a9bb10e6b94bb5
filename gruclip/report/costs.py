"""What clipping costs in training: each method's share of the seconds of an iteration, the paper's fourth claim."""

from __future__ import annotations

import pandas as pd

from gruclip.errors import UserError
from gruclip.report import origins, render
from gruclip.report.reading import read_phases
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, by_method, known, sections, setting, uncounted
from gruclip.report.statistics import finished
from gruclip.report.timing import PHASES


def table_cost(runs: pd.DataFrame) -> list[render.Table]:
    """Milliseconds of an iteration by method and machine, and the share of them that clipping takes.

    Raises `UserError` where no run has its times.
    """
    ended = finished(runs)
    phases = [read_phases(folder) or {} for folder in ended["folder"]]
    times = pd.DataFrame(phases, index=ended.index, columns=list(PHASES))
    parts = known(sections(ended.join(times), (*METHOD, "optimizer.lr")), PHASES)
    if not parts:
        raise UserError(f"table cost: of none of these {len(runs)} runs the times are known; train one to its end")
    return [_costs(part) for part in parts]


def _costs(part: Section) -> render.Table:
    lines, values = [], []
    runs = part.runs.dropna(subset=list(PHASES))
    for mine in by_method(runs, "machine"):
        first, means = mine.iloc[0], mine[list(PHASES)].mean()
        total = float(means.sum())
        lines.append(
            {
                "method": METHOD_NAMES[first["optimizer.name"]],
                "setting": setting(first),
                "machine": "unknown" if pd.isna(first["machine"]) else first["machine"],
                "runs": str(len(mine)),
                "iteration, ms": f"{1e3 * total:.3g}",
                "clipping, ms": f"{1e3 * float(means['clipping']):.3g}",
                "share of clipping": f"{float(means['clipping']) / total:.1%}" if total else "N/A",
            }
        )
        values.append({**{name: first[name] for name in (*METHOD, "machine")}, "runs": len(mine), **means})
    caption = (
        f"{part.caption}. Of each run the median over its epochs, without the first where there are others, of the "
        "seconds of an iteration, forward, backward, update and clipping; means over runs of all learning rates. Runs "
        "trained beside others, or beside other work, take longer in all phases: the share is what compares."
    )
    notes = [*uncounted(part, runs, "times"), *origins.notes(runs)]
    return render.Table("Cost", caption, pd.DataFrame(lines), pd.DataFrame(values), notes)
