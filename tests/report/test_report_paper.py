"""The tables kept in the repository are those that its collected runs give, byte for byte."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from gruclip.cli import main
from gruclip.report import collected, curves

PAPER = Path(__file__).parents[2] / "outputs" / "paper"

#: File and command of each table, a line of the README: | [table_2.md](table_2.md) | `gruclip table 2` |
KEPT = re.findall(r"^\| \[\S+\]\((\S+)\) +\| `gruclip (.+?)` +\|$", (PAPER / "README.md").read_text(), re.MULTILINE)


def test_every_table_that_is_kept_has_its_command_and_every_command_its_table() -> None:
    tables = {str(path.relative_to(PAPER)) for path in PAPER.rglob("table_*.*")}
    assert tables == {file for file, _ in KEPT}


def test_every_figure_that_is_kept_is_one_that_the_readme_names() -> None:
    named = re.findall(r"`(figure_\S+\.png)`", (PAPER / "README.md").read_text())
    assert sorted(named) == sorted(path.name for path in PAPER.glob("*.png"))


def test_a_kept_figure_is_what_its_command_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the pixel: a figure of another experiment in its place shows what no page says."""
    text = (PAPER / "README.md").read_text()
    commands = re.findall(r"`(figure_\S+\.png)`(?: is drawn)? by\s+`gruclip\s+(.+?)`", text, re.DOTALL)
    assert len(commands) == len(list(PAPER.glob("*.png")))
    shutil.copytree(PAPER, tmp_path / "outputs" / "paper")
    monkeypatch.chdir(tmp_path)
    for file, command in commands:
        (tmp_path / "outputs" / "paper" / file).unlink()
        assert main(shlex.split(command)) == 0
        drawn, kept = imread(tmp_path / "outputs" / "paper" / file), imread(PAPER / file)
        assert drawn.shape == kept.shape, file
        assert (drawn == kept).all(), file


def test_where_runs_are_kept_tables_are_kept() -> None:
    assert bool(KEPT) == any(PAPER.glob("*.csv"))


@pytest.mark.parametrize(("file", "command"), KEPT)
def test_a_kept_table_is_made_again_to_the_byte(
    file: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PAPER, tmp_path / "outputs" / "paper")  # as in a fresh clone: no runs beside them
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == (PAPER / file).read_text()


@pytest.mark.parametrize("table", ["1", "2", "lr"])
def test_a_fresh_clone_prints_the_kept_table_where_no_experiment_is_named(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PAPER, tmp_path / "outputs" / "paper")
    monkeypatch.chdir(tmp_path)
    assert main(["table", table]) == 0
    out, err = capsys.readouterr()
    assert out == (PAPER / f"table_{table}.md").read_text()
    assert err.startswith("gruclip: of demo, since there are no runs of ptb for it: ") == (table == "lr")


def test_a_fresh_clone_draws_every_figure_where_no_experiment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PAPER, tmp_path / "outputs" / "paper")
    monkeypatch.chdir(tmp_path)
    for figure in ("1", "2", "lr"):
        assert main(["figure", figure, "--format", "png"]) == 0
        path = capsys.readouterr().out.removeprefix(f"figure {figure}: ").strip()
        assert Path(path).name == f"figure_{figure}.png"
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_a_page_of_no_named_experiment_is_that_of_one_with_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs" / "paper").mkdir(parents=True)
    shutil.copy(PAPER / "jsb_chorales.csv", tmp_path / "outputs" / "paper")
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "jsb_chorales.html"
    assert (tmp_path / "jsb_chorales.html").exists()
    assert err.startswith("gruclip: of jsb_chorales, since there are no runs of ptb for it: ")


def test_an_experiment_that_is_named_is_the_only_one_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PAPER, tmp_path / "outputs" / "paper")
    monkeypatch.chdir(tmp_path)
    for command in (["table", "lr"], ["figure", "lr"]):
        assert main([*command, "--experiment", "nottingham"]) == 2
        assert "the only rate among these" in capsys.readouterr().err


@pytest.mark.parametrize("page", sorted(PAPER.glob("*.html")), ids=lambda page: page.stem)
def test_a_kept_page_is_made_again_but_for_how_its_figures_are_drawn(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, pictures aside: these depend on the machine's fonts."""
    shutil.copytree(PAPER, tmp_path / "outputs" / "paper")
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "made.html"
    assert main(["report", "--experiment", page.stem, "--runs", "outputs/paper", "--out", str(made)]) == 0

    def without_pictures(html: Path) -> str:
        text, pictures = re.subn(r"base64,[A-Za-z0-9+/=]+", "", html.read_text())
        return f"{pictures} pictures\n{text}"

    assert without_pictures(made) == without_pictures(page)


def test_every_kept_file_is_one_that_collect_writes() -> None:
    for path in (*PAPER.glob("*.csv"), *PAPER.glob("*/*.csv")):
        assert collected.text(line for _, line in collected.read(path)) == path.read_text(), path
    for kind, most in curves.MAX_BYTES.items():
        assert sum(path.stat().st_size for path in PAPER.rglob(f"curves/*.{kind}.csv.gz")) <= most


@pytest.mark.parametrize("table", ["1", "2", "lr", "differences", "explosions", "cost"])
def test_a_table_is_printed_without_importing_torch(table: str) -> None:
    """Whose import takes longer than ten thousand folders that were read before."""
    arguments = ["table", table, "--runs", str(PAPER), *(["--experiment", "demo"] if table not in "12" else [])]
    command = f"import sys; sys.modules['torch'] = None; from gruclip.cli import main; sys.exit(main({arguments}))"
    printed = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("**")


def test_what_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a file"
    file.write_text("kept")
    assert main(["collect", "--runs", str(PAPER), "--experiment", "ptb", "--out", str(file)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{file}" in line
    assert "cannot be written (Not a directory); mend that, and start the same command again" in line
    assert file.read_text() == "kept"
