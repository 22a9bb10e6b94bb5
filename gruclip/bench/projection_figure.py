"""The figures of ``gruclip bench projection``: time over the size and over the share of values above the limit, and the
grid of `auto`'s time over the best alternative's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gruclip.bench.grid import MARKED, SHAPES, SHARES
from gruclip.report import style

#: Okabe and Ito's, what is the paper's alone in grey; the rest takes what is left.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#888888")
MARKERS = "osD^vPX*"

#: Of the grid: orange is slower and purple faster than the best alternative; beyond these factors nothing changes.
SCALE, SLOWEST = "PuOr_r", 4.0


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


def line_style(index: int) -> dict[str, Any]:
    """Of the line of one of the contestants: once the colours are used up, dashed and with open markers."""
    turn, index = divmod(index, len(COLOURS))
    look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index]}
    return look | ({"linestyle": "--", "markerfacecolor": "white"} if turn else {})


def _panel(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    for index, algorithm in enumerate(rows["algorithm"].unique()):
        points = rows[rows["algorithm"] == algorithm].sort_values(column)
        axes.plot(points[column], 1e3 * points["mean"], markersize=3, label=algorithm, **line_style(index))
    axes.set_yscale("log")
    if column == "n":
        axes.set_xscale("log", base=2)
        sizes = sorted(rows["n"].unique())
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.set_ylabel("ms")


def grid_figure(frame: pd.DataFrame, path: Path, formats: Sequence[str]) -> list[Path]:
    """The factor of each cell as a heat map, a panel for each shape, and for matrices unknown and known; returns the
    files. A frame as `gruclip.bench.grid.measure_grid` makes it; a factor above `MARKED` has a frame."""
    shapes = [shape for shape in SHAPES if shape in set(frame["shape"])]
    sizes = {shape: sorted(frame.loc[frame["shape"] == shape, "n"].unique()) for shape in shapes}
    heights = [len(sizes[shape]) for shape in shapes]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(shapes), 2, squeeze=False, height_ratios=heights)
        for row, shape in zip(panels, shapes, strict=True):
            for axes, known in zip(row, (False, True), strict=True):
                cells = frame[(frame["shape"] == shape) & (frame["known"] == known)]
                _heat(axes, cells, sizes[shape])
                axes.set_title(f"{shape}, {'with' if known else 'without'} a state")
            row[0].set_ylabel("n")
            row[1].set_yticklabels([])
        figure.supxlabel("values above the limit: a share of n, or 10", fontsize=7)

    title = f"Time of auto over the best of\ntorch's SVD, gram and truncated; framed: above {MARKED}"
    return style.save(draw, title, 0.9 + 0.45 * len(shapes) + 0.15 * sum(heights), path, formats)


def _heat(axes: Axes, cells: pd.DataFrame, sizes: Sequence[int]) -> None:
    norm, shares = LogNorm(1 / SLOWEST, SLOWEST, clip=True), list(SHARES)
    for cell in cells.itertuples():
        x, y = shares.index(cell.share), sizes.index(cell.n)
        shade, marked = float(norm(cell.factor)), cell.factor > MARKED
        edge = {"edgecolor": "black", "linewidth": 0.9, "zorder": 2} if marked else {"edgecolor": "white"}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colormaps[SCALE](shade), **edge))
        colour = "white" if abs(shade - 0.5) > 0.27 else "black"
        weight = "bold" if marked else "normal"
        text = f"{cell.factor:.2f}".removeprefix("0") if cell.factor < 9.995 else f"{cell.factor:.0f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=5, color=colour, fontweight=weight, zorder=3)
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_xticks(range(len(shares)), [share.removeprefix("0") or "0" for share in shares], fontsize=6)
    axes.set_yticks(range(len(sizes)), [str(size) for size in sizes], fontsize=6)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
