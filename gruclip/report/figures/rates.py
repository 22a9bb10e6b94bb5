"""The figure of learning rates: does a lower starting rate rescue gradient clipping?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from gruclip.choices import OPTIMIZERS
from gruclip.report import style
from gruclip.report.recalled import paper_rate
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, by_method, rate_sweeps, setting, value
from gruclip.report.statistics import SEEDS_FOR_INTERVAL, bootstrap_interval, some_finished, summarise

MARKERS = ("o", "s", "^", "D", "v", "P")

#: Decades between the points of two lines at one rate, so that none hides another, and between the outermost at most.
STEP, SPREAD = 0.02, 0.12
#: Share of the axis that two rates are apart, at least, where each has its label.
MIN_APART = 0.06
#: Ratio of the largest loss to the least below which a logarithmic axis has one label or none, and takes equal steps.
FEW_TICKS = 1.5


def figure_lr(runs: pd.DataFrame, out: Path, formats: Sequence[str]) -> list[Path]:
    """Test loss and success rate over the starting rate, a line for each method and threshold or delta.

    One figure for each set of otherwise equal settings in which several rates were run; where there are several, the
    settings that differ are part of the files' names. The loss is the mean of the successful runs with its 95 %
    bootstrap interval, or the runs themselves where fewer than five succeeded. A cross above says that at this rate
    at least one finished run did not succeed.
    """
    files, sweeps = [], rate_sweeps(some_finished(runs, "figure lr"))
    for section in sweeps:
        first, differing = section.runs.iloc[0], section.differing if len(sweeps) > 1 else ()
        name = ",".join(["figure_lr", *(f"{name}={value(first[name])}" for name in differing)])
        files += _figure_lr(section, out / name, formats)
    return files


def _figure_lr(section: Section, path: Path, formats: Sequence[str]) -> list[Path]:
    summary = summarise(section.runs, (*METHOD, "optimizer.lr"))
    lines = list(by_method(summary))
    looks = _looks([rates["optimizer.name"].iloc[0] for rates in lines])
    spread = min(STEP * (len(lines) - 1), SPREAD)
    offsets = 10 ** np.linspace(-spread / 2, spread / 2, len(lines))
    protocol = paper_rate(section.dataset)

    def draw(figure: Figure) -> None:
        failures, loss, success = figure.subplots(3, sharex=True, height_ratios=[0.35, 2, 1])
        _dress(failures, loss, success, section)
        for panel in (failures, loss, success):
            panel.set_xmargin(0)  # matplotlib's own may pass float64's range
        tests = np.concatenate(list(summary["test"]))
        if len(tests):
            low, high = tests.min(), tests.max()
            room = max(1.03, (high / low) ** 0.05)  # of a logarithmic axis, for the markers
            loss.set_ylim(low / room, high * room)
            if high / low < FEW_TICKS:
                loss.yaxis.set_major_locator(MaxNLocator(4))
        for rates, look, offset in zip(lines, looks, offsets, strict=True):
            rates = rates.sort_values("optimizer.lr")
            at = rates["optimizer.lr"] * offset
            success.plot(at, rates["succeeded"] / rates["finished"], **look)
            loss.plot(at, rates["test_mean"], **look)
            _draw_spread(loss, at, rates["test"], look["color"])
            failed = at[rates["succeeded"] < rates["finished"]]
            row = OPTIMIZERS.index(rates["optimizer.name"].iloc[0])
            failures.plot(failed, np.full(len(failed), row), "x", color=look["color"], markersize=3)
        words = "learning rate at the start, points set apart"
        if protocol is not None:
            words += f"\n(dotted: the protocol's, {protocol:g})"
            for panel in (failures, loss, success):
                panel.axvline(protocol, color="black", linewidth=0.5, linestyle=":", zorder=0)
        success.set_xlabel(words)
        rates_tried = np.sort(summary["optimizer.lr"].unique())
        exponents = np.log10(rates_tried)
        width = exponents[-1] - exponents[0] + spread
        ends = np.array([exponents[0], exponents[-1]]) + (spread / 2 + 0.05 * width) * np.array([-1, 1])
        success.set_xlim(10 ** ends.clip(-307, 307))
        if np.diff(exponents).min() < MIN_APART * width:
            success.xaxis.set_major_locator(LogLocator(numticks=7))
        else:
            success.set_xticks(rates_tried)
        success.xaxis.set_minor_locator(NullLocator())
        handles = {_label(rates): Line2D([], [], **look) for rates, look in zip(lines, looks, strict=True)}
        counts = summary["succeeded"]
        if (counts >= SEEDS_FOR_INTERVAL).any():
            handles["95 % interval of mean"] = _sign("|")
        if counts.between(1, SEEDS_FOR_INTERVAL - 1).any():
            handles["single runs"] = _sign("_")
        if (counts < summary["finished"]).any():
            handles["not all runs succeeded"] = _sign("x")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, handlelength=1.8,
                      columnspacing=1.0, labelspacing=0.3)  # fmt: skip

    return style.save(draw, section.caption, 3.5 + 0.08 * len(lines), path, formats)


def _looks(names: list[str]) -> list[dict[str, Any]]:
    """Colour and marker of each line: a method's own colour, the lighter the higher its threshold or delta."""
    looks = []
    for place, name in enumerate(names):
        rank, count = names[:place].count(name), names.count(name)
        light = 0.55 * rank / max(count - 1, 1)
        colour = tuple((1 - light) * channel + light for channel in to_rgb(style.COLOURS[name]))
        looks.append({"color": colour, "marker": MARKERS[rank % len(MARKERS)], "markersize": 3, "linewidth": 0.8})
    return looks


def _draw_spread(panel: Axes, at: pd.Series, tests: pd.Series, colour: Any) -> None:
    for rate, values in zip(at, tests, strict=True):
        if len(values) >= SEEDS_FOR_INTERVAL:
            panel.vlines(rate, *bootstrap_interval(values), color=colour, linewidth=1.2)
        else:
            panel.plot(np.full(len(values), rate), values, "_", color=colour, markersize=3.5, markeredgewidth=0.8)


def _sign(marker: str) -> Line2D:
    return Line2D([], [], color="black", marker=marker, markersize=3.5, linestyle="none")


def _dress(failures: Axes, loss: Axes, success: Axes, section: Section) -> None:
    failures.set_ylim(len(OPTIMIZERS) - 0.5, -0.5)
    failures.set_ylabel("failed", rotation=0, ha="right", va="center")
    failures.set_yticks([])
    failures.spines[["left", "bottom"]].set_visible(False)
    failures.tick_params(bottom=False, which="both")
    if section.is_words:
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
        loss.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
        loss.yaxis.set_minor_locator(NullLocator())
    loss.set_ylabel("test perplexity" if section.is_words else "test loss\n(nats per time step)")
    success.set_ylim(-0.06, 1.06)
    success.yaxis.set_major_formatter(PercentFormatter(1))
    success.set_ylabel("success rate")
    success.set_xscale("log")
    success.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _label(rates: pd.DataFrame) -> str:
    name = METHOD_NAMES[rates["optimizer.name"].iloc[0]].removesuffix(" clipping")
    return ", ".join(filter(None, [name, setting(rates.iloc[0]).replace(", delta", ",\ndelta")]))
