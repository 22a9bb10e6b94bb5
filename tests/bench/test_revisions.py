"""Two revisions are timed by turns, each by its own code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gruclip.bench import revisions
from gruclip.bench.revisions import HERE, ROOT, Worker, compare, extract, line, main
from gruclip.bench.timing import Timing

LAYER = "layer 35, 20, 200"


def test_the_last_commit_is_timed_beside_this_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["HEAD", "--only", LAYER, "--repetitions", "2", "--threads", "1"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[-4:] == ["HEAD", HERE, "ratio,", "quartiles"]
    assert re.fullmatch(rf"{LAYER} +[\d.]+ +[\d.]+  [\d.]+, [\d.]+ to [\d.]+", row)


def test_each_process_runs_its_own_revision_s_code_and_one_that_lacks_something_is_told(tmp_path: Path) -> None:
    extract("HEAD", tmp_path)
    (tmp_path / "gruclip" / "__init__.py").write_text("")  # a revision without gruclip.GRU
    workers = {"before": Worker(tmp_path, 1), HERE: Worker(ROOT, 1)}
    try:
        assert compare(workers, LAYER, 1) is None
        took = workers[HERE].seconds(LAYER)
        assert took is not None
        assert took > 0
    finally:
        for worker in workers.values():
            worker.close()


def test_a_ratio_above_1_is_a_loss_of_this_checkout() -> None:
    row = line("a layer", {"HEAD": Timing((0.1, 0.2, 0.4)), HERE: Timing((0.15, 0.22, 0.4))})
    assert row.split() == ["a", "layer", "200", "220", "1.100,", "1.050", "to", "1.300"]
    assert line("a layer", None).endswith("not in both")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["no-such-revision"], "no-such-revision: no revision of "),
        (["HEAD", "--only", "nothing"], "argument --only: invalid choice: 'nothing'"),
        (["HEAD", "--repetitions", "0"], "argument --repetitions: 0: should be a whole number"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(
    typed: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"gruclip: {told}")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_every_work_has_a_name_that_one_line_holds() -> None:
    assert all(name == " ".join(name.split()) and len(name) < 36 for name in revisions.revision_work.WORK)
