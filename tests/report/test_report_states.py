"""Whatever state a study is in, every table, figure and page is made or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import DEMO, config, steps, summary, timing, write_run

from gruclip.cli import main
from gruclip.cli.arguments import FIGURES, TABLES

COMMANDS = [*(["table", which] for which in TABLES), *(["figure", which] for which in FIGURES), ["report"]]

#: How the runs of two methods, at two rates and in two lengths, stand.
STATES: dict[str, dict[str, str]] = {
    "all unfinished": {"": "unfinished"},
    "all failed": {"": "failed"},
    "all diverged": {"": "diverged"},
    "one length failed": {"": "success", "trainer.max_epochs=5": "failed"},
    "one method diverged": {"": "success", "gradient_clipping": "diverged"},
    "one method unfinished": {"": "success", "spectral_clipping": "unfinished"},
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("state", STATES)
def test_a_study_in_any_state_is_shown_or_refused_in_one_line(
    state: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "o" / "demo"
    runs.mkdir(parents=True)
    for name, value in (("gradient_clipping", 5), ("spectral_clipping", 0.2)):
        for rate in (0.5, 1.0):
            for epochs in (3, 5):
                run = config(DEMO, name, value, optimizer__lr=rate, trainer__max_epochs=epochs)
                called = f"{name} trainer.max_epochs={epochs}"
                status = [status for words, status in STATES[state].items() if words in called][-1]
                folder = write_run(tmp_path / "new", run, summary(status), steps(30), timing(2))
                folder.rename(runs / f"{folder.name},max_epochs={epochs}")
    out = ["--out", str(tmp_path / "out")] if command[0] != "table" else []
    out += ["--format", "png"] if command[0] == "figure" else []
    code = main([*command, "--experiment", "demo", "--runs", str(tmp_path / "o"), *out])
    told = capsys.readouterr()
    assert (code, told.err.count("\n")) in ((0, 0), (2, 1)), told.err
    assert "||" not in told.out, "a table without columns"
