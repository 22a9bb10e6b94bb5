"""The tables are exactly what the runs wrote, no run hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import DEMO, NOTTINGHAM, PTB, config, frame, perplexity, summary, write_run

from gruclip.errors import UserError
from gruclip.report import collect, tables

EXPECTED = """\
PASTE
"""


def written_runs(output_dir: Path) -> None:
    """Successful, failed, diverged, exploded and unfinished runs, and one that has only begun."""

    def write(name: str, parameter: float, seed: int, status: str, *losses: float, **values: object) -> None:
        nats = [perplexity(value) for value in losses]
        write_run(output_dir, config(PTB, name, parameter, seed=seed), summary(status, *nats, **values))

    write("gradient_clipping", 10, 0, "failed", 400, 390, exploded=True, max_grad_norm=8e6)
    write("gradient_clipping", 10, 1, "diverged", exploded=True, max_grad_norm="inf")
    write("gradient_clipping", 5, 0, "success", 110, 106, max_grad_norm=546.25)
    write("gradient_clipping", 5, 1, "success", 114, 110, max_grad_norm=54, exploded=True)
    write("gradient_clipping", 5, 2, "failed", 700, 690, max_grad_norm=60)
    write("gradient_clipping", 5, 3, "unfinished", max_grad_norm=1e9)
    write("spectral_clipping", 1.4, 0, "success", 105, 102.04, max_grad_norm=9)
    write("spectral_clipping", 0.2, 0, "success", 101, 97, max_grad_norm=14)
    write("spectral_clipping", 0.2, 1, "success", 103, 99, max_grad_norm=14.1)
    write("sgd", 0, 0, "diverged", exploded=True, max_grad_norm="nan")
    combined = config(PTB, "combined_clipping", optimizer__threshold=5, optimizer__delta=0.2)
    write_run(output_dir, combined, None)


def test_table_1_of_a_hand_written_folder_is_exactly_this(tmp_path: Path) -> None:
    written_runs(tmp_path)
    assert tables.table("1", collect.read_runs(tmp_path, "ptb"), "md") == EXPECTED
