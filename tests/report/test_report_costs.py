"""What clipping costs: its share of an iteration, from folders and from what was collected of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import NOTTINGHAM, PTB, config, frame, summary, timing, write_run

from gruclip.errors import UserError
from gruclip.report.collecting import collect
from gruclip.report.costs import table_cost
from gruclip.report.findings import findings
from gruclip.report.reading import read_runs


def test_the_share_is_of_the_iterations_phases_and_the_same_from_collected_runs(tmp_path: Path) -> None:
    for seed, clipping in enumerate((10.0, 30.0)):
        run = config(PTB, "spectral_clipping", 0.2, seed=seed)
        write_run(tmp_path / "outputs", run, summary(), None, timing(3, clipping=clipping))
    write_run(tmp_path / "outputs", config(PTB, "gradient_clipping", 5), summary(), None, timing(3, clipping=0.0))
    list(collect([tmp_path / "outputs"], [], tmp_path / "paper", []))
    (table,) = table_cost(read_runs(tmp_path / "outputs", "ptb"))
    (kept,) = table_cost(read_runs(tmp_path / "paper", "ptb"))
    assert table.cells.to_dict() == kept.cells.to_dict()
    gradient, spectral = table.cells.to_dict("records")
    assert (gradient["clipping, ms"], gradient["share of clipping"]) == ("0", "0.0%")
    # 60 + 110 + 20 s and 20 on average in 1,327 iterations.
    assert (spectral["runs"], spectral["iteration, ms"], spectral["share of clipping"]) == ("2", "158", "9.5%")
    assert spectral["machine"] == "made processor, 2 threads"
    # Of the methods that project alone.
    told = dict(findings(read_runs(tmp_path / "outputs", "ptb"), {"cost": [table]}))["Does it cost little?"]
    assert told == ["The projection takes 9.5% to 9.5% of an iteration, by setting and machine."]


def test_a_gpu_and_its_host_are_two_machines_and_one_that_is_not_known_is_a_third(tmp_path: Path) -> None:
    for seed, device in enumerate(("cpu", "H200", None)):
        folder = write_run(tmp_path, config(PTB, "spectral_clipping", 0.2, seed=seed), summary(), None, timing(3))
        (folder / "environment.json").write_text(json.dumps({"processor": "EPYC", "device": device, "threads": 2}))
    (folder / "environment.json").unlink()
    (table,) = table_cost(read_runs(tmp_path, "ptb"))
    assert table.cells["machine"].tolist() == ["EPYC, 2 threads", "H200, 2 threads", "unknown"]
    assert table.cells["runs"].tolist() == ["1", "1", "1"]


def test_runs_without_times_are_left_out_and_named_where_there_is_no_other(tmp_path: Path) -> None:
    write_run(tmp_path, config(NOTTINGHAM, "spectral_clipping", 0.2), summary())
    with pytest.raises(UserError, match="of none of these 1 runs the times are known"):
        table_cost(read_runs(tmp_path, "nottingham"))
    with pytest.raises(UserError, match="of none"):
        table_cost(frame([(config(PTB, "sgd"), summary("unfinished"))]))
