"""Figure 1: the gradient explodes where the spectral radius of the Jacobian at the origin passes 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from gruclip.errors import MissingRuns
from gruclip.report import style
from gruclip.report.reading import read_steps
from gruclip.report.recalled import paper_rate
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, sections, setting
from gruclip.report.statistics import finished

METHODS = ("gradient_clipping", "spectral_clipping")
MARKERS = ("o", "s")

#: Gradient norms this many times above the median, and radii above this, are marked at the panel's edge instead.
NORM_RANGE = 1e8
RADIUS_TOP = 5.0


def figure_1(runs: pd.DataFrame, out: Path, formats: Sequence[str]) -> list[Path]:
    """Gradient norm and spectral radius over the iterations, one run of each method, and one against the other
    at the same weights.

    The runs are those of `representatives`. What is not finite or off the scale is a triangle at the panel's edge.
    """
    section, chosen = representatives(runs)
    titles = [_title(section, run) for run in chosen]
    steps = [read_steps(run["folder"]) for run in chosen]
    both = pd.concat(steps)
    if not both["measured"].any():
        raise no_radius(section.runs.iloc[0])
    norm_limits, radius_limits = _norm_limits(both["grad_norm"].to_numpy()), _radius_limits(both["radius"].to_numpy())
    layers = section.runs["model.num_layers"].iloc[0]

    def draw(figure: Figure) -> None:
        axes = figure.subplot_mosaic([[0, 1], [2, 3], [4, 4]], height_ratios=[1, 1, 1.3])
        for column, (method, run_steps) in enumerate(zip(METHODS, steps, strict=True)):
            colour = style.COLOURS[method]
            norm, radius = axes[column], axes[2 + column]
            measured = run_steps[run_steps["measured"]]
            norm.set_title(titles[column], color=colour)
            _log_scale(norm)
            _line(norm, run_steps["step"], run_steps["grad_norm"], norm_limits, colour)
            _line(radius, measured["step"], measured["radius"], radius_limits, colour)
            _mark_radius_1(radius)
            radius.set_xlabel("iteration")
            for panel in (norm, radius):
                panel.set_xlim(0, run_steps["step"].max())
                panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                panel.tick_params(labelleft=column == 0)
            norm.tick_params(labelbottom=False)
            label = METHOD_NAMES[method]
            _scatter(
                axes[4], at_the_same_weights(run_steps), norm_limits, radius_limits, colour, MARKERS[column], label
            )
        axes[0].set_ylabel("gradient norm")
        axes[2].set_ylabel("spectral radius" + ("\n(largest of layers)" if layers > 1 else ""))
        axes[4].axvline(1, color="black", linewidth=0.6, linestyle="--")
        axes[4].annotate("radius 1", (1, 0.9), (2, 0), xycoords=("data", "axes fraction"), textcoords="offset points")
        handles, labels = axes[4].get_legend_handles_labels()
        if any(
            line.get_marker() == "^" and np.size(line.get_xdata()) for panel in axes.values() for line in panel.lines
        ):
            handles.append(Line2D([], [], color="black", marker="^", markersize=3, linestyle="none"))
            labels.append("not finite or off the scale")
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=1.0)

    return style.save(draw, section.caption, 4.8, out / "figure_1", formats)


def at_the_same_weights(steps: pd.DataFrame) -> pd.DataFrame:
    """``grad_norm`` and ``radius`` of the same weights: an iteration leaves those whose radius stands in its row, and
    the next one has their gradient. Only where that one was kept; infinity for a radius that is not finite.
    """
    radius = steps["radius"].fillna(np.inf).where(steps["measured"]).shift(1)[steps["step"].diff() == 1].dropna()
    return pd.DataFrame({"radius": radius, "grad_norm": steps["grad_norm"][radius.index]})


def no_radius(run: pd.Series) -> MissingRuns:
    """What is wrong where all runs ended before the first radius."""
    return MissingRuns(
        f"figure 1: in these runs of {run['experiment']} no radius is computed, trainer.radius_every="
        f"{run['trainer.radius_every']}; train longer ones, or set a smaller one"
    )


def compared(runs: pd.DataFrame, experiment: str) -> list[Section]:
    """The settings with both methods; `MissingRuns`, of this experiment, where there are none."""
    both = [part for part in sections(runs, METHOD) if set(METHODS) <= set(part.runs["optimizer.name"])]
    if not both:
        raise MissingRuns(
            f"figure 1: {experiment} has no finished runs of gradient_clipping and spectral_clipping with otherwise "
            f"equal settings; make them with: gruclip reproduce figure1 +experiment={experiment}"
        )
    return both


def representatives(runs: pd.DataFrame) -> tuple[Section, list[pd.Series]]:
    """The settings shown, and one finished run of gradient clipping and one of spectral clipping with them.

    Settings: of those with both methods, the ones whose radius was computed most often, then at the protocol's rate,
    then of most runs. Runs: of gradient clipping one that exploded and did not succeed, or else one that exploded,
    where there is one, of spectral clipping any; then the lowest threshold or delta, then the lowest seed. The figure
    says how many of each method's runs exploded.
    """
    section = min(compared(finished(runs), runs["experiment"].iloc[0]), key=_preference)
    chosen = []
    for method in METHODS:
        candidates = section.runs[section.runs["optimizer.name"] == method]
        if method == "gradient_clipping":
            exploded = candidates["exploded"].astype(bool)
            for wanted in (exploded & (candidates["status"] != "success"), exploded):
                if wanted.any():
                    candidates = candidates[wanted]
                    break
        chosen.append(candidates.sort_values(["optimizer.threshold", "optimizer.delta", "seed"]).iloc[0])
    return section, chosen


def _preference(section: Section) -> tuple[int, bool, int]:
    first = section.runs.iloc[0]
    return first["trainer.radius_every"], first["optimizer.lr"] != paper_rate(section.dataset), -len(section.runs)


def _title(section: Section, run: pd.Series) -> str:
    same = section.runs[section.runs["optimizer.name"] == run["optimizer.name"]]
    same = same[(same[list(METHOD[1:])] == run[list(METHOD[1:])]).any(axis="columns")]
    exploded = f"{int(same['exploded'].sum())} of {len(same)} runs exploded"
    return f"{METHOD_NAMES[run['optimizer.name']]}\n{setting(run)}, seed {run['seed']}\n{exploded}"


def _norm_limits(norms: np.ndarray) -> tuple[float, float]:
    usual = norms[np.isfinite(norms) & (norms > 0)]
    if not len(usual):
        return 0.1, 10.0
    top = min(usual.max(), NORM_RANGE * float(np.median(usual)))
    low, top = usual.min() / 1.5, top * 1.5
    if top < 100 * low:  # too few decades to label: whole ones
        low, top = 10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(top))
    return float(low), float(top)


def _radius_limits(radii: np.ndarray) -> tuple[float, float]:
    usual = radii[np.isfinite(radii)]
    low, top = (usual.min(), min(usual.max(), RADIUS_TOP)) if len(usual) else (0.0, 1.0)
    margin = 0.06 * (max(top, 1.05) - min(low, 0.95))
    return min(low, 0.95) - margin, max(top, 1.05) + margin


def _line(panel: Axes, step: pd.Series, value: pd.Series, limits: tuple[float, float], colour: str) -> None:
    inside = value <= limits[1]  # false for NaN
    panel.plot(step, value.where(inside), color=colour, linewidth=0.7, rasterized=True)
    panel.set_ylim(limits)
    _edge(panel, step[~inside], pd.Series(limits[1], step[~inside].index), colour)


def _scatter(
    panel: Axes,
    points: pd.DataFrame,
    norm_limits: tuple[float, float],
    radius_limits: tuple[float, float],
    colour: str,
    marker: str,
    label: str,
) -> None:
    norm, radius = points["grad_norm"], points["radius"]
    inside = (norm <= norm_limits[1]) & (radius <= radius_limits[1])
    panel.plot(radius[inside], norm[inside], marker, markersize=2, markeredgewidth=0, color=colour, label=label,
               rasterized=True)  # fmt: skip
    _log_scale(panel)
    panel.set(xlim=radius_limits, ylim=norm_limits, xlabel="spectral radius", ylabel="gradient norm")
    _edge(panel, _capped(radius[~inside], radius_limits[1]), _capped(norm[~inside], norm_limits[1]), colour)


def _capped(values: pd.Series, top: float) -> pd.Series:
    return values.fillna(np.inf).clip(upper=top)


def _edge(panel: Axes, x: pd.Series, y: pd.Series, colour: str) -> None:
    """Triangles at the panel's edge, half outside, for points that are not finite or off the scale."""
    (marks,) = panel.plot(x, y, "^", color=colour, markersize=3, markeredgewidth=0, clip_on=False, rasterized=True)
    marks.set_in_layout(False)  # an unclipped artist without points has no extent, which the layout cannot bear


def _log_scale(panel: Axes) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _mark_radius_1(panel: Axes) -> None:
    panel.axhline(1, color="black", linewidth=0.6, linestyle="--")
    # At the right, where a radius that has passed 1 is no longer near it.
    place, units = (0.97, 1), ("axes fraction", "data")
    panel.annotate("radius 1", place, (0, 1.5), xycoords=units, textcoords="offset points", horizontalalignment="right")
