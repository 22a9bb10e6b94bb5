"""What a run's record says of the code that trained it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gruclip.runs import environment


def test_the_revision_tells_of_changed_code_and_not_of_results_that_were_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        author = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *author, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.delenv("GRUCLIP_REVISION", raising=False)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "gruclip/runs/environment.py"))
    code, rows = tmp_path / "gruclip/code.py", tmp_path / "outputs/paper/demo.csv"
    assert environment.git_revision() is None
    for path in (code, rows):
        path.parent.mkdir(parents=True)
        path.write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "--short=12", "HEAD")
    rows.write_text("2\n")
    assert environment.git_revision() == commit
    code.write_text("2\n")
    assert environment.git_revision() == f"{commit}+changes"
    git("add", "gruclip")  # staged is not committed
    assert environment.git_revision() == f"{commit}+changes"
