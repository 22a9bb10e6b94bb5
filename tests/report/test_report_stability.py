"""Explosions counted by the spectral radius of the Jacobian at the origin, and the table of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_runs import DEMO, NOTTINGHAM, config, frame, steps, summary, write_run

from gruclip.errors import UserError
from gruclip.report.collecting import collect
from gruclip.report.explosions import count
from gruclip.report.reading import read_runs
from gruclip.report.stability import table_explosions


def written(path: Path, norms: list[float], radii: dict[int, list[str]]) -> Path:
    """A steps.csv of these gradient norms, two layers, with the radii at the iterations that have some."""
    lines = [[i, norm, *radii.get(i, ["", ""])] for i, norm in enumerate(norms, 1)]
    columns = ["step", "grad_norm", "spectral_radius_l0", "spectral_radius_l1"]
    pd.DataFrame(lines, columns=columns).to_csv(path, index=False, na_rep="nan")
    return path


def test_an_iteration_counts_by_the_radius_computed_last_before_it(tmp_path: Path) -> None:
    radii = {30: ["0.9", "0.8"], 40: ["0.9", "1.0"]}
    norms = [1.0] * 50
    norms[24] = 1000.0  # before the first radius: nowhere
    norms[39] = 1000.0  # iteration 40: the radius of 30, not its own
    norms[44] = 1000.0
    counts = count(written(tmp_path / "steps.csv", norms, radii))
    assert counts == {"iterations.below": 10, "iterations.above": 10, "explosions.below": 1, "explosions.above": 1}


def test_a_norm_or_a_radius_that_is_not_a_number_is_an_explosion_and_unstable(tmp_path: Path) -> None:
    counts = count(written(tmp_path / "steps.csv", [1.0] * 30 + [float("nan")], {30: ["nan", "0.5"]}))
    assert counts == {"iterations.below": 0, "iterations.above": 1, "explosions.below": 0, "explosions.above": 1}


@pytest.mark.parametrize("text", ["", "step,loss\n1,2.0\n", "step,grad_norm,spectral_radius_l0\n1,x,\n"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text or "step\n1\n")
    with pytest.raises(UserError, match=r"steps.csv: cannot be read"):
        count(path)


def test_the_table_is_the_same_from_folders_and_from_what_was_collected_of_them(tmp_path: Path) -> None:
    for seed in range(2):
        run = config(NOTTINGHAM, "gradient_clipping", 15, seed=seed)
        write_run(tmp_path / "outputs", run, summary(unit="nats per time step"), steps(400, explodes_at=200, seed=seed))
    run = config(NOTTINGHAM, "spectral_clipping", 0.2)
    write_run(tmp_path / "outputs", run, summary(unit="nats per time step"), steps(400))
    list(collect([tmp_path / "outputs"], [], tmp_path / "paper", []))
    (table,) = table_explosions(read_runs(tmp_path / "outputs", "nottingham"))
    (kept,) = table_explosions(read_runs(tmp_path / "paper", "nottingham"))
    assert table.cells.to_dict() == kept.cells.to_dict()
    gradient, spectral = table.cells.to_dict("records")
    assert gradient["runs"] == "2"
    assert gradient["explosions there"].startswith("0 ")
    assert not gradient["explosions at 1 or above"].startswith("0 ")
    assert (spectral["iterations at 1 or above"], spectral["explosions at 1 or above"]) == ("0", "N/A")


@pytest.mark.parametrize(
    ("optimizer", "parameter", "every", "told"),
    [
        ("gradient_clipping", 5.0, 50, ["computed every 50 iterations: it may have passed 1"]),
        ("gradient_clipping", 5.0, 1, []),
        ("spectral_clipping", 0.2, 50, []),
    ],
)
def test_what_is_not_seen_between_two_radii_is_told_where_nothing_bounds_them(
    optimizer: str, parameter: float, every: int, told: list[str], tmp_path: Path
) -> None:
    write_run(tmp_path, config(DEMO, optimizer, parameter, trainer__radius_every=every), summary(), steps(400))
    (table,) = table_explosions(read_runs(tmp_path, "demo"))
    assert len(table.notes) == len(told)
    assert all(one in note for one, note in zip(told, table.notes, strict=True))


def test_runs_that_are_unfinished_are_not_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of none of these 1 runs"):
        table_explosions(frame([(config(DEMO, "sgd"), summary("unfinished"))]))


def test_runs_that_cannot_be_counted_are_named_below(tmp_path: Path) -> None:
    for seed in range(3):
        run = config(DEMO, "gradient_clipping", 5, seed=seed)
        write_run(tmp_path, run, summary(), steps(400, seed=seed) if seed == 0 else None)
    write_run(tmp_path, config(DEMO, "sgd"), summary())
    (table,) = table_explosions(read_runs(tmp_path, "demo"))
    assert list(table.cells["runs"]) == ["1"]
    assert table.notes[1] == "Not counted, for they came without kept iterations: threshold 5 (2 runs), SGD (1 run)."
