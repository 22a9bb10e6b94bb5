"""The bench of the projection: its sequences, its peers, what it measures against the exact result, its grid."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from gruclip.bench import floor, grid, projection, projection_peers
from gruclip.bench.grid import AUTO, Cell, cells, grid_tables, measure_cell, measure_grid
from gruclip.bench.projection_figure import grid_figure, line_style, projection_figure
from gruclip.bench.projection_peers import EMERGING, MISSING, NAIVE, matrix_sign, newton_schulz_clip, peers, svd_clip
from gruclip.bench.recorded import load_recorded, record, save_recorded
from gruclip.bench.sequences import MatrixSequence, drifting, late, unknown
from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.errors import UserError
from gruclip.runs.checkpoints import read_checkpoint
from gruclip.runs.records import read_config
from gruclip.spectral import clip_singular_values_
from gruclip.training.runner import train

CPU = torch.device("cpu")
SHAPES = [(24, 24), (48, 24), (24, 48)]


def exact(weight: Tensor, limit: float) -> Tensor:
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return (left * values.clamp(max=limit)) @ right


def difference(weight: Tensor, target: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight.double() - target) / torch.linalg.vector_norm(target))


# -- made sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [0, 3, 24])
@pytest.mark.parametrize(("rows", "n"), SHAPES)
@pytest.mark.parametrize("make", [drifting, unknown])
def test_of_a_made_sequence_as_many_values_pass_the_limit_as_was_asked(make, rows, n, above):
    sequence = make(n, above, steps=6, rows=rows)
    assert sequence.matrices.shape == (6, rows, n)
    values = torch.linalg.svdvals(sequence.matrices.double())
    assert (values > sequence.limit).sum(1).tolist() == [above] * 6


def test_a_drifting_sequence_moves_little_from_step_to_step_and_turns_its_vectors():
    sequence = drifting(24, 3, steps=40)
    moves = torch.linalg.matrix_norm(sequence.matrices.diff(dim=0), ord=2) / sequence.limit
    assert 1e-4 < float(moves.min()) <= float(moves.max()) < 2e-3
    first, last = (torch.linalg.svd(m.double()).U[:, :3] for m in sequence.matrices[[0, -1]])
    assert float(torch.linalg.svdvals(first.T @ last).min()) < 1 - 1e-6


def test_late_in_training_updates_are_large_and_carry_ten_to_twenty_values_over_the_limit():
    sequence = late(650, steps=6)
    values = torch.linalg.svdvals(sequence.matrices.double()) / sequence.limit
    above, near = (values > 1).sum(1), (values > 0.92).sum(1)
    assert 10 <= int(above.min()) <= int(above.max()) <= 25
    assert 25 <= int(near.min()) <= int(near.max()) <= 40
    assert float(values[:, 0].max()) > 1.3
    for before, after in zip(sequence.matrices, sequence.matrices[1:], strict=False):
        update = torch.linalg.svdvals(after.double() - exact(before, sequence.limit))
        assert float(torch.linalg.vector_norm(update)) == pytest.approx(1.0, rel=0.1)
        assert float(update[40]) < 1e-5 * float(update[0])


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_values_above_are_counted_in_however_few_rounds(rounds):
    _, above = projection.measure(drifting(20, 5, rounds + 1), 1.0, CPU)
    assert above == 5


def test_a_result_that_is_no_number_is_no_exact_one():
    measured = projection.Measured([1.0])
    target = torch.eye(3, dtype=torch.float64)
    for weight in (target, torch.full_like(target, torch.nan), target):
        measured.compare(weight, target, 1.0, 1.0)
    assert math.isnan(measured.error)
    assert math.isnan(measured.excess)


# -- recorded sequences -------------------------------------------------------------------------------


def config(path: Path, steps: int | None = None, epochs: int | None = None, **changes) -> RunConfig:
    """Eight units on the demo, 29 iterations an epoch."""
    base = RunConfig(
        model=ModelConfig(hidden_size=8, num_layers=2),
        optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=1.05),
        trainer=TrainerConfig(max_epochs=epochs, max_steps=steps, bptt=75, batch_size=40),
        output_dir=str(path),
        device="cpu",
    )
    return dataclasses.replace(base, **changes)


def train_one(run: RunConfig) -> Path:
    (result,) = train([run], quiet=True)
    return result.folder


def last_blocks(folder: Path) -> list[Tensor]:
    """The candidate's recurrent matrix of each layer, as a run's last checkpoint has it."""
    identity = read_config(folder)[1]["identity"]
    tensors = read_checkpoint(folder / "checkpoint" / "last.safetensors", identity).tensors
    return [tensors[f"parameters/weight_hh_l{layer}"][-8:] for layer in range(2)]


@pytest.mark.parametrize("kept", [{"steps": 1}, {"epochs": 1}])
def test_a_recorded_matrix_is_what_training_clipped_in_the_iteration_after_the_checkpoint(kept, tmp_path):
    run = train_one(config(tmp_path, **kept))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sequences = record(run, keep=3)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    done = json.loads((run / "summary.json").read_text())["steps"]
    position = f"{run.name}, epoch 1 from iteration 2" if "steps" in kept else f"{run.name}, after epoch 1"
    assert [sequence.name for sequence in sequences] == [f"{position}, layer {layer}" for layer in range(2)]
    for taken in (1, 3):
        trained_on = last_blocks(train_one(config(tmp_path, steps=done + taken)))
        for sequence, block in zip(sequences, trained_on, strict=True):
            assert sequence.limit == pytest.approx(0.95)
            weight = sequence.matrices[taken - 1].clone()
            clipped = clip_singular_values_(weight, sequence.limit)
            assert int(clipped.values_clipped) > 0
            assert torch.equal(weight, block)


def test_a_saved_sequence_is_read_as_it_was(tmp_path):
    sequence = MatrixSequence("spectral_clipping,delta=0.2, after epoch 1", 0.6, torch.randn(3, 4, 4))
    assert save_recorded(sequence, tmp_path).name == "recorded_spectral_clipping,delta=0.2_after_epoch_1.safetensors"
    (loaded,) = load_recorded(tmp_path)
    assert (loaded.name, loaded.limit) == (sequence.name, sequence.limit)
    assert torch.equal(loaded.matrices, sequence.matrices)


def test_a_file_that_was_not_recorded_is_named(tmp_path):
    path = tmp_path / "recorded_x.safetensors"
    for content in (b"", save({"matrices": torch.eye(2)}), save({"other": torch.eye(2)}, {"name": "x", "limit": "1"})):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"recorded_x\.safetensors: is no recorded sequence .*move it away"):
            list(load_recorded(tmp_path))


def test_what_cannot_be_recorded_is_told_in_one_line_and_nothing_is_written(tmp_path, capsys):
    gradient = train_one(config(tmp_path, 1, optimizer=OptimizerConfig("gradient_clipping", lr=1.0, threshold=5.0)))
    run = train_one(config(tmp_path, 1))
    without = tmp_path / "without"
    shutil.copytree(run, without)
    shutil.rmtree(without / "checkpoint")
    for folder, message in [
        (tmp_path, "not a run's folder"),
        (gradient, "clips no singular values \\(optimizer=gradient_clipping\\)"),
        (without, "there is no such checkpoint"),
    ]:
        with pytest.raises(UserError, match=message) as told:
            projection.main(["--record", str(run), str(folder), "--keep", "1", "--out", str(tmp_path / "out")])
        assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


# -- the peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "n"), SHAPES)
def test_the_svd_clips_and_newton_schulz_does_nearly(rows, n):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, n, generator=generator) / 4
    target = exact(weight, 1.0)
    for clip, error in [
        (lambda w: svd_clip(w, 1.0), 1e-5),
        (lambda w: newton_schulz_clip(w, 1.0, torch.float32), 5e-3),
        (lambda w: newton_schulz_clip(w, 1.0, torch.bfloat16), 0.1),
    ]:
        clipped = weight.clone()
        clip(clipped)
        assert difference(clipped, target) < error < difference(weight, target)


def test_the_matrix_sign_takes_every_value_from_a_thousandth_on_to_1():
    # Divided by the Frobenius norm, 1.05 here.
    values = torch.tensor([1.0, 0.3, 0.03, 0.0011])
    assert float((matrix_sign(torch.diag(values), torch.float32) - torch.eye(4)).abs().max()) < 1e-4


def test_a_peer_that_is_not_installed_is_named_and_one_that_is_takes_part(monkeypatch):
    monkeypatch.setattr(projection_peers, "has_emerging", lambda: True)
    assert EMERGING in peers(1.0, CPU)
    monkeypatch.setattr(projection_peers, "has_emerging", lambda: False)
    assert EMERGING not in peers(1.0, CPU)
    assert "torch SVD, gesvdj" in peers(1.0, torch.device("cuda"))


# -- what is measured ---------------------------------------------------------------------------------


def test_a_processor_without_bf16_products_is_not_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        for module in (projection_peers, floor):
            monkeypatch.setattr(module, "has_bf16_products", lambda _, there=there: there)
        assert ("Newton-Schulz, bf16" in peers(1.0, CPU)) is there
        assert (floor.NO_BF16 in projection_peers.missing(CPU)) is not there


def test_every_algorithm_is_measured_against_the_exact_projection():
    measured, above = projection.measure(drifting(32, 2, steps=6), 10.0, CPU)
    assert above == 2
    assert set(measured) == {*projection.ALGORITHMS, *peers(1.0, CPU)}
    for name, result in measured.items():
        ours = name in projection.ALGORITHMS
        assert len(result.seconds) == 5, name
        assert 0 < result.error < (1e-5 if ours or name == NAIVE else 0.1), name
        assert abs(result.excess) < (1e-5 if ours or name == NAIVE else 5e-2), name
        # The paper's takes on trust that it saw all values that are above.
        assert result.certified == (ours and name != "truncated"), name


def test_a_contestant_leaves_once_its_time_is_used_up_but_not_before_three_rounds():
    measured, _ = projection.measure(drifting(16, 1, steps=8), 0.0, CPU)
    assert {len(result.seconds) for result in measured.values()} == {projection.MIN_ROUNDS}


def test_what_a_gpu_captures_projects_every_matrix_of_a_stack_on_its_own_memory():
    sequence = drifting(24, 3, steps=4)
    project = projection.deferred(sequence.limit)
    for first in (0, 2):
        weight = sequence.matrices[first : first + 2].clone()
        project(weight)
        for matrix, clipped in zip(sequence.matrices[first:], weight, strict=False):
            assert torch.linalg.vector_norm(clipped.double() - projection.exact(matrix, sequence.limit)[0]) < 1e-5
        assert not torch.equal(weight[0], sequence.matrices[first])


def test_an_error_that_an_algorithm_makes_is_found(monkeypatch):
    monkeypatch.setattr(projection, "projections", lambda limit, device: {"idle": lambda weight: None})
    sequence = MatrixSequence("one", 1.0, torch.diag(torch.tensor([2.0, 0.5])).expand(5, 2, 2).clone())
    measured, above = projection.measure(sequence, 10.0, CPU)
    assert above == 1
    # The exact projection has diag(1, 0.5): 1 away, over the matrix's norm.
    assert measured["idle"].error == pytest.approx(1 / (4 + 0.25) ** 0.5)
    assert measured["idle"].excess == pytest.approx(1.0)
    assert not measured["idle"].certified


def test_no_two_of_twelve_contestants_are_drawn_alike() -> None:
    styles = [line_style(index) for index in range(12)]
    assert all(one != other for index, one in enumerate(styles) for other in styles[:index])


def test_the_projection_s_figure_leaves_out_a_panel_without_data(tmp_path):
    rows = [{"algorithm": a, "n": n, "above": 10, "mean": 0.01 * n} for a in ("x", "y") for n in (100, 200)]
    files = projection_figure(pd.DataFrame(rows), pd.DataFrame(), tmp_path / "projection", ("png", "pdf"))
    assert [file.name for file in files] == ["projection.png", "projection.pdf"]
    assert all(file.stat().st_size > 0 for file in files)


def test_bench_projection_writes_table_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "example_seconds", lambda *_: 0.25)
    monkeypatch.setattr(projection, "FRACTIONS_AT", 80)
    monkeypatch.setattr(projection_peers, "has_emerging", lambda: False)
    run = train_one(config(tmp_path, 1))
    arguments = ["--record", str(run), "--keep", "5", "--late", "--sizes", "12", "--fractions", "0", "0.5"]
    out = ["--stacks", "1", "3", "--out", str(tmp_path / "out")]
    assert projection.main(["--threads", "1", "--repetitions", "4", *arguments, *out]) == 0
    tables = json.loads((tmp_path / "out" / "projection.json").read_text())["tables"]
    stacks = [(row["algorithm"], row["matrices"], row["certified"]) for row in tables["Stacks"]]
    assert stacks == [(name, count, 1.0) for count in (1, 3) for name in ("products", "program, 64 columns")]
    names = list(dict.fromkeys(row["sequence"] for row in tables["Projection"]))
    assert [name.split(", ")[0] for name in names[:3]] == [run.name, run.name, "made as late in training"]
    assert names[3:] == ["made, n=12, 10 above", "made, n=80, 0 above", "made, n=80, 40 above"]
    assert MISSING in (tmp_path / "out" / "projection.md").read_text()
    assert (tmp_path / "out" / "projection.png").exists()
    assert (tmp_path / "out" / "projection.pdf").exists()


# -- the grid -----------------------------------------------------------------------------------------


def test_the_grid_has_every_shape_share_and_state_and_few_cells_where_they_take_minutes():
    small = list(cells([64]))
    assert len(small) == len(set(small)) == 3 * 6 * 2
    assert {cell.above for cell in small} == {0, 1, 6, 10, 32, 64}
    assert {tuple(cell.sequence(1).matrices.shape) for cell in small} == {(1, 64, 64), (1, 128, 64), (1, 64, 512)}
    assert len(list(cells([2048]))) == 12
    assert [(cell.above, cell.known) for cell in cells([4096])] == [
        (10, False), (10, True), (2048, False), (2048, True)
    ]  # fmt: skip


def made_grid(factors: dict[tuple[str, bool], float]) -> pd.DataFrame:
    rows = [
        {"shape": "n x n", "n": 64, "share": share, "known": known, "above": 1, AUTO: factor, "factor": factor,
         NAIVE: 1.0, "gram": 2.0, "truncated": 3.0, "revision": "r", "machine": "m"}
        for (share, known), factor in factors.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=grid.COLUMNS)


def test_a_factor_is_marked_above_1_1_and_such_cells_are_listed_with_every_time(tmp_path):
    frame = made_grid({("0", False): 1.1, ("10", False): 1.11, ("1", True): 0.2})
    factors, worse = grid_tables(frame)
    row = factors.cells.iloc[0]
    assert (row["unknown, 0"], row["unknown, 10"], row["known, 1"], row["known, 0"]) == ("1.10", "**1.11**", "0.20", "")
    assert worse.caption == "1 of 3 cells."
    assert worse.cells.to_dict("records") == [
        {"shape": "n x n", "n": "64", "values above": "1", "": "unknown", "auto, ms": "1110", "torch SVD, ms": "1000",
         "gram, ms": "2000", "truncated, ms": "3000", "factor": "1.11"}
    ]  # fmt: skip
    (file,) = grid_figure(frame, tmp_path / "grid", ("png",))
    assert file.stat().st_size > 0


def test_what_is_five_times_slower_than_the_best_is_not_repeated(monkeypatch):
    calls = dict.fromkeys((AUTO, NAIVE, "gram", "truncated"), 0)

    def contestants(limit, known):
        def made(name):
            def call(weight):
                calls[name] += 1

            return call

        return {name: made(name) for name in calls}

    seconds = {AUTO: 6.0, NAIVE: 0.9, "gram": 0.1, "truncated": 0.2}

    def seconds_of(contestant, device):
        before = dict(calls)
        contestant()
        return seconds[next(name for name in calls if calls[name] > before[name])]

    monkeypatch.setattr(grid, "contestants", contestants)
    monkeypatch.setattr(grid, "seconds_of", seconds_of)
    assert measure_cell(Cell("n x n", 8, "0.5", known=True), 5, CPU) == seconds
    # Two rounds that settle; auto used up its time after three that count, the SVD was hopeless after the first.
    assert calls == {AUTO: 3 + 2, NAIVE: 1, "gram": 7, "truncated": 7}


def test_an_svd_that_does_not_converge_ends_no_cell(monkeypatch):
    def fails(weight, limit):
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")

    monkeypatch.setattr(grid, "svd_clip", fails)
    seconds = measure_cell(Cell("n x n", 8, "0.5", known=False), 2, CPU)
    assert seconds[NAIVE] == math.inf
    assert 0 < seconds[AUTO] < math.inf


def test_a_stopped_grid_goes_on_and_one_of_another_revision_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "SHARES", {"0.5": 0.5})
    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if len(told) == 2:
            raise KeyboardInterrupt

    path = tmp_path / "grid.csv"
    with pytest.raises(KeyboardInterrupt):
        measure_grid([8], path, CPU, stop)
    frame = measure_grid([8], path, CPU, told.append)
    assert len(told) == len(frame) == 6
    assert len(set(told)) == 6
    assert measure_grid([8], path, CPU, told.append).equals(pd.read_csv(path, dtype={"share": str}))
    assert len(told) == 6
    monkeypatch.setattr(grid, "git_revision", lambda: "another")
    measure_grid([8], path, CPU, told.append)
    assert len(told) == 12
    monkeypatch.setattr(grid, "git_revision", lambda: None)  # outside a checkout
    for _ in range(2):
        measure_grid([8], path, CPU, told.append)
        assert len(told) == 18


def test_a_file_that_is_no_grid_is_refused(tmp_path):
    path = tmp_path / "projection_grid.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no grid of this bench; move it away"):
        measure_grid([8], path, CPU, print)


def test_bench_projection_grid_writes_tables_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "rounds_of", lambda n: 3)
    assert projection.main(["--threads", "1", "--grid", "8", "--out", str(tmp_path)]) == 0
    tables = json.loads((tmp_path / "projection_grid.json").read_text())["tables"]
    assert len(tables["Grid"]) == 36
    assert {row["factor"] > 1.1 for row in tables["Above 1.1"]} <= {True}
    assert (tmp_path / "projection_grid.png").exists()
