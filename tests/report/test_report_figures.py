"""The figures show every run and every point, or refuse by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_runs import DEMO, PTB, config, frame, perplexity, steps, summary, timing, write_run
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from gruclip.errors import UserError
from gruclip.report import reading, style
from gruclip.report.figures import figure
from gruclip.report.figures.cost import iterations_of_an_epoch, seconds_by_method
from gruclip.report.figures.explosion import at_the_same_weights, representatives

Drawn = list[Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figures that the code under test draws."""
    figures: Drawn = []

    def keep(draw: Callable[[Figure], None], *rest: object) -> list[Path]:
        def draw_and_keep(made: Figure) -> None:
            draw(made)
            figures.append(made)

        return save(draw_and_keep, *rest)

    save: Callable[..., list[Path]] = style.save
    monkeypatch.setattr(style, "save", keep)
    return figures


def write_figure_1_runs(output_dir: Path) -> pd.DataFrame:
    exploding = steps(200, explodes_at=120)
    exploding.loc[180:, "grad_norm"] = [np.inf] * 10 + [np.nan] * 10
    settings = {"trainer__max_steps": 200, "trainer__radius_every": 5}
    for threshold, seed, table in ((20, 0, steps(200)), (20, 1, exploding), (5, 0, steps(200))):
        result = summary(exploded=table is exploding)
        write_run(output_dir, config(PTB, "gradient_clipping", threshold, seed=seed, **settings), result, table)
    for delta, seed in ((0.8, 0), (0.2, 1), (0.2, 0)):
        write_run(output_dir, config(PTB, "spectral_clipping", delta, seed=seed, **settings), summary(), steps(200))
    return reading.read_runs(output_dir, "ptb")


def test_figure_1_takes_an_exploded_run_of_gradient_clipping_and_the_lowest_delta_and_seed(tmp_path: Path) -> None:
    _, (gradient, spectral) = representatives(write_figure_1_runs(tmp_path))
    assert (gradient["optimizer.threshold"], gradient["seed"]) == (20, 1)
    assert (spectral["optimizer.delta"], spectral["seed"]) == (0.2, 0)


def test_figure_1_prefers_the_settings_whose_radius_was_computed_most_often() -> None:
    runs = frame(
        (config(PTB, method, value, trainer__radius_every=every), summary())
        for every in (50, 5)
        for method, value in (("gradient_clipping", 5), ("spectral_clipping", 0.2))
    )
    section, _ = representatives(runs)
    assert set(section.runs["trainer.radius_every"]) == {5}


def test_figure_1_prefers_then_the_settings_of_most_runs_and_of_them_one_that_exploded_and_failed() -> None:
    runs = frame(
        (config(PTB, method, value, seed=seed, model__dropout=dropout), summary(status, exploded=exploded))
        for dropout, outcomes in (
            (0.0, [("failed", True)]),
            (0.5, [("failed", False), ("success", True), ("failed", True)]),
            (0.7, [("success", True)]),
        )
        for seed, (status, exploded) in enumerate(outcomes)
        for method, value in (("gradient_clipping", 5), ("spectral_clipping", 0.2))
    )
    section, (gradient, _) = representatives(runs)
    assert (section.runs["model.dropout"].iloc[0], gradient["seed"]) == (0.5, 2)


def test_figure_1_says_which_runs_it_shows_and_drops_no_point(tmp_path: Path, drawn: Drawn) -> None:
    files = figure("1", write_figure_1_runs(tmp_path), tmp_path / "out")
    assert files == [tmp_path / "out" / f"figure_1.{kind}" for kind in ("png", "pdf", "svg")]
    norm, spectral_norm, radius, spectral_radius, scatter = drawn[0].axes
    assert norm.get_title() == "gradient clipping\nthreshold 20, seed 1\n1 of 2 runs exploded"
    assert spectral_norm.get_title() == "spectral clipping\ndelta 0.2, seed 0\n0 of 2 runs exploded"
    line, edge = norm.lines
    assert np.isfinite(np.asarray(line.get_ydata(), float)).sum() == 180
    assert np.asarray(edge.get_xdata()).tolist() == list(range(181, 201))
    assert set(np.asarray(edge.get_ydata())) == {norm.get_ylim()[1]}
    assert norm.get_yscale() == scatter.get_yscale() == "log"
    for panel in (radius, spectral_radius):
        assert [text.get_text() for text in panel.texts] == ["radius 1"]
        assert panel.get_ylim() == radius.get_ylim()
    points = sum(len(np.asarray(line.get_xdata())) for line in scatter.lines if line.get_linestyle() == "None")
    assert points == 2 * (200 / 5 - 1)  # after the last radius no gradient follows


def test_figure_1_sets_a_radius_beside_the_gradient_of_the_same_weights() -> None:
    """An iteration's row has the gradient of the weights before it and the radius of those after it."""
    steps = pd.DataFrame({
        "step": [1, 2, 3, 4, 6, 7],  # 5 was thinned out
        "grad_norm": [1.0, 2.0, 300.0, 4e5, 6.0, np.nan],
        "radius": [0.8, 1.2, 5.0, np.nan, np.nan, 3.0],
        "measured": [True, True, False, True, True, True],
    })  # fmt: skip
    steps["radius"] = steps["radius"].where(steps["measured"])
    points = at_the_same_weights(steps)
    assert points["radius"].tolist() == [0.8, 1.2, np.inf]
    np.testing.assert_array_equal(points["grad_norm"], [2.0, 300.0, np.nan])


def test_figure_1_of_runs_in_which_no_radius_was_computed_says_so(tmp_path: Path) -> None:
    for method, value in (("gradient_clipping", 5), ("spectral_clipping", 0.2)):
        write_run(tmp_path, config(PTB, method, value, trainer__radius_every=500), summary(), steps(40))
    runs = reading.read_runs(tmp_path, "ptb")
    for folder in runs["folder"]:
        lines = pd.read_csv(Path(folder) / "steps.csv")
        lines[[name for name in lines if name.startswith("spectral_radius")]] = None
        lines.to_csv(Path(folder) / "steps.csv", index=False)
    with pytest.raises(UserError, match=r"no radius is computed, trainer\.radius_every=500; train longer ones"):
        figure("1", runs, tmp_path / "out", ("png",))


def test_figure_1_without_both_methods_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gruclip reproduce figure1 \+experiment=demo$"):
        figure("1", frame([(config(DEMO, "gradient_clipping", 5), summary())]), tmp_path)


def write_figure_2_runs(output_dir: Path, **table: int) -> pd.DataFrame:
    for algorithm, clipping in (("auto", 1.0), ("full", 50.0)):
        run = config(PTB, "spectral_clipping", 0.2, optimizer__algorithm=algorithm)
        write_run(output_dir / "ptb" / algorithm, run, summary(), None, timing(3, clipping=clipping))
    write_run(output_dir, config(PTB, "gradient_clipping", 5), summary(), None, timing(2, clipping=0.2, **table))
    return reading.read_runs(output_dir, "ptb")


def test_figure_2_stacks_the_phases_of_an_epoch_and_sets_the_full_svd_apart(tmp_path: Path, drawn: Drawn) -> None:
    figure("2", write_figure_2_runs(tmp_path), tmp_path / "out", ("png",))
    (axes,) = drawn[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "gradient clipping\nthreshold 5",
        "spectral clipping\ndelta 0.2",
        "spectral clipping\ndelta 0.2, naive full SVD",
    ]
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    widths = np.array([bar.get_width() for bar in bars]).reshape(3, 4)
    np.testing.assert_allclose(widths, [[60.0, 110.0, 20.0, 0.2], [60.0, 110.0, 20.0, 1.0], [60.0, 110.0, 20.0, 50.0]])
    assert axes.get_xlabel().startswith("seconds per epoch")


def test_figure_2_takes_the_median_over_epochs_of_all_seeds_per_iteration() -> None:
    runs = frame((config(PTB, "gradient_clipping", 5, seed=seed), summary()) for seed in range(2))
    slow = timing(1).assign(forward=1000.0)
    seconds = seconds_by_method(runs, [timing(3), slow])
    assert seconds["forward"].tolist() == [60 / 1327]


def test_a_method_without_a_delta_is_one_bar_whatever_the_algorithm_of_a_projection_it_does_not_have() -> None:
    runs = frame(
        (config(PTB, "gradient_clipping", 5, optimizer__algorithm=name), summary()) for name in ("auto", "full")
    )
    assert len(seconds_by_method(runs, [timing(2), timing(2)])) == 1


def test_a_first_epoch_counts_only_where_there_is_no_other() -> None:
    runs = frame([(config(PTB, "gradient_clipping", 5), summary())])
    first = timing(1).assign(forward=1000.0)
    assert seconds_by_method(runs, [pd.concat([first, timing(1)])])["forward"].tolist() == [60 / 1327]
    assert seconds_by_method(runs, [first])["forward"].tolist() == [1000 / 1327]


def test_the_last_epoch_of_a_run_that_was_cut_is_not_a_whole_one() -> None:
    cut = frame([(config(PTB, "sgd", trainer__max_steps=1427), summary())])
    short = pd.concat([timing(1), timing(1, iterations=100)])
    assert iterations_of_an_epoch(cut, [short]) == 1327
    assert iterations_of_an_epoch(cut, [timing(1, iterations=100)]) is None


def test_figure_2_of_less_than_an_epoch_is_per_iteration(tmp_path: Path, drawn: Drawn) -> None:
    run = config(PTB, "sgd", trainer__max_steps=100)
    write_run(tmp_path, run, summary(), None, timing(1, iterations=100))
    figure("2", reading.read_runs(tmp_path, "ptb"), tmp_path / "out", ("svg",))
    assert drawn[0].axes[0].get_xlabel().startswith("seconds per iteration")


def test_figure_2_refuses_times_taken_in_a_stack(tmp_path: Path) -> None:
    write_run(tmp_path, config(PTB, "gradient_clipping", 5), summary(), None, timing(2, stack_size=12))
    with pytest.raises(UserError, match=r"timed in a stack of 12 runs, not alone; .* gruclip reproduce figure2"):
        figure("2", reading.read_runs(tmp_path, "ptb"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figure_2_says_that_it_leaves_out_what_was_timed_in_a_stack(tmp_path: Path, drawn: Drawn) -> None:
    figure("2", write_figure_2_runs(tmp_path, stack_size=12), tmp_path / "out", ("png",))
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["spectral clipping\ndelta 0.2", "spectral clipping\ndelta 0.2, naive full SVD"]
    assert "without 1 run timed in a stack" in " ".join(text.get_text() for text in drawn[0].texts)


def test_figure_2_refuses_times_that_do_not_compare(tmp_path: Path) -> None:
    runs = write_figure_2_runs(tmp_path)
    with pytest.raises(UserError, match="the runs differ in precision"):
        figure("2", runs.assign(precision=["fp32", "fp32", "bf16"]), tmp_path / "out")
    (Path(runs["folder"][0]) / "environment.json").write_text('{"processor": "x", "device": "H200", "threads": 2}')
    with pytest.raises(UserError, match="timed on different machines"):
        figure("2", reading.read_runs(tmp_path, "ptb"), tmp_path / "out")
    (Path(runs["folder"][0]) / "environment.json").unlink()
    with pytest.raises(UserError, match=r"has no environment\.json, so nothing says on what it was timed"):
        figure("2", reading.read_runs(tmp_path, "ptb"), tmp_path / "out")


def learning_rate_runs(seeds: int, **settings: Any) -> pd.DataFrame:
    """Threshold 5 succeeds in all runs at 0.1, in all but one at 1, in none at 10; delta 0.2 in all."""
    return frame(
        (
            config(PTB, method, value, seed=seed, optimizer__lr=rate, **settings),
            summary("failed" if method[0] == "g" and seed < failures else "success", test=perplexity(100 + seed)),
        )
        for rate, failures in ((0.1, 0), (1.0, 1), (10.0, seeds))
        for method, value in (("gradient_clipping", 5), ("spectral_clipping", 0.2))
        for seed in range(seeds)
    )


def test_the_figure_of_learning_rates_draws_failures_as_failures(tmp_path: Path, drawn: Drawn) -> None:
    files = figure("lr", learning_rate_runs(5), tmp_path)
    assert files == [tmp_path / f"figure_lr.{kind}" for kind in ("png", "pdf", "svg")]
    failures, loss, success = drawn[0].axes
    crosses = [np.asarray(line.get_xdata(), float) for line in failures.lines if line.get_marker() == "x"]
    np.testing.assert_allclose(crosses[0] / crosses[0][0], [1, 10])  # at rates 1 and 10
    assert len(crosses[1]) == 0
    gradient, spectral = success.lines[:2]
    np.testing.assert_allclose(np.asarray(gradient.get_ydata(), float), [1, 0.8, 0])
    np.testing.assert_allclose(np.asarray(spectral.get_ydata(), float), [1, 1, 1])
    assert gradient.get_color() == pytest.approx(tuple(int("D55E00"[i : i + 2], 16) / 255 for i in (0, 2, 4)))
    assert success.get_xscale() == "log"
    assert loss.get_ylabel() == "test perplexity"


@pytest.mark.filterwarnings("error")
def test_rates_as_far_apart_as_may_be_are_drawn_inside_the_axes_with_few_labels(tmp_path: Path, drawn: Drawn) -> None:
    rates = (1e-100, 0.001, 0.01, 0.1, 1.0, 10.0, 1e100)
    runs = frame(
        (config(PTB, method, value, optimizer__lr=rate), summary(test=perplexity(100)))
        for rate in rates
        for method, value in (("gradient_clipping", 5), ("spectral_clipping", 0.2))
    )
    figure("lr", runs, tmp_path, ("png",))
    success = drawn[0].axes[2]
    low, high = success.get_xlim()
    assert low < 1e-100
    assert high > 1e100
    assert len(success.get_xticks()) <= 9


def test_below_five_successful_seeds_the_runs_themselves_are_drawn(tmp_path: Path, drawn: Drawn) -> None:
    for seeds in (4, 6):
        figure("lr", learning_rate_runs(seeds), tmp_path, ("png",))
    points, intervals = (made.axes[1] for made in drawn)
    assert [len(np.asarray(line.get_ydata())) for line in points.lines if line.get_marker() == "_"] == [
        4,
        3,
        0,
        4,
        4,
        4,
    ]
    assert not points.collections
    assert len(intervals.collections) == 5  # of six runs succeeded 6, 5 and 0, and 6, 6 and 6


def test_losses_close_together_have_labels_to_be_read_by(tmp_path: Path, drawn: Drawn) -> None:
    runs = frame(
        (config(PTB, "spectral_clipping", 0.2, optimizer__lr=rate), summary(test=perplexity(value)))
        for rate, value in ((0.1, 98), (1.0, 104), (10.0, 101))
    )
    figure("lr", runs, tmp_path, ("png",))
    loss = drawn[0].axes[1]
    low, high = loss.get_ylim()
    assert sum(low <= tick <= high for tick in loss.get_yticks()) >= 3


def test_each_set_of_settings_has_a_figure_of_learning_rates_of_its_own(tmp_path: Path) -> None:
    runs = pd.concat([learning_rate_runs(1), learning_rate_runs(1, trainer__budget="short")])
    names = [path.name for path in figure("lr", runs, tmp_path, ("svg",))]
    assert names == ["figure_lr,trainer.budget=full.svg", "figure_lr,trainer.budget=short.svg"]


def test_a_sweep_in_which_nothing_succeeds_is_drawn_as_failures(tmp_path: Path, drawn: Drawn) -> None:
    figure("lr", learning_rate_runs(2).assign(status="failed"), tmp_path, ("png",))
    crosses = [line for line in drawn[0].axes[0].lines if line.get_marker() == "x"]
    assert [len(np.asarray(line.get_xdata())) for line in crosses] == [3, 3]
    explained = [entry.get_text() for legend in drawn[0].legends for entry in legend.get_texts()]
    assert "not all runs succeeded" in explained
    assert "single runs" not in explained


@pytest.mark.parametrize("which", ["1", "2", "lr"])
def test_a_figure_is_one_column_wide_in_type_of_seven_points(which: str, tmp_path: Path, drawn: Drawn) -> None:
    runs = {"1": write_figure_1_runs, "2": write_figure_2_runs}.get(which, lambda _: learning_rate_runs(5))(tmp_path)
    figure(which, runs, tmp_path / "out", ("png",))
    assert drawn[0].get_size_inches()[0] == 3.3
    texts = [text for text in drawn[0].findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert min(float(text.get_fontsize()) for text in texts) >= 7


@pytest.mark.parametrize(
    ("which", "formats", "message"),
    [
        ("3", ("png",), "figure 3: no such figure; there are 1, 2, lr"),
        ("lr", ("gif",), "format gif: no such format of a figure; there are png, pdf, svg"),
    ],
)
def test_a_figure_that_cannot_be_made_is_refused(which: str, formats: tuple[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        figure(which, learning_rate_runs(1), tmp_path / "out", formats)
    assert str(refused.value) == message
    assert not (tmp_path / "out").exists()
