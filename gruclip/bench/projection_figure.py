"""The figure of ``gruclip bench projection``: time over the size, and over the share of values above the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gruclip.report import style

#: Okabe and Ito's, what is the paper's alone in grey; the rest takes what is left.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#888888")
MARKERS = "osD^vPX*"


def projection_figure(by_size: pd.DataFrame, by_share: pd.DataFrame, path: Path, formats: Sequence[str]) -> list[Path]:
    """Mean time of every algorithm over n, and over the share of values above the limit; returns the files.

    Frames as `gruclip.bench.projection.measure_all` makes them; the panel of an empty one is left out.
    """
    panels = []
    if not by_size.empty:
        panels.append((by_size, "n", "n, ten values above the limit"))
    if not by_share.empty:
        shares = by_share.assign(share=by_share["above"] / by_share["n"])
        panels.append((shares, "share", f"share of values above the limit, n = {by_share['n'].iloc[0]}"))

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, (rows, column, label) in zip(all_axes, panels, strict=True):
            _panel(axes, rows, column)
            axes.set_xlabel(label)
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.0)

    return style.save(draw, "Time of one projection", 0.6 + 1.7 * len(panels), path, formats)


def _panel(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    for index, algorithm in enumerate(rows["algorithm"].unique()):
        points = rows[rows["algorithm"] == algorithm].sort_values(column)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot(points[column], 1e3 * points["mean"], color=colour, marker=marker, markersize=3, label=algorithm)
    axes.set_yscale("log")
    if column == "n":
        axes.set_xscale("log", base=2)
        sizes = sorted(rows["n"].unique())
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.set_ylabel("ms")
