"""Run folders become rows, and what is no run is refused by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_runs import DATA_SHA256, PTB, config, steps, summary, timing, write_run

from gruclip.errors import UserError
from gruclip.report import reading
from gruclip.report.timing import condensed


def test_a_run_is_a_row_of_its_settings_and_its_summary(tmp_path: Path) -> None:
    run = config(PTB, "spectral_clipping", 0.2, seed=3, optimizer__lr=0.3)
    folder = write_run(tmp_path, run, summary("failed", 5.0, 5.1, exploded=True, max_grad_norm="inf"))
    (row,) = reading.read_runs(tmp_path, "ptb").to_dict("records")
    assert row["folder"] == str(folder)
    assert row["identity"] == run.identity(DATA_SHA256)
    assert (row["optimizer.name"], row["optimizer.delta"], row["optimizer.lr"]) == ("spectral_clipping", 0.2, 0.3)
    assert (row["seed"], row["model.hidden_size"], row["max_epochs"]) == (3, 650, 75)
    assert (row["status"], row["valid_loss"], row["test_loss"]) == ("failed", 5.0, 5.1)
    assert row["exploded"]
    assert math.isinf(row["max_grad_norm"])
    assert math.isnan(row["optimizer.threshold"])


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    write_run(tmp_path / "ptb" / "a", config(PTB, "sgd"), summary())
    write_run(tmp_path, config(PTB, "sgd", seed=1), summary())
    assert len(reading.read_runs(tmp_path, "ptb")) == 2


def test_a_run_that_has_only_begun_is_unfinished(tmp_path: Path) -> None:
    write_run(tmp_path, config(PTB, "sgd"), None)
    (row,) = reading.read_runs(tmp_path, "ptb").to_dict("records")
    assert row["status"] == "unfinished"
    assert row["unit"] == "nats per token"


def test_an_empty_folder_names_itself_and_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path / 'ptb'}: no runs there; make them$"):
        reading.read_runs(tmp_path, "ptb", "make them")


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("summary.json", '{"status": "succ', "damaged"),
        ("summary.json", '{"status": "success"}', "lack 'epochs'"),
        ("summary.json", "[1]", "not a record of gruclip's"),
        ("environment.json", "{}", "lack 'device'"),
        ("environment.json", "[", "damaged"),
        ("config.yaml", "seed: [", "damaged"),
        ("config.yaml", "seed: 0\nsped: 1\nidentity: a\ndata_sha256: b\n", "sped: no such setting"),
        ("config.yaml", "seed: 0\n", "no identity"),
        ("config.yaml", "- 1\n", "not a run"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    folder = write_run(tmp_path, config(PTB, "sgd"), summary())
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=complaint) as refused:
        reading.read_runs(tmp_path, "ptb")
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, config(PTB, "sgd"), summary("victory"))
    with pytest.raises(UserError, match=r"summary\.json: status=victory: should be one of success, failed"):
        reading.read_runs(tmp_path, "ptb")


def test_the_same_run_in_two_folders_is_one_row_where_its_results_agree(tmp_path: Path) -> None:
    folder = write_run(tmp_path, config(PTB, "sgd"), summary(max_grad_norm="nan"))
    copy = tmp_path / "ptb" / "copy"
    shutil.copytree(folder, copy)
    assert len(reading.read_runs(tmp_path, "ptb")) == 1
    (copy / "summary.json").write_text(json.dumps(summary(max_grad_norm="nan", steps=99)))
    with pytest.raises(UserError, match=r"the same run .* with other results .steps 99 and 100") as refused:
        reading.read_runs(tmp_path, "ptb")
    assert str(folder) in str(refused.value)
    assert str(copy) in str(refused.value)


def test_a_place_of_ones_own_stands_before_the_kept_one_but_no_copy_before_its_original(tmp_path: Path) -> None:
    run, places = config(PTB, "sgd"), [tmp_path / "own", tmp_path / "kept"]
    for place, loss in zip(places, (4.5, 4.6), strict=True):
        write_run(place, run, summary(test=loss))
    with pytest.raises(UserError, match="with other results"):
        reading.read_runs(places, "ptb")
    differing: list[str] = []
    assert reading.read_runs(places, "ptb", differing=differing)["test_loss"].tolist() == [4.5]
    assert [Path(folder).is_relative_to(places[1]) for folder in differing] == [True]
    copy = write_run(tmp_path / "copied", run, summary(test=4.7))
    copy.rename(tmp_path / "own" / "ptb" / "aside")
    with pytest.raises(UserError, match="with other results"):
        reading.read_runs(places, "ptb", differing=[])


def test_of_a_run_that_is_trained_once_more_the_finished_one_is_taken(tmp_path: Path) -> None:
    write_run(tmp_path / "ptb" / "a", config(PTB, "sgd"), summary("unfinished"))
    write_run(tmp_path / "ptb" / "b", config(PTB, "sgd"), summary())
    write_run(tmp_path / "ptb" / "c", config(PTB, "sgd"), None)
    assert reading.read_runs(tmp_path, "ptb")["status"].tolist() == ["success"]


def test_a_setting_edited_after_the_run_is_noticed(tmp_path: Path) -> None:
    path = write_run(tmp_path, config(PTB, "spectral_clipping", 0.2), summary()) / "config.yaml"
    path.write_text(path.read_text().replace("delta: 0.2", "delta: 0.8"))
    with pytest.raises(UserError, match=r"config\.yaml: altered after the run was begun .* put back what was there"):
        reading.read_runs(tmp_path, "ptb")


def test_a_success_without_its_losses_is_refused(tmp_path: Path) -> None:
    for name in ("valid_loss", "test_loss"):
        folder = write_run(tmp_path / name, config(PTB, "sgd"), summary(**{name: None}))
        with pytest.raises(UserError, match=f"{folder}: a success without {name}"):
            reading.read_runs(tmp_path / name, "ptb")


def test_no_folder_of_a_run_is_passed_over(tmp_path: Path) -> None:
    first = write_run(tmp_path, config(PTB, "sgd"), summary())
    away = write_run(tmp_path / "away", config(PTB, "sgd", seed=1), summary())
    (tmp_path / "ptb" / "link").symlink_to(away)
    (tmp_path / "ptb" / "circle").symlink_to(tmp_path / "ptb")
    (tmp_path / "ptb" / "begun").mkdir()
    (tmp_path / "ptb" / "begun" / ".lock").touch()
    assert reading.read_runs(tmp_path, "ptb")["seed"].tolist() == [0, 1]
    (first / "config.yaml").unlink()
    with pytest.raises(UserError, match=f"{first}: a run's folder without its config.yaml"):
        reading.read_runs(tmp_path, "ptb")


def test_steps_tell_what_was_not_measured_from_what_is_not_finite(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text(
        "step,loss,grad_norm,spectral_norm_l0,spectral_norm_l1,spectral_radius_l0,spectral_radius_l1,values_clipped\n"
        "1,200.0,3.5,1.0,1.0,0.7,0.9,0\n"
        "2,200.0,inf,1.0,1.0,,,0\n"
        "3,nan,nan,nan,nan,nan,0.8,0\n"
    )
    read = reading.read_steps(tmp_path)
    assert read["measured"].tolist() == [True, False, True]
    np.testing.assert_array_equal(read["radius"], [0.9, np.nan, np.nan])
    np.testing.assert_array_equal(read["grad_norm"], [3.5, np.inf, np.nan])


@pytest.mark.parametrize("iterations", [0, math.nan, math.inf])
def test_times_of_no_iterations_are_named_and_not_divided_by(iterations: float, tmp_path: Path) -> None:
    path = tmp_path / "timing.csv"
    timing(2).assign(iterations=iterations).to_csv(path, index=False, na_rep="nan")
    with pytest.raises(UserError, match=r"timing.csv: cannot be read \(an epoch without iterations or runs\)"):
        condensed(path)


def test_files_that_lack_their_columns_are_named(tmp_path: Path) -> None:
    steps(5).drop(columns="grad_norm").to_csv(tmp_path / "steps.csv", index=False)
    with pytest.raises(UserError, match=r"steps\.csv: cannot be read"):
        reading.read_steps(tmp_path)
    with pytest.raises(UserError, match=r"timing\.csv: cannot be read"):
        reading.read_timing(tmp_path)


def test_the_files_that_wandb_keeps_inside_a_run_are_no_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, config(PTB, "sgd"), summary())
    inside = folder / "wandb" / "run-1" / "files"
    inside.mkdir(parents=True)
    (inside / "config.yaml").write_text("wandb_version: 1\n")
    assert len(reading.read_runs(tmp_path, "ptb")) == 1
